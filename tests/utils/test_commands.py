"""Command lines in messages."""

import os

import pytest

from aid.data import register_from_file
from aid.utils import commands


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(commands, "REGISTERED", files := [])
    monkeypatch.setattr("aid.data.register.REGISTERED", files)
    return files


def test_command_has_the_options_of_this_process(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    assert commands.train_command("a.yaml", "cuda") == "python train_net.py --config-file a.yaml"
    path = tmp_path / "my register.py"
    path.write_text("")
    for _ in range(2):
        register_from_file(str(path))
    assert commands.train_command("a.yaml", "cpu", "b.py") == (
        f"python b.py --config-file a.yaml --register '{path}' --num-gpus 0"
    )


def test_script_is_named_by_a_path_that_is_valid_here(repository, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    script = "tools/report.py"
    for folder, expected in (
        (repository, script),
        (os.path.join(repository, "tools"), "report.py"),
        (os.path.join(repository, "docs"), os.path.join(repository, script)),
        (here, os.path.join(repository, script)),
    ):
        monkeypatch.chdir(folder)
        assert commands.script_path(script) == expected
    here.rmdir()
    monkeypatch.setattr(os, "getcwd", lambda: os.stat(here))  # as in a folder that was removed
    assert commands.script_path(script) == os.path.join(repository, script)
    monkeypatch.setattr(commands, "REPOSITORY", tmp_path)
    assert commands.script_path(script) == script


def test_file_that_fails_is_not_in_the_command(tmp_path, registered):
    (tmp_path / "own.py").write_text("1 / 0")
    with pytest.raises(Exception, match="division by zero"):
        register_from_file(str(tmp_path / "own.py"))
    assert registered == []

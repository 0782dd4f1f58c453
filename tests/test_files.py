"""Atomic writing of files, and errors of writing."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aid.utils.errors import AIDError, main_with_clear_errors
from aid.utils.files import clear_write_errors, remove_parts, whole_file
from aid_tools.files import output_folder, write_json


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a"
    with whole_file(str(path)) as f:
        f.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file(error, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(str(path)) as f:
        f.write(b"ne")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    script = (
        "import os, signal\nfrom aid.utils.files import whole_file\n"
        f"with whole_file({str(tmp_path / 'a.pth')!r}) as f:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -9
    (tmp_path / "b.pth").touch()
    (tmp_path / "notes.tmp").touch()
    assert sorted(os.listdir(tmp_path)) == ["a.pth.tmp", "b.pth", "notes.tmp"]
    remove_parts(str(tmp_path), "*.pth", "last_checkpoint")
    assert sorted(os.listdir(tmp_path)) == ["b.pth", "notes.tmp"]


def test_error_in_the_folder_is_one_line(tmp_path):
    folder = str(tmp_path / "out")
    named = PermissionError(errno.EACCES, "Permission denied", f"{folder}/log.txt")
    directory = IsADirectoryError(errno.EISDIR, "Is a directory", f"{folder}/log.txt")
    for error, message in (
        (directory, f"{folder}/log.txt is a folder"),
        (named, "Permission denied"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
    ):
        with (
            pytest.raises(
                AIDError, match=f"OUTPUT_DIR .*out cannot be written: {message}; make room"
            ),
            clear_write_errors(folder),
        ):
            raise error


def test_other_errors_are_unchanged(tmp_path):
    folder = str(tmp_path / "out")
    elsewhere = PermissionError(errno.EACCES, "Permission denied", f"{folder}_2/image.png")
    full = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/block")
    others = (OSError(errno.EIO, "Input/output error"), AIDError("x"), KeyError())
    for error in (elsewhere, full, *others):
        with pytest.raises(type(error)) as caught, clear_write_errors(folder):
            raise error
        assert caught.value is error


def test_handled_write_error_is_not_reported(tmp_path):
    with pytest.raises(KeyError), clear_write_errors(str(tmp_path)):
        try:
            (tmp_path / "cache").read_text()
        except FileNotFoundError:
            _ = {}["bug"]


def test_unwritable_output_folder_is_reported(tmp_path):
    folder = str(tmp_path / "deep/out")
    full = OSError(errno.ENOSPC, "No space left on device", os.path.join(folder, "model.onnx"))
    with (
        pytest.raises(AIDError, match=f"--output {folder} cannot be written: No space left"),
        output_folder(folder),
    ):
        assert os.path.isdir(folder)
        raise full
    elsewhere = FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere/weights")
    with pytest.raises(FileNotFoundError), output_folder(folder):
        raise elsewhere


def test_folder_in_place_of_a_file_is_a_one_line_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main_with_clear_errors(open)(tmp_path)
    assert stopped.value.code == 2
    line = f"error: {tmp_path} is a folder, where a file belongs: remove it, or name a file\n"
    assert capsys.readouterr().err == line


def test_json_file_is_replaced_atomically(tmp_path, file_limit):
    path = str(tmp_path / "a.json")
    write_json(path, {"a": [1, None]}, "--json")
    assert json.loads(Path(path).read_text()) == {"a": [1, None]}
    with (
        pytest.raises(AIDError, match=f"^--json {path} cannot be written: File too large$"),
        file_limit(100),
    ):
        write_json(path, list(range(1000)), "--json")
    assert json.loads(Path(path).read_text()) == {"a": [1, None]}
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(AIDError, match=f"^{tmp_path}/gone/a.json cannot be written: No such file"):
        write_json(f"{tmp_path}/gone/a.json", {})


def test_json_has_null_for_numbers_that_it_lacks(tmp_path):
    path = str(tmp_path / "a.json")
    write_json(path, {"AP": math.nan, "parts": [(np.float64("nan"), 1.5), {"D": -math.inf}]})
    assert json.loads(Path(path).read_text(), parse_constant=pytest.fail) == {
        "AP": None,
        "parts": [[None, 1.5], {"D": None}],
    }


def test_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, [7])
    assert json.loads(os.read(reader, 100)) == [7]
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]


def test_tools_write_files_only_by_the_helpers(repository):
    """Other writes leave a partial file or a traceback if the disk is full."""
    writes = re.compile(r"""open\(.*["'][wax]b?["']|json\.dump\(""")
    allowed = {"memory.py", "victim.py", "runner.py", "load_test.py"}  # /proc, and stdout.txt
    paths = [*Path(repository, "tools").glob("*.py")]
    package = Path(repository, "projects/AID/aid_tools")
    paths += set(package.rglob("*.py")) - {package / "files.py"}
    assert len(paths) > 50
    assert {x.name for x in paths if writes.search(x.read_text())} == allowed

"""Folders of labels in all formats, and their conversion."""

import pytest


@pytest.fixture(scope="session")
def layouts(load_script):
    """The module that writes folders of labels."""
    return load_script("tests/own_data/layouts.py")


@pytest.fixture
def labels(layouts, tmp_path):
    """A function (format) -> folder of labels."""

    def write(name: str):
        layouts.WRITERS[name](tmp_path / "labels")
        return tmp_path / "labels"

    return write


@pytest.fixture
def convert_dataset(load_script, tmp_path, capsys):
    """A function (arguments) -> (exit code, error line or output); writes tmp_path/converted."""
    main = load_script("tools/convert_dataset.py").main

    def run(*args) -> tuple[int, str]:
        try:
            main([*map(str, args), "--output", str(tmp_path / "converted")])
        except SystemExit as end:
            lines = capsys.readouterr().err.splitlines()
            return end.code, "\n".join(x for x in lines if x.startswith("error: "))
        return 0, capsys.readouterr().out

    return run

"""Files of --register: imports, and errors in them."""

import sys

import pytest
from detectron2.data import DatasetCatalog

from aid.data import register_from_file
from aid.utils.errors import AIDError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function (text, name) -> path of a Python file."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def make(text: str, name: str = "own.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


def error_of(path: str) -> str:
    with pytest.raises(AIDError) as raised:
        register_from_file(path)
    return str(raised.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ny = x.z\n", ", line 2: AttributeError: 'int' object has no attribute 'z'"),
        ("x = 1\n\nif x\n", ", line 3: SyntaxError: expected ':'"),
        ("def f():\n    raise ValueError\n\nf()\n", ", line 2: ValueError"),
        ("import sys\nsys.exit('done')\n", ", line 2: SystemExit: done"),
        ("import no_such_module_of_mine\n", ", line 1: ModuleNotFoundError: No module named"),
        ("from aid.utils.errors import AIDError\nraise AIDError('no')\n", ", line 2: no"),
        ("x = '\0'\n", "source code string cannot contain null bytes"),
    ],
)
def test_error_in_the_file_is_one_line_with_its_line_number(text, message, write):
    path = write(text)
    actual = error_of(path)
    assert actual.startswith(f"--register {path}") and message in actual


def test_name_registered_by_two_files_is_refused(write):
    text = "from detectron2.data import DatasetCatalog\n"
    text += "DatasetCatalog.register('of_two_files', lambda: [])\n"
    first, second = write(text), write(text, "again.py")
    try:
        register_from_file(first)
        register_from_file(first)  # runs once
        assert "again.py, line 2: Dataset 'of_two_files' is already" in error_of(second)
    finally:
        DatasetCatalog.remove("of_two_files")


def test_module_beside_the_file_can_be_imported(write, tmp_path):
    write("NAME = 'of_a_module_beside'\n", "module_beside_the_file.py")
    path = write(
        "from detectron2.data import DatasetCatalog\n"
        "from module_beside_the_file import NAME\n"
        "DatasetCatalog.register(NAME, lambda: [])\n"
    )
    try:
        register_from_file(path)
        assert DatasetCatalog.get("of_a_module_beside") == []
        assert sys.path[-1] == str(tmp_path)
    finally:
        DatasetCatalog.pop("of_a_module_beside", None)
        sys.modules.pop("module_beside_the_file", None)

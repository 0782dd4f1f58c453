"""Output files of the tools: clear errors, and JSON."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from aid.utils.errors import AIDError
from aid.utils.files import cannot_write, check_folder_name, json_text, reason, whole_file

__all__ = ["check_empty", "check_outside", "clear_file_errors", "output_folder", "write_json"]


def write_json(path: str, content: object, option: str = "") -> None:
    """Write a JSON file atomically, or to a device such as /dev/stdout.

    Args:
        path: path of the file.
        content: see :func:`~aid.utils.files.json_text`.
        option: see :func:`clear_file_errors`.

    Raises:
        AIDError: the file cannot be written.
    """
    is_device = os.path.exists(path) and not os.path.isfile(path)
    with clear_file_errors(path, option), open(path, "wb") if is_device else whole_file(path) as f:
        f.write(json_text(content, indent=1).encode())


@contextmanager
def clear_file_errors(path: str, option: str = "") -> Iterator[None]:
    """Convert errors of writing a file to an AIDError.

    Args:
        path: path of the file.
        option: command line option that names the file, for the message.

    Raises:
        AIDError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        where = f"{option} {path}".lstrip()
        raise AIDError(f"{where} cannot be written: {reason(error)}") from error


@contextmanager
def output_folder(folder: str) -> Iterator[None]:
    """Create the folder of a tool's ``--output``, and convert write errors to an AIDError.

    Raises:
        AIDError: the folder cannot be created or written.
    """
    check_folder_name("--output", folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise AIDError(f"--output {folder} cannot be made: {error.strerror}") from error
    try:
        yield
    except OSError as error:
        cause = cannot_write(error, folder)
        if cause is None:
            raise
        raise AIDError(f"--output {folder} cannot be written: {cause.strerror}") from error


def check_empty(folder: str) -> None:
    """Check that the folder of a tool's ``--output`` is empty.

    Raises:
        AIDError: it is not.
    """
    if os.listdir(folder):
        raise AIDError(
            f"--output {folder} is not empty: choose a new folder, so that results of different "
            "calls are not mixed"
        )


def check_outside(output: str, *inputs: str) -> None:
    """Check that a later call will not read what this one writes.

    Args:
        output: output folder.
        inputs: paths that are read.

    Raises:
        AIDError: the output folder is inside of one of them.
    """
    target = os.path.realpath(output) + os.sep
    for folder in filter(os.path.isdir, inputs):
        if target.startswith(os.path.realpath(folder) + os.sep):
            raise AIDError(f"--output {output} is inside of {folder}: choose a folder beside it")

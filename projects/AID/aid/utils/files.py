"""Files that are there whole or not at all, and what is said of a folder that takes none."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import AIDError

__all__ = [
    "PART",
    "cannot_write",
    "clear_write_errors",
    "output_folder",
    "remove_parts",
    "whole_file",
]

# Ends the name of a file that is not complete.
PART = ".tmp"
# What only a write raises.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# What a folder without rights raises, or one that is gone; files elsewhere raise it too.
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write that gets its name when it is complete.

    Whenever the process dies, ``path`` is what it was before, or complete. For that alone the new
    name would do; the content is also forced to the disk first, so that a machine that dies does
    not keep the name and lose the content. A write that fails leaves nothing behind, a process that
    is killed leaves ``path.tmp``, see :func:`remove_parts`.
    """
    part = path + PART
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise


def remove_parts(folder: str, *names: str) -> None:
    """Remove what processes left that were killed in a :func:`whole_file`.

    Args:
        folder: where to look.
        names: of the files that are written there, as patterns.
    """
    for name in names:
        for part in Path(folder).glob(name + PART):
            part.unlink(missing_ok=True)


@contextmanager
def clear_write_errors(folder: str) -> Iterator[None]:
    """Turn what a full disk or a folder that may not be written raises into one line.

    Args:
        folder: OUTPUT_DIR of the run.

    Raises:
        AIDError: in place of those errors.
    """
    try:
        yield
    except AIDError:
        raise
    except Exception as error:  # torch.save has one of its own for a full disk
        cause = cannot_write(error, folder)
        if cause is None:
            raise
        raise AIDError(
            f"OUTPUT_DIR {folder} cannot be written: {cause.strerror}; make room there, or choose "
            "another one; finished checkpoints are as they were, --resume goes on from the last"
        ) from error


@contextmanager
def output_folder(folder: str) -> Iterator[None]:
    """Make the folder that a tool's ``--output`` names; while it is written to, say what fails.

    Raises:
        AIDError: it cannot be made, or not be written.
    """
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


def cannot_write(error: BaseException | None, folder: str) -> OSError | None:
    """The error behind ``error`` by which ``folder`` cannot be written, if there is one.

    Of errors that were being handled when another one came, only a lack of room counts:
    ``torch.save`` raises an error of its own over that of the file.
    """
    inside = os.path.abspath(folder) + os.sep
    kinds = (*NO_ROOM, *NO_RIGHT)
    while error is not None:
        if isinstance(error, OSError) and error.errno in kinds:
            named = isinstance(error.filename, str) and os.path.abspath(error.filename)
            if named.startswith(inside) if named else error.errno in NO_ROOM:
                return error
        if error.__cause__ is None:
            kinds = NO_ROOM
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None

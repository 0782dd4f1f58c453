"""Atomic file writes, locks of folders, and clear errors for those that cannot be written."""

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import AIDError

__all__ = [
    "PART",
    "cannot_write",
    "check_folder_name",
    "check_writable",
    "clear_write_errors",
    "files_below",
    "json_text",
    "lock_folder",
    "reason",
    "remove_parts",
    "whole_file",
    "write_text",
]

# Suffix of an incomplete file.
PART = ".tmp"
# Errors that only a write raises.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Errors of a folder without permissions or that was removed, or of one in a file's place; reading
# other files raises them too.
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)

# {folder: descriptor} of the folders that this process has locked, until it ends.
_locked: dict[str, int] = {}


@contextmanager
def whole_file(path: str, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` only when it is written completely.

    If the process is killed at any time, ``path`` is either unchanged or complete. The content is
    synchronized to disk before the file is renamed, which extends this to a crash of the machine.
    A failed write leaves nothing behind; a killed process leaves ``path.tmp``, see
    :func:`remove_parts`.

    Args:
        path: path of the file.
        sync: whether to wait for the disk; False for one of many small files.
    """
    part = path + PART
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            if sync:
                os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise


def write_text(path: str, text: str) -> None:
    """Write a whole text file in UTF-8, see :func:`whole_file`."""
    with whole_file(path) as f:
        f.write(text.encode())


def json_text(content: object, **options: Any) -> str:
    """Text in JSON, which has no NaN and no infinity: these become null.

    Args:
        content: dicts, lists, strings and numbers.
        options: of :func:`json.dumps`.
    """
    return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(content: object) -> object:
    match content:
        case dict():
            return {key: _finite(value) for key, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
        case float() if not math.isfinite(content):
            return None
    return content


def files_below(root: str) -> list[str]:
    """Sorted paths of all files in a folder and its subfolders, except hidden ones.

    Links out of the folder are followed; no folder is read twice.
    """
    paths, seen, inside = [], set(), os.path.join(os.path.realpath(root), "")
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        leads_back = folder != root and os.path.islink(folder) and real.startswith(inside)
        if leads_back or real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [x for x in below if not x.startswith(".")]
        paths += [os.path.join(folder, x) for x in names if not x.startswith(".")]
    return sorted(paths)


def remove_parts(folder: str, *names: str) -> None:
    """Remove the incomplete files of processes that were killed in :func:`whole_file`.

    Args:
        folder: that contains them.
        names: glob patterns of the complete files' names.
    """
    for name in names:
        for part in Path(folder).glob(name + PART):
            part.unlink(missing_ok=True)


@contextmanager
def clear_write_errors(folder: str) -> Iterator[None]:
    """Convert errors of a full disk or a folder without write permission to an AIDError.

    Args:
        folder: OUTPUT_DIR of the run.

    Raises:
        AIDError: the folder cannot be written.
    """
    try:
        yield
    except AIDError:
        raise
    except Exception as error:  # torch.save raises a RuntimeError if the disk is full
        cause = cannot_write(error, folder)
        if cause is None:
            raise
        raise AIDError(
            f"OUTPUT_DIR {folder} cannot be written: {reason(cause)}; make room there, or choose "
            "another one; finished checkpoints are as they were, --resume goes on from the last"
        ) from error


def check_folder_name(key: str, folder: str) -> None:
    """Check that a folder to write to has a name that every library can handle.

    Args:
        key: config key or option of the folder.
        folder: its path.

    Raises:
        AIDError: the name is a URL, is not UTF-8, or contains a null character.
    """
    if "://" in folder:
        raise AIDError(f"{key} {folder} is a URL: name a folder of this machine")
    try:
        folder.encode()
    except UnicodeEncodeError:
        raise AIDError(f"{key} {folder} is not UTF-8: choose another name") from None
    if "\0" in folder:
        raise AIDError(f"{key} {folder} contains a null character: choose another name")


def check_writable(path: str) -> None:
    """Check that a file can be written, before a long measurement; creates its folder.

    Args:
        path: path of the file.

    Raises:
        AIDError: it cannot be written.
    """
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise AIDError(f"{path} cannot be written: {error.strerror}") from error
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise AIDError(f"{path} cannot be written: it is a folder or write-protected")


def reason(error: OSError) -> str:
    """Description of an error, with the path of a folder that stands in a file's place."""
    path = error.filename2 or error.filename
    return f"{path} is a folder" if error.errno == errno.EISDIR else str(error.strerror)


def cannot_write(error: BaseException | None, folder: str) -> OSError | None:
    """Find the error in the chain of ``error`` that shows that ``folder`` cannot be written.

    Of implicitly chained errors (``__context__``) only those of a full or read-only disk count:
    ``torch.save`` replaces such an error by one of its own.

    Returns:
        The error, or None.
    """
    inside = os.path.abspath(folder) + os.sep
    codes = (*NO_ROOM, *NO_RIGHT)
    while error is not None:
        if isinstance(error, OSError) and error.errno in codes:
            named = isinstance(error.filename, str) and os.path.abspath(error.filename)
            if named.startswith(inside) if named else error.errno in NO_ROOM:
                return error
        if error.__cause__ is None:
            codes = NO_ROOM
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def lock_folder(folder: str) -> None:
    """Keep other runs out of a folder until this process ends, where the file system has locks.

    Args:
        folder: OUTPUT_DIR of the run, which exists.

    Raises:
        AIDError: another run is using it.
    """
    path = os.path.realpath(folder)
    if path in _locked:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise AIDError(
                f"OUTPUT_DIR {folder} is in use by another run: wait for it, stop it, or choose "
                "another folder"
            ) from error
    else:
        _locked[path] = descriptor


def _release() -> None:
    """Close the descriptors of a forked worker, which would hold the locks of a killed run."""
    while _locked:
        os.close(_locked.popitem()[1])


os.register_at_fork(after_in_child=_release)

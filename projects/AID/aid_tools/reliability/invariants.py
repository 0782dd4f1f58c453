"""Invariants of an output folder after its process was killed."""

import os

import torch

from aid.checkpoint import load_file
from aid.utils.files import PART

__all__ = [
    "BrokenPromise",
    "check_folder",
    "compare_folders",
    "finished",
    "first_difference",
    "next_iteration",
]


class BrokenPromise(Exception):
    """Violation of an invariant; the message is one line."""

    def __init__(self, kind: str, message: str):
        """
        Args:
            kind: "unreadable", "lost", "unequal" or "other".
            message: description, with the place of the violation.
        """
        super().__init__(message)
        self.kind = kind


def finished(folder: str) -> list[str]:
    """Names of the complete checkpoints in a folder, oldest first."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth"))


def check_folder(folder: str, seen: set[str]) -> None:
    """Check the output folder of a killed process.

    Args:
        folder: the output folder.
        seen: names of the checkpoints that were complete before.

    Raises:
        BrokenPromise: a checkpoint cannot be read or has disappeared, or ``last_checkpoint`` names
            neither the last checkpoint nor the one before, which is valid if the process was
            killed between writing the two files.
    """
    names = finished(folder)
    for name in names:
        load(os.path.join(folder, name))
    lost = sorted(seen.difference(names))
    if lost:
        raise BrokenPromise("lost", f"{folder}: {', '.join(lost)} disappeared")
    last = os.path.join(folder, "last_checkpoint")
    if not os.path.exists(last):
        if len(names) > 1:
            raise BrokenPromise("lost", f"{last} does not exist beside {len(names)} checkpoints")
        return
    with open(last) as f:
        named = f.read()
    if named not in names[-2:]:
        raise BrokenPromise("lost", f"{last} names {named!r} where {names[-2:]} are the last")


def next_iteration(folder: str) -> int:
    """Iteration from which a resumed run in this folder has to start."""
    last = os.path.join(folder, "last_checkpoint")
    if not os.path.exists(last):
        return 0
    with open(last) as f:
        return load(os.path.join(folder, f.read()))["iteration"] + 1


def compare_folders(whole: str, killed: str) -> int:
    """Compare the checkpoints of two runs bit by bit: model, adapters, optimizer, schedule.

    Returns:
        Number of compared checkpoints.

    Raises:
        BrokenPromise: a checkpoint is missing or differs, or a partial file remains.
    """
    names = finished(whole)
    if finished(killed) != names:
        raise BrokenPromise("lost", f"{killed} holds {finished(killed)}, {whole} {names}")
    parts = [name for name in os.listdir(killed) if name.endswith(PART)]
    if parts:
        raise BrokenPromise("other", f"{killed}: {', '.join(parts)} was never removed")
    for name in names:
        place = first_difference(*(load(os.path.join(f, name)) for f in (whole, killed)))
        if place is not None:
            raise BrokenPromise("unequal", f"{name} of {killed} differs from {whole} in {place}")
    return len(names)


def load(path: str) -> dict:
    """Read a checkpoint.

    Raises:
        BrokenPromise: the file cannot be read.
    """
    try:
        return load_file(path)
    except Exception as error:  # unpickling a damaged file can raise any exception
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise BrokenPromise("unreadable", f"{path} cannot be read: {reason}") from error


def first_difference(a: object, b: object, place: str = "") -> str | None:
    """Path of the first difference of two checkpoints, such as "model.backbone.weight", or None."""
    if type(a) is not type(b):
        return place
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
        return None if same else place
    if isinstance(a, dict):
        unmatched = sorted(map(str, a.keys() ^ b.keys()))
        if unmatched:
            return f"{place}.{unmatched[0]}".lstrip(".")
        pairs = [(key, value, b[key]) for key, value in a.items()]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return place
        pairs = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if repr(a) == repr(b) else place
    places = (first_difference(x, y, f"{place}.{key}".lstrip(".")) for key, x, y in pairs)
    return next((place for place in places if place is not None), None)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()

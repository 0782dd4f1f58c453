"""What has to hold of an output folder whenever its process dies."""

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
    """What was to hold and did not, in one line."""

    def __init__(self, kind: str, message: str):
        """
        Args:
            kind: "unreadable", "lost", "unequal" or "other".
            message: says where.
        """
        super().__init__(message)
        self.kind = kind


def finished(folder: str) -> list[str]:
    """Names of the checkpoints in a folder, oldest first."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth"))


def check_folder(folder: str, seen: set[str]) -> None:
    """Look at what a killed process left.

    Args:
        folder: the output folder.
        seen: names of the checkpoints that were finished before.

    Raises:
        BrokenPromise: a checkpoint cannot be read or has disappeared, or ``last_checkpoint`` does
            not name the last, or the last but one if the process died between the two.
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
    """The iteration from which a run in this folder has to go on."""
    last = os.path.join(folder, "last_checkpoint")
    if not os.path.exists(last):
        return 0
    with open(last) as f:
        return load(os.path.join(folder, f.read()))["iteration"] + 1


def compare_folders(whole: str, killed: str) -> int:
    """Compare all that the checkpoints of two runs hold: model, adapters, optimizer, schedule.

    Returns:
        The number of checkpoints, which is the same.

    Raises:
        BrokenPromise: a checkpoint is missing or differs in a bit, or a part of one was left.
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
        BrokenPromise: it cannot be read.
    """
    try:
        return load_file(path)
    except Exception as error:  # unpickling what is no pickle raises anything
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise BrokenPromise("unreadable", f"{path} cannot be read: {reason}") from error


def first_difference(a: object, b: object, place: str = "") -> str | None:
    """Where two contents of checkpoints differ, such as "model.backbone.weight"; None: nowhere."""
    if type(a) is not type(b):
        return place
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
        return None if same else place
    if isinstance(a, dict):
        odd = sorted(map(str, a.keys() ^ b.keys()))
        if odd:
            return f"{place}.{odd[0]}".lstrip(".")
        pairs = [(key, value, b[key]) for key, value in a.items()]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return place
        pairs = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if repr(a) == repr(b) else place
    found = (first_difference(x, y, f"{place}.{key}".lstrip(".")) for key, x, y in pairs)
    return next((place for place in found if place is not None), None)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()

"""What a process says when it loses the others of its run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from detectron2.utils import comm

from ..utils.errors import AIDError

__all__ = ["clear_connection_errors", "is_lost_connection", "not_joined"]

# Gloo has no class of errors of its own, and begins its messages with the file they come from.
GLOO = re.compile(r"/gloo/.*(peer|connect|timed out)", re.IGNORECASE)


def is_lost_connection(error: BaseException) -> bool:
    """Whether processes could not talk to each other: one has ended, hangs or cannot be reached."""
    if isinstance(error, dist.DistError):  # of NCCL, and of the store where processes meet
        return True
    return isinstance(error, RuntimeError) and GLOO.search(str(error)) is not None


@contextmanager
def clear_connection_errors() -> Iterator[None]:
    """Turn the errors of a process that was left alone into one line.

    Raises:
        AIDError: in place of those errors.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        if not dist.is_initialized():
            raise not_joined(str(error)) from error
        raise AIDError(
            f"process {comm.get_rank()} of {comm.get_world_size()} lost the others "
            f"({_reason(str(error))}): one of them ended, or hangs; its own output says why, and "
            "--resume goes on from the last checkpoint"
        ) from error


def not_joined(message: str) -> AIDError:
    """The error of a run whose processes do not meet, by what torch says of it."""
    return AIDError(
        f"the processes of the run did not find each other ({_reason(message)}): start all of "
        "them, with the same address and port of the first machine, within --timeout"
    )


def _reason(message: str) -> str:
    """Without places in torch's source, and general advice after it."""
    return re.sub(r"\[[^\]\s]+\] ", "", message).splitlines()[0].split(". ")[0].rstrip(".")

"""Clear errors for lost connections between the processes of a run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from detectron2.utils import comm

from ..utils.errors import AIDError

__all__ = ["clear_connection_errors", "is_lost_connection", "not_joined"]

# Gloo has no exception class of its own; its messages start with the path of the source file.
GLOO = re.compile(r"/gloo/.*(peer|connect|timed out)", re.IGNORECASE)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error means that another process has ended, hangs or cannot be reached."""
    if isinstance(error, dist.DistError):  # of NCCL, and of the store for rendezvous
        return True
    return isinstance(error, RuntimeError) and GLOO.search(str(error)) is not None


@contextmanager
def clear_connection_errors() -> Iterator[None]:
    """Convert errors of lost connections to an AIDError.

    Raises:
        AIDError: the connection to other processes was lost or could not be established.
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
    """Create the error of a failed rendezvous from the message of PyTorch."""
    return AIDError(
        f"the processes of the run did not find each other ({_reason(message)}): start all of "
        "them, with the same address and port of the first machine, within --timeout"
    )


def _reason(message: str) -> str:
    """First sentence of a message of PyTorch, without source locations."""
    return re.sub(r"\[[^\]\s]+\] ", "", message).splitlines()[0].split(". ")[0].rstrip(".")

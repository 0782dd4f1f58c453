"""Clear errors for lost processes and workers of a run, and for values that it cannot use."""

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import clear_value_errors
from ..utils.errors import AIDError
from ..utils.files import cannot_write

__all__ = [
    "clear_connection_errors",
    "clear_run_errors",
    "is_lost_connection",
    "not_joined",
    "without_known_tracebacks",
]

# Gloo has no exception class of its own; its messages start with the path of the source file.
GLOO = re.compile(r"/gloo/.*(peer|connect|timed out)", re.IGNORECASE)

# Messages of PyTorch for a worker process of a data loader that is gone.
WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by|exited)(.*)")


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error means that another process has ended, hangs or cannot be reached."""
    if isinstance(error, dist.DistError):  # of NCCL, and of the store for rendezvous
        return True
    return isinstance(error, RuntimeError) and GLOO.search(str(error)) is not None


def _is_lost_worker(error: BaseException | None) -> bool:
    """Whether an error means that a worker process of a data loader was killed."""
    return isinstance(error, RuntimeError) and WORKER.search(str(error)) is not None


@contextmanager
def clear_connection_errors() -> Iterator[None]:
    """Convert errors of lost connections and workers to an AIDError.

    Raises:
        AIDError: the connection to other processes was lost or could not be established, or a
            worker of a data loader was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if lost := WORKER.search(str(error)):
            signal = re.search(r"signal: ([^.]+)", lost[2])
            how = f"by signal {signal[1].strip()}" if signal else "unexpectedly"
            raise AIDError(
                f"a worker of the data loader (process {lost[1]}) ended {how} (a killed one often "
                "means that memory ran out: lower DATALOADER.NUM_WORKERS, or provide more shared "
                "memory); --resume goes on from the last checkpoint"
            ) from error
        if not is_lost_connection(error):
            raise
        if not dist.is_initialized():
            raise not_joined(str(error)) from error
        raise AIDError(
            f"process {comm.get_rank()} of {comm.get_world_size()} lost the others "
            f"({_reason(str(error))}): one of them ended, or hangs; its own output and its log "
            "in OUTPUT_DIR (log.txt, log.txt.rank1 and so on) say why, and --resume goes on from "
            "the last checkpoint"
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


def clear_run_errors(cfg: CfgNode) -> AbstractContextManager:
    """:func:`clear_value_errors` for a run, except for errors of processes and disks."""

    def is_other(error: Exception) -> bool:
        lost = is_lost_connection(error) or _is_lost_worker(error)
        return lost or cannot_write(error, cfg.OUTPUT_DIR) is not None

    return clear_value_errors(cfg, is_other)


@contextmanager
def without_known_tracebacks(folder: str) -> Iterator[None]:
    """Suppress Detectron2's log of tracebacks for errors that are reported in one line.

    Args:
        folder: output folder of the run.
    """
    logger = logging.getLogger("detectron2.engine.train_loop")

    def is_wanted(record: logging.LogRecord) -> bool:
        error = record.exc_info and record.exc_info[1]
        known = isinstance(error, AIDError | FloatingPointError) or _is_lost_worker(error)
        return not (known or is_lost_connection(error) or cannot_write(error, folder))

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)

"""Peak memory of a case, measured in a separate process."""

import gc
import os
import re
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from tqdm import tqdm

from aid.utils.errors import AIDError, main_with_clear_errors
from aid.utils.malloc import return_freed_memory

from .cases import make_case
from .inputs import random_batch
from .nets import Nets
from .settings import Settings
from .timing import as_in_training, run_once

__all__ = ["can_measure", "measure_memory"]

STATUS, CLEAR = "/proc/self/status", "/proc/self/clear_refs"


def can_measure(device: torch.device) -> bool:
    """Whether peak memory can be measured: on a GPU, and on the CPU under Linux."""
    return device.type == "cuda" or os.access(CLEAR, os.W_OK)


def measure_memory(
    settings: Settings, teacher_weights: str, names: tuple[str, ...]
) -> dict[str, int]:
    """Measure the peak memory of each case: weights, gradients, optimizer state and activations.

    On a GPU this is the memory allocated by torch, on the CPU the resident memory. It is the
    maximum during the run of the case, without its preparation, minus the memory that remains after
    the networks are freed; so Python and libraries are excluded.

    Args:
        settings: settings of the measurement.
        teacher_weights: file of :func:`~aid_tools.benchmark.nets.write_teacher_weights`.
        names: names of the cases.

    Returns:
        {case: bytes}.

    Raises:
        AIDError: a process failed, for example by lack of memory.
    """
    # Spawned, since a forked process would inherit memory and threads of this one.
    context = get_context("spawn")
    peaks = {}
    for name in tqdm(names, unit="case", desc="Memory"):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(settings, teacher_weights, name, sender))
        process.start()
        sender.close()
        try:
            peaks[name] = receiver.recv()
        except EOFError:
            process.join()
            raise AIDError(
                f"the process that measured the memory of {name} ended with code "
                f"{process.exitcode}: see the error above, or choose a smaller --size or --batch"
            ) from None
        process.join()
    return peaks


@main_with_clear_errors
def _send(settings: Settings, teacher_weights: str, name: str, pipe: Connection) -> None:
    # Freed memory must not be counted, nor depend on the order of the calls.
    return_freed_memory()
    cfg = settings.apply()
    cfg.TEACHER.WEIGHTS = teacher_weights
    device = torch.device(cfg.MODEL.DEVICE)
    batch = random_batch(settings, cfg)
    with as_in_training(device):
        peak = _peak(name, Nets(cfg, batch[:1]), batch, settings.seed)
    gc.collect()
    return_freed_memory()
    left = torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")
    pipe.send(peak - left)


def _peak(name: str, nets: Nets, batch: list[dict], seed: int) -> int:
    case = make_case(name, nets, batch)
    gc.collect()
    if nets.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(nets.device)
        run_once(case, nets.device, seed)
        return torch.cuda.max_memory_allocated(nets.device)
    with open(CLEAR, "w") as f:
        f.write("5")  # reset VmHWM
    run_once(case, nets.device, seed)
    return _resident("VmHWM")


def _resident(key: str) -> int:
    """VmRSS (current) or VmHWM (peak) of this process, in bytes."""
    with open(STATUS) as f:
        return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", f.read(), re.MULTILINE)[1])

"""Estimate of the time, memory and disk space of a run, from measurements of a few steps."""

import math
import os
import shutil
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from detectron2.config import CfgNode

from ..modeling.meta_arch import plain_architecture
from ..utils.text import counted

__all__ = ["Evaluation", "Found", "existing_parent", "summarize"]


@dataclass
class Evaluation:
    """Duration of the evaluation of a test set.

    Attributes:
        dataset: name of the test set.
        images: number of images for one process.
        per_image: seconds per image.
        besides: seconds for the rest, such as the metric.
    """

    dataset: str
    images: int
    per_image: float
    besides: float

    @property
    def seconds(self) -> float:
        return self.images * self.per_image + self.besides


@dataclass
class Found:
    """Measurements of one process.

    Peak memory is the memory allocated by PyTorch on a GPU, or the resident memory on the CPU.

    Attributes:
        start: iteration at which the run starts.
        steps: (seconds, peak memory in MiB) of each iteration.
        teachers, student: evaluations on each test set.
        memory: peak memory in MiB, including the evaluations.
        checkpoint: (bytes, seconds to write, seconds to read); main process only.
    """

    start: int
    steps: list[tuple[float, float]] = field(default_factory=list)
    teachers: list[Evaluation] = field(default_factory=list)
    student: list[Evaluation] = field(default_factory=list)
    memory: float = 0.0
    checkpoint: tuple[int, float, float] = (0, 0.0, 0.0)


def existing_parent(folder: str) -> str:
    """Return the folder itself if it exists, else its nearest existing parent."""
    folder = os.path.abspath(folder)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def summarize(cfg: CfgNode, everyones: list[Found], output: str, resumed: str) -> str:
    """Format the measurements and the estimate for the whole run as a table.

    Uses the maximum over the processes. The time per iteration is that of the last one, since the
    first includes start-up costs.

    Args:
        cfg: of the run, for this number of processes.
        everyones: measurements of each process, the main process first.
        output: OUTPUT_DIR of the run.
        resumed: path of the checkpoint to resume from, or "".
    """
    main, last = everyones[0], cfg.SOLVER.MAX_ITER
    left = max(0, last - main.start)
    size, write, read = main.checkpoint
    step = max((x.steps[-1][0] for x in everyones if x.steps), default=0.0)
    test = max(sum(e.seconds for e in x.student) for x in everyones)
    first_test = max(sum(e.seconds for e in x.teachers) for x in everyones)
    # Detectron2 always evaluates at the end, and saves the final weights twice.
    num_tests = _multiples(main.start, last - 1, cfg.TEST.EVAL_PERIOD) + 1
    num_checkpoints = _multiples(main.start, last, cfg.SOLVER.CHECKPOINT_PERIOD) + bool(left)
    parts = {
        "test of teachers": first_test,
        counted(left, "iteration"): left * step,
        counted(num_tests, "test"): num_tests * test,
        counted(num_checkpoints, "checkpoint"): num_checkpoints * write,
    }
    total = sum(parts.values())
    free = shutil.disk_usage(existing_parent(output)).free
    kind = "allocated on the GPU" if cfg.MODEL.DEVICE != "cpu" else "resident"
    lines = {"starts at": f"iteration {main.start} of {last}"}
    if resumed:
        lines["starts at"] += f", from {resumed}"
    for k in range(len(main.steps)):
        seconds, memory = (max(x.steps[k][i] for x in everyones) for i in (0, 1))
        lines[f"step {k + 1}"] = f"{_span(seconds)}, {memory:.0f} MiB {kind} at most"
    architecture = cfg.MODEL.META_ARCHITECTURE
    is_student = plain_architecture(architecture) != architecture
    titles = {
        "teachers": "test of teachers",
        "student": "test of student" if is_student else "test",
    }
    for model, title in titles.items():
        by_dataset = zip(*(getattr(x, model) for x in everyones), strict=True)
        if slowest := [_slowest(x) for x in by_dataset]:
            lines[title] = "; ".join(slowest)
    peak = max(x.memory for x in everyones)
    lines["memory"] = f"{peak:.0f} MiB {kind} at most, tests included"
    required = num_checkpoints * size
    lines["checkpoint"] = (
        f"{size / 2**20:.1f} MiB, written in {_span(write)}, read in {_span(read)}; all of them "
        f"{required / 2**30:.2f} GiB, of {free / 2**30:.2f} GiB that are free"
    ) + (": TOO LITTLE" if required > free else "")
    lines["estimate"] = ", ".join(f"{k} {_span(v)}" for k, v in parts.items() if v)
    end = datetime.now() + timedelta(seconds=total)
    lines["in all"] = f"{_span(total)}; started now it ends at {end:%Y-%m-%d %H:%M}"
    lines["OUTPUT_DIR"] = f"{output} is as it was"
    title = f"Dry run on {counted(len(everyones), 'process')}, {cfg.MODEL.DEVICE}:"
    return "\n".join([title, *(f"  {k:<18}{v}" for k, v in lines.items())])


def _slowest(evaluations: tuple[Evaluation, ...]) -> str:
    """Describe the evaluation of a test set in the slowest process."""
    e = max(evaluations, key=lambda x: x.seconds)
    return (
        f"{_span(e.seconds)} on {e.dataset}, {counted(e.images, 'image')} of "
        f"{_span(e.per_image)} and {_span(e.besides)} besides"
    )


def _multiples(start: int, end: int, period: int) -> int:
    """Count the multiples of ``period`` in (``start``, ``end``]."""
    return max(0, end // period - start // period) if period > 0 else 0


def _span(seconds: float) -> str:
    """Format a duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    k = next(i for i, (_, length) in enumerate(units) if seconds >= length)
    (large, length), (small, part) = units[k], units[min(k + 1, 3)]
    rest = math.floor(seconds % length / part)
    return f"{math.floor(seconds / length)} {large}" + (f" {rest} {small}" if rest else "")

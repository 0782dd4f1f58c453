"""What a whole run will take, by what a few of its steps took."""

import math
import os
import shutil
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from detectron2.config import CfgNode

__all__ = ["Evaluation", "Found", "existing_parent", "summarize"]


@dataclass
class Evaluation:
    """What evaluating a test set takes.

    Attributes:
        dataset: its name.
        images: that one process would evaluate.
        per_image, besides: seconds of each, and of what is done once.
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
    """What one process measured.

    Attributes:
        start: the iteration at which the run would begin.
        steps: seconds of each iteration that was tried, and MiB at most until its end: on a GPU
            those that torch allocated, on the CPU the resident memory.
        teachers, student: their evaluations.
        memory: MiB at most until the end of these.
        checkpoint: bytes, seconds to write them, seconds to read them; of the main process alone.
    """

    start: int
    steps: list[tuple[float, float]] = field(default_factory=list)
    teachers: list[Evaluation] = field(default_factory=list)
    student: list[Evaluation] = field(default_factory=list)
    memory: float = 0.0
    checkpoint: tuple[int, float, float] = (0, 0.0, 0.0)


def existing_parent(folder: str) -> str:
    """The folder itself, or the nearest one above it that exists."""
    folder = os.path.abspath(folder)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def summarize(cfg: CfgNode, everyones: list[Found], output: str, resumed: str) -> str:
    """What was found, and what follows for the whole run.

    The slowest process counts, and the fullest; of the iterations the last, since the first has to
    start things.

    Args:
        cfg: of the run, for this number of processes.
        everyones: what each process measured, the main one first.
        output: the real OUTPUT_DIR.
        resumed: the checkpoint from which the run would go on, or "".
    """
    main, last = everyones[0], cfg.SOLVER.MAX_ITER
    left = max(0, last - main.start)
    size, write, read = main.checkpoint
    step = max((x.steps[-1][0] for x in everyones if x.steps), default=0.0)
    test = max(sum(e.seconds for e in x.student) for x in everyones)
    first_test = max(sum(e.seconds for e in x.teachers) for x in everyones)
    # Detectron2 evaluates at the end whatever the period, and keeps the last weights twice.
    num_tests = _multiples(main.start, last - 1, cfg.TEST.EVAL_PERIOD) + 1
    num_checkpoints = _multiples(main.start, last, cfg.SOLVER.CHECKPOINT_PERIOD) + bool(left)
    parts = {
        "test of teachers": first_test,
        _several(left, "iteration"): left * step,
        _several(num_tests, "test"): num_tests * test,
        _several(num_checkpoints, "checkpoint"): num_checkpoints * write,
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
    for who in ("teachers", "student"):
        of_all = zip(*(getattr(x, who) for x in everyones), strict=True)
        if slowest := [_slowest(x) for x in of_all]:
            lines[f"test of {who}"] = "; ".join(slowest)
    fullest = max(x.memory for x in everyones)
    lines["memory"] = f"{fullest:.0f} MiB {kind} at most, tests included"
    wanted = num_checkpoints * size
    lines["checkpoint"] = (
        f"{size / 2**20:.1f} MiB, written in {_span(write)}, read in {_span(read)}; all of them "
        f"{wanted / 2**30:.2f} GiB, of {free / 2**30:.2f} GiB that are free"
    ) + (": TOO LITTLE" if wanted > free else "")
    lines["estimate"] = ", ".join(f"{k} {_span(v)}" for k, v in parts.items() if v)
    end = datetime.now() + timedelta(seconds=total)
    lines["in all"] = f"{_span(total)}; started now it ends at {end:%Y-%m-%d %H:%M}"
    lines["OUTPUT_DIR"] = f"{output} is as it was"
    title = f"Dry run on {_several(len(everyones), 'process', 'es')}, {cfg.MODEL.DEVICE}:"
    return "\n".join([title, *(f"  {k:<18}{v}" for k, v in lines.items())])


def _slowest(evaluations: tuple[Evaluation, ...]) -> str:
    """The evaluation of a test set by the process that takes longest."""
    e = max(evaluations, key=lambda x: x.seconds)
    return (
        f"{_span(e.seconds)} on {e.dataset}, {e.images} images of {_span(e.per_image)} and "
        f"{_span(e.besides)} besides"
    )


def _multiples(start: int, end: int, period: int) -> int:
    """How many numbers above ``start``, up to ``end``, ``period`` divides."""
    return max(0, end // period - start // period) if period > 0 else 0


def _several(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural if number != 1 else ''}"


def _span(seconds: float) -> str:
    """A time, in the two largest of its units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    k = next(i for i, (_, length) in enumerate(units) if seconds >= length)
    (large, length), (small, part) = units[k], units[min(k + 1, 3)]
    rest = math.floor(seconds % length / part)
    return f"{math.floor(seconds / length)} {large}" + (f" {rest} {small}" if rest else "")

"""Which runs belong together: a distilled student, its teachers, and plain students to compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from detectron2.modeling import META_ARCH_REGISTRY

from aid.engine.output_folder import flat_keys
from aid.modeling.meta_arch import DistillationMixin

from .runs import Run

__all__ = ["PASSING", "Comparison", "choose", "differences"]

# Keys by which two runs may differ and still be repetitions of one.
PASSING = (
    *("OUTPUT_DIR", "TEACHER.", "MODEL.DEVICE", "SEED", "VIS_PERIOD", "DATALOADER.NUM_WORKERS"),
    *("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
)
# Keys by which a distilled student differs from a plain one, and those of the tests.
DISTILLED = ("AID.", "DISTILLATION.", "MODEL.META_ARCHITECTURE", "DATASETS.TEST")
# Keys that say how long a training is.
LENGTH = ("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH")
SCHEDULE = ("SOLVER.STEPS", "SOLVER.WARMUP_ITERS")
# Two trainings take equal time if the longer one takes at most so many times as long.
EQUAL_TIME = 1.15


@dataclass(frozen=True)
class Comparison:
    """Runs by their number.

    Attributes:
        student: the best distilled one.
        teachers: of the student, as far as they are among the runs.
        peer: the plain student that was trained for as many iterations; None if there is none.
        num_peers: number of plain students of which ``peer`` is the most like the student.
        other: a plain student that was trained for another number of iterations, as long as the
            student if there is one; None if there is none that says something.
        equal_time: whether ``other`` was.
    """

    student: int
    teachers: list[int]
    peer: int | None
    num_peers: int
    other: int | None
    equal_time: bool


def choose(
    runs: Sequence[Run], parameters: Sequence[float], ap: Sequence[float]
) -> Comparison | None:
    """Choose what is compared.

    Args:
        runs: R runs with the same test set.
        parameters: of their detectors, R numbers; where they and the meta-architectures agree, two
            nets are taken for the same.
        ap: R numbers.

    Returns:
        None if no run is distilled.
    """
    distilled = [i for i, run in enumerate(runs) if run.is_distilled]
    if not distilled:
        return None
    best = max(distilled, key=lambda i: ap[i])
    student = runs[best]
    teachers = [i for i, run in enumerate(runs) if run.final_weights in student.teacher_weights]
    plain = [
        i
        for i, run in enumerate(runs)
        if i not in teachers
        and not run.is_distilled
        and parameters[i] == parameters[best]
        and _kind(run) == _kind(student)
    ]
    peers = [i for i in plain if _length(runs[i]) == _length(student)]
    peer = min(peers, key=lambda i: (*_unlikeness(runs[i], student), -ap[i]), default=None)
    others = [i for i in plain if i not in peers]
    near = [i for i in others if _distance(runs[i], student) <= math.log(EQUAL_TIME)]
    longer = [i for i in others if runs[i].cfg.SOLVER.MAX_ITER > student.cfg.SOLVER.MAX_ITER]
    other = min(
        near or longer or (others if peer is None else []),
        key=lambda i: (_distance(runs[i], student), *_unlikeness(runs[i], student), -ap[i]),
        default=None,
    )
    return Comparison(best, teachers, peer, len(peers), other, bool(near))


def differences(plain: Run, student: Run) -> list[str]:
    """Names of the keys, beside teacher, distillation and length, in which two runs differ."""
    passing = PASSING + DISTILLED + LENGTH
    if _length(plain) != _length(student):
        passing += SCHEDULE
    a, b = (flat_keys(yaml.safe_load(run.cfg.dump())) for run in (plain, student))
    keys = sorted({*a, *b})
    return [key for key in keys if not key.startswith(passing) and a.get(key) != b.get(key)]


def _unlikeness(plain: Run, student: Run) -> tuple[int, bool]:
    return len(differences(plain, student)), plain.cfg.SEED != student.cfg.SEED


def _distance(a: Run, b: Run) -> float:
    """Logarithm of the ratio of the training times; infinite if one was not measured."""
    ratio = a.training_seconds / b.training_seconds
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def _kind(run: Run) -> tuple[str, list[str]]:
    """Name of the plain detector's class, and names of the training data."""
    cls = META_ARCH_REGISTRY.get(run.cfg.MODEL.META_ARCHITECTURE)
    plain = next(c for c in cls.__mro__ if not issubclass(c, DistillationMixin))
    return plain.__name__, sorted(run.cfg.DATASETS.TRAIN)


def _length(run: Run) -> tuple[int, int]:
    """Iterations, and images of each."""
    return run.cfg.SOLVER.MAX_ITER, run.cfg.SOLVER.IMS_PER_BATCH

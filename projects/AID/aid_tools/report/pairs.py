"""Selection of the runs to compare: a distilled student, its teachers and plain students."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import yaml
from detectron2.modeling import META_ARCH_REGISTRY

from aid.config import flat_keys
from aid.modeling.meta_arch import DistillationMixin

from .runs import Run

__all__ = ["REPEATED", "Comparison", "Setting", "choose", "differences", "settings_of"]

# Keys (prefixes) that may differ between repetitions of the same run.
REPEATED = (
    *("OUTPUT_DIR", "MODEL.DEVICE", "SEED", "VIS_PERIOD", "DATALOADER.NUM_WORKERS"),
    *("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD", "CUDNN_BENCHMARK", "TEACHER.CACHE"),
    *("TEACHER.DEVICE", "TEACHER.EVAL_FIRST", "TEACHER.COMPARE_BATCHES"),
)
# Keys (prefixes) that differ between a distilled and a plain student, and the test sets.
DISTILLED = ("AID.", "DISTILLATION.", "TEACHER.", "MODEL.META_ARCHITECTURE", "DATASETS.TEST")
# Keys that define the length of a training.
LENGTH = ("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH")
SCHEDULE = ("SOLVER.STEPS", "SOLVER.WARMUP_ITERS")
# Maximum ratio of two training times that count as equal.
EQUAL_TIME = 1.15


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only.

    Attributes:
        runs: at least one, of different seeds.
    """

    runs: list[Run]

    @property
    def first(self) -> Run:
        """The run that stands for all where they do not differ."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """Name of the runs, with * in place of the part in which they differ."""
        first, *others = sorted({run.name for run in self.runs})
        if not others:
            return first
        start = os.path.commonprefix([first, *others])
        ends = [name[len(start) :][::-1] for name in (first, *others)]
        return f"{start}*{os.path.commonprefix(ends)[::-1]}"

    def by_seed(self, values: Callable[[Run], float]) -> dict[int, float]:
        """{seed: value of its run}."""
        return {run.cfg.SEED: values(run) for run in self.runs}


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Group runs that differ in their seed only, in the order of their first ones.

    A run that teaches another one stays alone, and so does a further run of a seed.
    """
    teachers = {path for run in runs for path in run.teacher_weights}
    groups: dict[object, list[Run]] = {}
    for i, run in enumerate(runs):
        keys = flat_keys(yaml.safe_load(run.cfg.dump())).items()
        setting = repr(sorted((k, v) for k, v in keys if not k.startswith(REPEATED)))
        known = {other.cfg.SEED for other in groups.get(setting, ())}
        is_alone = run.final_weights in teachers or run.cfg.SEED in known
        groups.setdefault(i if is_alone else setting, []).append(run)
    return [Setting(group) for group in groups.values()]


@dataclass(frozen=True)
class Comparison:
    """Indices of the runs to compare.

    Attributes:
        student: the best distilled student.
        teachers: the student's teachers, as far as they are among the runs and have its classes.
        peer: a plain student with the same number of iterations; None if there is none.
        num_peers: number of such plain students; ``peer`` is the most similar one.
        other: a plain student with another number of iterations, preferably of equal training
            time; None if there is no informative one.
        equal_time: whether the training times of ``other`` and ``student`` are equal.
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
    """Choose the runs to compare.

    Args:
        runs: R runs with the same test set.
        parameters: R parameter counts of their detectors; detectors of the same count and
            meta-architecture are considered the same network.
        ap: R APs.

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
    unmapped = [i for i in teachers if runs[i].final_weights not in student.mapped_teachers]
    return Comparison(best, unmapped, peer, len(peers), other, bool(near))


def differences(plain: Run, student: Run) -> list[str]:
    """Names of the differing keys, except those of teacher, distillation and training length."""
    passing = REPEATED + DISTILLED + LENGTH
    if _length(plain) != _length(student):
        passing += SCHEDULE
    a, b = (flat_keys(yaml.safe_load(run.cfg.dump())) for run in (plain, student))
    keys = sorted({*a, *b})
    return [key for key in keys if not key.startswith(passing) and a.get(key) != b.get(key)]


def _unlikeness(plain: Run, student: Run) -> tuple[int, bool]:
    return len(differences(plain, student)), plain.cfg.SEED != student.cfg.SEED


def _distance(a: Run, b: Run) -> float:
    """Absolute log ratio of the training times; infinite if they cannot be compared."""
    if not (a.has_comparable_time and b.has_comparable_time):
        return math.inf
    ratio = a.training_seconds / b.training_seconds
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def _kind(run: Run) -> tuple[str, list[str]]:
    """Class name of the plain detector, and names of the training sets."""
    cls = META_ARCH_REGISTRY.get(run.cfg.MODEL.META_ARCHITECTURE)
    plain = next(c for c in cls.__mro__ if not issubclass(c, DistillationMixin))
    return plain.__name__, sorted(run.cfg.DATASETS.TRAIN)


def _length(run: Run) -> tuple[int, int]:
    """Number of iterations, and of images per iteration."""
    return run.cfg.SOLVER.MAX_ITER, run.cfg.SOLVER.IMS_PER_BATCH

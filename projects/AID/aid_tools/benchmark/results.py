"""Results of a measurement: floors, ratios and shares.

The floor of a step is the work that every implementation needs, measured in plain Detectron2:

    plain distillation   a plain student's step + the teacher's backbone and FPN, without gradient
    AID                  that + the teacher's heads: RPN, proposals and box heads, or a dense head

The time above the floor is spent by this project: matching and per-instance losses, weighting,
distillation losses forward and backward, and the optimizer of their adapters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from aid.modeling.balance import PERIOD

from .cases import (
    AID,
    AID_STEPS,
    BALANCE,
    INSTANCE_LOSSES,
    PLAIN_DISTILLATION,
    STUDENT,
    TEACHER,
    TEACHER_HEADS,
    WEIGHTING,
)

__all__ = ["TEACHER_WEIGHTS", "Results"]

# Key of Results.memory, in addition to the names of cases.
TEACHER_WEIGHTS = "teacher_weights"
Round = dict[str, float]


def plain_floor(x: Round) -> float:
    """Floor of plain distillation in a round, in seconds."""
    return x[STUDENT] + x[TEACHER]


def aid_floor(x: Round) -> float:
    """Floor of AID in a round, in seconds."""
    return plain_floor(x) + x[TEACHER_HEADS]


def balance_overhead(x: Round) -> float:
    """Relative time added to an average step by measuring gradients at every PERIOD-th step."""
    return (x[BALANCE] / x[PLAIN_DISTILLATION] - 1) / PERIOD


@dataclass
class Results:
    """Results of one measurement.

    Attributes:
        rounds: for every round, the seconds of each case.
        losses: names of the cases that are distillation losses.
        memory: peak memory of cases and size of the teacher's weights, in bytes; empty if memory
            was not measured.
        batch: images per step.
    """

    rounds: list[Round]
    losses: tuple[str, ...]
    memory: dict[str, int]
    batch: int

    def median(self, value: Callable[[Round], float]) -> float:
        """Median of a value over the rounds; a slow phase of the machine affects a whole round."""
        return median(value(x) for x in self.rounds)

    def seconds(self) -> dict[str, float]:
        """Median seconds of each case and of the two floors."""
        seconds = {name: self.median(lambda x, name=name: x[name]) for name in self.rounds[0]}
        return seconds | {
            "plain_distillation_floor": self.median(plain_floor),
            "aid_floor": self.median(aid_floor),
        }

    def ratios(self) -> dict[str, float | None]:
        """Medians of the ratios within a round, and overheads of memory above its floors."""
        ratios = {
            "plain_distillation_to_floor": self.median(
                lambda x: x[PLAIN_DISTILLATION] / plain_floor(x)
            ),
            "aid_to_floor": self.median(lambda x: x[AID] / aid_floor(x)),
        }
        for name in list(AID_STEPS)[1:]:
            ratios[f"{name}_to_floor"] = self.median(lambda x, n=name: x[n] / aid_floor(x))
        if BALANCE in self.rounds[0]:
            ratios["balance_overhead"] = self.median(balance_overhead)
        return ratios | {
            "aid_to_plain_distillation": self.median(lambda x: x[AID] / x[PLAIN_DISTILLATION]),
            "instance_losses_to_teacher": self.median(lambda x: x[INSTANCE_LOSSES] / x[TEACHER]),
            "instance_losses_to_heads": self.median(
                lambda x: x[INSTANCE_LOSSES] / x[TEACHER_HEADS]
            ),
            **self._overheads(),
        }

    def _overheads(self) -> dict[str, float | None]:
        """Relative overhead of the peak memory of AID's step above two floors.

        The true floor is between them. The high floor is the sum of the peaks of the student's step
        and of the teacher's forward pass with its heads; these peaks need not coincide, so a step
        may need less. The low floor is the student's peak plus the teacher's weights, without
        memory for the teacher's forward pass.
        """
        if not self.memory:
            return {"memory_overhead": None, "memory_overhead_to_weights": None}
        student, step = self.memory[STUDENT], self.memory[AID]
        teacher = max(self.memory[TEACHER], self.memory[TEACHER_HEADS])
        return {
            "memory_overhead": step / (student + teacher) - 1,
            "memory_overhead_to_weights": step / (student + self.memory[TEACHER_WEIGHTS]) - 1,
        }

    def shares(self) -> dict[str, float]:
        """Shares of the time that AID adds to a plain step; with "rest" they sum to about 1."""
        parts = (TEACHER, INSTANCE_LOSSES, WEIGHTING, *self.losses)

        def share(names: tuple[str, ...]) -> Callable[[Round], float]:
            return lambda x: sum(x[name] for name in names) / (x[AID] - x[STUDENT])

        shares = {name: self.median(share((name,))) for name in parts}
        return shares | {"rest": 1 - self.median(share(parts))}

    def as_dict(self) -> dict:
        """Content of the JSON file; times in seconds, memory in bytes."""
        return {
            "ratios": self.ratios(),
            "seconds": self.seconds(),
            "shares": self.shares(),
            "images_per_second": {k: self.batch / v for k, v in self.seconds().items()},
            "memory": self.memory,
            "rounds": self.rounds,
        }

"""What the times and the memory come to: floors, ratios and shares.

The floor of a step is what no implementation can do without:

    plain distillation   a plain student's step + the teacher's backbone and FPN, without gradient
    AID                  that + the teacher's heads: RPN, proposals and box heads, or a dense head

all in plain Detectron2's code. What is above the floor is this project's: matching and instance
losses, weighting, distillation losses forward and backward, and their adapters' optimizer.
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

# In Results.memory beside the names of cases.
TEACHER_WEIGHTS = "teacher_weights"
Round = dict[str, float]


def plain_floor(x: Round) -> float:
    """Seconds of a round that plain distillation cannot do without."""
    return x[STUDENT] + x[TEACHER]


def aid_floor(x: Round) -> float:
    """Seconds of a round that AID cannot do without."""
    return plain_floor(x) + x[TEACHER_HEADS]


def balance_overhead(x: Round) -> float:
    """Share of a step that measuring in every PERIOD-th step adds to it in a long run."""
    return (x[BALANCE] / x[PLAIN_DISTILLATION] - 1) / PERIOD


@dataclass
class Results:
    """
    Attributes:
        rounds: for every round the seconds of each case.
        losses: names of the cases that are distillation losses.
        memory: peak memory of cases, and the teacher's weights, in bytes; empty where it was not
            measured.
        batch: images per step.
    """

    rounds: list[Round]
    losses: tuple[str, ...]
    memory: dict[str, int]
    batch: int

    def median(self, value: Callable[[Round], float]) -> float:
        """Median over the rounds of what each round gives: a slow spell hits all of its cases."""
        return median(value(x) for x in self.rounds)

    def seconds(self) -> dict[str, float]:
        """Median of each case, and of the two floors."""
        found = {name: self.median(lambda x, name=name: x[name]) for name in self.rounds[0]}
        return found | {
            "plain_distillation_floor": self.median(plain_floor),
            "aid_floor": self.median(aid_floor),
        }

    def ratios(self) -> dict[str, float | None]:
        """Medians of the ratios within a round; memory as the part beyond a floor."""
        found = {
            "plain_distillation_to_floor": self.median(
                lambda x: x[PLAIN_DISTILLATION] / plain_floor(x)
            ),
            "aid_to_floor": self.median(lambda x: x[AID] / aid_floor(x)),
        }
        for name in list(AID_STEPS)[1:]:
            found[f"{name}_to_floor"] = self.median(lambda x, n=name: x[n] / aid_floor(x))
        if BALANCE in self.rounds[0]:
            found["balance_overhead"] = self.median(balance_overhead)
        return found | {
            "aid_to_plain_distillation": self.median(lambda x: x[AID] / x[PLAIN_DISTILLATION]),
            "instance_losses_to_teacher": self.median(lambda x: x[INSTANCE_LOSSES] / x[TEACHER]),
            "instance_losses_to_heads": self.median(
                lambda x: x[INSTANCE_LOSSES] / x[TEACHER_HEADS]
            ),
            **self._overheads(),
        }

    def _overheads(self) -> dict[str, float | None]:
        """By how much the peak of AID's step exceeds two floors, between which the true one lies.

        The high one adds the peaks of the student's step and of the teacher's forward, with its
        heads, which need not come together; a step may well stay below it. The low one adds the
        teacher's weights to the student's peak, as if its forward took no memory.
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
        """Parts of what AID adds to a plain step; they add up to about 1 with "rest"."""
        parts = (TEACHER, INSTANCE_LOSSES, WEIGHTING, *self.losses)

        def share(names: tuple[str, ...]) -> Callable[[Round], float]:
            return lambda x: sum(x[name] for name in names) / (x[AID] - x[STUDENT])

        found = {name: self.median(share((name,))) for name in parts}
        return found | {"rest": 1 - self.median(share(parts))}

    def as_dict(self) -> dict:
        """For the JSON file: seconds, bytes, numbers."""
        return {
            "ratios": self.ratios(),
            "seconds": self.seconds(),
            "shares": self.shares(),
            "images_per_second": {k: self.batch / v for k, v in self.seconds().items()},
            "memory": self.memory,
            "rounds": self.rounds,
        }

"""What an answer is, for every detector family.

Shape letters:

    N: images in the batch            G: ground-truth instances in the batch, image after image
    S: samples (RoIs, anchors or points) that both sides are asked about
    K: classes, with the background as the last one under a softmax
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ...errors import AIDError
from .cross import Branches, check_heads

__all__ = [
    "Answer",
    "Answers",
    "Batch",
    "Question",
    "ask",
    "check_answers",
    "check_comparable",
    "predicts_distributions",
]


@dataclass(frozen=True)
class Question:
    """What a loss asks of both sides; its attribute ``asks``.

    Attributes:
        truth: it needs answers about the ground-truth boxes themselves.
        num_proposals: of the teacher in each image, beside the ground-truth boxes.
        min_score: of a dense teacher for the best class of a sample that belongs to nobody: others
            are not asked about.
        distributions: it needs distributions of box edges.
        cross_convs: it needs cross-head predictions of dense detectors, through this many
            convolutions of the teacher's, see :func:`~.cross.cross_predictions`; None if not. All
            losses of a lesson that need them ask for one number.
    """

    truth: bool = False
    num_proposals: int = 0
    min_score: float = 1.0
    distributions: bool = False
    cross_convs: int | None = None

    @classmethod
    def all_of(cls, questions: Iterable["Question"]) -> "Question | None":
        """The question that holds all of these; None if there are none."""
        questions = list(questions)
        if not questions:
            return None
        numbers = (x.cross_convs for x in questions)
        return cls(
            truth=any(x.truth for x in questions),
            num_proposals=max(x.num_proposals for x in questions),
            min_score=min(x.min_score for x in questions),
            distributions=any(x.distributions for x in questions),
            cross_convs=max((n for n in numbers if n is not None), default=None),
        )


@dataclass
class Answer:
    """What one side says, in float32.

    Attributes:
        logits: (S, K), of the classes.
        boxes: (S, 4), XYXY in pixels; of two-stage detectors the box of the owner's class.
        distributions: (S, 4, bins), logits of the distances to the left, upper, right and lower
            edge; None of a head that predicts no distributions.
    """

    logits: Tensor
    boxes: Tensor
    distributions: Tensor | None = None


@dataclass
class Answers:
    """What both sides say about S samples, the teacher without gradient.

    Attributes:
        student, teacher: what they say.
        activation: of the logits, "softmax" or "sigmoid".
        owner: (S,), the instance that the teacher matches the sample to, or ``nobody``.
        nobody: G.
        image: (S,), in [0, N).
        is_truth: (S,), bool, samples that are the ground-truth box of their owner.
        weights: of imitation, by what is imitated, (S,) each: "cls", "box", or "all" where a loss
            does not tell these two apart. "box" and "all" are 0 for nobody's samples.
        cross: what the teacher's head says of the student's features, with gradient; None unless
            asked for.
    """

    student: Answer
    teacher: Answer
    activation: str
    owner: Tensor
    nobody: int
    image: Tensor
    is_truth: Tensor
    weights: dict[str, Tensor] | None = None
    cross: Answer | None = None

    @property
    def owned(self) -> Tensor:
        """(S,), bool, samples that an instance owns."""
        return self.owner != self.nobody

    def weigh(self, instance: dict[str, Tensor], background: Tensor) -> None:
        """Give each sample the weight of its owner.

        Args:
            instance: (G,) each, by the names of :attr:`weights`.
            background: (N,), the weight "cls" of nobody's samples, by image.
        """
        self.weights = {
            name: torch.cat([w, w.new_zeros(1)])[self.owner] for name, w in instance.items()
        }
        self.weights["cls"] = torch.where(self.owned, self.weights["cls"], background[self.image])


@dataclass
class Batch:
    """What both sides have seen of N images.

    Attributes:
        images: in the teacher's preprocessing.
        teacher, student: {level: (N, C, H, W)}, the output of each one's backbone.
        targets: ground truth of each image.
        student_predictions: what the student's dense head has made of ``student``; None without
            such a head.
        teacher_predictions: :attr:`InstanceLosses.predictions` of the teacher; None if its losses
            were not needed.
        student_branches: features within the student's dense head, of :func:`~.cross.tap_branches`.
    """

    images: ImageList
    teacher: dict[str, Tensor]
    student: dict[str, Tensor]
    targets: list[Instances]
    student_predictions: object = None
    teacher_predictions: object = None
    student_branches: dict[int, Branches] | None = None


@singledispatch
def ask(teacher: nn.Module, student: nn.Module, question: Question, batch: Batch) -> Answers:
    """Ask both sides about the same samples; nothing is sampled at random.

    Args:
        teacher: a detector in eval mode. Its type chooses the implementation.
        student: that :func:`check_comparable` accepts; gradients flow into it.
        question: what is asked.
        batch: what both have seen.
    """
    raise _unsupported(teacher)


@singledispatch
def check_comparable(teacher: nn.Module, student: nn.Module, question: Question, who: str) -> None:
    """Check that :func:`ask` can put a question to these two.

    Args:
        who: the loss that asks, for the message.

    Raises:
        AIDError: they do not answer about the same samples in the same form.
    """
    raise _unsupported(teacher)


@singledispatch
def predicts_distributions(detector: nn.Module) -> bool:
    """Whether the detector predicts a distribution for each edge of a box."""
    return False


def check_answers(teacher: nn.Module, student: nn.Module, question: Question, who: str) -> None:
    """Everything that has to hold before a student trains on answers.

    Args:
        teacher, student, question, who: as for :func:`check_comparable`.

    Raises:
        AIDError: see there, and :func:`~.cross.check_heads` for cross-head predictions; or a side
            lacks the distributions that are asked for.
    """
    for whose, detector in (("teacher", teacher), ("student", student)):
        if question.distributions and not predicts_distributions(detector):
            raise AIDError(
                f"DISTILLATION.LOSSES: {who} needs heads that predict distributions of box edges "
                f"on both sides, the {whose} is a {type(detector).__name__}: leave the loss out, "
                f"or choose another {whose}"
            )
    if question.cross_convs is not None:
        check_heads(teacher, student, question.cross_convs, who)
    check_comparable(teacher, student, question, who)


def _unsupported(teacher: nn.Module) -> AIDError:
    known = sorted(cls.__name__ for cls in ask.registry if cls is not object)
    return AIDError(
        f"DISTILLATION.LOSSES: answers of a {type(teacher).__name__} cannot be imitated, only "
        f"those of {', '.join(known)} and their subclasses: choose a loss on features"
    )

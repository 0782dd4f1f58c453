"""Predictions of teacher and student for the same samples, for prediction distillation.

Shape letters:

    N: images in the batch            G: ground-truth instances in the batch, image after image
    S: samples (RoIs, anchors or points) for which both sides predict
    K: classes, with the background as the last one under a softmax
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ...utils.errors import AIDError
from .base import per_instance_losses
from .cross_head import Branches, check_heads

__all__ = [
    "PairedPredictions",
    "PredictionBatch",
    "PredictionRequest",
    "Predictions",
    "check_comparable",
    "check_predictions",
    "paired_predictions",
    "predicts_distributions",
]


@dataclass(frozen=True)
class PredictionRequest:
    """Predictions that a distillation loss needs, its attribute ``request``.

    Attributes:
        num_proposals: proposals of the teacher in each image, beside the ground-truth boxes.
        min_score: score of the best class above which an anchor of a dense teacher is a sample
            although it matches no instance.
        distributions: distributions of box edges are needed.
        cross_convs: the last convolutions of the teacher's head through which cross-head
            predictions pass, see :func:`~.cross_head.cross_predictions`; None if none are needed.
            All losses of a teacher that need them request one number.
    """

    num_proposals: int = 0
    min_score: float = 1.0
    distributions: bool = False
    cross_convs: int | None = None

    @classmethod
    def union(cls, requests: Iterable["PredictionRequest"]) -> "PredictionRequest | None":
        """Request that covers all of these; None if there are none."""
        requests = list(requests)
        if not requests:
            return None
        numbers = (x.cross_convs for x in requests)
        return cls(
            num_proposals=max(x.num_proposals for x in requests),
            min_score=min(x.min_score for x in requests),
            distributions=any(x.distributions for x in requests),
            cross_convs=max((n for n in numbers if n is not None), default=None),
        )


@dataclass
class Predictions:
    """Predictions of one detector for S samples, in float32.

    Attributes:
        logits: (S, K), of the classes.
        boxes: (S, 4), XYXY in pixels; for two-stage detectors the box of the matched class.
        distributions: (S, 4, bins), logits of the distances to the left, upper, right and lower
            edge; None for a head that predicts no distributions.
    """

    logits: Tensor
    boxes: Tensor
    distributions: Tensor | None = None


@dataclass
class PairedPredictions:
    """Predictions of student and teacher for the same S samples, the teacher's without gradient.

    Attributes:
        student, teacher: predictions of each side.
        activation: of the logits, "softmax" or "sigmoid".
        matched_gt: (S,), the instance that the teacher matches the sample to, or
            ``background_index``.
        background_index: G.
        image: (S,), in [0, N).
        weights: {name: (S,)}, imitation weights "cls" of classes and "box" of boxes; "box" is 0
            for background samples.
        cross: predictions of the teacher's head on the student's features, with gradient; None
            unless requested.
    """

    student: Predictions
    teacher: Predictions
    activation: str
    matched_gt: Tensor
    background_index: int
    image: Tensor
    weights: dict[str, Tensor] | None = None
    cross: Predictions | None = None

    @property
    def foreground(self) -> Tensor:
        """(S,), bool, samples that match an instance."""
        return self.matched_gt != self.background_index

    def set_weights(self, instance: dict[str, Tensor], background: Tensor) -> None:
        """Give each sample the weight of its instance.

        Args:
            instance: (G,) each, by the names of :attr:`weights`.
            background: (N,), the weight "cls" of background samples, by image.
        """
        self.weights = {
            name: torch.cat([w, w.new_zeros(1)])[self.matched_gt] for name, w in instance.items()
        }
        cls = self.weights["cls"]
        self.weights["cls"] = torch.where(self.foreground, cls, background[self.image])


@dataclass
class PredictionBatch:
    """Batch of N images as teacher and student have processed it.

    Attributes:
        images: in the teacher's preprocessing.
        teacher, student: {level: (N, C, H, W)}, output of each one's backbone.
        targets: ground truth of each image; like images, on the teacher's device.
        student_predictions: output of the student's dense head on ``student``; None without such a
            head.
        teacher_predictions: :attr:`PerInstanceLosses.predictions` of the teacher; None if
            they have to be computed.
        student_branches: features within the student's dense head, see
            :func:`~.cross_head.tap_branches`.
        detections: detections of each image, if nothing else of the teacher is known; else None.
        teacher_precision: precision of the teacher's heads, see :mod:`~aid.modeling.placement`.
    """

    images: ImageList
    teacher: dict[str, Tensor]
    student: dict[str, Tensor]
    targets: list[Instances]
    student_predictions: Any = None
    teacher_predictions: Any = None
    student_branches: dict[int, Branches] | None = None
    detections: list[Instances] | None = None
    teacher_precision: torch.dtype | None = None


@singledispatch
def paired_predictions(
    teacher: nn.Module, student: nn.Module, request: PredictionRequest, batch: PredictionBatch
) -> PairedPredictions:
    """Predict for the same samples on both sides; no sample is chosen at random.

    The result is on the student's device.

    Args:
        teacher: a detector in eval mode. Its type chooses the implementation.
        student: that :func:`check_comparable` accepts; gradients flow into it.
        request: predictions that are needed.
        batch: features of both sides.
    """
    raise _unsupported(teacher)


@singledispatch
def check_comparable(
    teacher: nn.Module, student: nn.Module, request: PredictionRequest, loss: str
) -> None:
    """Check that :func:`paired_predictions` is defined for these two.

    Args:
        loss: name of the loss that needs the predictions, for the message.

    Raises:
        AIDError: they do not predict for the same samples in the same form.
    """
    raise _unsupported(teacher)


@singledispatch
def predicts_distributions(detector: nn.Module) -> bool:
    """Whether the detector predicts a distribution for each edge of a box."""
    return False


def check_predictions(
    teacher: nn.Module, student: nn.Module, request: PredictionRequest, loss: str
) -> None:
    """Check all that prediction distillation needs of teacher and student.

    Args:
        teacher, student, request, loss: see :func:`check_comparable`.

    Raises:
        AIDError: see there, and :func:`~.cross_head.check_heads` for cross-head predictions; or a
            side lacks the distributions that are requested.
    """
    for side, detector in (("teacher", teacher), ("student", student)):
        if request.distributions and not predicts_distributions(detector):
            raise AIDError(
                f"DISTILLATION.LOSSES: {loss} needs heads that predict distributions of box edges "
                f"on both sides, the {side} is a {type(detector).__name__}: leave the loss out, "
                f"or choose another {side}"
            )
    if request.cross_convs is not None:
        check_heads(teacher, student, request.cross_convs, loss)
    check_comparable(teacher, student, request, loss)


def _unsupported(teacher: nn.Module) -> AIDError:
    # Not the stand-in for a detector, which has no losses either.
    both = paired_predictions.registry.keys() & per_instance_losses.registry.keys()
    known = sorted(cls.__name__ for cls in both if cls is not object)
    return AIDError(
        f"DISTILLATION.LOSSES: predictions of a {type(teacher).__name__} cannot be imitated, only "
        f"those of {', '.join(known)} and their subclasses: choose a loss on features"
    )

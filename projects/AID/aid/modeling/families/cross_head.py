"""Cross-head predictions (CrossKD, arXiv 2306.11369): a teacher's head on a student's features.

The student's features are tapped in its head, in both branches, and pass through the last
convolutions and the predictors of the teacher's head.

Shape letters: N images, C channels, A anchors of a cell, K classes, (H, W) size of a level.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn

from ...utils.errors import AIDError
from ...utils.text import counted
from ..detectors.gfl import GFLHead

__all__ = ["Branches", "check_heads", "cross_predictions", "tap_branches"]

# Features (N, C, H, W) of each level in the classification branch, and in the box branch.
Branches = tuple[list[Tensor], list[Tensor]]

# Added to variances, as PKDLoss does: a constant channel would be noise otherwise.
EPSILON = 1e-6


def check_heads(teacher: nn.Module, student: nn.Module, num_convs: int, loss: str) -> None:
    """Check that the end of the teacher's head can read the student's features.

    Args:
        num_convs: of the teacher's, see :func:`cross_predictions`.
        loss: name of the loss that needs it, for the message.

    Raises:
        AIDError: a side has no such head, or too few convolutions; or the widths differ.
    """
    channels = []
    for side, detector in (("teacher", teacher), ("student", student)):
        head = getattr(detector, "head", None)
        if not isinstance(head, RetinaNetHead):
            kind = type(detector if head is None else head).__name__
            raise AIDError(
                f"DISTILLATION.LOSSES: {loss} needs a RetinaNet, GFL or FCOS on both sides, the "
                f"{side} is a {kind}: leave the loss out, or choose another {side}"
            )
        present = len(_activations(head.cls_subnet))
        if present < num_convs:
            raise AIDError(
                f"DISTILLATION.CROSS_KD.NUM_CONVS is {num_convs}: a branch of the {side}'s head "
                f"has {counted(present, 'convolution')}: ask for {present} or fewer"
            )
        cut = _first_after_cut(head.cls_subnet, num_convs)
        rest = [*head.cls_subnet[cut:], *head.cls_score.modules()]
        channels.append(next(x for x in rest if isinstance(x, nn.Conv2d)).in_channels)
    of_teacher, of_student = channels
    if of_student != of_teacher:
        raise AIDError(
            f"DISTILLATION.LOSSES: {loss} lets the teacher's head read the student's features: it "
            f"takes {of_teacher} channels, the student has {of_student}: give both the same "
            "MODEL.FPN.OUT_CHANNELS, or leave the loss out"
        )


@contextmanager
def tap_branches(
    head: nn.Module | None, numbers: Iterable[int | None]
) -> Iterator[dict[int, Branches]]:
    """Record the intermediate features of a dense head.

    Args:
        head: run once on all levels inside the context; ignored if nothing is requested.
        numbers: of the teachers' convolutions, see :func:`cross_predictions`; None requests none.

    Yields:
        Features by number, filled when the head runs.
    """
    features: dict[int, Branches] = {number: ([], []) for number in numbers if number is not None}
    with ExitStack() as stack:
        for number, branches in features.items():
            for (subnet, _), levels in zip(_branches(head), branches, strict=True):
                tapped = subnet[_first_after_cut(subnet, number)]
                stack.enter_context(
                    tapped.register_forward_pre_hook(
                        lambda module, inputs, levels=levels: levels.append(inputs[0])
                    )
                )
        yield features


def cross_predictions(
    teacher: nn.Module, features: list[Tensor], student: Branches, num_convs: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Output of the end of the teacher's head on the student's features.

    The student's channels get the mean and standard deviation of the teacher's, per image and
    level. The authors' code does so with statistics over the images of a GPU.

    Args:
        teacher: a RetinaNet, GFL or FCOS in eval mode.
        features: (N, C, H, W) of each level, the input of its head.
        student: of :func:`tap_branches`; gradients flow into it.
        num_convs: the last convolutions of each branch of the teacher's head that the student's
            features pass through, with norms, activations and predictor. Features are tapped
            before the activation that precedes these, or at the input of the head.

    Returns:
        Logits (N, A * K, H, W) and deltas (N, A * 4, H, W) of each level, for a GFL distributions
        (N, 4 * bins, H, W), as the head returns them.
    """
    logits: list[Tensor] = []
    deltas: list[Tensor] = []
    for (subnet, predictor), of_student, out in zip(
        _branches(teacher.head), student, (logits, deltas), strict=True
    ):
        cut = _first_after_cut(subnet, num_convs)
        # All levels, in their order: RetinaNet's norms have statistics for each, and take turns.
        with torch.no_grad():
            of_teacher = [subnet[:cut](x) for x in features]
        aligned = [_align(x, y) for x, y in zip(of_student, of_teacher, strict=True)]
        out += [predictor(subnet[cut:](x)) for x in aligned]
    if isinstance(teacher.head, GFLHead):
        deltas = [scale * x for scale, x in zip(teacher.head.scales, deltas, strict=True)]
    return logits, deltas


def _align(student: Tensor, teacher: Tensor) -> Tensor:
    """Student features with the teacher's mean and deviation per image and channel, (N, C, H, W).

    In float32. A channel in which the teacher is not finite is left as it is: predictions from it
    are ignored, and must not turn the gradients of the others into NaN.
    """
    student, teacher = student.float(), teacher.float()
    variance, mean = torch.var_mean(student, dim=(2, 3), correction=0, keepdim=True)
    target, target_mean = torch.var_mean(teacher, dim=(2, 3), correction=0, keepdim=True)
    known = target.isfinite() & target_mean.isfinite()
    target, target_mean = (
        torch.where(known, x, y.detach()) for x, y in ((target, variance), (target_mean, mean))
    )
    scale = ((target + EPSILON) / (variance + EPSILON)).sqrt()
    return torch.where(known, (student - mean) * scale + target_mean, student)


def _branches(head: RetinaNetHead) -> tuple[tuple[nn.Sequential, nn.Module], ...]:
    """Convolutions and predictor of the classes, and those of the boxes."""
    return (head.cls_subnet, head.cls_score), (head.bbox_subnet, head.bbox_pred)


def _activations(subnet: nn.Sequential) -> list[int]:
    """Indices of the activations of a branch: one after each convolution and its norm."""
    return [i for i, module in enumerate(subnet) if isinstance(module, nn.ReLU)]


def _first_after_cut(subnet: nn.Sequential, num_convs: int) -> int:
    """Index of the first module of a branch that reads the tapped features."""
    activations = _activations(subnet)
    kept = len(activations) - num_convs
    return activations[kept - 1] if kept else 0

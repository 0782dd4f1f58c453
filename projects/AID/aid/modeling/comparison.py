"""Teachers beside their student: the task losses of all on the same batch.

Shape letters: G ground-truth instances of the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..errors import AIDError
from .instance_loss import InstanceLosses, instance_losses, loss_levels
from .teacher import Teacher

__all__ = ["are_comparable", "compare", "in_eval_mode"]


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while, after which every module is in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def are_comparable(*detectors: nn.Module) -> bool:
    """Whether the losses of detectors are of one kind: focal losses are no cross-entropies."""
    try:
        for detector in detectors:
            loss_levels(detector)
    except AIDError:  # a student may be of any kind
        return False
    return len({instance_losses.dispatch(type(detector)) for detector in detectors}) == 1


@torch.no_grad()
def compare(
    student: nn.Module, teachers: list[Teacher], batched_inputs: list[dict]
) -> tuple[Tensor, ...]:
    """The losses of a student's teachers and of the student itself, all in eval mode.

    An instance's loss here is what all are asked alike, plus the mean over background anchors.
    Leaves the student, and all random numbers, as they were.

    Args:
        student: comparable to each teacher by :func:`are_comparable`.
        teachers: of the student.
        batched_inputs: the standard input of a Detectron2 model.

    Returns:
        (G,) of each teacher, and of the student at the end.
    """
    targets = [x["instances"].to(student.device) for x in batched_inputs]
    # In full precision: older versions of torch keep weights that were cast without gradient, and
    # the student's training would find them in autocast's cache.
    with torch.autocast(student.device.type, enabled=False), in_eval_mode(student), EventStorage():
        images = student.preprocess_image(batched_inputs)
        size, theirs = tuple(images.tensor.shape[-2:]), []
        for teacher in teachers:
            teacher.follow(student.device)
            view = teacher.view(batched_inputs, size, student.input_format)
            theirs.append(teacher.instance_losses(view, targets, background=False))
        features = student.backbone(images.tensor)
        ours = instance_losses(student, images, features, targets, background=False)
    return tuple(_asked_alike(losses) for losses in (*theirs, ours))


def _asked_alike(losses: InstanceLosses) -> Tensor:
    """Losses (G,) without those that a two-stage detector takes on proposals of its own.

    Its RoIs' class loss remains: of an instance they are never far from the ground-truth box. The
    box loss does not: proposals of a detector that knows nothing hit no object, and on the
    ground-truth box itself, which then is alone, it is right to move nothing.
    """
    two_stage = "rpn_cls" in losses.parts
    parts = [v for k, v in losses.parts.items() if not two_stage or k != "box"]
    return sum(parts) + losses.background["rpn_cls" if two_stage else "cls"].mean()

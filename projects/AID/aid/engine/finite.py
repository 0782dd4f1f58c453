"""Checks for non-finite losses, with the names of the images that cause them."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..modeling.teacher_base import TeacherBase
from ..utils.errors import AIDError

__all__ = ["check_finite", "naming_images"]


def check_finite(
    terms: dict[str, Tensor], batch: list[dict], teachers: Iterable[TeacherBase] = ()
) -> None:
    """Check that the losses of a batch are finite.

    Args:
        terms: {name: scalar}.
        batch: standard input of a Detectron2 model.
        teachers: of the student, for the message.

    Raises:
        AIDError: an image or only a distillation loss is not finite.
        FloatingPointError: a loss of the student is not finite; the message names losses and image
            files.
    """
    # One transfer for all losses: each one waits for the GPU.
    values = torch.stack([x.detach().float() for x in terms.values()]).tolist()
    pairs = zip(terms, values, strict=True)
    non_finite = {name: f"{name} is {x}" for name, x in pairs if not math.isfinite(x)}
    if not non_finite:
        return
    _check_images(batch)
    reason = f"{', '.join(non_finite.values())} on images {_files(batch)}"
    if all(name.startswith("loss_distill") for name in non_finite):
        raise AIDError(
            f"{reason}, where the student's own losses are finite: {_advice(list(teachers))}turn "
            "SOLVER.AMP.ENABLED off if it is on, or lower DISTILLATION.WEIGHT"
        )
    raise FloatingPointError(reason)


def _advice(teachers: list[TeacherBase]) -> str:
    """Advice on checking the features of the teachers, if they have any."""
    if all(x.has_heads and x.has_features for x in teachers):
        return "evaluate the teacher, whose features may not be (TEACHER.EVAL_FIRST), "
    networks = " and ".join(x.name for x in teachers if x.has_features)
    return f"run {networks} on these images, where its features may not be, " if networks else ""


@contextmanager
def naming_images(batch: list[dict]) -> Iterator[None]:
    """Add the image files to errors of Detectron2 and PyTorch in a training step.

    Args:
        batch: standard input of a Detectron2 model.

    Raises:
        AIDError: an image is not finite, or too small for batch normalization.
        FloatingPointError: predictions are not finite.
    """
    try:
        yield
    except FloatingPointError as error:
        _check_images(batch)
        message = str(error).rstrip(".")
        raise FloatingPointError(f"{message}, on images {_files(batch)}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise AIDError(
            f"images {_files(batch)} are too small for batch norm in training: raise "
            "INPUT.MIN_SIZE_TRAIN or the images per process, or set the NORM keys to FrozenBN"
        ) from error


def _check_images(batch: list[dict]) -> None:
    broken = [x for x in batch if not x["image"].isfinite().all()]
    if broken:
        raise AIDError(
            f"image {_files(broken)} holds NaN or infinity: replace the file, or fix the code that "
            "reads it"
        )


def _files(batch: list[dict]) -> str:
    return ", ".join(x.get("file_name", "without a file name") for x in batch)

"""Losses that are no numbers, and the images that they come from."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..utils.errors import AIDError

__all__ = ["check_finite", "naming_images"]


def check_finite(terms: dict[str, Tensor], batch: list[dict]) -> None:
    """Check the losses of a batch, in the process that has them.

    Args:
        terms: {name: scalar}.
        batch: the standard input of a Detectron2 model, from which they come.

    Raises:
        AIDError: an image of the batch, or the teacher on it, is not finite.
        FloatingPointError: the student is not; the message names losses and image files.
    """
    # Together: every number that is read from a GPU waits for it.
    values = torch.stack([x.detach().float() for x in terms.values()]).tolist()
    said = {k: f"{k} is {v}" for k, v in zip(terms, values, strict=True) if not math.isfinite(v)}
    if not said:
        return
    _check_images(batch)
    reason = f"{', '.join(said.values())} on images {_files(batch)}"
    if all(name.startswith("loss_distill") for name in said):
        raise AIDError(
            f"{reason}, where the student's own losses are finite: evaluate the teacher, whose "
            "features may not be (TEACHER.EVAL_FIRST), turn SOLVER.AMP.ENABLED off if it is on, or "
            "lower DISTILLATION.WEIGHT"
        )
    raise FloatingPointError(reason)


@contextmanager
def naming_images(batch: list[dict]) -> Iterator[None]:
    """Name the image files where Detectron2 or torch finds that a batch cannot be trained on.

    Raises:
        AIDError: an image is not finite, or so small that batch norm has a single value.
        FloatingPointError: predictions are not finite.
    """
    try:
        yield
    except FloatingPointError as error:
        _check_images(batch)
        said = str(error).rstrip(".")
        raise FloatingPointError(f"{said}, on images {_files(batch)}") from error
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
            f"image {_files(broken)} holds NaN or infinity: replace the file, or mend what reads it"
        )


def _files(batch: list[dict]) -> str:
    return ", ".join(x.get("file_name", "without a file name") for x in batch)

"""Logging of the imitation weights."""

import logging

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..utils.text import counted
from .weighting import Weights

__all__ = ["log_distillation_weight", "log_pseudo_labels", "log_weights"]

# Iterations between copies of the numbers from the device; Detectron2 writes its log as often.
LOG_PERIOD = 20


def log_distillation_weight(weight: float | Tensor) -> None:
    """Log the factor on the distillation losses every LOG_PERIOD iterations."""
    if _is_time_to_log():
        get_event_storage().put_scalar("aid/distillation_weight", float(weight), False)


def log_pseudo_labels(labels: list[Instances]) -> None:
    """Log the number of pseudo-labels of a batch and their mean score every LOG_PERIOD iterations.

    Args:
        labels: of each unlabeled image, with ``scores``.
    """
    if _is_time_to_log():
        scores = torch.cat([x.scores for x in labels])
        numbers: dict[str, float] = {"aid/num_pseudo_labels": len(scores)}
        if len(scores):
            numbers["aid/pseudo_score_mean"] = scores.mean().item()
        else:
            logging.getLogger(__name__).warning(
                "The teacher gives no pseudo-label to the unlabeled images of iteration %d "
                "(aid/num_pseudo_labels), so that they are background: lower "
                "UNLABELED.SCORE_THRESH if this recurs",
                get_event_storage().iter,
            )
        get_event_storage().put_scalars(smoothing_hint=False, **numbers)


def log_weights(
    prefix: str,
    weights: Weights,
    batched_inputs: list[dict],
    strides: dict[str, int],
    input_format: str,
    vis_period: int,
) -> None:
    """Log the weights of a batch: numbers every LOG_PERIOD iterations, and pictures.

    Args:
        prefix: prefix of the names in the log.
        weights: imitation weights of a teacher.
        batched_inputs: the batch, the standard input of a Detectron2 model.
        strides: {level: pixels per cell} of the maps.
        input_format: channel order of the images.
        vis_period: iterations between pictures; 0 for none.
    """
    storage = get_event_storage()
    log_now = _is_time_to_log()
    if log_now:
        means = [x.mean() for x in weights.maps.values()]
        storage.put_scalar(f"{prefix}map_mean", torch.stack(means).mean().item(), False)
    if weights.instance is None or weights.loss is None:
        return
    if log_now:
        values = _numbers(weights)
        named = {f"{prefix}{name}": value for name, value in values.items()}
        storage.put_scalars(smoothing_hint=False, **named)
        if 0 < values["num_instances"] == values.get("num_non_finite"):
            logging.getLogger(__name__).warning(
                "The teacher's loss is finite on none of %s of iteration %d "
                "(%snum_non_finite), so that all their weights are 0: evaluate the teacher "
                "(TEACHER.EVAL_FIRST)",
                counted(int(values["num_instances"]), "instance"),
                storage.iter,
                prefix,
            )
    if vis_period > 0 and storage.iter % vis_period == 0:
        from ..utils.drawing import weight_image  # OpenCV and matplotlib, for pictures only

        sample, (level, stride) = batched_inputs[0], next(iter(strides.items()))
        n = len(sample["instances"])
        picture = weight_image(
            sample,
            input_format,
            weights.instance[:n],
            weights.loss[:n],
            weights.maps[level][0, 0],
            stride,
        )
        storage.put_image(f"{prefix}weight and teacher loss D of each box; map of {level}", picture)


def _is_time_to_log() -> bool:
    return (get_event_storage().iter + 1) % LOG_PERIOD == 0


def _numbers(weights: Weights) -> dict[str, float]:
    """Numbers for the log, copied from the device at once."""
    assert weights.loss is not None and weights.instance is not None
    if not len(weights.loss):
        return {"num_instances": 0}
    finite = weights.loss.isfinite()
    values = {
        "weight_mean": weights.instance.mean(),
        "weight_min": weights.instance.amin(),
        "weight_below_half": (weights.instance < 0.5).float().mean(),
        "teacher_loss": weights.loss[finite].mean().nan_to_num(),
        "num_non_finite": (~finite).sum(),
        "num_instances": weights.loss.new_tensor(len(weights.loss)),
    }
    numbers = torch.stack([x.float() for x in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))

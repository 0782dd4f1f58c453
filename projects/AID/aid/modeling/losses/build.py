"""Building of the distillation losses that a config names."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from ...utils.errors import AIDError, check_not_negative
from ...utils.suggestions import did_you_mean
from .base import DISTILLATION_LOSS_REGISTRY, check_scale

__all__ = ["build_distillation_losses"]


def build_distillation_losses(
    cfg: CfgNode,
    levels: tuple[str, ...],
    student_shapes: dict[str, ShapeSpec],
    teacher_shapes: dict[str, ShapeSpec],
) -> nn.ModuleDict:
    """Build the losses that DISTILLATION.LOSSES names.

    Args:
        cfg: the student's config.
        levels, student_shapes, teacher_shapes: see DISTILLATION_LOSS_REGISTRY.

    Returns:
        {name: loss}

    Raises:
        AIDError: an empty list, an unknown or repeated name, a negative weight of a loss, or an
            unknown DISTILLATION.SCALE.
    """
    _check_weights("DISTILLATION", cfg.DISTILLATION)
    if not cfg.DISTILLATION.LOSSES:
        raise AIDError(
            "DISTILLATION.LOSSES is empty: name at least one distillation loss, e.g. PKDLoss"
        )
    check_scale(cfg.DISTILLATION.SCALE)
    losses = nn.ModuleDict()
    for name in cfg.DISTILLATION.LOSSES:
        if not isinstance(name, str) or name not in DISTILLATION_LOSS_REGISTRY:
            known = sorted(key for key, _ in DISTILLATION_LOSS_REGISTRY)
            raise AIDError(
                f"DISTILLATION.LOSSES: {name!r} is unknown{did_you_mean(name, known)}, choose from "
                f"{', '.join(known)}"
            )
        if name in losses:
            raise AIDError(
                f"DISTILLATION.LOSSES names {name} twice: a loss counts once, by its weight"
            )
        losses[name] = DISTILLATION_LOSS_REGISTRY.get(name)(
            cfg, levels, student_shapes, teacher_shapes
        )
    return losses


def _check_weights(key: str, node: CfgNode) -> None:
    """Check the weights below a key here, where their names are known, also of losses not in use.

    Raises:
        AIDError: a weight is negative, NaN or infinite.
    """
    for name, value in node.items():
        if isinstance(value, CfgNode):
            _check_weights(f"{key}.{name}", value)
        elif name == "WEIGHT" or name.endswith("_WEIGHT"):
            check_not_negative(f"{key}.{name}", value)

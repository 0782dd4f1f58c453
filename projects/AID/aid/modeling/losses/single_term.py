"""Losses of one term behind an adapter."""

from detectron2.config import CfgNode, configurable

from .base import FeatureLoss, channels_of, make_adapters

__all__ = ["SingleTermLoss"]


class SingleTermLoss(FeatureLoss):
    """A loss of one term with a weight; a subclass has ``level``.

    Attributes:
        term: name of the loss.
        key: of its part of cfg.DISTILLATION.
    """

    term: str
    key: str

    @configurable
    def __init__(
        self,
        *,
        channels: dict[str, tuple[int, int]],
        weight: float,
        standardize: bool = True,
        adapt_equal_widths: bool = False,
    ):
        """
        Args:
            channels: (C_s, C_t) of each level.
            weight: of the loss.
            standardize: see DISTILLATION.STANDARDIZE.
            adapt_equal_widths: see DISTILLATION.ADAPT_EQUAL_WIDTHS.
        """
        super().__init__({self.term: weight}, standardize)
        self.adapters = make_adapters(channels, adapt_equal_widths)

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        return {
            "channels": channels_of(levels, student_shapes, teacher_shapes),
            "weight": cfg.DISTILLATION[cls.key].WEIGHT,
            "standardize": cfg.DISTILLATION.STANDARDIZE,
            "adapt_equal_widths": cfg.DISTILLATION.ADAPT_EQUAL_WIDTHS,
        }

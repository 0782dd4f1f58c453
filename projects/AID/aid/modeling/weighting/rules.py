"""Weighting rules. Importing the module registers them."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import Tensor

from ...utils.errors import AIDError, check_not_negative
from ..families.base import among
from .base import WEIGHTING_REGISTRY, Weighting
from .structures import ComponentWeights, TeacherStats, Weights

__all__ = ["ClassWeighting", "ConstantWeighting", "ExponentialWeighting", "RelativeWeighting"]


@WEIGHTING_REGISTRY.register()
class ExponentialWeighting(Weighting):
    """w = exp(-alpha * D), the weight of AID (arXiv 2201.11097)."""

    @configurable
    def __init__(self, *, alpha: float, **kwargs: Any) -> None:
        """
        Args:
            alpha: rate at which the weight decreases with D; 0 is plain distillation.

        Raises:
            AIDError: a negative alpha, with which weights would increase with D, or an infinite
                one.
        """
        super().__init__(**kwargs)
        check_not_negative("AID.ALPHA", alpha)
        self.alpha = alpha

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"alpha": cfg.AID.ALPHA, **super().from_config(cfg)}

    def __str__(self) -> str:
        return f"{super().__str__()}, alpha {self.alpha}"

    def weight(self, loss: Tensor) -> Tensor:
        return torch.exp(-self.alpha * loss)


@WEIGHTING_REGISTRY.register()
class RelativeWeighting(ExponentialWeighting):
    """w = exp(-alpha * D / mean D), with a running mean over the instances of all processes.

    An instance of mean loss has weight exp(-alpha), independent of the detector family, its loss
    weights and the state of training. Components of D are divided by the mean of D too, so that the
    weights of all components multiply to that of the instance.
    """

    @configurable
    def __init__(self, *, momentum: float, steps: int = 1, **kwargs: Any) -> None:
        """
        Args:
            momentum: momentum of the running mean, per iteration; its first values are means over
                the batches so far.
            steps: micro-batches per iteration; the mean is updated once per micro-batch.

        Raises:
            AIDError: a momentum outside of [0, 1).
        """
        super().__init__(**kwargs)
        if not 0 <= momentum < 1:
            raise AIDError(f"AID.MOMENTUM is {momentum}: it must be in [0, 1)")
        self.momentum = momentum ** (1 / steps)
        self.register_buffer("sum_and_count", torch.zeros(2))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "momentum": cfg.AID.MOMENTUM,
            "steps": cfg.SOLVER.ACCUMULATION_STEPS,
            **super().from_config(cfg),
        }

    def observe(self, stats: TeacherStats) -> None:
        if not self.training:
            return
        loss, _ = super().teacher_error(stats)
        finite = loss.isfinite()
        new = torch.stack([torch.where(finite, loss, 0.0).sum(), finite.sum()])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(new)
        self.sum_and_count.mul_(self.momentum).add_(new)

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        loss, background = super().teacher_error(stats)
        total, count = self.sum_and_count
        mean = torch.where(count > 0, total / count.clamp(min=1e-12), 1.0).clamp(min=1e-12)
        return loss / mean, background / mean


@WEIGHTING_REGISTRY.register()
class ConstantWeighting(Weighting):
    """w = constant, everywhere.

    With the mean weight of another rule, it is the control for that rule: the same mean strength of
    distillation without adaptivity.
    """

    @configurable
    def __init__(self, *, constant: float, **kwargs: Any) -> None:
        """
        Args:
            constant: the weight of every instance and of the background.

        Raises:
            AIDError: a negative or infinite weight.
        """
        super().__init__(**kwargs)
        check_not_negative("AID.CONSTANT", constant)
        self.constant = constant

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"constant": cfg.AID.CONSTANT, **super().from_config(cfg)}

    def __str__(self) -> str:
        return f"constant {self.constant}"

    @property
    def requires_stats(self) -> bool:
        return False

    def forward(self, stats: TeacherStats | None, boxes: list[Tensor], levels: dict) -> Weights:
        plain = super().forward(None, boxes, levels)
        return Weights({level: self.constant * x for level, x in plain.maps.items()})

    def component_weights(
        self, stats: TeacherStats | None, boxes: list[Tensor]
    ) -> ComponentWeights:
        ones = super().component_weights(None, boxes)
        return ComponentWeights(*(self.constant * x for x in (ones.cls, ones.box, ones.background)))


@WEIGHTING_REGISTRY.register()
class ClassWeighting(Weighting):
    """w = 0 on instances of given classes, 1 on all others.

    In studies it is the oracle: an upper bound for rules that have to estimate the weights.
    """

    requires_loss = False

    @configurable
    def __init__(self, *, distrusted: list[int], **kwargs: Any) -> None:
        """
        Args:
            distrusted: category ids with weight 0.
        """
        super().__init__(**kwargs)
        self.distrusted = distrusted

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        dataset = cfg.DATASETS.TRAIN[0]
        known = MetadataCatalog.get(dataset).get("thing_classes", [])
        names = cfg.AID.DISTRUSTED_CLASSES
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise AIDError(
                f"AID.DISTRUSTED_CLASSES is {list(names)}: name classes of {dataset}, which has "
                f"{', '.join(known)}"
            )
        return {"distrusted": [known.index(x) for x in names], **super().from_config(cfg)}

    def __str__(self) -> str:
        return f"{super().__str__()}, not on classes {self.distrusted}"

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        loss, background = super().teacher_error(stats)
        assert stats.classes is not None
        wrong = among(stats.classes, self.distrusted)
        # A loss that is not finite is kept, for weight 0 whatever the class.
        return torch.where(loss.isfinite(), wrong.to(loss.dtype), loss), 0.0 * background

    def weight(self, loss: Tensor) -> Tensor:
        return 1 - loss

"""The control: the strength of another rule, without its choice of places."""

from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...errors import AIDError
from .base import WEIGHTING_REGISTRY, Weighting
from .structures import Evidence, PartWeights, Weights

__all__ = ["ConstantWeighting"]


@WEIGHTING_REGISTRY.register()
class ConstantWeighting(Weighting):
    """w = constant, everywhere.

    With the mean weight of another rule it imitates as strongly as that rule and adapts to nothing:
    what the other rule gains over it is what adaptivity is worth.
    """

    @configurable
    def __init__(self, *, constant: float, **kwargs):
        """
        Args:
            constant: the weight.

        Raises:
            AIDError: a negative weight.
        """
        super().__init__(**kwargs)
        if not constant >= 0:
            raise AIDError(f"AID.CONSTANT is {constant}: it must be 0 or more")
        self.constant = constant

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"constant": cfg.AID.CONSTANT, **super().from_config(cfg)}

    def __str__(self) -> str:
        return f"constant {self.constant}"

    @property
    def needs_evidence(self) -> bool:
        return False

    def forward(self, evidence: Evidence | None, boxes: list[Tensor], levels: dict) -> Weights:
        plain = super().forward(None, boxes, levels)
        maps = {level: self.constant * x for level, x in plain.maps.items()}
        return Weights(maps, self.constant * plain.boxes)

    def by_part(self, evidence: Evidence | None, boxes: list[Tensor]) -> PartWeights:
        ones = super().by_part(None, boxes)
        return PartWeights(*(self.constant * x for x in (ones.cls, ones.box, ones.background)))

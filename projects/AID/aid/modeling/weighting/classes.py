"""A weight by class, for a teacher that is known to be wrong about some."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from torch import Tensor

from ...errors import AIDError
from .base import WEIGHTING_REGISTRY, Weighting
from .structures import Evidence

__all__ = ["ClassWeighting"]


@WEIGHTING_REGISTRY.register()
class ClassWeighting(Weighting):
    """w = 0 on instances of the classes that are not to be learned from this teacher, 1 on others.

    In a study it is the oracle: what rules could reach that must find out by themselves.
    """

    @configurable
    def __init__(self, *, distrusted: list[int], **kwargs):
        """
        Args:
            distrusted: category ids.
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

    def disbelief(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        loss, background = super().disbelief(evidence)
        wrong = torch.isin(evidence.classes, evidence.classes.new_tensor(self.distrusted))
        # A loss that is not finite weighs nothing, whatever the class.
        return torch.where(loss.isfinite(), wrong.to(loss.dtype), loss), 0.0 * background

    def weight(self, loss: Tensor) -> Tensor:
        return 1 - loss

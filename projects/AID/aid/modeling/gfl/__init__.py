"""GFL, a single-stage detector whose scores are qualities and whose boxes are distributions.

Generalized Focal Loss (Li et al., NeurIPS 2020, arXiv 2006.04388) on Detectron2's dense detector.
"""

from .assignment import assign_cells
from .detector import GFL
from .head import GFLHead
from .integral import IntegralTransform
from .losses import distribution_focal_losses, quality_focal_losses

__all__ = [
    "GFL",
    "GFLHead",
    "IntegralTransform",
    "assign_cells",
    "distribution_focal_losses",
    "quality_focal_losses",
]

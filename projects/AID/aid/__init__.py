"""Adaptive Instance Distillation (AID, arXiv 2201.11097) for Detectron2.

Importing the package registers the meta-architectures, distillation losses, weighting rules and
datasets, which configs can name from then on. It sets no logger level, warning filter or other
process-wide option.
"""

import warnings

from .utils.errors import filter_known_warnings

try:
    with warnings.catch_warnings():
        filter_known_warnings()
        import detectron2.engine
        import detectron2.model_zoo  # noqa: F401
except ImportError as error:
    raise ImportError(
        "aid needs Detectron2, which cannot be imported here "
        f"({error}): run `python tools/install_detectron2.py` in the repository of aid."
    ) from None

from . import checkpoint, data, modeling  # noqa: E402  (after the check for Detectron2)
from .config import add_aid_config  # noqa: E402
from .inference import Predictor  # noqa: E402

__all__ = ["Predictor", "add_aid_config", "checkpoint", "data", "modeling"]
__version__ = "0.2.0"

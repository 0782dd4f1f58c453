"""Adaptive Instance Distillation (AID, arXiv 2201.11097) for Detectron2.

Importing the package registers the meta-architectures, the distillation losses, the weighting rules
and the datasets, so that ``import aid`` is all that a config needs.
"""

import warnings

from .utils.errors import ignore_known_deprecations

try:
    with warnings.catch_warnings():
        ignore_known_deprecations()
        import detectron2.engine
        import detectron2.model_zoo  # noqa: F401
except ImportError as error:
    raise ImportError(
        "aid needs Detectron2, which cannot be imported here "
        f"({error}): run `python tools/install_detectron2.py` in the repository of aid."
    ) from None

from . import checkpoint, data, modeling  # noqa: E402  (Detectron2 comes first)
from .config import add_aid_config  # noqa: E402
from .utils import renamed  # noqa: E402

renamed.install()

__all__ = ["add_aid_config", "checkpoint", "data", "modeling"]
__version__ = "0.2.0"

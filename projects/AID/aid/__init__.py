"""Adaptive Instance Distillation (AID, arXiv 2201.11097) for Detectron2.

Importing the package registers the meta-architectures, the distillation losses, the weighting rules
and the datasets, so that ``import aid`` is all that a config needs.
"""

import logging
import warnings

# Deprecations inside Detectron2 and fvcore, about which a user of either can do nothing.
for _message in (
    "pkg_resources is deprecated",
    "`torch.jit.script` is deprecated",
    "torch.meshgrid: in an upcoming release",
):
    warnings.filterwarnings("ignore", message=_message)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "aid needs Detectron2, which cannot be imported here "
        f"({error}): run `python tools/install_detectron2.py` in the repository of aid."
    ) from None

from . import checkpoint, data, modeling  # noqa: E402  (Detectron2 comes first)
from .config import add_aid_config  # noqa: E402

__all__ = ["add_aid_config", "checkpoint", "data", "modeling"]
__version__ = "0.1.0"

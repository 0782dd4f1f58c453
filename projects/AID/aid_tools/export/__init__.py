"""Export of detectors to TorchScript and ONNX, with a comparison to the original."""

from .comparison import TOLERANCE, Difference, compare_detections
from .deployed import OUTPUTS, deployed
from .formats import FILES, TITLES, check_packages, export, load_exported
from .measure import Row, latencies, num_parameters, size_of_weights, table

__all__ = [
    "FILES",
    "OUTPUTS",
    "TITLES",
    "TOLERANCE",
    "Difference",
    "Row",
    "check_packages",
    "compare_detections",
    "deployed",
    "export",
    "latencies",
    "load_exported",
    "num_parameters",
    "size_of_weights",
    "table",
]

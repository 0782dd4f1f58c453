"""Export of detectors to TorchScript and ONNX, with a comparison to the original."""

from .accuracy import average_precision, check_drop
from .comparison import TOLERANCE, Difference, compare_detections
from .contract import contract
from .deployed import OUTPUTS, deployed
from .formats import FILES, INT8, OPSET, TITLES, check_packages, export, load_exported
from .measure import Row, latencies, num_parameters, size_of_weights, table
from .quantization import quantized

__all__ = [
    "FILES",
    "INT8",
    "OPSET",
    "OUTPUTS",
    "TITLES",
    "TOLERANCE",
    "Difference",
    "Row",
    "average_precision",
    "check_drop",
    "check_packages",
    "compare_detections",
    "contract",
    "deployed",
    "export",
    "latencies",
    "load_exported",
    "num_parameters",
    "quantized",
    "size_of_weights",
    "table",
]

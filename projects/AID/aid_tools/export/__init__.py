"""Export of detectors to TorchScript and ONNX, with a comparison to the original."""

from .accuracy import average_precision, check_drop
from .comparison import compare_detections
from .deployed import OUTPUTS, deployed
from .formats import FILES, OPSET, TITLES, check_packages, exported, load_exported
from .measure import Row, size_of_weights, table
from .quantization import quantized

__all__ = [
    "FILES",
    "OPSET",
    "OUTPUTS",
    "TITLES",
    "Row",
    "average_precision",
    "check_drop",
    "check_packages",
    "compare_detections",
    "deployed",
    "exported",
    "load_exported",
    "quantized",
    "size_of_weights",
    "table",
]

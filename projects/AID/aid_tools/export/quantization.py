"""Static quantization of ONNX files to INT8."""

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from aid.utils.errors import AIDError

__all__ = ["quantized"]

# Nodes that take nearly all of the time. All others stay float: 8 bits are too few for the
# coordinates of boxes and anchors, which NMS compares.
QUANTIZED = ["Conv", "Gemm"]


def quantized(path: str, images: Iterable[Tensor]) -> bytes:
    """Quantize a model: weights per channel, activations by their range on example images.

    Args:
        path: of the ONNX file.
        images: inputs, see :func:`~aid_tools.export.deployed.deployed`; read one at a time.

    Returns:
        Content of the ONNX file with quantized weights and QuantizeLinear and DequantizeLinear
        nodes (QDQ); inputs and outputs are the same.

    Raises:
        AIDError: ONNX Runtime cannot quantize the model.
    """
    from onnxruntime import quantization  # optional dependency

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.rest = iter(images)

        def get_next(self) -> dict | None:
            image = next(self.rest, None)
            return None if image is None else {"image": image.numpy()}

    with tempfile.TemporaryDirectory() as folder, _without_messages():
        target = os.path.join(folder, "int8.onnx")
        try:
            quantization.quantize_static(
                path,
                target,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED,
                per_channel=True,
                # On CPUs with VNNI twice as fast as signed activations.
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except (AIDError, OSError):
            raise
        except Exception as error:  # of ONNX Runtime, of any type
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AIDError(
                f"{path} cannot be quantized ({reason[:200]}): export it without --int8"
            ) from error
        with open(target, "rb") as f:
            return f.read()


@contextmanager
def _without_messages() -> Iterator[None]:
    """Suppress the advice of ONNX Runtime, which the exported files follow already."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # without any, logging would set one up for the whole process
    try:
        yield
    finally:
        root.removeHandler(silent)

"""Export formats; the files run without this project and without Detectron2."""

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from detectron2.export import TracingAdapter
from torch import Tensor, nn

from aid.utils.errors import AIDError

from .deployed import OUTPUTS, deployed

__all__ = ["FILES", "INT8", "OPSET", "TITLES", "check_packages", "exported", "load_exported"]

# File names and titles by format.
FILES = {"trace": "model_traced.pt", "onnx": "model.onnx"}
INT8 = "model_int8.onnx"
TITLES = {"trace": "TorchScript", "onnx": "ONNX"}
# Newest version that torch's exporter of traces writes without conversion.
OPSET = 17


def check_packages(kinds: list[str]) -> None:
    """Check that the packages of the given formats can be imported.

    Raises:
        AIDError: a package is missing.
    """
    for package in ("onnx", "onnxruntime") if "onnx" in kinds else ():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise AIDError(
                f"--format onnx needs {package}, which cannot be imported ({error}): "
                "pip install -e '.[export]' in the repository, or choose trace"
            ) from error


def exported(detector: nn.Module, kind: str, image: Tensor) -> bytes:
    """Export a detector, for images of any size.

    Args:
        detector: detector in eval mode, on the CPU.
        kind: format, a key of :data:`FILES`.
        image: example input, see :func:`~aid_tools.export.deployed.deployed`.

    Returns:
        Content of the file.

    Raises:
        AIDError: see :func:`~aid_tools.export.deployed.deployed`.
    """
    content = io.BytesIO()  # torch would abort the process if a disk were full
    with _without_warnings(), torch.no_grad():
        # Detectron2's adapter records len() of a tensor in the trace.
        adapter = TracingAdapter(deployed(detector), image).eval()
        if kind == "trace":
            torch.jit.save(torch.jit.trace(adapter, (image,), check_trace=False), content)
            return content.getvalue()
        names = list(OUTPUTS[: len(adapter(image))])
        torch.onnx.export(
            adapter,
            (image,),
            content,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes={
                "image": {1: "height", 2: "width"},
                **{name: {0: "detections"} for name in names},
            },
        )
    return content.getvalue()


def load_exported(
    content: bytes, kind: str, threads: int
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Load the result of :func:`exported`.

    Args:
        content, kind: content and format of the file.
        threads: number of threads of ONNX Runtime; TorchScript uses torch's setting.

    Returns:
        Function from an image to its outputs.
    """
    if kind != "onnx":
        with _without_warnings():
            return torch.jit.load(io.BytesIO(content))
    import onnxruntime  # optional dependency

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warnings of the tracer and the deprecation warning of TorchScript.

    The comparison on images of several sizes covers what the tracer warns about.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""Export formats; the files run without this project and without Detectron2."""

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.jit.frontend import FrontendError

from aid.utils.errors import AIDError
from aid.utils.files import whole_file

from .deployed import OUTPUTS, deployed

__all__ = ["FILES", "INT8", "OPSET", "TITLES", "check_packages", "export", "load_exported"]

# File names and titles by format.
FILES = {"trace": "model_traced.pt", "script": "model_scripted.pt", "onnx": "model.onnx"}
INT8 = "model_int8.onnx"
TITLES = {"trace": "TorchScript, traced", "script": "TorchScript, scripted", "onnx": "ONNX"}
# Newest version that torch's exporter of traces writes without conversion.
OPSET = 17
# Fields of Detectron2's Instances, which scripting must know in advance.
FIELDS = {"pred_boxes": Boxes, "scores": Tensor, "pred_classes": Tensor}
RCNN_FIELDS = {"proposal_boxes": Boxes, "objectness_logits": Tensor}


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
                "pip install -e '.[export]' in the repository, or choose trace or script"
            ) from error


def export(detector: nn.Module, kind: str, image: Tensor, path: str) -> None:
    """Write the detector to a file, for images of any size.

    Args:
        detector: detector in eval mode, on the CPU.
        kind: format, a key of :data:`FILES`.
        image: example input, see :func:`~aid_tools.export.deployed.deployed`.
        path: path of the file.

    Raises:
        AIDError: the detector cannot be exported to this format.
    """
    content = _exported(deployed(detector), kind, image)
    with whole_file(path) as f:
        f.write(content)


def _exported(module: nn.Module, kind: str, image: Tensor) -> memoryview:
    """Content of the file. In memory, since torch aborts the process if the disk is full."""
    content = io.BytesIO()
    with _without_warnings(), torch.no_grad():
        if kind == "script":
            torch.jit.save(_script(module), content)
            return content.getbuffer()
        # Detectron2's adapter records len() of a tensor in the trace.
        adapter = TracingAdapter(module, image).eval()
        if kind == "trace":
            torch.jit.save(torch.jit.trace(adapter, (image,), check_trace=False), content)
            return content.getbuffer()
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
    return content.getbuffer()


def _script(module: nn.Module) -> torch.jit.ScriptModule:
    fields = dict(FIELDS)
    if isinstance(module.detector, GeneralizedRCNN):
        fields |= RCNN_FIELDS
        if module.detector.roi_heads.mask_on:
            fields["pred_masks"] = Tensor
    try:
        return scripting_with_instances(module, fields)
    except (FrontendError, RuntimeError) as error:
        reason = next(x for x in str(error).splitlines() if x.strip())
        raise AIDError(
            f"{type(module.detector).__name__} cannot be scripted, TorchScript does not support "
            f"its code ({reason.strip()[:100]}): choose trace or onnx"
        ) from error


def load_exported(
    path: str | bytes, kind: str, threads: int
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Load a file written by :func:`export`.

    Args:
        path, kind: path and format, see :func:`export`; of an ONNX file also the content.
        threads: number of threads of ONNX Runtime; TorchScript uses torch's setting.

    Returns:
        Function from an image to its outputs.
    """
    if kind != "onnx":
        with _without_warnings():
            return torch.jit.load(path)
    import onnxruntime  # optional dependency

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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

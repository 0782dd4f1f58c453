"""Files of a detector that run without this project and without Detectron2."""

import importlib
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

from .deployed import OUTPUTS, deployed

__all__ = ["FILES", "TITLES", "check_packages", "export", "load_exported"]

# Names of the files by format, and what the formats are called.
FILES = {"trace": "model_traced.pt", "script": "model_scripted.pt", "onnx": "model.onnx"}
TITLES = {"trace": "TorchScript, traced", "script": "TorchScript, scripted", "onnx": "ONNX"}
# The newest that torch's exporter of traces writes without conversion.
OPSET = 17
# Of Detectron2's Instances, which TorchScript wants to know beforehand.
FIELDS = {"pred_boxes": Boxes, "scores": Tensor, "pred_classes": Tensor}
RCNN_FIELDS = {"proposal_boxes": Boxes, "objectness_logits": Tensor}


def check_packages(kinds: list[str]) -> None:
    """Say before the work that a package for one of the formats is missing.

    Raises:
        AIDError: it is.
    """
    for package in ("onnx", "onnxruntime") if "onnx" in kinds else ():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise AIDError(
                f"--format onnx needs {package}, which cannot be imported ({error}): "
                "pip install 'aid-detectron2[export]', or choose trace or script"
            ) from error


def export(detector: nn.Module, kind: str, image: Tensor, path: str) -> None:
    """Write the detector to a file, for images of any size.

    Args:
        detector: on the CPU, in eval mode.
        kind: key of :data:`FILES`.
        image: an example of the input, see :func:`~aid_tools.export.deployed.deployed`.
        path: of the file.

    Raises:
        AIDError: there is no such export of this detector.
    """
    module = deployed(detector)
    with _without_warnings(), torch.no_grad():
        if kind == "script":
            torch.jit.save(_script(module), path)
            return
        # Detectron2's adapter makes len() of a tensor a part of the trace.
        adapter = TracingAdapter(module, image).eval()
        if kind == "trace":
            torch.jit.save(torch.jit.trace(adapter, (image,), check_trace=False), path)
            return
        names = list(OUTPUTS[: len(adapter(image))])
        torch.onnx.export(
            adapter,
            (image,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes={
                "image": {1: "height", 2: "width"},
                **{name: {0: "detections"} for name in names},
            },
        )


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
            f"{type(module.detector).__name__} cannot be scripted, TorchScript does not take its "
            f"code ({reason.strip()[:100]}): choose trace or onnx"
        ) from error


def load_exported(path: str, kind: str, threads: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Read a file that :func:`export` wrote; returns a function from an image to its outputs.

    Args:
        path, kind: as for :func:`export`.
        threads: that ONNX Runtime may use; TorchScript uses torch's own.
    """
    if kind != "onnx":
        with _without_warnings():
            return torch.jit.load(path)
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of the tracer, since what is exported is run and compared, on images of several sizes, which
    says more; and of torch that TorchScript is deprecated."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

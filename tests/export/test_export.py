"""Detections of exported files, compared with their detectors."""

import subprocess
import sys

import onnx
import pytest
import torch

from aid.utils.errors import AIDError
from aid_tools.export import (
    OPSET,
    OUTPUTS,
    check_packages,
    compare_detections,
    exported,
    load_exported,
)
from aid_tools.export.comparison import SCALES

KINDS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
CASES = [(kind, fmt) for kind in KINDS for fmt in ("trace", "onnx")]
SECTIONS = ("ROI_HEADS", "RETINANET", "GFL", "FCOS")


def thresholds(value):
    return [x for section in SECTIONS for x in (f"MODEL.{section}.SCORE_THRESH_TEST", value)]


@pytest.fixture
def detector(tiny_model):
    """A function (kind, score threshold) -> a detector of random weights with detections."""
    return lambda kind, threshold=0.0: tiny_model(kind, thresholds(threshold), seed=2)


def noise(*size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, *size), generator=generator).float()


def nodes_of(graph):
    """All nodes of an ONNX graph, those of the branches of If included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def content_of(detector, kind):
    return exported(detector, kind, noise(64, 96))


@pytest.mark.parametrize("kind, fmt", CASES)
def test_exported_detections_equal_the_detector(kind, fmt, detector):
    model = detector(kind)
    content = content_of(model, fmt)
    run = load_exported(content, fmt, threads=1)
    # Sizes other than that of the export, upright, and not divisible by the strides.
    images = [noise(64, 96, seed=1), noise(128, 80), noise(65, 99)]
    difference = compare_detections(run, model, images, fmt)
    assert difference.detections > 10 * len(images) * len(SCALES) / 2
    assert difference.largest["boxes"] <= (1e-3 if fmt == "onnx" else 0)
    assert difference.largest["scores"] <= (1e-5 if fmt == "onnx" else 0)
    assert ("masks" in difference.largest) == (kind == "mask_rcnn")
    assert difference.largest.get("masks", 0) <= (1e-5 if fmt == "onnx" else 0)
    if fmt == "onnx":  # other engines, such as TensorRT, have the standard operators only
        file = onnx.load_from_string(content)
        assert [(x.domain, x.version) for x in file.opset_import] == [("", OPSET)]
        nodes = list(nodes_of(file.graph))
        assert {node.domain for node in nodes} == {""}
        assert "NonMaxSuppression" in {node.op_type for node in nodes}
        (image,) = file.graph.input
        sides = [x.dim_param or x.dim_value for x in image.type.tensor_type.shape.dim]
        assert (image.name, sides) == ("image", [3, "height", "width"])
        names = list(OUTPUTS)[: 4 if kind == "mask_rcnn" else 3]
        assert [x.name for x in file.graph.output] == names


# With a mask head and without one, and the functions that all dense detectors share.
@pytest.mark.parametrize(
    "kind, fmt",
    [("faster_rcnn", "onnx"), ("mask_rcnn", "onnx"), ("mask_rcnn", "trace"), ("gfl", "onnx")],
)
def test_exported_file_without_detections_returns_empty_tensors(kind, fmt, detector):
    content = content_of(detector(kind, threshold=1.1), fmt)
    outputs = load_exported(content, fmt, threads=1)(noise(80, 96))
    assert [len(x) for x in outputs] == [0] * (4 if kind == "mask_rcnn" else 3)
    assert outputs[0].shape == (0, 4)


def test_torchscript_runs_without_detectron2(detector, tmp_path):
    path, image = tmp_path / "model.pt", noise(64, 96)
    path.write_bytes(content_of(detector("faster_rcnn"), "trace"))
    expected = load_exported(path.read_bytes(), "trace", threads=1)(image)
    torch.save(image, tmp_path / "image.pt")
    program = (
        "import sys, torch, torchvision\n"
        f"found = torch.jit.load({str(path)!r})(torch.load({str(tmp_path / 'image.pt')!r}))\n"
        f"torch.save(found, {str(tmp_path / 'found.pt')!r})\n"
        "assert not {'detectron2', 'aid'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    for a, b in zip(torch.load(tmp_path / "found.pt"), expected, strict=True):
        assert torch.equal(a, b)


def test_missing_package_is_reported_before_the_export(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check_packages(["trace"])
    with pytest.raises(AIDError, match="needs onnxruntime"):
        check_packages(["trace", "onnx"])

"""INT8: quantized graphs, average precision of exported files, and accepted losses."""

import onnx
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset

from aid.config import load_config
from aid.data import build_test_loader
from aid.evaluation import build_evaluator
from aid.utils.errors import AIDError
from aid_tools.export import (
    average_precision,
    check_drop,
    deployed,
    exported,
    load_exported,
    quantized,
)

SENSITIVE = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]


def noise(*size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, *size), generator=generator).float()


def test_convolutions_are_quantized_and_boxes_are_not(tiny_model, tmp_path):
    path = tmp_path / "model.onnx"
    detector = tiny_model("mask_rcnn", SENSITIVE, seed=2)
    path.write_bytes(exported(detector, "onnx", noise(64, 96)))
    content = quantized(str(path), [noise(64, 96, seed=1), noise(96, 64, seed=2)])
    model = onnx.load_from_string(content)
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 17)]
    nodes = model.graph.node
    assert {node.domain for node in nodes} == {""}
    producer = {name: node for node in nodes for name in node.output}
    tensors = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    layers = [node for node in nodes if node.op_type in ("Conv", "Gemm")]
    assert len(layers) > 70
    for layer in layers:
        sources = [producer[name] for name in layer.input[:2]]
        assert [x.op_type for x in sources] == ["DequantizeLinear"] * 2
        weight, scale = (tensors[name] for name in sources[1].input[:2])
        assert weight.dtype == "int8" and len(scale) in (weight.shape[0], weight.shape[-1])
    float_inputs = {
        producer[name].op_type
        for node in nodes
        if node.op_type in ("Exp", "RoiAlign", "TopK")
        for name in node.input
        if name in producer
    }
    assert float_inputs and "QuantizeLinear" not in float_inputs
    outputs = load_exported(content, "onnx", 1)(noise(80, 65))
    assert len(outputs) == 4 and len(outputs[0]) > 10


def test_failure_of_the_quantizer_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fail)
    with pytest.raises(AIDError, match=r"a.onnx cannot be quantized \(no such operator\): export"):
        quantized("a.onnx", [])


def test_ap_of_a_file_equals_that_of_its_detector(
    tiny_model, tiny_config, toy_dataset, tmp_path, capsys
):
    opts = [*SENSITIVE, "DATASETS.TEST", (toy_dataset,), "DATALOADER.NUM_WORKERS", 0]
    opts += ["INPUT.MIN_SIZE_TEST", 96]
    detector = tiny_model("faster_rcnn", opts, seed=2)
    cfg = load_config(tiny_config("faster_rcnn", opts))
    evaluator = build_evaluator(toy_dataset, str(tmp_path))
    expected = inference_on_dataset(detector, build_test_loader(cfg, toy_dataset), evaluator)
    with torch.no_grad():
        actual = average_precision(deployed(detector), cfg, toy_dataset, "the file")
    assert "AP of the file: 100%" in capsys.readouterr().err
    assert actual == {"bbox": expected["bbox"]["AP"]} and actual["bbox"] > 0
    assert len(DatasetCatalog.get(toy_dataset)) == 7


@pytest.mark.parametrize("before, after", [(20.0, 19.0), (20.0, 25.0), (0.5, 0.1)])
def test_small_losses_are_accepted(before, after):
    check_drop({"bbox": before}, {"bbox": after}, 1.0, "val")


@pytest.mark.parametrize(
    "before, after, message",
    [
        ({"bbox": 20.0}, {"bbox": 18.9}, "its bbox AP on val is 18.9, the detector's 20: --max-ap"),
        (
            {"bbox": 0.5},
            {"bbox": 0.0},
            "AP on val is 0, the detector's 0.5: .* but never 0",
        ),
        ({"bbox": 20.0, "segm": 9.0}, {"bbox": 20.0, "segm": 7.5}, "its segm AP"),
        ({"bbox": 20.0}, {"bbox": float("nan")}, "AP on val is nan"),
        ({"bbox": 0.0}, {"bbox": 0.0}, "bbox AP on val is 0, so that INT8 cannot be checked"),
        ({"bbox": float("nan")}, {"bbox": 1.0}, "is nan, so that"),
    ],
)
def test_large_losses_and_missing_ap_are_refused(before, after, message):
    with pytest.raises(AIDError, match=message):
        check_drop(before, after, 1.0, "val")

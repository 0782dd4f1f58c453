"""Predictor: detections from an output folder alone, its classes, and errors."""

import json
import logging
import os
import shutil
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import Visualizer
from torch.fx._symbolic_trace import is_fx_tracing_warning

from aid import Predictor, add_aid_config
from aid.config import load_config
from aid.inference import as_input, classes_of, load_config_of
from aid.utils.errors import AIDError

NAMES = ["forklift", "man", "pallet"]


def test_output_folder_is_all_that_is_needed(run_folder, tmp_path):
    moved = str(tmp_path / "elsewhere")
    shutil.move(run_folder(), moved)
    predictor = Predictor(moved)
    assert (predictor.class_names, predictor.class_ids) == (NAMES, [3, 7, 90])
    path = str(tmp_path / "2.png")  # upright
    instances = predictor(cv2.imread(path))
    assert instances.image_size == (96, 64) and len(instances) > 10
    again = predictor(tmp_path / "2.png")
    assert torch.equal(instances.pred_boxes.tensor, again.pred_boxes.tensor)
    drawn = Visualizer(cv2.imread(path)[:, :, ::-1], predictor.metadata)
    labels = drawn.draw_instance_predictions(instances[:1]).ax.texts
    assert labels[0].get_text().split()[0] in NAMES


def test_detection_shows_no_warning_of_torch(run_folder, tmp_path, capfd):
    """Users of a Predictor cannot act on them; filters and loggers stay as they are."""
    predictor, name = Predictor(run_folder()), "torch.fx._symbolic_trace"
    torch.set_warn_always(True)
    is_fx_tracing_warning.cache_clear()
    level = logging.getLogger(name).level
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("default")
            predictor(tmp_path / "0.png")
            assert seen == [] and warnings.filters[0] == ("default", None, Warning, None, 0)
    finally:
        torch.set_warn_always(False)
    assert capfd.readouterr().err == "" and logging.getLogger(name).level == level


@pytest.mark.parametrize("kind, channels", [("faster_rcnn", "RGB"), ("mask_rcnn", "BGR")])
def test_detections_equal_those_of_the_default_predictor(kind, channels, run_folder, tmp_path):
    folder = run_folder(kind, ["INPUT.FORMAT", channels, "INPUT.MIN_SIZE_TEST", 80])
    cfg = get_cfg()
    add_aid_config(cfg)
    cfg.merge_from_file(f"{folder}/config.yaml")
    cfg.DATASETS.TEST = ()
    cfg.MODEL.WEIGHTS = f"{folder}/model_final.pth"
    image = cv2.imread(str(tmp_path / "0.png"))
    expected = DefaultPredictor(cfg)(image)["instances"]
    actual = Predictor(folder)(image)
    assert len(actual) > 10
    assert actual.has("pred_masks") == (kind == "mask_rcnn")
    for name in actual.get_fields():
        ours, theirs = (getattr(x.get(name), "tensor", x.get(name)) for x in (actual, expected))
        assert torch.equal(ours, theirs)


def test_checkpoint_has_the_classes_beside_the_plain_model(run_folder):
    content = torch.load(f"{run_folder()}/model_final.pth")
    assert content["classes"] == [
        {"id": 3, "name": "forklift"}, {"id": 7, "name": "man"}, {"id": 90, "name": "pallet"}
    ]  # fmt: skip
    assert {"model", "classes", "trainer"} == content.keys()


def test_last_checkpoint_is_used(run_folder):
    folder = run_folder()
    os.rename(f"{folder}/model_final.pth", f"{folder}/model_0000009.pth")
    with pytest.raises(AIDError, match="model_final.pth does not exist: train first"):
        Predictor(folder)
    with open(f"{folder}/last_checkpoint", "w") as f:
        f.write("model_0000009.pth")
    assert load_config_of(folder).MODEL.WEIGHTS == f"{folder}/model_0000009.pth"
    assert load_config_of(folder, "own.pth").MODEL.WEIGHTS == "own.pth"
    assert load_config_of(folder, opts=["MODEL.WEIGHTS", "own.pth"]).MODEL.WEIGHTS == "own.pth"
    os.remove(f"{folder}/last_checkpoint")
    shutil.copy(f"{folder}/model_0000009.pth", f"{folder}/model_final.pth")
    assert Predictor(folder).class_names == NAMES


def test_tool_needs_the_output_folder_only(run_folder, load_script, tmp_path):
    options = ["--config-file", run_folder(), "--output", str(tmp_path / "out")]
    options += ["--format", "coco", "kitti", "--score-threshold", "0", "--no-pictures"]
    load_script("tools/predict.py").main([str(tmp_path / "0.png"), *options])
    content = json.loads((tmp_path / "out/detections.json").read_text())
    names = dict(zip((3, 7, 90), NAMES, strict=True))
    assert {x["id"]: x["name"] for x in content["categories"]} == names
    found = [names[x["category_id"]] for x in content["annotations"]]
    lines = (tmp_path / "out/kitti/0.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == found != []


def change(folder: str, edit) -> None:
    content = torch.load(f"{folder}/model_final.pth")
    edit(content)
    torch.save(content, f"{folder}/model_final.pth")


def test_older_checkpoint_needs_its_dataset(run_folder):
    folder = run_folder()
    change(folder, lambda x: x.pop("classes"))
    with pytest.raises(AIDError, match="hold no names of classes.*own_.* is not registered: regis"):
        Predictor(folder)
    opts = ["DATASETS.TRAIN", ("kitti_train",), "DATASETS.TEST", ("kitti_val",)]
    assert Predictor(folder, opts=opts).class_names == ["Car", "Pedestrian", "Cyclist"]


@pytest.mark.parametrize(
    "stored", [[{"id": 1, "name": "a"}], ["a", "b", "c"], [{"id": 1, "name": 2}] * 3, {"a": 1}]
)
def test_classes_that_do_not_fit_are_refused(stored, run_folder):
    folder = run_folder()
    change(folder, lambda x: x.update(classes=stored))
    with pytest.raises(AIDError, match='"classes" holds .* has 3 classes: name the config'):
        Predictor(folder)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(AIDError, match="holds no config.yaml: name the output folder of a run"):
        Predictor(str(tmp_path))


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "cv2.imread returns None"),
        (np.zeros((64, 96), np.uint8), r"shape \(64, 96\) and type uint8"),
        (np.zeros((64, 96, 4), np.uint8), r"shape \(64, 96, 4\)"),
        (np.zeros((64, 96, 3), np.float32), "type float32"),
        (np.zeros((0, 96, 3), np.uint8), r"shape \(0, 96, 3\)"),
        (np.zeros((1, 9000, 3), np.uint8), "9000x1 pixels, of which nothing would be left"),
        ("gone.png", "image gone.png does not exist"),
        (__file__, "cannot be used: it is no image"),
    ],
)
def test_unusable_images_are_refused(image, message, run_folder):
    predictor = Predictor(run_folder())
    with pytest.raises(AIDError, match=message):
        predictor(image)


@pytest.mark.parametrize("images", ["street.png", Path("street.png"), b"street.png"])
def test_one_path_is_no_list_of_images(images, run_folder):
    with pytest.raises(AIDError, match="street.png.* is no list of images: write predict"):
        Predictor(run_folder()).predict(images)


def test_other_channel_orders_are_refused(run_folder):
    with pytest.raises(AIDError, match="INPUT.FORMAT is L: only BGR and RGB"):
        Predictor(run_folder(), opts=["INPUT.FORMAT", "L"])


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_input_has_the_channel_order_of_the_config(channels, tiny_config):
    cfg = load_config(tiny_config("faster_rcnn", ["INPUT.FORMAT", channels]))
    pixels = as_input(np.full((4, 8, 3), (1, 2, 3), np.uint8), cfg)["image"]  # BGR
    assert pixels[:, 0, 0].tolist() == ([3, 2, 1] if channels == "RGB" else [1, 2, 3])


@pytest.mark.parametrize(
    "weights, device, message",
    [
        ("", None, "names no weights"),
        ("a.pth", "cuda:99", "device cuda:99 is not available"),
        ("a", "x", "device x"),
    ],
)
def test_missing_weights_or_device_is_refused(weights, device, message, tiny_config):
    with pytest.raises(AIDError, match=message):
        load_config_of(tiny_config("faster_rcnn"), weights, device)


def rows(names, ids):
    return [{"id": k, "name": name} for k, name in zip(ids, names, strict=True)]


def test_classes_have_names_and_ids_of_the_dataset(tiny_config, toy_dataset):
    cfg = load_config(tiny_config("gfl", ["DATASETS.TEST", (toy_dataset,)]))
    assert classes_of(cfg) == rows(["Car", "Pedestrian", "Cyclist"], range(3))
    cfg.MODEL.GFL.NUM_CLASSES = 2  # another number of classes than the dataset
    assert classes_of(cfg, load=True) is None
    zoo = load_config_of("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", "model.pkl", "cpu")
    assert classes_of(zoo)[79] == {"id": 90, "name": "toothbrush"}


def test_classes_of_coco_traffic_need_no_file(tiny_config):
    opts = ["DATASETS.TEST", ("coco_traffic_2017_val",), "MODEL.ROI_HEADS.NUM_CLASSES", 13]
    classes = classes_of(load_config(tiny_config("faster_rcnn", opts)), load=True)
    assert classes[:2] == rows(["person", "bicycle"], [1, 2]) and len(classes) == 13

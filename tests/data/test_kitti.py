"""KITTI datasets: loading, ignored regions and missing or invalid files."""

import os
import zlib

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from aid.data.builtin import register_all
from aid.data.kitti import load_kitti, load_kitti_test, register_kitti
from aid.data.kitti_labels import CLASSES, IGNORED_AS
from aid.utils.errors import AIDError

CAR = "Car 0.25 1 -1.57 10.00 20.00 50.00 60.00 1.50 1.60 3.90 1.00 1.50 20.00 -1.50"
NOWHERE = "look elsewhere"


def label(kind: str, *box: float) -> str:
    return f"{kind} 0.00 0 0.0 {' '.join(map(str, box))} 1 1 1 0 0 9 0"


def test_ignored_types_become_crowd_regions(kitti):
    lines = [label("Car", 1, 2, 30, 20), label("Van", 40, 2, 60, 20)]
    lines += [label("Person_sitting", 70, 2, 80, 20), label("DontCare", 100, 2, 120, 20)]
    first, second = load_kitti(kitti({"000003": lines, "000001": []}), "train", NOWHERE)
    assert os.path.basename(first["file_name"]) == "000003.png"
    assert (first["height"], first["width"], first["image_id"]) == (80, 160, 0)
    assert second["annotations"] == [] and second["image_id"] == 1
    actual = [
        (a["label_index"], CLASSES[a["category_id"]], a["iscrowd"]) for a in first["annotations"]
    ]
    assert actual == [
        (0, "Car", 0),
        (1, "Car", 1),
        (2, "Pedestrian", 1),
        (3, "Car", 1),
        (3, "Pedestrian", 1),
        (3, "Cyclist", 1),
    ]
    assert first["annotations"][0]["bbox"] == [1, 2, 30, 20]
    assert first["annotations"][0]["bbox_mode"] == BoxMode.XYXY_ABS


def test_result_files_as_labels(kitti):
    lines = [f"{label(kind, 1, 2, 30, 20)} {score}" for kind, score in (("Car", 0.9), ("Van", 0.3))]
    root = kitti({"000003": [*lines, f"{label('Cyclist', 1, 2, 30, 20)} 0.5"]})
    (record,) = load_kitti(root, "train", NOWHERE, min_score=0.5)
    found = [(CLASSES[x["category_id"]], x["score"]) for x in record["annotations"]]
    assert found == [("Car", 0.9), ("Cyclist", 0.5)]
    with pytest.raises(AIDError, match="results have a score as field 16, labels do not"):
        load_kitti(root, "train", NOWHERE)


@pytest.mark.parametrize(
    "kind, expected",
    [
        *((x, 100) for x in IGNORED_AS if x != "Person_sitting"),
        ("Person_sitting", 50),
        ("Cyclist", 50),
    ],
)
def test_detections_on_ignored_regions_are_not_errors(kind, expected, kitti, tmp_path):
    """A car detected on an ignored region is no error; on a cyclist, it halves precision."""
    car, other = [1, 2, 41, 42], [50, 2, 90, 42]
    name = f"{kind}_{tmp_path.name}"
    root = kitti({"000000": [label("Car", *car), label(kind, *other)]})
    register_kitti(name, root, "train", NOWHERE)
    instances = Instances((80, 160))
    instances.pred_boxes = Boxes(torch.tensor([other, car], dtype=torch.float))
    instances.scores = torch.tensor([0.9, 0.8])
    instances.pred_classes = torch.tensor([0, 0])
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"), allow_cached_coco=False)
    evaluator.reset()
    evaluator.process([{"image_id": 0}], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP-Car"] == pytest.approx(expected, abs=1)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_missing_or_invalid_files_are_reported(kitti, tmp_path):
    with pytest.raises(AIDError, match="folder gone/training/image_2 does not exist: look els"):
        load_kitti("gone", "train", NOWHERE)
    root = kitti({"000000": [CAR]})
    with pytest.raises(AIDError, match=r"val.txt does not exist: run .*prepare_kitti.py --root"):
        load_kitti(root, "val", NOWHERE)
    split = tmp_path / "ImageSets/train.txt"
    split.write_text("\n")
    with pytest.raises(AIDError, match="train.txt is empty"):
        load_kitti(root, "train", NOWHERE)
    split.write_text("000000\n000000\n")
    with pytest.raises(AIDError, match="lists image 000000 twice, on lines 1 and 2"):
        load_kitti(root, "train", NOWHERE)
    split.write_text("000000\n000009\n")
    with pytest.raises(AIDError, match="000009.png does not exist, but is listed: complete"):
        load_kitti(root, "train", NOWHERE)
    for content, message in (
        (b"\na/000000\n", "line 2: 'a/000000' is no image name"),
        (b"000000\n../../../etc/passwd\n", "line 2: '../../../etc/passwd' is no image name"),
        (b"/etc/passwd\n", "line 1: '/etc/passwd' is no image name"),
        (b"00\x000\n", "is no image name"),
        ("000000".encode("utf-16"), "cannot be read as a list of image names"),
    ):
        split.write_bytes(content)
        with pytest.raises(AIDError, match=f"ImageSets/train.txt.* {message}"):
            load_kitti(root, "train", NOWHERE)
    split.write_bytes(b"000000\r\n")
    assert len(load_kitti(root, "train", NOWHERE)) == 1
    (tmp_path / "training/image_2/000000.png").write_bytes(b"no picture")
    with pytest.raises(AIDError, match="000000.png cannot be read"):
        load_kitti(root, "train", NOWHERE)
    kitti({"000000": [CAR]})
    (tmp_path / "training/label_2/000000.txt").unlink()
    with pytest.raises(AIDError, match="label file .*000000.txt does not exist"):
        load_kitti(root, "train", NOWHERE)


def test_image_with_an_excessive_size_is_refused(kitti, tmp_path):
    root = kitti({"000000": [CAR]})
    path = tmp_path / "training/image_2/000000.png"
    content = path.read_bytes()
    header = content[12:16] + (100_000).to_bytes(4) * 2 + content[24:29]
    path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:])
    with pytest.raises(AIDError, match="000000.png cannot be read: .*exceeds limit"):
        load_kitti(root, "train", NOWHERE)


@pytest.mark.parametrize(
    "box", [(200, 10, 240, 40), (10, 90, 20, 99), (-9, 1, 0, 9), (1, -9, 9, 0)]
)
def test_box_outside_its_image_is_refused(kitti, box):
    root = kitti({"000000": [CAR, label("Car", *box)]})
    with pytest.raises(AIDError, match="000000.txt, line 2: .*outside its image of 160x80"):
        load_kitti(root, "train", NOWHERE)


def test_builtin_datasets_are_registered_without_files():
    for name in ("kitti_train", "kitti_val", "kitti_trainval", "synthetic_kitti_train"):
        assert name in DatasetCatalog.list()
        assert MetadataCatalog.get(name).thing_classes == list(CLASSES)


def test_missing_builtin_data_is_reported_with_instructions(monkeypatch, tmp_path):
    actual = {}
    for function in ("register_kitti", "register_kitti_test", "register_coco_traffic"):
        monkeypatch.setattr(
            f"aid.data.builtin.{function}", lambda name, *args: actual.update({name: args})
        )
    register_all(str(tmp_path))
    with pytest.raises(AIDError, match="image_2 does not exist: render .*make_synthetic_kitti.py"):
        load_kitti(*actual["synthetic_kitti_val"])
    with pytest.raises(AIDError, match="testing/image_2 does not exist: unpack"):
        load_kitti_test(*actual["kitti_test"])


def test_test_images_are_loaded_without_labels(kitti, tmp_path):
    with pytest.raises(AIDError, match="folder .*testing/image_2 does not exist: look elsewhere"):
        load_kitti_test(str(tmp_path), NOWHERE)
    kitti({"000001": [], "000000": []})
    (tmp_path / "training").rename(tmp_path / "testing")
    records = load_kitti_test(str(tmp_path), NOWHERE)
    assert [os.path.basename(x["file_name"]) for x in records] == ["000000.png", "000001.png"]
    assert [x["image_id"] for x in records] == [0, 1]
    assert all("annotations" not in x and x["width"] == 160 for x in records)
    for image in (tmp_path / "testing/image_2").iterdir():
        image.unlink()
    with pytest.raises(AIDError, match="holds no .png file: look elsewhere"):
        load_kitti_test(str(tmp_path), NOWHERE)

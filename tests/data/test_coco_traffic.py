"""COCO traffic: registration, loading, evaluation and missing files."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from aid.data import register_coco_traffic
from aid.data.coco_traffic import CLASSES, annotation_file
from aid.utils.errors import AIDError

DOG, PERSON = CLASSES.index("dog"), CLASSES.index("person")


@pytest.fixture
def subset(tmp_path):
    """(name, root) of a registered dataset: a dog and a person on image 42, a car on image 7."""
    name, root = f"coco_traffic_{tmp_path.name}", str(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    images, annotations = [], []
    for image in (42, 7):
        file_name = f"{image:012}.jpg"
        images.append({"id": image, "file_name": file_name, "height": 80, "width": 160})
        Image.new("RGB", (160, 80)).save(tmp_path / "val2017" / file_name)
    for number, (image, category, box) in enumerate(
        [(42, DOG, [1, 2, 40, 40]), (42, PERSON, [50, 2, 40, 40]), (7, 2, [1, 2, 40, 40])]
    ):
        x, y, width, height = box
        outline = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append(
            {
                "id": number + 1,
                "image_id": image,
                "category_id": category + 1,
                "bbox": box,
                "area": width * height,
                "iscrowd": 0,
                "segmentation": [outline],
            }
        )
    categories = [{"id": i, "name": c, "coco_id": 0} for i, c in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with open(annotation_file(root, "val"), "w") as f:
        json.dump(content, f)
    register_coco_traffic(name, root, "val")
    yield name, root
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_loaded_split_has_the_records_of_the_file(subset, tmp_path):
    name, _ = subset
    second, first = DatasetCatalog.get(name)
    assert first["file_name"] == str(tmp_path / "val2017/000000000042.jpg")
    assert (first["image_id"], first["height"], first["width"]) == (42, 80, 160)
    assert [a["category_id"] for a in first["annotations"]] == [DOG, PERSON]
    assert first["annotations"][0]["bbox"] == [1, 2, 40, 40]
    assert first["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert first["annotations"][0]["segmentation"] == [[1, 2, 41, 2, 41, 42, 1, 42]]
    assert [a["category_id"] for a in second["annotations"]] == [CLASSES.index("car")]


@pytest.mark.parametrize("detected, expected", [(DOG, 100), (CLASSES.index("cat"), 0)])
def test_coco_metric_uses_contiguous_class_ids(subset, tmp_path, detected, expected):
    """Predictions count classes from 0, the file from 1."""
    name, _ = subset
    DatasetCatalog.get(name)
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    instances = Instances((80, 160))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 41, 42], [50, 2, 90, 42]]))
    instances.scores = torch.tensor([0.9, 0.8])
    instances.pred_classes = torch.tensor([detected, PERSON])
    evaluator.process([{"image_id": 42}], [{"instances": instances}])
    results = evaluator.evaluate()["bbox"]
    assert results["AP-dog"] == pytest.approx(expected)
    assert results["AP-person"] == pytest.approx(100)
    assert results["AP-car"] == 0


def test_builtin_datasets_are_registered_without_files():
    for split in ("train", "val"):
        metadata = MetadataCatalog.get(f"coco_traffic_2017_{split}")
        assert f"coco_traffic_2017_{split}" in DatasetCatalog.list()
        assert metadata.thing_classes == list(CLASSES) and len(CLASSES) == 13
        assert metadata.evaluator_type == "coco"
        assert metadata.image_root.endswith(f"coco/{split}2017")
        assert metadata.json_file.endswith(f"annotations/instances_traffic_{split}2017.json")


def test_missing_file_is_reported_with_instructions(subset, tmp_path):
    name, root = subset
    how = f"unpack COCO's val2017.zip and annotations in {root}, then run `python datasets/prepare"
    (tmp_path / "annotations").rename(tmp_path / "labels")
    with pytest.raises(AIDError, match=f"traffic_val2017.json does not exist: {how}"):
        DatasetCatalog.get(name)


def test_file_with_other_categories_is_refused(subset):
    name, root = subset
    path = annotation_file(root, "val")
    with open(path) as f:
        text = f.read()
    with open(path, "w") as f:
        f.write(text.replace('"dog"', '"hound"'))
    with pytest.raises(AIDError, match=r"has the categories \['person', .*'hound'\], registered"):
        DatasetCatalog.get(name)

"""Detections in files: read with checks, and transformed as the labels of their image."""

import json
import logging
import os
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.config import load_config
from aid.data.build import build_train_loader
from aid.data.detections import DETECTIONS, with_detections
from aid.data.kitti_labels import KITTIObject, write_result_file
from aid.utils.errors import AIDError

NAMES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def results(toy_dataset):
    """The labels of the toy data as COCO results with score 1."""
    return [
        {
            "image_id": x["image_id"],
            "category_id": a["category_id"],
            "bbox": [*a["bbox"][:2], a["bbox"][2] - a["bbox"][0], a["bbox"][3] - a["bbox"][1]],
            "score": 1.0,
        }
        for x in DatasetCatalog.get(toy_dataset)
        for a in x["annotations"]
    ]


@pytest.fixture
def read(toy_dataset, tmp_path):
    """A function (content of a JSON file) -> records with detections."""

    def call(content):
        path = tmp_path / "results.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return with_detections(str(path), (toy_dataset,), DatasetCatalog.get(toy_dataset))

    return call


@pytest.fixture
def folder(toy_dataset, tmp_path):
    """Folder with the labels of the toy data as KITTI result files with score 1."""
    os.makedirs(tmp_path / "kitti")
    for x in DatasetCatalog.get(toy_dataset):
        labels = [(NAMES[a["category_id"]], a["bbox"]) for a in x["annotations"]]
        objects = [KITTIObject(name, -1, -1, tuple(box), 1.0, 0) for name, box in labels]
        write_result_file(str(tmp_path / "kitti" / f"{x['image_id']}.txt"), objects)
    return tmp_path / "kitti"


@pytest.fixture
def batches(tiny_config, toy_dataset):
    """A function (TEACHER.DETECTIONS, opts) -> 12 batches of flipped and resized images."""

    def load(path, opts=()):
        keys = ["DATASETS.TRAIN", (toy_dataset,), "SOLVER.IMS_PER_BATCH", 2]
        keys += ["DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (48, 56, 64)]
        cfg = load_config(tiny_config("faster_rcnn", [*keys, "TEACHER.DETECTIONS", path, *opts]))
        return list(islice(build_train_loader(cfg), 12))

    return load


CROP = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.6, 0.6]]


@pytest.mark.parametrize("form", ["json", "folder"])
@pytest.mark.parametrize("opts", [[], CROP, ["DATALOADER.NUM_WORKERS", 2]])
def test_detections_are_transformed_as_labels(form, opts, batches, read, results, folder, tmp_path):
    read(results)
    path = str(tmp_path / "results.json") if form == "json" else str(folder)
    num_boxes, plain = 0, batches("", opts)
    for batch, without in zip(batches(path, opts), plain, strict=True):
        for x, other in zip(batch, without, strict=True):
            truth, found = x["instances"], x[DETECTIONS]
            torch.testing.assert_close(found.pred_boxes.tensor, truth.gt_boxes.tensor)
            assert torch.equal(found.pred_classes, truth.gt_classes)
            assert found.scores.eq(1).all() and found.image_size == truth.image_size
            # The stream of images and labels is that without detections.
            assert torch.equal(x["image"], other["image"]) and DETECTIONS not in other
            assert torch.equal(truth.gt_boxes.tensor, other["instances"].gt_boxes.tensor)
            num_boxes += len(found)
    assert num_boxes > 20


def test_values_of_an_entry(read, caplog):
    entry = {"image_id": 3, "category_id": 2, "bbox": [1.5, 2, 10, 20], "score": 0.25}
    records = read([entry, {**entry, "score": 0}])
    np.testing.assert_array_equal(
        records[3][DETECTIONS], [[1.5, 2, 11.5, 22, 0.25, 2], [1.5, 2, 11.5, 22, 0, 2]]
    )
    assert [len(x[DETECTIONS]) for x in records] == [0, 0, 0, 2, 0, 0, 0]
    assert "has nothing on 6 of 7 training images, first " in caplog.text


def test_ids_of_categories_are_those_of_the_datasets_file(read, toy_dataset):
    ids = {1: 0, 3: 1, 7: 2}
    MetadataCatalog.get(toy_dataset).thing_dataset_id_to_contiguous_id = ids
    entry = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 1}
    assert read([entry])[0][DETECTIONS][0, 5] == 2
    with pytest.raises(AIDError, match="category_id 2 is none of the dataset's, 1, 3, 7"):
        read([{**entry, "category_id": 2}])


GOOD = {"image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": [GOOD]}, "is not a list of COCO results: write"),
        ("[", "is not a whole JSON file"),
        ([], "has nothing on any of 7 training images"),
        ([GOOD, 3], r"results.json, entry 1 \(from 0\): it is no object with image_id, cat"),
        ([{**GOOD, "image_id": 9}], "image_id 9 is of no training image"),
        ([{**GOOD, "image_id": [0]}], r"image_id \[0\] is of no training image"),
        ([{**GOOD, "category_id": 3}], "category_id 3 is none of the dataset's, 0, 1, 2"),
        ([{**GOOD, "category_id": "1"}], "category_id '1' is none"),
        ([{**GOOD, "bbox": [0, 0, 9]}], r"bbox is \[0, 0, 9\]: it must be x, y, width, height"),
        ([{**GOOD, "bbox": [0, 0, float("nan"), 9]}], "bbox is .*: it must be x, y"),
        ([{**GOOD, "bbox": [0, 10**400, 9, 9]}], "bbox is .*: it must be x, y"),
        ([{**GOOD, "bbox": [0, 0, 9, 0]}], "the box from 0, 0 to 9, 0 has no area"),
        ([{**GOOD, "score": 1.5}], "score is 1.5: it must be in 0 to 1"),
        ([{**GOOD, "score": "high"}], "score is 'high': it must be in 0 to 1"),
    ],
)
def test_malformed_files_end_in_one_line(content, message, read):
    with pytest.raises(AIDError, match=message) as error:
        read(content)
    assert "TEACHER.DETECTIONS" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(toy_dataset):
    with pytest.raises(AIDError, match="TEACHER.DETECTIONS gone.json cannot be read"):
        with_detections("gone.json", (toy_dataset,), DatasetCatalog.get(toy_dataset))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Van -1 -1 -10 0 0 9 9 -1 -1 -1 -1000 -1000 -1000 -10 1", "unknown type 'Van': the data"),
        ("Car -1 -1 -10 0 0 9 9 -1 -1 -1 -1000 -1000 -1000 -10", "results have a score as field"),
        ("Car -1 -1 -10 0 0 9 0 -1 -1 -1 -1000 -1000 -1000 -10 1", "has no area"),
        ("Car -1 -1 -10 0 0 9 9 -1 -1 -1 -1000 -1000 -1000 -10 2", "score is 2.0"),
    ],
)
def test_malformed_lines_end_in_one_line(line, message, toy_dataset, folder):
    (folder / "4.txt").write_text(line + "\n")
    with pytest.raises(AIDError, match=rf"4.txt, line 1: .*{message}"):
        with_detections(str(folder), (toy_dataset,), DatasetCatalog.get(toy_dataset))


def test_names_with_spaces_have_underscores_in_a_folder(toy_dataset, folder):
    MetadataCatalog.remove(toy_dataset)
    names = ["Car", "Pedestrian", "fork lift"]
    MetadataCatalog.get(toy_dataset).thing_classes = names
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("Cyclist", "Fork_Lift"))
    records = with_detections(str(folder), (toy_dataset,), DatasetCatalog.get(toy_dataset))
    for x in records:
        expected = [a["category_id"] for a in x["annotations"]]
        assert x[DETECTIONS][:, 5].tolist() == expected
    MetadataCatalog.remove(toy_dataset)
    MetadataCatalog.get(toy_dataset).thing_classes = ["car", "Car", "van"]
    with pytest.raises(AIDError, match="types cannot be told apart among the classes of"):
        with_detections(str(folder), (toy_dataset,), DatasetCatalog.get(toy_dataset))


def test_a_folder_without_detections_is_refused(toy_dataset, folder):
    """A file that is missing, or empty as where nothing was detected."""
    for path in sorted(folder.iterdir())[1:]:
        path.write_text("")
    (folder / "0.txt").unlink()
    with pytest.raises(AIDError, match="has nothing on any of 7 training images"):
        with_detections(str(folder), (toy_dataset,), DatasetCatalog.get(toy_dataset))


def test_images_that_cannot_be_told_apart_are_refused(toy_dataset, folder):
    records = DatasetCatalog.get(toy_dataset)
    twins = [records[0], {**records[1], "file_name": f"other/{records[0]['image_id']}.png"}]
    with pytest.raises(AIDError, match="cannot be told apart by '0': write COCO's results as"):
        with_detections(str(folder), (toy_dataset,), twins)


def test_share_of_labels_that_are_found_is_logged(read, results, caplog):
    caplog.set_level(logging.INFO)
    total = len(results)
    read(results)
    assert f"finds {total} of {total} labels" in caplog.text and "WARN" not in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: {**x, "bbox": [5000, *x["bbox"][1:]]}, "boxes leave their image"),
        (lambda x: {**x, "bbox": [v / 1000 for v in x["bbox"]]}, "lie within one pixel"),
        (lambda x: {**x, "category_id": (x["category_id"] + 1) % 3}, "finds only 0 of"),
    ],
)
def test_wrong_boxes_and_classes_are_warned_about(change, message, read, results, caplog):
    read(list(map(change, results)))
    assert message in caplog.text and "finds only 0 of" in caplog.text

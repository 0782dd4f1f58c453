"""Data in COCO's format: read by Detectron2 if they are whole, else named."""

import json
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from aid.data import register_coco
from aid.utils.errors import AIDError

COCO = {
    "categories": [{"id": 7, "name": "forklift"}, {"id": 3, "name": "pallet"}],
    "images": [
        {"id": 4, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 2, "file_name": "b.png", "height": 20, "width": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [5, 5, 0, 3], "area": 0, "iscrowd": 0},
    ],
}


@pytest.fixture
def dataset(tmp_path):
    """A function (content of the json file, classes) -> name of a registered dataset."""
    name = f"warehouse_{tmp_path.name}"
    for image in COCO["images"]:
        Image.new("RGB", (30, 20)).save(tmp_path / image["file_name"])

    def make(content=COCO, classes=None) -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        register_coco(name, str(tmp_path / "a.json"), str(tmp_path), "mount it", classes)
        return name

    yield make
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_classes_count_from_zero_in_the_order_of_their_ids(dataset):
    name = dataset()
    records = DatasetCatalog.get(name)
    assert [x["image_id"] for x in records] == [2, 4]
    assert [x["category_id"] for x in records[1]["annotations"]] == [1, 0]
    assert MetadataCatalog.get(name).thing_classes == ["pallet", "forklift"]
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def test_other_classes_than_were_registered(dataset):
    name = dataset(classes=["pallet"])
    with pytest.raises(AIDError, match=r"categories \['pallet', 'forklift'\], registered are"):
        DatasetCatalog.get(name)


def test_what_is_missing(dataset, tmp_path):
    name = dataset()
    (tmp_path / "b.png").unlink()
    with pytest.raises(AIDError, match="1 of 2 images in .*a.json are not there, first b.png: mou"):
        DatasetCatalog.get(name)
    (tmp_path / "a.json").unlink()
    with pytest.raises(AIDError, match="a.json does not exist: mount it"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("name", ["..b/c.png", "./..b/../..b/c.png", "link.png"])
def test_images_in_folders_below(name, dataset, tmp_path):
    (tmp_path / "..b").mkdir()
    (tmp_path / "b.png").rename(tmp_path / "..b" / "c.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "..b" / "c.png")
    record, _ = DatasetCatalog.get(dataset(edited("images", 1, file_name=name)))
    assert record["file_name"] == f"{tmp_path}/{name}"


def edited(key: str, number: int, **fields) -> dict:
    """The content with other fields in one entry; None takes a field out."""
    coco = json.loads(json.dumps(COCO))
    entry = {**coco[key][number], **fields}
    coco[key][number] = {k: v for k, v in entry.items() if v is not None}
    return coco


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps(COCO)[:-9], "is not a whole JSON file .*: mount it"),
        ("\x00", "is not a whole JSON file .Expecting value.*: mount it"),
        ("[1]", "it has no list 'categories'"),
        ({**COCO, "images": {}}, "it has no list 'images'"),
        ({**COCO, "images": [3]}, "entry 0 of 'images' has no valid 'id'"),
        (edited("images", 1, file_name=None), "entry 1 of 'images' has no valid 'file_name'"),
        *(
            (edited("images", 1, file_name=x), f"'images' has file_name {re.escape(repr(x))}: it")
            for x in ("../b.png", "a/../../b.png", "/etc/passwd", "", ".", "b.png\0")
        ),
        (edited("images", 0, height="20"), "entry 0 of 'images' has no valid 'height'"),
        (edited("images", 1, id=4), "'images' has id 4 twice"),
        (edited("categories", 1, name="forklift"), "'categories' has name forklift twice"),
        ({**COCO, "categories": [], "annotations": []}, "'categories' is empty"),
        (edited("images", 0, height=0), r"image 4 has width and height \(30, 0\)"),
        (edited("annotations", 1, id=1), "'annotations' has id 1 twice"),
        (edited("annotations", 0, id=0), "annotation id 0: count from 1"),
        (edited("annotations", 0, iscrowd=None), "entry 0 of 'annotations' has no valid 'iscrowd'"),
        (edited("annotations", 0, image_id=9), "annotation 1 has image_id 9, which is not in 'im"),
        (edited("annotations", 0, category_id=9), "annotation 1 has category_id 9, which is not"),
        (edited("annotations", 0, bbox=[1, 2, 3]), r"annotation 1 of image 4 has bbox \[1, 2, 3\]"),
        (edited("annotations", 0, bbox=[9, 2, -8, 8]), "it must be x, y, width, height in pixels"),
        (edited("annotations", 0, bbox=[float("nan"), 2, 9, 8]), r"has bbox \[nan, 2, 9, 8\]"),
        (edited("annotations", 0, bbox=[10**400, 2, 9, 8]), "int too large to convert to float"),
        (edited("annotations", 0, bbox=[30, 2, 9, 8]), "not outside of the image"),
        (edited("annotations", 0, bbox=[-9, 2, 8, 8]), "not outside of the image"),
        (
            edited("annotations", 0, segmentation=[5, 5, 9, 5, 9, 9]),
            "most likely in a segmentation",
        ),
        (edited("annotations", 0, ignore=1), "annotation 1 has 'ignore' 1, .*: set 'iscrowd' to 1"),
        ("\ufeff" + json.dumps(COCO), "starts with a byte-order mark.*: save it as UTF-8 without"),
    ],
)
def test_what_is_malformed(dataset, content, message):
    with pytest.raises(AIDError, match=f"a.json.*{message}") as error:
        DatasetCatalog.get(dataset(content))
    assert "\n" not in str(error.value)

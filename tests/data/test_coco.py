"""Datasets in COCO's format: valid files are read, errors name the invalid entry."""

import json
import re

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from aid.data import register_coco
from aid.data.coco import load_coco
from aid.data.masks import MAX_OUTLINE, usable_mask
from aid.utils.errors import AIDError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools

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

    def make(content=COCO, classes=None, **options) -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        register_coco(name, str(tmp_path / "a.json"), str(tmp_path), "mount it", classes, **options)
        return name

    yield make
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_classes_are_numbered_from_zero_in_order_of_id(dataset):
    name = dataset()
    records = DatasetCatalog.get(name)
    assert [x["image_id"] for x in records] == [2, 4]
    assert [x["category_id"] for x in records[1]["annotations"]] == [1, 0]
    assert MetadataCatalog.get(name).thing_classes == ["pallet", "forklift"]
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def with_scores(*scores):
    pairs = zip(COCO["annotations"], scores, strict=True)
    return {**COCO, "annotations": [{**x, "score": score} for x, score in pairs]}


@pytest.mark.parametrize(
    "min_score, expected", [(None, [0.9, 0.4]), (0.0, [0.9, 0.4]), (0.4, [0.9, 0.4]), (0.5, [0.9])]
)
def test_detections_as_labels_have_a_least_score(min_score, expected, dataset, caplog):
    name = dataset(with_scores(0.9, 0.4), min_score=min_score)
    records = DatasetCatalog.get(name)
    assert "has a score" not in caplog.text
    assert [x["score"] for x in records[1]["annotations"]] == expected
    assert records[0]["annotations"] == []


def test_labels_without_a_score_are_kept(dataset, caplog):
    records = DatasetCatalog.get(dataset(min_score=0.9))
    assert len(records[1]["annotations"]) == 2 and "score" not in records[1]["annotations"][0]
    assert "min_score is 0.9, but no annotation has a score: all of them are kept" in caplog.text


@pytest.mark.parametrize("score", ["high", None, float("nan"), 1.5])
def test_a_score_that_is_none(score, dataset):
    with pytest.raises(AIDError, match="annotation 2 of image 4: its score is .*from 0 to 1"):
        DatasetCatalog.get(dataset(with_scores(0.9, score)))


def test_classes_other_than_registered_are_refused(dataset):
    name = dataset(classes=["pallet"])
    with pytest.raises(AIDError, match=r"categories \['pallet', 'forklift'\], registered are"):
        DatasetCatalog.get(name)


def test_missing_files_are_reported(dataset, tmp_path):
    name = dataset()
    (tmp_path / "b.png").unlink()
    with pytest.raises(AIDError, match="lacks 1 of 2 images in .*a.json, first b.png: mou"):
        DatasetCatalog.get(name)
    (tmp_path / "a.json").unlink()
    with pytest.raises(AIDError, match="a.json does not exist: mount it"):
        DatasetCatalog.get(name)


def test_target_of_a_dead_link_to_the_images_is_named(dataset, tmp_path):
    """As tools/convert_dataset.py writes one, and the images are moved later."""
    name = dataset()
    (tmp_path / "images").symlink_to("/moved")
    with pytest.raises(AIDError, match="images, a link to /moved, does not exist: mount it"):
        load_coco(name, str(tmp_path / "a.json"), str(tmp_path / "images"), "mount it")


@pytest.mark.parametrize("name", ["..b/c.png", "./..b/../..b/c.png", "link.png"])
def test_images_in_subfolders_are_read(name, dataset, tmp_path):
    (tmp_path / "..b").mkdir()
    (tmp_path / "b.png").rename(tmp_path / "..b" / "c.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "..b" / "c.png")
    record, _ = DatasetCatalog.get(dataset(edited("images", 1, file_name=name)))
    assert record["file_name"] == f"{tmp_path}/{name}"


def edited(key: str, number: int, **fields) -> dict:
    """COCO's content with changed fields in one entry; None removes a field."""
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
        (edited("images", 1, file_name="a.png"), "'images' has file_name a.png twice"),
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
        (edited("annotations", 0, area=float("nan")), "annotation 1 has area nan"),
        (edited("annotations", 0, area=-1), "annotation 1 has area -1: it must be a number"),
        (edited("annotations", 0, id=2**63), "'annotations' has an id beyond 9223372036854775807"),
        (edited("images", 0, width=10**8), "at most 89478485 pixels"),
        (edited("annotations", 0, ignore=1), "annotation 1 has 'ignore' 1, .*: set 'iscrowd' to 1"),
        ("\ufeff" + json.dumps(COCO), "starts with a byte-order mark.*: save it as UTF-8 without"),
        (edited("annotations", 0, keypoints=[1, 2]), "annotation 1 of image 4: its keypoints must"),
        (edited("annotations", 0, segmentation="abc"), "4: its segmentation must be polygons"),
    ],
)
def test_malformed_content_is_refused(dataset, content, message):
    with pytest.raises(AIDError, match=f"a.json.*{message}") as error:
        DatasetCatalog.get(dataset(content))
    assert "\n" not in str(error.value)


# --- masks, in images of 30 x 20

TRIANGLE = [1.0, 2.0, 9.5, 2.0, 9.0, 10.0]


def rle(**changes) -> dict:
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[2:10, 1:10] = 1
    encoded = mask_util.encode(mask)
    return {"size": [20, 30], "counts": encoded["counts"].decode(), **changes}


@pytest.mark.parametrize(
    "segmentation, expected",
    [
        (None, None),
        ([], None),
        ([[]], []),
        ([1, 2, 9, 8], []),
        (TRIANGLE, []),
        ([[1, 2, 9, 8]], []),
        ([[[1, 2], [9, 2], [9, 8]]], []),
        ([[1, 2, 3, 4, 5, 6, 7]], []),
        ([["1", "2", "9", "2", "9", "10"]], []),
        ([TRIANGLE, [1, 2, 9, 8]], [TRIANGLE]),
        ([TRIANGLE, [-30, -20, 60, 40, 0, 0]], [TRIANGLE, [-30, -20, 60, 40, 0, 0]]),
    ],
)
def test_box_is_kept_despite_malformed_polygons(dataset, segmentation, expected):
    """Detectron2 drops objects with malformed polygons, COCO's box metric does not."""
    _, record = DatasetCatalog.get(dataset(edited("annotations", 0, segmentation=segmentation)))
    assert [x["bbox"] for x in record["annotations"]] == [[1, 2, 9, 8], [5, 5, 0, 3]]
    assert record["annotations"][0].get("segmentation") == expected


@pytest.mark.parametrize("given", [rle(), rle(counts=[22, *(8 * [8, 12]), 8, 410])])
def test_compressed_and_uncompressed_rle_are_equal(dataset, given):
    _, record = DatasetCatalog.get(dataset(edited("annotations", 0, segmentation=given)))
    actual = mask_util.decode(record["annotations"][0]["segmentation"])
    assert (actual == mask_util.decode(rle())).all() and actual.sum() == 72


@pytest.mark.parametrize("seed", range(5))
def test_rle_counts_are_decoded_like_in_pycocotools(seed):
    """Random masks have counts of all sizes, and differences of both signs."""
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(np.repeat(rng.random((40, 60)) < 0.3, 1 + seed, axis=0), np.uint8)
    height, width = mask.shape
    encoded = mask_util.encode(mask)
    for counts in (encoded["counts"], encoded["counts"].decode()):
        given = {"size": [height, width], "counts": counts}
        assert usable_mask(given, width, height) == given


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[1e9, 2, 9, 2, 9, 10]], "polygon has x 1000000000.0, far outside of the image of 30x20"),
        ([TRIANGLE, [1, 2, 9, 2, 9, 41]], "polygon has y 41, far outside"),
        ([[1, 2, 9, 2, 9, float("nan")]], "polygon has y nan, far outside"),
        ([[1, 2, float("nan"), 2, 9, 4]], "polygon has x nan, far outside"),
        ([[float("-inf"), 2, 9, 2, 9, 10]], "polygon has x -inf, far outside"),
        ([[10**400, 2, 9, 2, 9, 10]], "polygon has x 1000000"),
        ([[-30, 0, 60, 40] * (MAX_OUTLINE // 180 + 1)], "outline of more than 4194304 pixels"),
        (rle(size=[30, 20]), r"RLE of size \[30, 20\]: it must be \[20, 30\], height and width"),
        (rle(size=[0, 0]), r"RLE of size \[0, 0\]"),
        (rle(size=20), "RLE of size 20"),
        ({"counts": [600]}, "RLE of size None"),
        ({"size": [20, 30]}, "RLE without valid counts"),
        (rle(counts=""), "counts add up to 0: .* add up to 600"),
        (rle(counts=[599]), "counts add up to 599"),
        (rle(counts=[700, -100]), "counts add up to 600: they must be 0 or more"),
        (rle(counts=[300.0, 300]), "RLE without valid counts"),
        (rle(counts="~~~~"), "RLE without valid counts"),
        (rle(counts="oooooooooooo"), "RLE without valid counts"),
        (rle(counts=rle()["counts"][:-1]), "RLE without valid counts|counts add up to"),
    ],
)
def test_masks_unsafe_for_pycocotools_are_refused(dataset, segmentation, message):
    """Such masks make pycocotools crash, loop forever or allocate a terabyte."""
    name = dataset(edited("annotations", 0, segmentation=segmentation))
    with pytest.raises(
        AIDError, match=f"a.json.*annotation 1 of image 4: its .*(?:{message})"
    ) as e:
        DatasetCatalog.get(name)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"segmentation": [TRIANGLE, [1, 2, 9, 8], TRIANGLE]},
        {"segmentation": rle(), "iscrowd": 1},
        {"segmentation": rle(counts=[22, *(8 * [8, 12]), 8, 410])},
        {"keypoints": [3, 4, 2, 0, 0, 0]},
    ],
)
def test_records_of_valid_files_equal_detectron2(dataset, tmp_path, fields):
    records = DatasetCatalog.get(dataset(edited("annotations", 0, **fields)))
    assert records == load_coco_json(str(tmp_path / "a.json"), str(tmp_path), "warehouse_again")
    reference = MetadataCatalog.pop("warehouse_again")
    metadata = MetadataCatalog.get(f"warehouse_{tmp_path.name}")
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert metadata.get(key) == reference.get(key)

"""Report on converted data: counts, sizes, near-duplicates and notes."""

import json

import numpy as np
import pytest
from PIL import Image

from aid_tools.own_data.input_size import InputSize
from aid_tools.own_data.near_duplicates import BITS, find_pairs, hash_images


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([(640, 480)], (480, (384, 416, 448, 480), 1333)),  # as small as COCO's images
        ([(1920, 1080)], (800, (640, 672, 704, 736, 768, 800), 1333)),
        ([(1242, 375)], (480, (384, 416, 448, 480), 1600)),  # KITTI: wide
        ([(120, 80)], (160, (128, 160), 1333)),  # doubled
        ([(10, 10)], (32, (32,), 1333)),
        ([(4000, 3000), (640, 480), (640, 480)], (480, (384, 416, 448, 480), 1333)),  # median
    ],
)
def test_input_size_follows_the_median_image(sizes, expected):
    size = InputSize(sizes)
    assert (size.min_test, size.min_train, size.longest) == expected


def test_scale_is_that_of_the_resized_image():
    assert InputSize([(640, 480)]).scale(640, 960) == pytest.approx(0.75)
    assert InputSize([(1920, 1080)]).scale(2666, 800) == pytest.approx(0.5)


@pytest.fixture
def pictures(layouts, tmp_path):
    """Paths of 12 different images."""
    paths = [tmp_path / f"{seed}.png" for seed in range(12)]
    for seed, path in enumerate(paths):
        layouts.write_image(path, seed, (240, 160))
    return [str(x) for x in paths]


def test_recompressed_and_resized_images_are_near_duplicates(pictures, tmp_path):
    for number, path in enumerate(pictures[:6]):
        with Image.open(path) as image:
            image.resize((120, 80)).save(tmp_path / f"{number}.jpg", quality=40)
    similar = [str(tmp_path / f"{number}.jpg") for number in range(6)]
    hashes = hash_images(pictures)
    assert hashes.shape == (12, BITS) and set(np.unique(hashes)) == {-1, 1}
    assert find_pairs(hash_images(similar), hashes) == [(i, i) for i in range(6)]
    assert find_pairs(hashes[:6], hashes[6:]) == []
    assert find_pairs(hashes[:0], hashes) == find_pairs(hashes, hashes[:0]) == []


def test_report_counts_objects_by_split_class_and_size(convert_dataset, labels, tmp_path):
    text = convert_dataset(labels("cvat"))[1]
    report = json.loads((tmp_path / "converted/data_report.json").read_text())
    assert report["input_size"] == {"MIN_SIZE_TEST": 160, "MAX_SIZE_TEST": 1333}
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["images"], train["images_without_objects"], train["objects"]) == (3, 1, 3)
    assert train["objects_by_class"] == {"forklift": 1, "person": 2}
    # Sides at twice the size: 80, 40, 43.8 and 195.96, 62.0, 29.9.
    assert [train[k] for k in ("small", "medium", "large", "tiny")] == [0, 3, 0, 0]
    assert [val[k] for k in ("small", "medium", "large", "tiny")] == [1, 1, 1, 0]
    written = (tmp_path / "converted/data_report.md").read_text()
    assert written.strip() in text
    assert "| forklift |       1 |     2 |" in written
    assert "Format: cvat. 2 classes. Split: that of the data." in written
    assert "* Not read: CVAT shapes of type points: 5." in written
    assert "* Training skips 1 image without objects." in written


def test_notes_name_what_harms_a_training(convert_dataset, labels, layouts, tmp_path):
    folder = labels("yolo")
    layouts.write_image(folder / "val/images/d.png", 0)  # that of a.png
    (folder / "val/labels/d.txt").write_text(layouts.yolo_text([("person", 10, 10, 12, 12)]))
    (folder / "val/labels/e.txt").write_text("")
    (folder / "train/labels/c.txt").unlink()
    text = convert_dataset(folder)[1]
    for note in (
        "* 1 image without a label file: used as images without objects.",
        '1 image with a near-duplicate in another split, first "',
        "Without objects in val, so that they have no AP: forklift.",
        "100% of the objects of val are smaller than 8 px at the net's input: raise",
    ):
        assert note in text
    report = json.loads((tmp_path / "converted/data_report.json").read_text())
    train, val = (str(folder / x) for x in ("train/images/a.png", "val/images/d.png"))
    assert report["near_duplicates"] == [{"val": val, "train": train}]


def test_another_draw_is_advised_if_a_class_is_in_one_split_only(convert_dataset, labels):
    text = convert_dataset(labels("yolo"), "--val-share", "0.2", "--seed", "1")[1]
    assert "so that they have no AP: forklift; another --seed may draw forklift." in text


def test_no_draw_is_advised_for_a_class_without_objects(convert_dataset, labels):
    folder = labels("voc")
    text = (folder / "Annotations/e.xml").read_text().replace("person", "pallet")
    (folder / "Annotations/e.xml").write_text(text.replace("<xmin>3<", "<xmin>300<"))
    text = convert_dataset(folder, "--val-share", "0.4")[1]
    notes = [x for x in text.splitlines() if x.startswith("* Without objects in ")]
    assert len(notes) == 2 and all("pallet" in x.partition("; another")[0] for x in notes)
    assert any(x.endswith(": pallet.") for x in notes)


def test_labels_of_larger_images_are_noted(convert_dataset, labels):
    """Files of KITTI do not have the size of the image that was labeled."""
    folder = labels("kitti")
    for path in folder.glob("training/label_2/*.txt"):
        path.write_text("Car 0 0 0 130 10 150 20 0 0 0 0 0 0 0\n" + path.read_text())
    text = convert_dataset(folder)[1]
    assert "labels of train are outside of their image: boxes must be in pixels, and" in text
    assert "labels of train leave" not in text


@pytest.mark.parametrize(
    "name, meaning",
    [
        ("voc", "Ignored regions are the objects of val and test marked as difficult"),
        ("coco", "Ignored regions are the annotations with iscrowd"),
        ("kitti", "Ignored regions are the DontCare regions and, among KITTI's own types,"),
        ("yolo", None),
    ],
)
def test_ignored_regions_are_explained_for_the_format(name, meaning, convert_dataset, labels):
    text = convert_dataset(labels(name))[1]
    assert (meaning in text) if meaning else "Ignored regions are" not in text


@pytest.mark.parametrize("kind", ["pallet", "Car"])
def test_regions_of_several_classes_count_once(kind, convert_dataset, labels, tmp_path):
    folder = labels("kitti")
    for path in folder.glob("training/label_2/*.txt"):
        text = path.read_text().replace("person", "Cyclist").replace("forklift", kind)
        boxes = ("1 1 9 9", "100 60 150 80", "130 10 150 20")  # inside, clipped, outside
        regions = "".join(f"DontCare -1 -1 -10 {x} 0 0 0 0 0 0 0\n" for x in boxes)
        path.write_text(text + regions)
    convert_dataset(folder)
    report = json.loads((tmp_path / "converted/data_report.json").read_text())
    train = report["splits"]["train"]
    assert len(report["classes"]) == (3 if kind == "Car" else 2)
    assert [train[k] for k in ("objects", "ignored_regions", "clipped", "outside")] == [3, 6, 3, 3]


def test_boxes_of_two_corners_are_noted(convert_dataset, labels, layouts):
    folder = labels("coco")
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for x in content["annotations"]:
        left, top, width, height = x["bbox"]
        x["bbox"] = [left, top, left + width, top + height]
    path.write_text(json.dumps(content))
    text = convert_dataset(folder)[1]
    note = "3 labels of train leave their image and were clipped: boxes must be in pixels as x, y,"
    assert note in text and "of val leave" not in text


def test_note_on_classes_of_different_case(convert_dataset, labels):
    folder = labels("yolo")
    (folder / "data.yaml").write_text("names: [person, Person]\n")
    text = convert_dataset(folder)[1]
    assert "Classes that differ in upper and lower case only: person, Person: if they are" in text


def test_number_of_compared_images_is_limited(convert_dataset, labels, monkeypatch, tmp_path):
    monkeypatch.setattr("aid_tools.own_data.data_report.MAX_COMPARED", 2)
    text = convert_dataset(labels("voc"))[1]
    assert "Only 2 images of train were compared with other splits." in text
    assert "images of val were compared" not in text


def test_any_class_name_can_be_shown(convert_dataset, labels, tmp_path):
    folder = labels("labelme")
    hostile = "a|b\x1b[2J<img>"
    for path in folder.glob("*/*.json"):
        path.write_text(path.read_text().replace('"person"', json.dumps(hostile)))
    text = convert_dataset(folder)[1]
    assert "\x1b" not in text
    assert "| a&#124;b&#92;x1b[2J&lt;img> |" in text

"""Annotations of COCO traffic: known output and errors."""

import json

import pytest

from aid.data.coco_traffic import CLASSES

# COCO's ids of the 13 categories, in the order of CLASSES.
COCO_IDS = (1, 2, 3, 4, 6, 7, 8, 10, 11, 13, 14, 17, 18)
RLE = {"counts": [3, 20, 41], "size": [8, 8]}


def annotation(number: int, image: int, category: int, crowd: bool = False) -> dict:
    return {
        "segmentation": RLE if crowd else [[1.5, 1, 5, 1.25, 5, 6]],
        "area": 12.75,
        "iscrowd": int(crowd),
        "image_id": image,
        "bbox": [1.5, 1, 3.5, 5],
        "category_id": category,
        "id": number,
    }


def make_coco() -> dict:
    """Six images: two of traffic, one with traffic only as a crowd, three of other classes."""
    named = dict(zip(COCO_IDS, CLASSES, strict=True))
    categories = [
        {"supercategory": "thing", "id": i, "name": named.get(i, f"other {i}")}
        for i in (18, *range(1, 18))
    ]
    images = [
        {"license": 4, "file_name": f"{i:012}.jpg", "height": 8, "width": 8, "id": i}
        for i in (9, 3, 5, 6, 7, 4)
    ]
    annotations = [
        annotation(70, 3, 3),  # a car
        annotation(71, 3, 9),  # a boat, not of the 13
        annotation(20, 9, 18),  # a dog under a stop sign
        annotation(22, 9, 13),
        annotation(30, 5, 2, crowd=True),  # bicycles as a crowd, with a person
        annotation(31, 5, 1),
        annotation(40, 6, 1),  # a person, a cat and a parking meter without traffic
        annotation(41, 6, 17),
        annotation(42, 7, 14),
    ]
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 4, "name": "Attribution"}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


@pytest.fixture
def prepare(load_script, tmp_path, capsys):
    """A function (train annotations, options) -> (exit code, the error line or the output)."""
    main = load_script("datasets/prepare_coco_traffic.py").main
    (tmp_path / "annotations").mkdir()

    def run(content: dict | str, *options: str, split: str = "train") -> tuple[int, str]:
        source = tmp_path / "annotations" / f"instances_{split}2017.json"
        source.write_text(content if isinstance(content, str) else json.dumps(content))
        try:
            main(["--root", str(tmp_path), "--split", split, *options])
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return run


def output(tmp_path, split="train"):
    return tmp_path / "annotations" / f"instances_traffic_{split}2017.json"


def test_known_output(prepare, tmp_path):
    code, text = prepare(make_coco())
    assert code == 0
    coco, subset = make_coco(), json.loads(output(tmp_path).read_text())
    assert list(subset) == ["info", "licenses", "images", "annotations", "categories"]
    assert (subset["info"], subset["licenses"]) == (coco["info"], coco["licenses"])
    assert subset["images"] == coco["images"][:3]
    assert subset["annotations"] == [
        annotation(70, 3, 3),
        annotation(20, 9, 13),
        annotation(22, 9, 10),
        annotation(30, 5, 2, crowd=True),
        annotation(31, 5, 1),
    ]
    assert [c["name"] for c in subset["categories"]] == list(CLASSES)
    assert [c["id"] for c in subset["categories"]] == list(range(1, 14))
    assert tuple(c["coco_id"] for c in subset["categories"]) == COCO_IDS
    assert all(c["supercategory"] == "thing" for c in subset["categories"])
    assert "3 of 6 images" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["bicycle", "0", "objects", "1", "crowd", "regions"] in lines
    assert ["car", "1", "objects", "0", "crowd", "regions"] in lines


def test_schedule_counts_images_with_objects(prepare):
    coco = make_coco()
    for i in range(100, 148):
        coco["images"].append({**coco["images"][0], "id": i, "file_name": f"{i}.jpg"})
        coco["annotations"].append(annotation(i, i, 3, crowd=i >= 145))
    text = prepare(coco)[1]  # 3 images, 45 with a car, 3 with a crowd alone
    assert "48 images to train on: an epoch is 3 iterations of 16 images" in text
    assert "12 epochs: SOLVER.MAX_ITER 36 SOLVER.STEPS '(24, 33)'" in text
    assert "24 epochs: SOLVER.MAX_ITER 72 SOLVER.STEPS '(48, 66)'" in text
    assert "epoch" not in prepare(coco, split="val")[1]


def test_output_is_deterministic(prepare, tmp_path):
    prepare(make_coco())
    before = output(tmp_path).read_bytes()
    assert prepare(make_coco(), "--force")[0] == 0
    assert output(tmp_path).read_bytes() == before
    prepare(make_coco(), split="val")
    assert output(tmp_path, "val").read_bytes() == before


def test_existing_file_is_kept_without_force(prepare, tmp_path):
    output(tmp_path).write_text("mine")
    code, error = prepare(make_coco())
    assert code == 2 and error.endswith(
        "instances_traffic_train2017.json exists: --force replaces it\n"
    )
    assert output(tmp_path).read_text() == "mine"
    assert prepare(make_coco(), "--force")[0] == 0


def test_default_prepares_both_splits(load_script, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "coco/annotations"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        (folder / f"instances_{split}2017.json").write_text(json.dumps(make_coco()))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    load_script("datasets/prepare_coco_traffic.py").main([])
    assert output(tmp_path / "coco").exists() and output(tmp_path / "coco", "val").exists()


def test_failed_write_leaves_no_file(prepare, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    code, error = prepare(make_coco())
    assert code == 2 and "traffic_train2017.json cannot be written: No space left" in error
    assert [p.name for p in output(tmp_path).parent.iterdir()] == ["instances_train2017.json"]


def broken(key: str, number: int, **fields) -> dict:
    """COCO's content with changed fields in one entry; None removes a field."""
    coco = make_coco()
    entry = {**coco[key][number], **fields}
    coco[key][number] = {k: v for k, v in entry.items() if v is not None}
    return coco


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps(make_coco())[:-40], "is not a whole JSON file (Unterminated"),
        (broken("annotations", 2, bbox=None), "entry 2 of 'annotations' has no valid 'bbox'"),
        (broken("categories", 0, name="hound"), "has no category dog: use COCO 2017's annotations"),
        ({**make_coco(), "annotations": []}, "has no annotation of traffic: use"),
    ],
)
def test_malformed_file_is_a_one_line_error(prepare, tmp_path, content, message):
    code, error = prepare(content)
    assert code == 2 and message in error and error.count("\n") == 1
    assert "annotations/instances_train2017.json" in error
    assert not output(tmp_path).exists()


def test_missing_file_is_reported_with_instructions(load_script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        load_script("datasets/prepare_coco_traffic.py").main(["--root", str(tmp_path)])
    error = capsys.readouterr().err
    assert "annotations/instances_train2017.json does not exist: unpack" in error
    assert "https://cocodataset.org/#download" in error and error.count("\n") == 1

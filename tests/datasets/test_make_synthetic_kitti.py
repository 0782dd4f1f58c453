"""Rendered scenes: labels match pixels, seeds are reproducible, label noise is recorded."""

import json
import os

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.data.kitti import load_kitti, parse_label_file, register_kitti


@pytest.fixture
def make(make_scenes, tmp_path, capsys):
    """A function (name, options) -> (folder, exit code, output)."""

    def run(name: str, *options: str):
        folder = str(tmp_path / name)
        sizes = ["--train", "6", "--val", "3", "--workers", "1"]
        try:
            make_scenes(["--output", folder, *sizes, *options])
        except SystemExit as end:
            return folder, end.code, capsys.readouterr().err
        return folder, 0, capsys.readouterr().out

    return run


def contents(folder: str) -> dict[str, bytes]:
    actual = {}
    for root, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(root, name)
            with open(path, "rb") as f:
                actual[os.path.relpath(path, folder)] = f.read()
    return actual


def scenes(folder: str) -> dict:
    with open(os.path.join(folder, "training", "scenes.json")) as f:
        return json.load(f)["scenes"]


def labels(folder: str, name: str) -> list:
    return parse_label_file(os.path.join(folder, "training", "label_2", f"{name}.txt"))


def test_output_depends_only_on_the_seed(make):
    first = contents(make("a")[0])
    assert contents(make("b", "--workers", "3")[0]) == first
    other = contents(make("c", "--seed", "1")[0])
    images = [name for name in first if name.endswith(".png")]
    assert len(images) == 9 and all(first[name] != other[name] for name in images)


def test_output_is_a_kitti_dataset(make, tmp_path):
    folder, _, _ = make("a", "--height", "64", "--width", "200")
    name = f"rendered_{tmp_path.name}"
    register_kitti(name, folder, "train", "-")
    records = DatasetCatalog.get(name)
    assert len(records) == 6 and {(r["height"], r["width"]) for r in records} == {(64, 200)}
    assert {a["category_id"] for r in records for a in r["annotations"]} == {0, 1, 2}
    assert (
        len(load_kitti(folder, "val", "-")) == 3 and len(load_kitti(folder, "trainval", "-")) == 9
    )
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_scenes_json_describes_every_label_line(make):
    folder, _, _ = make("a")
    for name, scene in scenes(folder).items():
        actual = labels(folder, name)
        assert len(actual) == len(scene["objects"]) and scene["missing"] == []
        for obj, known in zip(actual, scene["objects"], strict=True):
            assert (obj.type, known["spoiled"]) == (known["type"], None)
            assert list(obj.bbox) == known["bbox"] and 0 < known["visible"] <= 1


def test_boxes_match_the_pixels(make_scenes):
    """The box of a fully visible object encloses exactly the pixels that it changes."""
    from synthetic.canvas import Camera, Canvas
    from synthetic.people import cyclist, pedestrian
    from synthetic.primitives import place
    from synthetic.scene import _sample_light
    from synthetic.vehicles import car, truck, van

    rng = np.random.default_rng(0)
    camera = Camera(focal=370.0, center_x=320.0, center_y=88.0, height=1.65)
    for build in (car, van, truck, pedestrian, cyclist):
        for rotation in (-1.57, 0.3, 2.5):
            canvas = Canvas(np.zeros((192, 640, 3), np.uint8), camera, _sample_light(rng, "day"))
            drawn = canvas.draw(place(build(rng).parts, 1.0, 16.0, rotation, 1.65), number=0)
            rows, columns = np.nonzero(canvas.ids == 0)
            actual = columns.min(), rows.min(), columns.max(), rows.max()
            assert drawn.extent == pytest.approx(actual, abs=2.1)  # a pixel of the final image
            assert drawn.num_pixels == len(rows)


def test_occluded_pixels_are_hidden(make_scenes):
    from synthetic.canvas import Camera, Canvas
    from synthetic.primitives import box, place
    from synthetic.scene import _sample_light

    camera = Camera(focal=370.0, center_x=320.0, center_y=88.0, height=1.65)
    light = _sample_light(np.random.default_rng(0), "day")
    for x, expected in ((1.0, 0.0), (2.0, 0.5), (6.1, 1.0)):  # the left edge of the object in front
        canvas = Canvas(np.zeros((192, 640, 3), np.uint8), camera, light)
        wall = canvas.draw(place(box((-2, 2), 0.1, (0, 1.5), (0, 0, 0)), 0, 20, 0, 1.65), number=0)
        canvas.draw(place(box((-2, 2), 0.1, (0, 1.65), (0, 0, 0)), x, 10, 0, 1.65), number=1)
        visible = (canvas.ids == 0).sum() / wall.num_pixels
        assert visible == pytest.approx(expected, abs=0.05)


def test_systematic_error_changes_one_class_only(make):
    folder, _, _ = make("a", "--cyclist-as-pedestrian", "1")
    cyclists = 0
    for name, scene in scenes(folder).items():
        for obj, known in zip(labels(folder, name), scene["objects"], strict=True):
            spoiled = (
                known["type"] == "Cyclist" and int(name) < 6
            )  # validation labels are unchanged
            assert obj.type == ("Pedestrian" if spoiled else known["type"])
            assert known["spoiled"] == ("class" if spoiled else None)
            cyclists += spoiled
    assert cyclists > 0


def test_label_noise_is_recorded_and_keeps_images_and_validation(make):
    clean, _, _ = make("clean")
    noisy, _, _ = make("noisy", "--wrong-class", "0.3", "--jitter", "0.3", "--missing", "0.3")
    spoiled = {"class": 0, "jitter": 0, "missing": 0}
    for name, scene in scenes(noisy).items():
        image = os.path.join("training", "image_2", f"{name}.png")
        assert contents(clean)[image] == contents(noisy)[image]
        true = [(k["type"], k["bbox"]) for k in scenes(clean)[name]["objects"]]
        recorded = [(k["type"], k["bbox"]) for k in scene["objects"] + scene["missing"]]
        assert sorted(recorded) == sorted(true)
        for obj, known in zip(labels(noisy, name), scene["objects"], strict=True):
            assert (obj.type != known["type"]) == (known["spoiled"] == "class")
            assert (list(obj.bbox) != known["bbox"]) == (known["spoiled"] == "jitter")
            if known["spoiled"]:
                spoiled[known["spoiled"]] += 1
        spoiled["missing"] += len(scene["missing"])
        if int(name) >= 6:
            assert labels(clean, name) == labels(noisy, name)
    assert min(spoiled.values()) >= 3


def test_conditions_are_recorded_and_visible(make):
    folder, _, _ = make("a", "--conditions", "day=1", "night=1", "--train", "20")
    light = {"day": [], "night": []}
    for name, scene in scenes(folder).items():
        image = cv2.imread(os.path.join(folder, "training", "image_2", f"{name}.png"))
        light[scene["condition"]].append(image.mean())
    assert min(map(len, light.values())) >= 5
    assert max(light["night"]) < min(light["day"])


def test_second_call_reuses_equal_settings_and_refuses_others(make):
    folder, _, _ = make("a")
    before = contents(folder)
    assert "scenes with these settings exist and are kept" in make("a")[2]
    _, code, error = make("a", "--seed", "5")
    assert code == 2 and "other settings (seed): --force" in error
    assert contents(folder) == before
    make("a", "--seed", "5", "--force")
    assert contents(folder) != before


def test_damaged_scenes_json_is_refused(make):
    folder, _, _ = make("a")
    for text in ("{", "{}", "[]"):
        with open(os.path.join(folder, "training", "scenes.json"), "w") as f:
            f.write(text)
        _, code, error = make("a")
        assert code == 2 and "scenes.json is damaged: delete" in error


def test_interrupted_call_leaves_no_partial_folder(make, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("synthetic.folder.asdict", lambda settings: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make("a")
    folder, code, _ = make("a")
    assert code == 0 and not os.path.exists(f"{folder}.part")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--conditions", "rain=1"], "--conditions rain=1: write day=SHARE"),
        (["--conditions", "day=-1"], "--conditions day=-1"),
        (["--conditions", "day=0"], "all shares are 0"),
        (["--wrong-class", "0.8", "--jitter", "0.5"], "must be from 0 to 1, and so must their sum"),
        (["--wrong-class", "nan"], "must be from 0 to 1"),
        (["--output", "/proc/scenes"], "--output /proc/scenes cannot be written"),
        (["--output", ""], "--output is empty"),
        (["--train", "0"], "must be at least 1"),
        (["--height", "10"], "must be at least 48"),
    ],
)
def test_invalid_options_are_refused(make, options, message):
    _, code, error = make("a", *options)
    assert code == 2 and message in error and error.count("\n") == 1


def test_folder_with_other_files_is_not_changed(make, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    _, code, error = make("mine")
    assert code == 2 and "holds no rendered scenes: choose another --output" in error
    _, code, error = make("mine", "--force")
    assert code == 2 and (tmp_path / "mine" / "thesis.tex").exists()

"""tools/convert_dataset.py: splits, written files and errors."""

import json
import os
import shlex

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aid.data import load_coco


def read(tmp_path, split: str) -> dict:
    return json.loads((tmp_path / "converted" / f"{split}.json").read_text())


def names(tmp_path, split: str) -> list[str]:
    """Names of the images of a split, without folder and extension."""
    images = read(tmp_path, split)["images"]
    return [os.path.splitext(os.path.basename(x["file_name"]))[0] for x in images]


def test_written_files_are_read_by_the_project(convert_dataset, labels, layouts, tmp_path):
    code, text = convert_dataset(labels("yolo"))
    assert code == 0 and "# Data" in text and (tmp_path / "converted/data_report.json").exists()
    root = str(tmp_path / "converted/images")
    assert os.path.islink(root)
    records = load_coco("converted", str(tmp_path / "converted/val.json"), root, "-")
    assert [os.path.basename(x["file_name"]) for x in records] == ["d.png", "e.png"]
    boxes = [x["bbox"] for x in records[1]["annotations"]]
    assert boxes == [pytest.approx([70, 40, 40, 24]), pytest.approx([2, 2, 8, 28])]
    coco = read(tmp_path, "train")
    assert [x["name"] for x in coco["categories"]] == layouts.CLASSES
    assert coco["annotations"][0]["area"] == pytest.approx(1600)


def test_images_are_copied_on_request(convert_dataset, labels, tmp_path):
    folder = labels("voc")
    assert convert_dataset(folder, "--copy-images")[0] == 0
    copied = tmp_path / "converted/images"
    assert not copied.is_symlink() and sorted(os.listdir(copied)) == [f"{x}.png" for x in "abcde"]
    assert (copied / "a.png").read_bytes() == (folder / "JPEGImages/a.png").read_bytes()


def test_split_is_that_of_the_data_or_drawn(convert_dataset, labels, layouts, tmp_path):
    folder = labels("yolo")
    text = convert_dataset(folder)[1]
    assert names(tmp_path, "val") == list(layouts.VAL) and "Split: that of the data." in text
    drawn = []
    for seed in (0, 0, 1):
        (tmp_path / "converted").rename(tmp_path / f"before{len(drawn)}")
        text = convert_dataset(folder, "--val-share", "0.4", "--seed", seed)[1]
        assert f"drawn at random by images, validation share 0.4, seed {seed}" in text
        drawn.append(names(tmp_path, "val"))
        assert sorted(drawn[-1] + names(tmp_path, "train")) == list("abcde")
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 2


def test_test_images_are_never_drawn(convert_dataset, labels, layouts, tmp_path):
    folder = labels("labelme")
    os.rename(folder / "val", folder / "test")
    assert convert_dataset(folder)[0] == 0
    assert names(tmp_path, "test") == list(layouts.VAL)
    assert len(names(tmp_path, "val")) == 1 and len(names(tmp_path, "train")) == 2


def test_whole_folders_are_drawn(convert_dataset, layouts, tmp_path):
    for number in range(4):
        for name in "xyz":
            folder = tmp_path / f"labels/video{number}"
            layouts.write_image(folder / f"{name}.png", number)
            box = [("person", 10, 10, 30, 30)]
            (folder / f"{name}.txt").write_text(layouts.yolo_text(box))
    (tmp_path / "labels/classes.txt").write_text("forklift\nperson\n")
    code, text = convert_dataset(tmp_path / "labels", "--whole-folders")
    assert code == 0 and "drawn at random by folders" in text
    folders = {x["file_name"].split("/")[0] for x in read(tmp_path, "val")["images"]}
    assert len(folders) == 1 and names(tmp_path, "val") == list("xyz")
    report = json.loads((tmp_path / "converted/data_report.json").read_text())
    assert report["near_duplicates"] == [] and report["classes"] == ["person"]
    assert report["equal_names"] == ["x.png", "y.png", "z.png"]


def test_list_of_validation_images_is_used_and_checked(convert_dataset, labels, tmp_path):
    folder, listed = labels("voc"), tmp_path / "list.txt"
    listed.write_text("b\nJPEGImages/c.png\n")
    code, text = convert_dataset(folder, "--val-list", listed)
    assert code == 0 and f"validation images listed in {listed}" in text
    assert names(tmp_path, "val") == ["b", "c"] and names(tmp_path, "train") == ["a", "d", "e"]
    (tmp_path / "converted").rename(tmp_path / "before")
    for content, message in (
        ("b\nx\n", "lists x, which is no labeled image"),
        ("", "lists 0 of 5 images: list some of them"),
        ("\n".join("abcde"), "lists 5 of 5 images"),
    ):
        listed.write_text(content)
        code, error = convert_dataset(folder, "--val-list", listed)
        assert code == 2 and message in error
    for name, listed_there in (("val", "d"), ("test", "e")):
        (folder / f"ImageSets/Main/{name}.txt").write_text(listed_there)
    listed.write_text("b\ne\n")
    code, error = convert_dataset(folder, "--val-list", listed)
    assert code == 2 and "lists e, which is in the test set: correct the list" in error
    listed.write_text("b\n")
    assert convert_dataset(folder, "--val-list", listed)[0] == 0
    split = [names(tmp_path, x) for x in ("train", "val", "test")]
    assert split == [["a", "c", "d"], ["b"], ["e"]]
    code, error = convert_dataset(folder, "--val-list", listed, "--val-share", "0.5")
    assert code == 2 and "leave out --val-share" in error


def test_boxes_are_clipped_or_left_out_and_counted(convert_dataset, labels, layouts, tmp_path):
    folder = labels("voc")
    boxes = [
        ("person", -20, 10, 30, 40),  # clipped
        ("person", -1, 0, 30, 80),  # less than a pixel outside: as rounded by programs
        ("person", 50, 10, 50, 40),  # without area
        ("person", 130, 10, 150, 40),  # outside
    ]
    (folder / "Annotations/d.xml").write_text(layouts.voc_text("d", boxes))
    code, text = convert_dataset(folder)
    assert code == 0 and "2 labels of val without area or outside of the image" in text
    coco = read(tmp_path, "val")
    assert [x["bbox"] for x in coco["annotations"][:2]] == [[0, 10, 30, 30], [0, 0, 30, 80]]
    report = json.loads((tmp_path / "converted/data_report.json").read_text())
    counts = [report["splits"]["val"][k] for k in ("clipped", "without area", "outside", "objects")]
    assert counts == [1, 1, 1, 4]
    assert [report["splits"]["train"][k] for k in ("clipped", "without area", "outside")] == [0] * 3


def test_difficult_objects_are_ignored_by_the_metric_only(
    convert_dataset, labels, layouts, tmp_path
):
    folder = labels("voc")
    for name in "abcde":
        path = folder / f"Annotations/{name}.xml"
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    assert convert_dataset(folder)[0] == 0
    assert {x["iscrowd"] for x in read(tmp_path, "train")["annotations"]} == {0}
    assert {x["iscrowd"] for x in read(tmp_path, "val")["annotations"]} == {1}


def test_masks_are_kept_with_their_area(convert_dataset, labels, tmp_path):
    folder = labels("yolo")
    (folder / "train/labels/c.txt").write_text("1 0.25 0.5 0.5 0.5 0.5 0.75\n")
    assert convert_dataset(folder)[0] == 0
    last = read(tmp_path, "train")["annotations"][-1]
    assert last["segmentation"] == [[30, 40, 60, 40, 60, 60]] and last["area"] == 300
    (tmp_path / "converted").rename(tmp_path / "before")
    (folder / "train/labels/c.txt").write_text("1 0.25 0.5 0.5 0.5 0.5 9.75\n")
    code, error = convert_dataset(folder)
    assert code == 2 and "c.txt: person in image" in error and "its polygon has y 780.0" in error


def test_images_of_another_size_or_that_are_broken_are_refused(
    convert_dataset, labels, layouts, tmp_path
):
    folder = labels("voc")
    layouts.write_image(folder / "JPEGImages/b.png", 3, (60, 40))
    code, error = convert_dataset(folder)
    assert code == 2 and "1 of 5 images have another size than their labels say, first" in error
    assert "b.png: 60x40 pixels" in error and "but 120x80 in" in error
    layouts.write_image(folder / "JPEGImages/b.png", 3)
    whole = (folder / "JPEGImages/b.png").read_bytes()
    (folder / "JPEGImages/b.png").write_bytes(whole[: len(whole) // 2])
    code, error = convert_dataset(folder)
    assert code == 2 and "1 image cannot be read, first" in error and "b.png" in error
    (folder / "JPEGImages/b.png").write_bytes(b"no image")
    code, error = convert_dataset(folder)
    assert code == 2 and "b.png cannot be read: it is no image" in error


@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_size_after_the_rotation_of_a_photo_counts(
    where, convert_dataset, labels, layouts, tmp_path
):
    folder = labels("voc")
    with Image.open(folder / "JPEGImages/a.png") as image:
        exif, info = Image.Exif(), PngInfo()
        if where == "exif":
            exif[0x0112] = 6  # to be rotated by 90 degrees
        else:
            info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
        image.resize((80, 120)).save(folder / "JPEGImages/a.png", exif=exif, pnginfo=info)
    assert convert_dataset(folder)[0] == 0
    assert read(tmp_path, "train")["images"][0] | {"id": 0, "file_name": ""} == {
        "id": 0,
        "file_name": "",
        "width": 120,
        "height": 80,
    }


def test_output_folders_that_would_mix_data_are_refused(
    convert_dataset, load_script, labels, tmp_path, capsys
):
    folder = labels("voc")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted/file").touch()
    code, error = convert_dataset(folder)
    assert code == 2 and "is not empty: choose a new folder" in error
    with pytest.raises(SystemExit):
        main = load_script("tools/convert_dataset.py").main
        main([str(folder), "--output", str(folder / "inside")])
    assert "inside is inside of" in capsys.readouterr().err
    assert not (folder / "inside").exists()


def test_data_with_validation_images_only_are_refused(convert_dataset, labels):
    folder = labels("labelme")
    for path in (folder / "train").iterdir():
        path.unlink()
    code, error = convert_dataset(folder)
    assert code == 2 and "have a validation set, but no training set: give --val-share" in error
    code, error = convert_dataset(folder, "--val-share", "0")
    assert code == 2 and "leaves a split empty" in error


def test_data_with_test_images_only_are_refused(convert_dataset, labels, tmp_path):
    folder = labels("coco")
    for path in list(folder.glob("annotations/*.json")):
        path.rename(path.with_name(f"test_{path.name}"))
    for split in ("train", "val"):
        (folder / "images" / split).rename(folder / "images" / f"{split}_drive")
    (tmp_path / "list.txt").write_text("a\n")
    for options in ((), ("--val-list", tmp_path / "list.txt")):
        code, error = convert_dataset(folder, *options)
        assert code == 2 and "all 5 labeled images are test images, by the names of" in error


def test_boxes_in_parts_of_the_image_are_refused(convert_dataset, labels):
    folder = labels("coco")
    for path in folder.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        for x in content["annotations"]:
            x["bbox"] = [side / 120 for side in x["bbox"]]
        path.write_text(json.dumps(content))
    code, error = convert_dataset(folder)
    assert code == 2 and "error: boxes must be in pixels as x, y, width and height, and" in error
    assert "all 3 labels of train are in the first pixel of their image, first in" in error


def test_boxes_of_yolo_in_pixels_are_refused(convert_dataset, labels, layouts):
    folder = labels("yolo")
    for path in folder.glob("*/labels/*.txt"):
        boxes = layouts.OBJECTS[path.stem]
        path.write_text(layouts.yolo_text([x for x in boxes if x[1]], 1, 1))
    code, error = convert_dataset(folder)
    start = (
        "error: YOLO's coordinates must be parts of the image, 0 to 1: all 3 labels of train are "
    )
    assert code == 2 and error.startswith(
        f"{start}without area or outside of their image, first in"
    )
    assert error.endswith("a.txt")


@pytest.mark.parametrize("split, number", [("train", 3), ("val", 2)])
def test_boxes_of_one_split_in_pixels_are_refused(
    split, number, convert_dataset, labels, layouts, tmp_path
):
    folder = labels("yolo")
    for path in folder.glob(f"{split}/labels/*.txt"):
        boxes = layouts.OBJECTS[path.stem]
        path.write_text(layouts.yolo_text([x for x in boxes if x[1]], 1, 1))
    code, error = convert_dataset(folder)
    assert code == 2 and f"0 to 1: all {number} labels of {split} are without area or" in error
    assert not os.listdir(tmp_path / "converted")


def test_images_beside_the_output_can_be_converted_again(
    load_script, labels, tmp_path, monkeypatch
):
    """The link of the first conversion leads back to the folder that is searched."""
    main = load_script("tools/convert_dataset.py").main
    monkeypatch.chdir(labels("cvat"))
    for output in ("first", "second"):
        main(["annotations.xml", "--output", output])
        assert os.readlink(tmp_path / f"labels/{output}/images") == str(tmp_path / "labels/images")
    os.symlink(tmp_path, tmp_path / "labels/loop")
    main(["annotations.xml", "--output", "third"])
    assert len(json.loads((tmp_path / "labels/third/train.json").read_text())["images"]) == 3


def test_next_command_reads_what_was_written(convert_dataset, load_script, labels, tmp_path):
    text = convert_dataset(labels("voc"))[1]
    command = shlex.split(text.splitlines()[-1])
    assert command[0] == "python" and os.path.basename(command[1]) == "new_project.py"
    args = load_script(command[1]).build_parser().parse_args(command[2:])
    assert args.data == str(tmp_path / "converted")


def test_files_that_cannot_be_written_are_one_line(
    convert_dataset, labels, monkeypatch, file_limit, tmp_path
):
    def fail(*args):
        raise PermissionError(1, "Operation not permitted", *args)

    folder = labels("voc")
    with file_limit(100):
        code, error = convert_dataset(folder, "--copy-images")
    assert code == 2 and "images/a.png cannot be written: File too large" in error
    os.rename(tmp_path / "converted", tmp_path / "before")
    monkeypatch.setattr(os, "symlink", fail)
    code, error = convert_dataset(folder)
    assert code == 2 and "Operation not permitted: add --copy-images" in error

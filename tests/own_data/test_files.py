"""Images of label files, found by their names, and their splits."""

import json
import os

import pytest

from aid.utils.errors import AIDError
from aid_tools.own_data import read_labels


def test_equal_image_names_in_several_folders_are_told_apart(labels, layouts):
    folder = labels("yolo")
    layouts.write_image(folder / "val/images/a.png", 7)
    (folder / "val/labels/a.txt").write_text(layouts.yolo_text([("person", 1, 1, 9, 9)]))
    found = {x.path: x for x in read_labels(str(folder)).images}
    assert len(found[str(folder / "train/images/a.png")].objects) == 2
    assert len(found[str(folder / "val/images/a.png")].objects) == 1


def test_images_in_another_folder_than_the_labels_say_are_named(labels, convert_dataset):
    """Those of another camera may have the same names."""
    folder = labels("coco")
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    base = os.path.basename(content["images"][0]["file_name"])
    (image,) = folder.rglob(base)
    content["images"][0]["file_name"] = f"cam_front/{base}"
    path.write_text(json.dumps(content))
    (folder / "images/cam_rear").mkdir(parents=True)
    image.rename(folder / "images/cam_rear" / base)
    found = read_labels(str(folder))
    name = f"annotations/cam_front/{base}"
    assert found.elsewhere == {name: str(folder / "images/cam_rear" / base)}
    assert "* 1 image found by the file name alone, in another fol" in convert_dataset(folder)[1]
    (folder / "images/cam_rear").rename(folder / "images/cam_front")
    assert read_labels(str(folder)).elsewhere == {}


@pytest.mark.parametrize("name", ["coco", "cvat", "voc"])
def test_images_beside_their_label_file_are_preferred(name, layouts, tmp_path):
    """Tasks and cameras count their images anew."""
    for task in ("one", "two"):
        folder = tmp_path / task
        layouts.WRITERS[name](folder)
        for path in list(folder.rglob("*.xml")):  # Pascal VOC's then have the name inside
            path.rename(path.with_name(f"renamed_{path.name}"))
    found = read_labels(str(tmp_path))
    assert len(found.images) == 10 and not found.elsewhere
    for image in found.images:
        assert ("/one/" in image.path) == ("/one/" in image.source)


def test_extensions_may_be_in_another_case(labels, layouts):
    folder = labels("coco")
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_suffix(".PNG"))
    assert len(read_labels(str(folder)).images) == 5
    layouts.write_image(folder / "images/train/a.png", 9)
    first = read_labels(str(folder)).images[0].path
    assert first == str(folder / "images/train/a.png")


def splits_of(folder, images=""):
    found = read_labels(str(folder), str(images))
    return {os.path.basename(x.path)[0]: (x.split, len(x.objects)) for x in found.images}


SPLIT = {
    **{name: ("train", number) for name, number in (("a", 2), ("b", 1), ("c", 0))},
    **{name: ("val", number) for name, number in (("d", 1), ("e", 2))},
}


@pytest.mark.parametrize("layout", ["darknet", "ultralytics", "folders of labels"])
def test_split_of_yolo_is_that_of_its_lists_and_label_folders(layout, layouts, tmp_path):
    names = {"train": "abc", "val": "de"}
    image = {"darknet": "obj_train_data/{}.png", "ultralytics": "images/{1}2017/{0}.png"}
    image = image.get(layout, "photos/{}.png")
    text = image.replace(".png", ".txt").replace("images", "labels")
    if layout == "folders of labels":
        text = "labels/{1}/{0}.txt"
    for split, of_split in names.items():
        for seed, name in enumerate(of_split):
            layouts.write_image(tmp_path / image.format(name, split), seed)
            path = tmp_path / text.format(name, split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(layouts.yolo_text(layouts.OBJECTS[name]))
        lines = "".join(f"./{image.format(name, split)}\n" for name in of_split)
        if layout == "darknet":
            path = tmp_path / f"{'valid' if split == 'val' else split}.txt"
            path.write_text(lines.replace("./", "data/"))
        elif layout == "ultralytics":
            (tmp_path / f"{split}2017.txt").write_text(lines)
    if layout == "ultralytics":
        content = "train: train2017.txt\nval: val2017.txt\nnames: [forklift, person]\n"
        (tmp_path / "coco.yaml").write_text(content)
        (tmp_path / "notes.txt").write_text("labeled in May\n")
    else:
        (tmp_path / "classes.txt").write_text("forklift\nperson\n")
    is_apart = layout == "folders of labels"
    assert splits_of(tmp_path, tmp_path / "photos" if is_apart else "") == SPLIT


def link_images(folder, pool) -> None:
    """Move the images of a folder to ``pool``, and leave links to them."""
    pool.mkdir(parents=True)
    for path in list(folder.rglob("*.png")):
        path.rename(pool / path.name)
        path.symlink_to(pool / path.name)


def yolo_parts(labels):
    """Folder in YOLO format of which only data.yaml tells the split."""
    folder = labels("yolo")
    for part, split in (("part_1", "train"), ("part_2", "val")):
        for kind in ("images", "labels"):
            (folder / kind).mkdir(exist_ok=True)
            (folder / split / kind).rename(folder / kind / part)
        (folder / split).rmdir()
    text = "train: images/part_1\nval: images/part_2\nnames: [forklift, person]\n"
    (folder / "data.yaml").write_text(text)
    return folder


def test_links_to_images_are_in_the_split_of_their_folder(labels, tmp_path):
    folder = yolo_parts(labels)
    link_images(folder / "images/part_2", tmp_path / "pool")
    assert splits_of(folder) == SPLIT
    link_images(folder / "images/part_1", folder / "images/all")
    found = read_labels(str(folder))
    assert {os.path.basename(x.path)[0]: (x.split, len(x.objects)) for x in found.images} == SPLIT
    assert found.left_out == {"images that data.yaml or the lists do not name": 3}
    (folder / "data.yaml").write_text("names: [forklift, person]\n")
    message = r"images .*all/a.png and .*part_1/a.png are one file, and .*all/a.png has no label fi"
    with pytest.raises(AIDError, match=message):
        read_labels(str(folder))


@pytest.mark.parametrize("kept", ["images", ""])
def test_images_of_yolo_may_be_in_a_folder_of_their_own(kept, labels, tmp_path):
    folder = yolo_parts(labels)
    (tmp_path / "photos").mkdir()
    (folder / "images").rename(tmp_path / "photos" / kept)
    assert splits_of(folder, tmp_path / "photos") == SPLIT


@pytest.mark.parametrize("name, folder", [("voc", "Main"), ("labelme", ""), ("kitti", "")])
def test_images_that_no_list_names_are_left_out(name, folder, labels, layouts):
    root = labels(name)
    if name == "labelme":  # no folder tells the split
        (root / "train").rename(root / "x")
        (root / "val").rename(root / "y")
    lists = root / "ImageSets" / folder
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("d\n")
    expected = {x: SPLIT[x] for x in "abd"}
    assert splits_of(root) == expected
    assert read_labels(str(root)).left_out == {"images that the lists in ImageSets do not name": 2}
    (lists / "train.txt").unlink()  # all others are for training
    assert len(splits_of(root)) == 5


@pytest.mark.parametrize("entry", ["d.png", "d.PNG", "JPEGImages/d.png", "./d"])
def test_names_in_lists_may_have_folders_and_extensions(entry, labels):
    folder = labels("voc")
    (folder / "ImageSets/Main/val.txt").write_text(f"{entry}\ne\ngone\n")
    found = read_labels(str(folder))
    splits = {os.path.basename(x.path): x.split for x in found.images}
    assert [name for name, split in splits.items() if split == "val"] == ["d.png", "e.png"]
    assert found.left_out == {"names in ImageSets that no labeled image has (first gone)": 1}


def test_list_of_unlabeled_test_images_may_repeat_names(labels):
    folder = labels("kitti")
    (folder / "ImageSets/test.txt").write_text("a\nz\n")
    found = read_labels(str(folder))
    assert sum(x.split == "train" for x in found.images) == 3 and not found.left_out


def test_lists_in_which_no_name_matches_are_refused(labels):
    folder = labels("kitti")
    (folder / "ImageSets/train.txt").write_text("x\ny\n")
    (folder / "ImageSets/val.txt").unlink()
    message = "the lists in ImageSets name none of the 5 labeled images in .*, first x: correct"
    with pytest.raises(AIDError, match=message):
        read_labels(str(folder))


@pytest.mark.parametrize(
    "name, path",
    [
        ("voc", "Annotations/c.xml"),
        ("kitti", "training/label_2/c.txt"),
        ("labelme", "train/c.json"),
        ("coco", ""),
        ("cvat", ""),
    ],
)
def test_images_without_labels_are_counted(name, path, labels, layouts):
    folder = labels(name)
    if path:
        (folder / path).unlink()
    else:
        layouts.write_image(folder / "images/train/unlabeled.png", 9)
    assert read_labels(str(folder)).left_out["images without labels"] == 1

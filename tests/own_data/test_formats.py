"""Reading of all label formats."""

import json
import os
import shutil

import pytest

from aid.utils.errors import AIDError
from aid_tools.own_data import FORMATS, read_labels


def by_image(found) -> dict[str, list]:
    """{name of an image: [(class, *box)]}"""
    return {
        os.path.splitext(os.path.basename(image.path))[0]: [
            (x.name, *(round(side, 9) for side in x.box)) for x in image.objects
        ]
        for image in found.images
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_objects(name, labels, layouts):
    found = read_labels(str(labels(name)))
    assert found.classes == layouts.CLASSES
    assert by_image(found) == layouts.OBJECTS
    for image in found.images:
        stem = os.path.splitext(os.path.basename(image.path))[0]
        assert image.split == ("val" if stem in layouts.VAL else "train")
        assert image.size in (None, (120, 80)) and "testing" not in image.path
        assert not any(x.crowd or x.difficult or x.mask for x in image.objects)
    assert found.left_out == ({"CVAT shapes of type points": 5} if name == "cvat" else {})


def test_masks_and_parts_of_an_object_are_read(labels, layouts):
    folder = labels("labelme")
    part = {"label": "person", "shape_type": "polygon", "group_id": 1}
    shapes = [
        {**part, "points": [[10, 10], [20, 10], [20, 30]]},
        {**part, "points": [[40, 10], [50, 10], [50, 30]]},
        {"label": "person", "shape_type": "circle", "points": [[60, 40], [63, 44]]},
        {"label": "person", "shape_type": "line", "points": [[60, 40], [63, 44]]},
    ]
    content = {"shapes": shapes, "imagePath": "..\\train\\a.png"}
    (folder / "train/a.json").rename(folder / "train/renamed.json")
    (folder / "train/renamed.json").write_text(json.dumps(content))
    found = read_labels(str(folder))
    assert found.left_out == {"Labelme shapes of type line": 1}
    assert by_image(found)["a"] == [("person", 10, 10, 50, 30), ("person", 55, 35, 65, 45)]
    (image,) = (x for x in found.images if x.path.endswith("a.png"))
    assert image.objects[0].mask == [[10, 10, 20, 10, 20, 30], [40, 10, 50, 10, 50, 30]]


def test_polygons_of_yolo_are_masks(labels):
    folder = labels("yolo")
    (folder / "train/labels/c.txt").write_text("1 0.25 0.5 0.5 0.5 0.5 0.75\n")
    (image,) = (x for x in read_labels(str(folder)).images if x.path.endswith("c.png"))
    assert image.objects[0].box == (30, 40, 60, 60)
    assert image.objects[0].mask == [[30, 40, 60, 40, 60, 60]]


def test_images_without_label_file_have_no_objects_in_yolo(labels):
    folder = labels("yolo")
    (folder / "train/labels/b.txt").unlink()
    found = read_labels(str(folder))
    assert by_image(found)["b"] == []
    assert found.taken_as_empty == 1 and not found.left_out


def test_rotated_boxes_and_polygons_of_cvat(labels):
    folder = labels("cvat")
    text = (folder / "annotations.xml").read_text()
    box = '<box label="person" xtl="40" ytl="30" xbr="60" ybr="40" rotation="90"/>'
    polygon = '<polygon label="forklift" points="1,2;5,2;5,8"/>'
    text = text.replace('name="train/c.png"', 'name="c.png"', 1)
    before, after = text.split('name="c.png"')
    start, end = after.split(">", 1)
    (folder / "annotations.xml").write_text(f'{before}name="c.png"{start}>{box}{polygon}{end}')
    found = read_labels(str(folder))
    assert by_image(found)["c"] == [("person", 45, 25, 55, 45), ("forklift", 1, 2, 5, 8)]
    (image,) = (x for x in found.images if x.path.endswith("c.png"))
    assert image.objects[1].mask == [[1, 2, 5, 2, 5, 8]]


def test_kitti_types_become_crowds_as_in_the_project(labels):
    folder = labels("kitti")
    line = "{} 0 0 0 10 10 20 20 0 0 0 0 0 0 0\n"
    for name in "abcde":
        path = folder / f"training/label_2/{name}.txt"
        path.write_text(line.format("Car") + line.format("Van") + line.format("DontCare"))
    found = read_labels(str(folder))
    names = [(x.name, x.crowd) for x in found.images[0].objects]
    assert names[:2] == [("Car", False), ("Car", True)] and len(names) == 5
    assert found.classes == ["Car", "Pedestrian", "Cyclist"]
    path.write_text(line.format("Digger") + line.format("dontcare"))
    found = read_labels(str(folder))
    assert found.classes == ["Car", "Digger", "Van"]
    assert [x.crowd for x in found.images[-1].objects] == [False, True, True, True]


def test_difficult_objects_and_renamed_files_of_voc(labels, layouts):
    folder = labels("voc")
    text = layouts.voc_text("b", layouts.OBJECTS["b"]).replace("<difficult>0", "<difficult>1")
    (folder / "Annotations/b.xml").unlink()
    (folder / "Annotations/other.xml").write_text(text.replace("<width>120", "<width>0"))
    found = read_labels(str(folder))
    (image,) = (x for x in found.images if x.path.endswith("b.png"))
    assert image.objects[0].difficult and image.split == "train"


def test_coco_keeps_crowds_and_counts_what_is_left_out(labels):
    folder = labels("coco")
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": [], "keypoints": [1, 1, 2]}
    content["annotations"][1].pop("bbox")
    content["annotations"].append({**content["annotations"][2], "image_id": 99})
    content["annotations"].append({**content["annotations"][2], "bbox": []})
    content["annotations"].append({**content["annotations"][2], "id": 98})
    content["images"][0] |= {"width": None, "height": None}
    content["images"][1] |= {"width": 0, "height": 0}
    path.write_text(json.dumps(content))
    found = read_labels(str(folder))
    assert found.images[0].objects[0].crowd
    assert found.images[0].size is found.images[1].size is None
    assert sorted(found.left_out.values()) == [1, 1, 1, 2]
    assert found.left_out["labels that repeat one of the same class and box"] == 1
    assert len(by_image(found)["b"]) == 1


def test_label_file_with_the_name_of_a_list_is_read(layouts, tmp_path):
    layouts.write_image(tmp_path / "images/train.png", 0)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/train.txt").write_text(layouts.yolo_text(layouts.OBJECTS["a"]))
    (tmp_path / "classes.txt").write_text("forklift\nperson\n")
    (image,) = read_labels(str(tmp_path)).images
    assert len(image.objects) == 2


def test_data_yaml_stands_for_its_folder(labels):
    folder = labels("yolo")
    assert read_labels(str(folder / "data.yaml")) == read_labels(str(folder))


def test_cvat_without_a_list_of_labels_has_the_classes_of_its_objects(labels, layouts):
    folder = labels("cvat")
    spoil(folder, "annotations.xml", "<labels>", "<other>")
    spoil(folder, "annotations.xml", "</labels>", "</other>")
    assert read_labels(str(folder)).classes == sorted(layouts.CLASSES)


def test_file_with_an_unlisted_label_is_named(labels, tmp_path):
    folder = labels("cvat")
    text = (folder / "annotations.xml").read_text()
    (folder / "z.xml").write_text(text.partition("<image")[0] + "</annotations>")
    spoil(folder, "annotations.xml", 'label="person"', 'label="x"')
    with pytest.raises(AIDError, match=r"annotations.xml has label x, which is not in its list"):
        read_labels(str(folder))


def test_one_file_and_a_folder_of_images_can_be_given(labels, tmp_path):
    folder = labels("cvat")
    shutil.move(folder / "annotations.xml", tmp_path / "labels.xml")
    found = read_labels(str(tmp_path / "labels.xml"), str(folder / "images"))
    assert len(found.images) == 5


def spoil(folder, path: str, old: str, new: str) -> None:
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new, 1))


ANNOTATIONS = "annotations/instances_val2017.json"


@pytest.mark.parametrize(
    "name, path, old, new, message",
    [
        ("voc", "Annotations/a.xml", "</object>", "</obj>", "a.xml is not a whole XML file"),
        (
            "voc",
            "Annotations/a.xml",
            "<xmin>11</xmin>",
            "",
            "<bndbox> has no <xmin>",
        ),
        ("voc", "Annotations/a.xml", "<xmax>50", "<xmax>nan", "'nan' is not a finite number"),
        ("voc", "Annotations/a.xml", "<name>forklift", "<name>", "<object> has no <name>"),
        ("yolo", "train/labels/a.txt", "1 ", "2 ", "class 2 is not one of the 2 classes"),
        ("yolo", "train/labels/a.txt", "0 ", "0 1 ", "a line has 6 fields: they must be"),
        ("yolo", "data.yaml", "../val", "../gone", "data.yaml: val names ../gone/images, which"),
        ("yolo", "data.yaml", "[forklift, person]", "[x", "data.yaml is not in YOLO's data.yaml"),
        ("yolo", "data.yaml", "[forklift, person]", "[x, x]", "lists class x twice: rename one"),
        ("yolo", "data.yaml", "[forklift, person]", "3", "is not in YOLO's data.yaml format"),
        ("yolo", "data.yaml", "names", "labels", "has no names of the classes: add classes.txt"),
        ("yolo", "data.yaml", "[forklift, person]", "car", "'names' is 'car': it must be a list"),
        ("yolo", "data.yaml", "forklift", "no", "class name False is no text: put the name in"),
        ("yolo", "data.yaml", "forklift", "~", "class name None is no text: put the name in"),
        ("yolo", "data.yaml", "forklift", "' '", "class name ' ' is blank or has several lines"),
        ("yolo", "data.yaml", "[forklift, person]", "{1: a, 2: b}", "the ids 1, 2: count from 0"),
        ("yolo", "data.yaml", "nc: 2", "names: [a, b]", "data.yaml, line 5: names is given twice"),
        ("yolo", "data.yaml", "nc: 2", "nc: 3", "'nc' is 3, but 'names' has 2 names"),
        ("yolo", "data.yaml", "../val", "../train", "train and val both name "),
        ("yolo", "data.yaml", "../val/images", "val/labels", "val names val/labels, which has no"),
        ("yolo", "data.yaml", "nc: 2", "kpt_shape: [2, 3]", "has 5 fields: with the kpt_shape"),
        ("voc", "Annotations/a.xml", "<width>120", "<width>120.5", "'120.5' is not a whole number"),
        ("voc", "ImageSets/Main/val.txt", "d", "a", "val.txt and train.txt beside it both list a"),
        ("labelme", "train/a.json", '"forklift"', "null", "class name None is no text: put the"),
        ("labelme", "train/a.json", '"forklift"', '["x"]', "class name ['x'] is no text: put the"),
        ("coco", ANNOTATIONS, '"person"', "null", "class name None is no text: put the name in"),
        ("coco", ANNOTATIONS, '{"id": 1, "file', '{"id": 0, "file', "'images' has id 0 twice"),
        ("coco", ANNOTATIONS, '{"id": 1, "name', '{"id": 0, "name', "'categories' has id 0 twice"),
        ("coco", ANNOTATIONS, '"bbox"', '"ignore": 1, "bbox"', "has 'ignore' 1, which is not"),
        ("coco", ANNOTATIONS, '"bbox"', '"iscrowd": "0", "bbox"', "has 'iscrowd' '0': it must be"),
        (
            "coco",
            ANNOTATIONS,
            '"bbox": [',
            '"bbox": [0, ',
            "an annotation has 'bbox' [0, 0, 0, 120, 80]",
        ),
        ("cvat", "annotations.xml", "<image", "<track/><image", "has tracks: export the task"),
        ("cvat", "annotations.xml", 'label="person"', 'label="x"', "has label x, which is not in"),
        ("cvat", "annotations.xml", "xtl=", "x=", "annotations.xml, in CVAT format, has no 'xtl'"),
        (
            "labelme",
            "train/a.json",
            '"points"',
            '"p"',
            "a.json, in Labelme format, has no 'points'",
        ),
        ("labelme", "train/a.json", "}", "", "a.json is not a whole JSON file"),
        ("coco", ANNOTATIONS, '"person"', '"walker"', "all splits need the same classes"),
        ("coco", ANNOTATIONS, '"category_id": 0', '"category_id": 7', "category_id 7 is not in"),
        ("kitti", "training/label_2/a.txt", "0 0 0", "0 0", "14 fields where KITTI has 15"),
    ],
)
def test_malformed_files_are_named_in_one_line(name, path, old, new, message, labels):
    folder = labels(name)
    spoil(folder, path, old, new)
    with pytest.raises(AIDError) as error:
        read_labels(str(folder))
    assert message in str(error.value) and os.path.basename(str(folder)) in str(error.value)


def test_unknown_and_several_formats_are_refused(labels, tmp_path):
    folder = labels("voc")
    for name in "abcde":
        (folder / f"Annotations/{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(AIDError, match="has labels of voc and yolo: choose one by --format"):
        read_labels(str(folder))
    assert len(read_labels(str(folder), name="voc").images) == 5
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("gone", "gone does not exist: name a folder of labels"),
        ("empty", r"no labels of a known format .* have the extensions \(none\)"),
        ("labels/JPEGImages", r"no labels of a known format \(voc, yolo, .*\): its files have"),
    ):
        with pytest.raises(AIDError, match=message):
            read_labels(str(tmp_path / path))
    os.rename(folder / "Annotations", tmp_path / "empty/Annotations")
    with pytest.raises(AIDError, match="empty has no image: name the folder of the images by"):
        read_labels(str(tmp_path / "empty"), name="voc")
    with pytest.raises(AIDError, match="--images .*gone is no folder"):
        read_labels(str(tmp_path / "empty"), str(tmp_path / "gone"), "voc")


def test_images_that_are_missing_ambiguous_or_labeled_twice_are_refused(labels, layouts, tmp_path):
    folder = labels("voc")
    (folder / "JPEGImages/a.png").rename(tmp_path / "a.png")
    with pytest.raises(AIDError, match=r"1 of 5 labeled images are not below .*a\.xml: complete"):
        read_labels(str(folder))
    for name in ("x", "y"):
        layouts.write_image(folder / f"JPEGImages/{name}/a.png", 0)
    with pytest.raises(AIDError, match=r"a\.xml: image .*a may be .*x/a\.png or .*y/a\.png"):
        read_labels(str(folder))
    shutil.rmtree(folder / "JPEGImages/x")
    shutil.copy(folder / "Annotations/a.xml", folder / "Annotations/second.xml")
    with pytest.raises(AIDError, match=r"a\.png is labeled twice, by .*a\.xml and .*second\.xml"):
        read_labels(str(folder))


def test_old_labels_beside_those_of_yolo_are_refused(labels):
    folder = labels("yolo")
    shutil.copytree(folder / "train/labels", folder / "train/labels_old")
    with pytest.raises(
        AIDError, match=r"a\.png is labeled twice, by .*labels/a\.txt and .*labels_old"
    ):
        read_labels(str(folder))


def test_labels_without_any_object_are_refused(labels):
    folder = labels("yolo")
    for path in folder.glob("*/labels/*.txt"):
        path.write_text("")
    with pytest.raises(AIDError, match="has no labeled object in 5 images"):
        read_labels(str(folder), name="yolo")


@pytest.mark.parametrize("name", FORMATS)
def test_folder_without_labels_of_the_given_format_is_refused(name, layouts, tmp_path):
    layouts.write_image(tmp_path / "a.png", 0)
    (tmp_path / "readme.md").write_text("no labels")
    with pytest.raises(AIDError) as error:
        read_labels(str(tmp_path), name=name)
    expected = (
        "has no names of the classes" if name == "yolo" else f"no {name} labels in {tmp_path}"
    )
    assert expected in str(error.value)


def test_blank_lines_inside_of_a_class_list_are_refused(labels):
    folder = labels("yolo")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("forklift\n\nperson\n")
    with pytest.raises(AIDError, match=r"classes\.txt is not in .*: class name '' is blank"):
        read_labels(str(folder))
    (folder / "classes.txt").write_text("forklift \nperson\n\n")
    assert read_labels(str(folder)).classes == ["forklift", "person"]


def test_poses_of_yolo_are_read_as_boxes(labels, layouts):
    folder = labels("yolo")
    spoil(folder, "data.yaml", "nc: 2", "kpt_shape: [2, 3]")
    for path in folder.glob("*/labels/*.txt"):
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{x} 0.1 0.1 2 0.2 0.2 1\n" for x in lines))
    found = read_labels(str(folder))
    assert by_image(found) == layouts.OBJECTS
    assert not any(x.mask for image in found.images for x in image.objects)
    assert found.left_out == {"keypoints of an object": 6}


def test_subsets_of_cvat_that_are_no_split_are_counted(labels):
    folder = labels("cvat")
    spoil(folder, "annotations.xml", 'subset="train"', 'subset="night"')
    left_out = read_labels(str(folder)).left_out
    assert left_out["subset names of images (night, which is no split)"] == 1


@pytest.mark.parametrize("text", [" 1 ", "true", "True\n"])
def test_difficult_and_sizes_of_voc_in_any_spelling(text, labels):
    folder = labels("voc")
    spoil(folder, "Annotations/b.xml", "<difficult>0", f"<difficult>{text}")
    spoil(folder, "Annotations/b.xml", "<width>120", "<width>120.0")
    (image,) = (x for x in read_labels(str(folder)).images if x.path.endswith("b.png"))
    assert image.objects[0].difficult and image.size == (120, 80)


@pytest.mark.parametrize("path", ["Annotations/z.xml", "JPEGImages/z.png"])
def test_pipes_are_refused_and_not_waited_for(path, labels):
    folder = labels("voc")
    os.mkfifo(folder / path)
    with pytest.raises(AIDError, match=r"z\.\w+ is no regular file: remove it"):
        read_labels(str(folder), name="voc")


def test_spaces_around_class_names_are_no_part_of_them(labels, layouts):
    folder = labels("coco")
    for path in folder.glob("annotations/*.json"):
        path.write_text(path.read_text().replace('"person"', '" person\\n"'))
    assert read_labels(str(folder)).classes == layouts.CLASSES
    folder = labels("cvat")
    spoil(folder, "annotations.xml", '<box label="person"', '<box label=" person"')
    assert read_labels(str(folder), name="cvat").classes == layouts.CLASSES

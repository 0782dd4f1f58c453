"""The same labeled images in the folder layouts of all formats."""

import json

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 120, 80
CLASSES = ["forklift", "person"]
# {image: [(class, x1, y1, x2, y2)]}, with one image without objects.
OBJECTS = {
    "a": [("forklift", 10, 20, 50, 60), ("person", 60, 5, 70, 45)],
    "b": [("person", 30, 30, 42, 70)],
    "c": [],
    "d": [("forklift", 0, 0, 120, 80)],
    "e": [("forklift", 70, 40, 110, 64), ("person", 2, 2, 10, 30)],
}
VAL = ("d", "e")


def write_image(path, seed: int, size=(WIDTH, HEIGHT)) -> None:
    """Write an image of coarse noise, which is different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (10, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(path)


def voc_text(name: str, boxes: list, size=(WIDTH, HEIGHT)) -> str:
    """Label file of Pascal VOC, with pixels counted from 1."""
    objects = "".join(
        f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for kind, x1, y1, x2, y2 in boxes
    )
    width, height = size
    return (
        f"<annotation><filename>{name}.png</filename><size><width>{width}</width><height>{height}"
        f"</height><depth>3</depth></size>{objects}</annotation>"
    )


def yolo_text(boxes: list, width=WIDTH, height=HEIGHT) -> str:
    """Label file of YOLO."""
    return "".join(
        f"{CLASSES.index(kind)} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
        f"{(x2 - x1) / width} {(y2 - y1) / height}\n"
        for kind, x1, y1, x2, y2 in boxes
    )


def _images(folder, pattern="images/{split}/{name}.png"):
    for seed, name in enumerate(OBJECTS):
        split = "val" if name in VAL else "train"
        write_image(folder / pattern.format(split=split, name=name), seed)


def _write(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_voc(folder):
    _images(folder, "JPEGImages/{name}.png")
    for name, boxes in OBJECTS.items():
        _write(folder / f"Annotations/{name}.xml", voc_text(name, boxes))
    for split, names in (("train", "abc"), ("val", VAL)):
        _write(folder / f"ImageSets/Main/{split}.txt", "\n".join(names))


def write_yolo(folder):
    """Layout of Roboflow's exports: train/images, train/labels, and paths that lead elsewhere."""
    _images(folder, "{split}/images/{name}.png")
    for name, boxes in OBJECTS.items():
        split = "val" if name in VAL else "train"
        _write(folder / f"{split}/labels/{name}.txt", yolo_text(boxes))
    splits = "train: ../train/images\nval: ../val/images\ntest: ../test/images\n"
    _write(folder / "data.yaml", f"{splits}nc: 2\nnames: [forklift, person]\n")
    _write(folder / "README.dataset.txt", "1 2 3 4 5\n")


def write_cvat(folder):
    _images(folder)
    images = ""
    for number, (name, boxes) in enumerate(OBJECTS.items()):
        shapes = "".join(
            f'<box label="{kind}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}" occluded="0"/>'
            for kind, x1, y1, x2, y2 in boxes
        )
        subset = "val" if name in VAL else "train"
        images += (
            f'<image id="{number}" name="{subset}/{name}.png" subset="{subset}" width="{WIDTH}" '
            f'height="{HEIGHT}">{shapes}<points label="person" points="1,2"/></image>'
        )
    names = "".join(f"<label><name>{x}</name></label>" for x in CLASSES)
    meta = f"<meta><task><labels>{names}</labels></task></meta>"
    _write(folder / "annotations.xml", f"<annotations>{meta}{images}</annotations>")


def write_labelme(folder):
    _images(folder, "{split}/{name}.png")
    for name, boxes in OBJECTS.items():
        shapes = [
            # Two corners in any order.
            {"label": kind, "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle"}
            for kind, x1, y1, x2, y2 in boxes
        ]
        content = {"shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
        content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        split = "val" if name in VAL else "train"
        _write(folder / f"{split}/{name}.json", json.dumps(content))


def write_coco(folder):
    """Sparse files: without area, iscrowd, and with ids from 0."""
    _images(folder)
    for split in ("train", "val"):
        names = [x for x in OBJECTS if (x in VAL) == (split == "val")]
        boxes = [(i, box) for i, name in enumerate(names) for box in OBJECTS[name]]
        content = {
            "images": [{"id": i, "file_name": f"{x}.png"} for i, x in enumerate(names)],
            "categories": [{"id": i, "name": x} for i, x in enumerate(CLASSES)],
            "annotations": [
                {
                    "id": number,
                    "image_id": i,
                    "category_id": CLASSES.index(kind),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
                for number, (i, (kind, x1, y1, x2, y2)) in enumerate(boxes)
            ],
        }
        _write(folder / f"annotations/instances_{split}2017.json", json.dumps(content))


def write_kitti(folder):
    _images(folder, "training/image_2/{name}.png")
    write_image(folder / "testing/image_2/a.png", 99)
    for name, boxes in OBJECTS.items():
        lines = [f"{kind} 0 0 0 {x1} {y1} {x2} {y2}" for kind, x1, y1, x2, y2 in boxes]
        text = "".join(f"{x} 0 0 0 0 0 0 0\n" for x in lines)
        _write(folder / f"training/label_2/{name}.txt", text)
    for split, names in (("train", "abc"), ("val", VAL)):
        _write(folder / f"ImageSets/{split}.txt", "\n".join(names))


WRITERS = {
    "voc": write_voc,
    "yolo": write_yolo,
    "cvat": write_cvat,
    "labelme": write_labelme,
    "coco": write_coco,
    "kitti": write_kitti,
}

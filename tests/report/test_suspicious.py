"""List of the labels with the largest teacher loss."""

import csv
import math

import numpy as np
import torch
from detectron2.structures import BoxMode
from PIL import Image

from aid_tools.report import suspicious
from aid_tools.report.instances import ImageStats
from aid_tools.report.suspicious import SuspectPictures, label_rows, write_suspicious_labels

CLASSES = ["Car", "=1+1"]


def stats_of(losses: list[float], image: np.ndarray | None = None) -> ImageStats:
    labels = [
        {"bbox": [10 * i, 2, 5, 6.125], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 2}
        for i in range(len(losses))
    ]
    losses = torch.tensor(losses)
    parts = {"cls": losses / 4, "box": 3 * losses / 4}
    boxes = torch.zeros(len(labels), 4)
    return ImageStats(image, boxes, labels, losses, torch.exp(-losses), parts)


def rows(losses: list[float], file_name: str = "a.png") -> list[tuple]:
    return label_rows({"file_name": file_name}, stats_of(losses), CLASSES)


def read(path) -> list[list[str]]:
    with open(path, newline="") as f:
        return list(csv.reader(f))


def test_labels_are_in_descending_order_of_loss(tmp_path):
    write_suspicious_labels([*rows([1.0, 4.0]), *rows([2.0], "b\x1b.png")], str(tmp_path / "x.csv"))
    assert read(tmp_path / "x.csv") == [
        ["image", "x1", "y1", "x2", "y2", "class", "D", "largest component", "weight"],
        ["a.png", "10", "2", "15", "8.12", "'=1+1", "4", "box", "0.0183156"],
        ["b\\x1b.png", "0", "2", "5", "8.12", "Car", "2", "box", "0.135335"],
        ["a.png", "0", "2", "5", "8.12", "Car", "1", "box", "0.367879"],
    ]


def test_broken_losses_come_first_and_the_list_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr(suspicious, "MOST", 2)
    losses = [3.0, float("nan"), float("inf"), 1.0]
    write_suspicious_labels(rows(losses), str(tmp_path / "x.csv"))
    assert [x[6] for x in read(tmp_path / "x.csv")] == ["D", "inf", "inf"]


def test_pictures_are_those_of_the_first_labels_and_keep_no_other_image(tmp_path, monkeypatch):
    monkeypatch.setattr(suspicious, "PICTURED", 3)
    pictures = SuspectPictures()
    for name, losses in (("a", [1.0, 7.0]), ("b", [0.5]), ("c", [float("nan"), 3.0])):
        image = np.full((40, 60, 3), ord(name), np.uint8)
        pictures.add({"file_name": f"{name}.png"}, stats_of(losses, image), CLASSES)
    shown = [(x.file_name, x.category, x.loss, x.part, x.share) for x, _ in pictures.suspects]
    assert shown == [
        ("c.png", "Car", math.inf, "cls", 1.0),
        ("a.png", "=1+1", 7.0, "box", 0.75),
        ("c.png", "=1+1", 3.0, "box", 0.75),
    ]
    assert [image[0, 0, 0] for _, image in pictures.suspects] == [ord(x) for x in "cac"]
    pictures.draw().save(str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width <= 1200  # legible beside the text of the report

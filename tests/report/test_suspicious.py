"""List of the labels with the largest teacher loss."""

import csv

import torch
from detectron2.structures import BoxMode

from aid_tools.report import suspicious
from aid_tools.report.instances import ImageStats
from aid_tools.report.suspicious import label_rows, write_suspicious_labels

CLASSES = ["Car", "=1+1"]


def rows(losses: list[float], file_name: str = "a.png") -> list[tuple]:
    labels = [
        {"bbox": [10 * i, 2, 5, 6.125], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 2}
        for i in range(len(losses))
    ]
    losses = torch.tensor(losses)
    parts = {"cls": losses / 4, "box": 3 * losses / 4}
    boxes = torch.zeros(len(labels), 4)
    stats = ImageStats(None, boxes, labels, losses, torch.exp(-losses), parts)
    return label_rows({"file_name": file_name}, stats, CLASSES)


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

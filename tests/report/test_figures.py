"""Figures of the report: curves in each panel."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from aid.config import load_config
from aid_tools.report.figures import (
    MAX_CLASSES,
    draw_curves,
    draw_groups,
    draw_precision_recall,
    draw_sheet,
    save,
)
from aid_tools.report.instances import ImageStats
from aid_tools.report.precision_recall import Curve
from aid_tools.report.runs import Run


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def curve(ap: float) -> Curve:
    return Curve(np.linspace(0, 1, 5), np.full(5, ap / 100), ap)


def test_panels_show_each_class_and_criterion_with_all_runs():
    both = {"easy": curve(40), "hard": curve(20)}
    curves = [{"Car": both, "Cyclist": both}, {}, {"Car": {"easy": curve(50), "hard": curve(10)}}]
    figure = draw_precision_recall(curves, ["first\n(plain)", "none", "third"])
    axes = {axis.get_title(): axis for axis in figure.axes}
    assert list(axes) == ["Car, easy", "Car, hard", "Cyclist, easy", "Cyclist, hard"]
    actual = {name: [x.get_label() for x in axis.lines] for name, axis in axes.items()}
    assert actual["Car, easy"] == ["40.0", "50.0"] and actual["Cyclist, hard"] == ["20.0"]
    assert axes["Car, hard"].lines[1].get_ydata().tolist() == 5 * [0.1]
    (legend,) = figure.legends
    assert [x.get_text() for x in legend.get_texts()] == ["first (plain)", "third"]
    colors = [x.get_color() for x in legend.get_lines()]
    assert colors == [x.get_color() for x in axes["Car, easy"].lines]


def test_only_the_first_of_many_classes_are_drawn():
    curves = [{f"class {i}": {"IoU 0.50": curve(i)} for i in range(MAX_CLASSES + 4)}]
    figure = draw_precision_recall(curves, ["run"])
    assert [x.get_title() for x in figure.axes] == [
        f"class {i}, IoU 0.50" for i in range(MAX_CLASSES)
    ]


def test_training_curves_show_summed_losses_and_ap(tiny_config):
    metrics = [
        {"iteration": 19, "loss_cls": 1.0, "loss_box_reg": 0.5, "loss_distill_x": 3.0, "lr": 9},
        {"iteration": 20, "val/bbox/AP": 10.0, "train/bbox/AP": 99.0},
        {"iteration": 39, "loss_cls": 0.5, "loss_box_reg": 0.25, "loss_distill_x": 2.0},
        {"iteration": 40, "val/bbox/AP": 12.0, "train/bbox/AP": 99.0},
    ]
    cfg = load_config(tiny_config("faster_rcnn", ["DATASETS.TEST", ("val", "train")]))
    figure = draw_curves([Run("folder", cfg, metrics)], ["run"])
    actual = {x.get_title(): x.lines and x.lines[0].get_xydata().tolist() for x in figure.axes}
    assert actual["task loss"] == [[19, 1.5], [39, 0.75]]
    assert actual["distillation loss"] == [[19, 3], [39, 2]]
    assert actual["AP on the test set, in percent"] == [[20, 10], [40, 12]]
    assert not actual["mean weight of the instances"]


@pytest.mark.parametrize(
    "iterations, distilled, expected",
    [
        (19, True, "no run logged it:\nruns of fewer than 20 iterations do not"),
        (20, True, "no run logged it"),
        (19, False, "no run logged it"),
    ],
)
def test_empty_panel_of_weights_says_why(iterations, distilled, expected, tiny_config):
    opts = ["SOLVER.MAX_ITER", iterations]
    if distilled:
        opts += ["MODEL.META_ARCHITECTURE", "AIDGeneralizedRCNN"]
    run = Run("run", load_config(tiny_config("faster_rcnn", opts)), [])
    panels = {x.get_title(): x for x in draw_curves([run], ["run"]).axes}
    assert [x.get_text() for x in panels["mean weight of the instances"].texts] == [expected]
    assert [x.get_text() for x in panels["task loss"].texts] == ["no run logged it"]


def test_ignored_regions_are_dashed_in_every_picture():
    image, found = np.zeros((96, 320, 3), np.uint8), Instances((96, 320))
    found.scores, found.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    found.pred_boxes = Boxes(torch.zeros(0, 4))
    none = torch.zeros(0)
    stats = ImageStats(image[::2, ::2], torch.zeros(0, 4), [], none, none, {})
    regions = [np.array([[20.0, 10, 60, 40]])]
    figure = draw_sheet([image], regions, [[found]], [stats], ["a"], ["Car"], 0.5)
    pictures = figure.axes[:2]
    dashed = [
        [(min(x.get_xdata()), max(x.get_ydata())) for x in y.lines if x.get_linestyle() == "--"]
        for y in pictures
    ]
    assert dashed == [[(20, 40)], [(10, 20)]]  # the ground truth is at test size
    assert not any(axes.texts for axes in pictures)


def test_names_are_drawn_literally(tiny_config, tmp_path):
    """Names of classes and runs are literal text, also with a leading underscore."""
    name, metrics = "_$\\frac{$", [{"iteration": 19, "loss_cls": 1.0}]
    run = Run(name, load_config(tiny_config("faster_rcnn")), metrics)
    curves = draw_curves([run], [f"{name}\n(plain)"])
    labels = [x.get_text() for x in curves.axes[0].get_legend().get_texts()]
    assert labels == ["_\\$\\frac{\\$\n(plain)"]
    image, actual = np.zeros((8, 8, 3), np.uint8), Instances((8, 8))
    actual.set("scores", torch.zeros(0))
    actual.set("pred_classes", torch.zeros(0, dtype=torch.int64))
    actual.set("pred_boxes", Boxes(torch.zeros(0, 4)))
    figures = [
        curves,
        draw_precision_recall([{name: {"easy": curve(40)}}], [name]),
        draw_groups({name: ([1.0, 2.0], [0.5, 0.5])}),
        draw_sheet([image], [np.zeros((0, 4))], [[actual]], None, [name], [name], 0.5),
    ]
    for figure in figures:  # raises for an invalid formula
        save(figure, str(tmp_path / "figure.png"))


def test_labels_of_detections_are_legible_at_the_width_of_the_page():
    image = np.zeros((96, 320, 3), np.uint8)
    found = Instances((96, 320))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([2, 81, 3])
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10, 60, 60], [90, 20, 200, 80], [0, 0, 9, 9]]))
    box, loss, weight = torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([2.0]), torch.tensor([0.8])
    stats = ImageStats(image, box, [{"category_id": 2}], loss, weight, {})
    names = [f"class {i}" for i in range(90)]
    none = [np.zeros((0, 4))]
    figure = draw_sheet([image], none, [[found]] * 3, [stats], ["a\n(b)"] * 3, names, 0.5)
    assert figure.get_size_inches()[0] * figure.dpi <= 1233  # a window of 1280 with a scroll bar
    *pictures, bar = figure.axes
    labels = [[x.get_text() for x in axes.texts] for axes in pictures]
    assert labels == [["0.90", "0.80"]] * 3 + [["class 2\nw 0.80 D 2.0"]]
    assert all(x.get_fontsize() * figure.dpi / 72 >= 12 for axes in pictures for x in axes.texts)
    assert bar.get_xlabel() == "weight w" and bar.get_xlim() == (0, 1)
    (legend,) = figure.legends
    assert [x.get_text() for x in legend.get_texts()] == ["class 2", "class 81"]
    classes = {f"class {i}": ([1.0], [0.5]) for i in range(3)} | {"tiny": ([1.0], [0.5])}
    boxes = draw_groups(classes).axes[0].patches
    assert boxes[2].get_facecolor()[:3] == legend.get_lines()[0].get_color()
    assert boxes[3].get_facecolor()[:3] == (0.8, 0.8, 0.8)


def test_names_of_groups_do_not_overlap():
    names = ["Car", "a class with a long name", "wrong class", "jittered box", "mostly hidden"]
    figure = draw_groups({name: ([1.0, 2.0], [0.5, 0.5]) for name in names})
    figure.canvas.draw()
    boxes = [x.get_window_extent() for x in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])

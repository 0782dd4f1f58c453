"""Content of the report for given measurements."""

import math

import pytest
from detectron2.data import MetadataCatalog

from aid.config import load_config
from aid_tools.report.content import Findings, describe
from aid_tools.report.parts import Heading, ReportFigure, Table, Text
from aid_tools.report.runs import Run

MEDIANS = {"instances": 3, "teacher_loss": 1.0, "weight": 0.9, "mean_weight": 0.9}


@pytest.fixture
def parts(tiny_config):
    """A function (groups of instances, keywords of the row) -> the report's parts."""
    name = "of_the_content"

    def make(groups=(), classes=None, **others):
        opts = ["DATASETS.TRAIN", ("scenes",), "DATASETS.TEST", (name,)]
        run = Run("student", load_config(tiny_config("faster_rcnn", opts)), [])
        classes = classes or {"Car": 30.0, "Cyclist": math.nan}
        MetadataCatalog.pop(name, None)
        MetadataCatalog.get(name).set(thing_classes=list(classes))
        row = {"run": "student", "role": "plain", "seed": 1, "iterations": 200, "parameters": 1.0}
        row |= {"gflops": 1.0, "seconds": 0.05, "seconds_per_iteration": 0.5, "AP": 25.0}
        row |= {"training_seconds": 99.0, "AP50": 50.0, "classes": classes, **others}
        summary = {group: MEDIANS for group in groups}
        return describe(Findings([run], [row], ["What came out."], [], [{}], summary, run))

    yield make
    MetadataCatalog.remove(name)


def cells(table: Table) -> list[str]:
    return [cell.text for cell in table.rows[0]]


def test_what_came_out_comes_first_and_tables_are_narrow(parts):
    found = parts()
    assert found[0] == Text("What came out.")
    results, classes, cost = (x for x in found if isinstance(x, Table))
    assert results.header == ["run", "role", "iterations", "minutes", "AP", "AP50"]
    assert cells(results) == ["student", "plain", "200", "1.6", "25.0", "50.0"]
    assert classes.header == ["run", "Car", "Cyclist"]
    assert cells(classes) == ["student", "30.0", "nan"]
    assert cost.header == ["run", "parameters", "GFLOPs", "s / image", "s / iteration"]
    headings = [x.text for x in found if isinstance(x, Heading)]
    assert headings == ["AP by class", "Cost", "Training", "Detections"]
    masks = next(x for x in parts(**{"mask AP": 20.0}) if isinstance(x, Table))
    assert masks.header[4:] == ["AP", "mask AP", "AP50"] and cells(masks)[5] == "20.0"


def test_a_class_may_be_named_like_a_result(parts):
    """Results of classes and of the whole have keys of their own."""
    found = parts(classes={"AP": 1.0, "AP50": 2.0, "run": 3.0, "seconds": 4.0})
    results, classes, cost = (x for x in found if isinstance(x, Table))
    assert cells(results) == ["student", "plain", "200", "1.6", "25.0", "50.0"]
    assert classes.header == ["run", "AP", "AP50", "run", "seconds"]
    assert cells(classes) == ["student", "1.0", "2.0", "3.0", "4.0"]
    assert cells(cost)[3] == "0.050"


@pytest.mark.parametrize(
    "groups, expected",
    [
        (["Car", "Cyclist"], "on instances of scenes, grouped by class."),
        (
            ["Car", "mostly hidden", "tiny"],
            "Each instance is in the first group that applies: the object is mostly hidden; the "
            "object is tiny in the network's input; otherwise its class.",
        ),
        (
            ["Car", "wrong class", "jittered box", "mostly hidden", "tiny"],
            "applies: the label has the wrong class; the box is jittered; the object is mostly "
            "hidden; the object is tiny in the network's input; otherwise its class.",
        ),
    ],
)
def test_wrong_labels_are_mentioned_only_if_there_are_any(groups, expected, parts):
    found = parts(groups)
    texts = [x.text for x in found if isinstance(x, Text)]
    assert texts[-1].endswith(expected)
    whole = " ".join([*texts, *(x.caption for x in found if isinstance(x, ReportFigure))])
    assert ("wrong" in whole) == ("wrong class" in groups)
    assert "The last column shows the labels" in whole


def test_a_report_without_weights_says_nothing_of_them(parts):
    captions = [x.caption for x in parts() if isinstance(x, ReportFigure)]
    assert "The last column" not in captions[-1]

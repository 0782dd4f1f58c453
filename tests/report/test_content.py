"""Content of the report for given measurements."""

import math

import pytest
from detectron2.data import MetadataCatalog

from aid.config import load_config
from aid_tools.report.content import Findings, describe
from aid_tools.report.pairs import settings_of
from aid_tools.report.parts import Heading, ReportFigure, Table, Text
from aid_tools.report.runs import Run

LISTED = " `suspicious_labels.csv`, beside this report, lists the labels with the largest D."
MEDIANS = {"instances": 3, "teacher_loss": 1.0, "weight": 0.9, "mean_weight": 0.9}


@pytest.fixture
def parts(tiny_config):
    """A function (groups of instances, keywords of the row) -> parts of the report."""
    name = "of_the_content"

    def make(groups=(), classes=None, opts=(), cached=False, regions=False, doubt="", **others):
        opts = ["DATASETS.TRAIN", ("scenes",), "DATASETS.TEST", (name,), *opts]
        run = Run("student", load_config(tiny_config("faster_rcnn", opts)), [], cached)
        classes = classes or {"Car": 30.0, "Cyclist": math.nan}
        MetadataCatalog.pop(name, None)
        MetadataCatalog.get(name).set(thing_classes=list(classes))
        row = {"run": "student", "role": "plain", "seed": 1, "iterations": 200, "parameters": 1.0}
        row |= {"gflops": 1.0, "seconds": 0.05, "seconds_per_iteration": 0.5, "AP": 25.0}
        row |= {"training_seconds": 99.0, "AP50": 50.0, "classes": classes, **others}
        summary = {group: MEDIANS for group in groups}
        return describe(
            Findings([run], [row], ["What came out."], [], [{}], summary, run, None, doubt, regions)
        )

    yield make
    MetadataCatalog.remove(name)


def cells(table: Table) -> list[str]:
    return [cell.text for cell in table.rows[0]]


def test_outcome_comes_first_and_tables_have_few_columns(parts):
    actual = parts()
    assert actual[0] == Text("What came out.")
    results, classes, cost = (x for x in actual if isinstance(x, Table))
    assert results.header == ["run", "AP", "AP50", "role", "iterations", "minutes"]
    assert cells(results) == ["student", "25.0", "50.0", "plain", "200", "1.6"]
    assert classes.header == ["run", "Car", "Cyclist"]
    assert cells(classes) == ["student", "30.0", "-"]
    assert cost.header == ["run", "parameters", "GFLOPs", "s / image", "s / iteration"]
    headings = [x.text for x in actual if isinstance(x, Heading)]
    assert headings == ["AP by class", "Cost", "Training", "Detections"]
    masks = next(x for x in parts(**{"mask AP": 20.0}) if isinstance(x, Table))
    assert masks.header[1:4] == ["AP", "mask AP", "AP50"] and cells(masks)[2] == "20.0"


def test_class_named_like_a_result_is_supported(parts):
    """Results of classes and of the run have separate keys."""
    actual = parts(classes={"AP": 1.0, "AP50": 2.0, "run": 3.0, "seconds": 4.0})
    results, classes, cost = (x for x in actual if isinstance(x, Table))
    assert cells(results) == ["student", "25.0", "50.0", "plain", "200", "1.6"]
    assert classes.header == ["run", "AP", "AP50", "run", "seconds"]
    assert cells(classes) == ["student", "1.0", "2.0", "3.0", "4.0"]
    assert cells(cost)[3] == "0.050"


@pytest.mark.parametrize(
    "groups, expected",
    [
        (["Car", "Cyclist"], "on instances of scenes, grouped by class."),
        (
            ["Car", "tiny"],
            "grouped by size and class. Each instance is in the first group that applies: the "
            "object is smaller than 16 pixels in the network's input; otherwise its class.",
        ),
        (
            ["Car", "mostly hidden", "tiny"],
            "grouped by visibility, size and class. Each instance is in the first group that "
            "applies: the object is mostly hidden; the object is smaller than 16 pixels in the "
            "network's input; otherwise its class.",
        ),
        (
            ["Car", "wrong class", "jittered box", "mostly hidden", "tiny"],
            "grouped by label quality, visibility, size and class. Each instance is in the first "
            "group that applies: the label has the wrong class; the box is jittered; the object is "
            "mostly hidden; the object is smaller than 16 pixels in the network's input; "
            "otherwise its class.",
        ),
    ],
)
def test_wrong_labels_are_described_only_if_present(groups, expected, parts):
    actual = parts(groups)
    texts = [x.text for x in actual if isinstance(x, Text)]
    assert texts[-1].removesuffix(LISTED).endswith(expected) and texts[-1].endswith(LISTED)
    text = " ".join([*texts, *(x.caption for x in actual if isinstance(x, ReportFigure))])
    assert ("wrong" in text) == ("wrong class" in groups)
    assert "The last picture of an image shows the labels" in text


def test_report_says_what_a_class_map_does_to_losses(parts):
    texts = [
        x.text for x in parts(["Car"], opts=["TEACHER.CLASS_MAP", ["a: b"]]) if isinstance(x, Text)
    ]
    assert (
        texts[-1]
        .removesuffix(LISTED)
        .endswith(
            "grouped by class. The teacher's classes are mapped to the student's: "
            "D has no class component where a class has no counterpart."
        )
    )


def test_report_without_weights_does_not_describe_them(parts):
    captions = [x.caption for x in parts() if isinstance(x, ReportFigure)]
    assert "The last picture" not in captions[-1]


@pytest.fixture
def tables(tiny_config):
    """A function ({name of a run: (seed, AP)}) -> tables of APs; plain runs begin with "plain"."""
    name = "of_the_tables"
    MetadataCatalog.get(name).set(thing_classes=["Car"])

    def make(aps: dict[str, tuple[int, float]]) -> list[Table]:
        runs, rows = [], []
        for folder, (seed, ap) in aps.items():
            opts = ["DATASETS.TEST", (name,), "SEED", seed]
            if not folder.startswith("plain"):
                opts += ["SOLVER.BASE_LR", 0.5]
            cfg = load_config(tiny_config("faster_rcnn", opts))
            runs.append(Run(folder, cfg, [{"iteration": 9, "bbox/AP": ap}]))
            row = {"run": folder, "role": "", "seed": seed, "iterations": 9, "AP": ap, "AP50": ap}
            row |= {"training_seconds": 9.0, "classes": {}, "parameters": 1.0, "gflops": 1.0}
            rows.append(row | {"seconds": 1.0, "seconds_per_iteration": 1.0})
        plain = next(x for x in settings_of(runs) if x.first.name.startswith("plain"))
        parts = describe(Findings(runs, rows, [], [], [{}] * len(runs), {}, None, plain))
        return [x for x in parts if isinstance(x, Table) and "AP" in x.header]

    yield make
    MetadataCatalog.remove(name)


def test_runs_are_compared_with_the_plain_student_of_their_seed(tables):
    (table,) = tables({"aid": (7, 24.46), "plain": (1, 16.34)})
    assert table.header[:3] == ["run", "AP", "against plain"]
    # 24.5 - 16.3, as displayed.
    assert [[x.text for x in row[1:3]] for row in table.rows] == [["24.5", "+8.2"], ["16.3", "-"]]
    aps = {"plain_1": (1, 16.0), "plain_2": (2, 17.0), "aid_2": (2, 16.0), "aid_3": (3, 24.0)}
    _, table = tables(aps)
    assert [row[2].text for row in table.rows] == ["-", "-", "-1.0", "-"]


def test_means_over_seeds_have_paired_intervals(tables):
    aps = {"plain_1": (1, 16.0), "plain_2": (2, 17.0), "plain_3": (3, 15.0)}
    aps |= {"aid_1": (1, 24.0), "aid_2": (2, 26.0), "aid_3": (3, 22.0)}
    means, _ = tables(aps)
    assert means.header == ["run", "AP", "against plain (95 % interval)", "seeds"]
    assert [[x.text for x in row] for row in means.rows] == [
        ["plain_*", "16.0", "-", "1, 2, 3"],
        ["aid_*", "24.0", "+8.0 (5.5 to 10.5)", "1, 2, 3"],
    ]
    assert means.rows[1][2].value == 8.0


def texts(parts) -> str:
    captions = [x.caption for x in parts if isinstance(x, ReportFigure)]
    return "\n".join([*(x.text for x in parts if isinstance(x, Text)), *captions])


def test_runs_with_a_cache_are_marked_at_their_times(parts):
    opts = ["MODEL.META_ARCHITECTURE", "AIDGeneralizedRCNN"]
    note = "With TEACHER.CACHE, the time does not compare: `student`."
    assert texts(parts(opts=opts, cached=True)).count(note) == 2
    assert note not in texts(parts(opts=opts))
    assert note not in texts(parts(cached=True))  # a plain run


def test_weak_teacher_is_named_above_the_suspicious_labels(parts):
    doubt = "The teacher is no better than the student: train it longer."
    actual = parts(["Car"], doubt=doubt)
    place = actual.index(Heading("Teacher's loss on the training labels"))
    assert actual[place + 1] == Text(doubt)
    assert "suspicious_labels.csv" in actual[place + 2].text


def test_captions_explain_dashed_boxes_and_whiskers(parts):
    assert "Dashed" not in texts(parts(["Car"]))
    actual = texts(parts(["Car"], regions=True))
    assert "Dashed boxes: regions that the metric ignores (annotations with iscrowd 1" in actual
    assert "within 1.5 times the length of the box" in actual
    assert "they depend on the number of proposals" in actual
    assert "shows the labels with class, weight w" in actual

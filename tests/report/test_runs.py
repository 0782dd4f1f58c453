"""Reading of runs, their roles, and the choice of runs to compare."""

import json
import math
import os
import shutil

import pytest
import torch
from detectron2.data import MetadataCatalog

from aid.config import load_config
from aid.utils.errors import AIDError
from aid_tools.report.page import OPTIONAL, write_report
from aid_tools.report.pairs import choose, differences, settings_of
from aid_tools.report.runs import Run, load_run, load_runs, read_metrics, roles


@pytest.fixture
def run(tiny_config):
    """A function (folder, overrides, times by iteration) -> a plain run, or one with a teacher."""

    def make(folder: str, opts=(), times=(), teacher: str | None = None) -> Run:
        metrics = [{"iteration": k, "time": t} for k, t in times]
        keys = [*opts]
        if teacher is not None:
            keys += ["MODEL.META_ARCHITECTURE", "AIDGeneralizedRCNN"]
            keys += ["TEACHER.WEIGHTS", f"{teacher}/model_final.pth"]
        return Run(folder, load_config(tiny_config("faster_rcnn", keys)), metrics)

    return make


@pytest.mark.parametrize(
    "times, iterations, expected",
    [
        ([], 40, math.nan),
        ([(19, 0.5), (39, 1.5)], 40, 20 * 0.5 + 20 * 1.5),
        ([(19, 0.5), (39, 1.5), (44, 2.0)], 45, 20 * 0.5 + 20 * 1.5 + 5 * 2.0),
        ([(19, 0.5), (39, 1.5)], 80, 80.0),  # extrapolated
        ([(7, 0.25)], 8, 2.0),
    ],
)
def test_training_time_includes_all_iterations(run, times, iterations, expected):
    """The time per iteration may vary, for example with the schedule of distillation."""
    actual = run("x", ["SOLVER.MAX_ITER", iterations], times).training_seconds
    assert actual == pytest.approx(expected, nan_ok=True)


def test_role_of_every_teacher_is_teacher(run):
    opts = ["TEACHER.MORE_CONFIG_FILES", ["b.yaml"], "TEACHER.MORE_WEIGHTS"]
    student = run("s", [*opts, ["b/model_final.pth"]], teacher="a")
    actual = roles([run("a"), run("b"), run("c"), student])
    assert actual == ["teacher", "teacher", "plain", "AID by instance"]


def test_plain_student_has_the_same_network_and_data(run):
    runs = [
        run("teacher"),
        run("distilled", teacher="teacher"),
        run("other_data", ["DATASETS.TRAIN", ("other",)]),
        run("other_size"),
        run("plain"),
    ]
    actual = choose(runs, [2.0, 1.0, 1.0, 1.5, 1.0], [30.0, 20.0, 25.0, 25.0, 10.0])
    assert (actual.student, actual.teachers, actual.peer, actual.other) == (1, [0], 4, None)
    assert choose(runs[:1] + runs[2:], [2.0, 1.0, 1.5, 1.0], [1.0] * 4) is None


def test_plain_student_with_the_fewest_differences_is_chosen(run):
    runs = [
        run("distilled", teacher="gone"),
        run("other_rate", ["SOLVER.BASE_LR", 0.5]),
        run("other_seed", ["SEED", 9]),
        run("same"),
        run("same_but_worse"),
    ]
    actual = choose(runs, [1.0] * 5, [20.0, 19.0, 18.0, 12.0, 11.0])
    assert runs[actual.peer].name == "same" and actual.teachers == []
    actual = choose(runs[:3], [1.0] * 3, [20.0, 19.0, 18.0])
    assert runs[actual.peer].name == "other_seed"
    assert differences(runs[1], runs[0]) == ["SOLVER.BASE_LR"]
    assert differences(runs[2], runs[0]) == []


def test_runs_that_differ_in_their_seed_are_one_setting(run):
    runs = [
        run("a/s1/teacher"),
        run("a/s1/aid", teacher="a/s1/teacher"),
        run("rate", ["SOLVER.BASE_LR", 0.5, "SEED", 2]),
        run("a/s2/aid", ["SEED", 2, "OUTPUT_DIR", "elsewhere"], teacher="a/s1/teacher"),
        run("a/s1/plain"),
        run("plain_2", ["SEED", 2]),
        run("other_3", ["SEED", 3], teacher="other"),
        run("other_4", ["SEED", 3], teacher="other"),
    ]
    actual = settings_of(runs)
    assert [[runs.index(x) for x in setting.runs] for setting in actual] == [
        [0], [1, 3], [2], [4, 5], [6], [7]
    ]  # fmt: skip
    assert [x.name for x in actual[:4]] == ["teacher", "aid", "rate", "plain*"]
    assert actual[3].by_seed(lambda run: run.name) == {3: "plain", 2: "plain_2"}


def test_other_plain_student_is_the_nearest_in_training_time(run):
    def plain(name, iterations, seconds):
        opts = ["SOLVER.MAX_ITER", iterations]
        return run(name, opts, [(iterations - 1, seconds / iterations)])

    runs = [
        run("distilled", ["SOLVER.MAX_ITER", 200], [(199, 0.3)], teacher="gone"),  # 60 s
        plain("as_many_steps", 200, 40),
        plain("longer", 340, 68),
        plain("longest", 400, 80),
        plain("shorter", 100, 20),
    ]
    ap = [20.0] * 5
    actual = choose(runs, [1.0] * 5, ap)
    assert (actual.peer, actual.other, actual.equal_time) == (1, 2, True)
    without = [runs[i] for i in (0, 1, 3, 4)]
    actual = choose(without, [1.0] * 4, ap)
    assert (actual.peer, actual.other, actual.equal_time) == (1, 2, False)  # the longest
    actual = choose(runs[:2] + runs[4:], [1.0] * 3, ap)
    assert (actual.peer, actual.other) == (1, None)  # a shorter run is not compared
    actual = choose(runs[:1] + runs[4:], [1.0] * 2, ap)
    assert (actual.peer, actual.other, actual.equal_time) == (None, 1, False)


def test_runs_of_another_batch_size_have_no_equal_iterations(run):
    runs = [run("distilled", teacher="gone"), run("plain", ["SOLVER.IMS_PER_BATCH", 2])]
    actual = choose(runs, [1.0] * 2, [20.0, 10.0])
    assert (actual.peer, actual.other, actual.equal_time) == (None, 1, False)


def test_class_named_ap_does_not_change_the_ap_of_the_run(run):
    name = "classes_like_results"
    MetadataCatalog.get(name).thing_classes = ["AP", "AP50", "mask AP"]
    actual = run("x", ["DATASETS.TEST", (name,), "MODEL.MASK_ON", True])
    line = {"iteration": 9, "bbox/AP": 30.0, "bbox/AP50": 50.0, "segm/AP": 20.0}
    actual.metrics.append({**line, "bbox/AP-AP": 1.0, "bbox/AP-AP50": 2.0, "bbox/AP-mask AP": 3.0})
    try:
        assert actual.results == {"AP": 30.0, "AP50": 50.0, "mask AP": 20.0}
        assert actual.class_results == {"AP": 1.0, "AP50": 2.0, "mask AP": 3.0}
    finally:
        MetadataCatalog.remove(name)


def test_ap_of_a_single_class_is_that_of_the_run(run):
    name = "single_class"
    MetadataCatalog.get(name).thing_classes = ["Car"]
    actual = run("x", ["DATASETS.TEST", (name,)])
    actual.metrics.append({"iteration": 9, "bbox/AP": 30.0})
    try:
        assert actual.class_results == {"Car": 30.0}
    finally:
        MetadataCatalog.remove(name)


def test_mapped_teacher_is_no_plain_student(run):
    opts = ["TEACHER.CLASS_MAP", ["a: b"]]
    runs = [run("teacher"), run("distilled", opts, teacher="teacher"), run("plain")]
    actual = choose(runs, [1.0] * 3, [30.0, 20.0, 10.0])
    assert (actual.teachers, actual.peer) == ([], 2) and roles(runs)[0] == "teacher"


def test_runs_are_compared_on_the_classes_of_the_student(run, monkeypatch, tmp_path):
    """The teacher was tested on its own classes, and is often named first."""
    folders = {str(tmp_path / x): x for x in ("teacher", "student", "other")}
    for path in folders:
        os.mkdir(path)
    teacher, student, other = folders
    opts = ["TEACHER.CLASS_MAP", ["a: b"]]
    runs = {
        teacher: run(teacher, ["DATASETS.TEST", ("own",)]),
        student: run(student, [*opts, "DATASETS.TEST", ("val",)], teacher=teacher),
        other: run(other, ["DATASETS.TEST", ("elsewhere",)]),
    }
    monkeypatch.setattr("aid_tools.report.runs.load_run", runs.get)
    actual, (first, second) = load_runs([*folders])
    assert [x.folder for x in actual] == [student]
    assert first == (
        f"Left out: {teacher} was tested on own, {student} on val: it is a teacher whose classes "
        "TEACHER.CLASS_MAP maps to the student's."
    )
    assert second.endswith("on val: results on different datasets are not comparable.")
    actual, _ = load_runs([teacher, other])
    assert [x.folder for x in actual] == [teacher]


@pytest.fixture
def folder(tiny_config, toy_dataset, tmp_path):
    """A function (content of metrics.json, overrides) -> output folder of a run."""

    def make(metrics: str, opts=()) -> str:
        keys = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.TEST", (toy_dataset,), *opts]
        path = tmp_path / "run"
        path.mkdir()
        shutil.copy(tiny_config("faster_rcnn", keys), path / "config.yaml")
        (path / "metrics.json").write_text(metrics)
        (path / "model_final.pth").touch()
        return str(path)

    return make


def test_use_of_a_cache_is_kept_in_mind(folder):
    """The config of a run is without it, since the report must not write to the cache."""
    run = load_run(folder('{"iteration": 1, "bbox/AP": 1.0}', ["TEACHER.CACHE", "features"]))
    assert run.cached and not run.cfg.TEACHER.CACHE
    assert run.has_comparable_time  # a plain run does not use it


@pytest.mark.parametrize(
    "line",
    ["[1]", "null", "3", '{"iteration": "19"}', '{"loss": 1.0}', '{"iteration": 1, "bbox/AP": "x"}']
    + ["[" * 100_000, "{"],
)
def test_invalid_metrics_json_is_refused(line, folder):
    with pytest.raises(AIDError, match="metrics.json is not one JSON object per line: ") as error:
        load_run(folder('{"iteration": 1, "bbox/AP": 1.0}\n' + line))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "iterations, expected",
    [
        ([9, 19, 29, 9], [9]),  # a new start in the folder
        ([9, 19, 29, 24], [9, 19, 24]),  # resumed after iteration 20
        ([9, 19, 19, 29], [9, 19, 29]),
    ],
)
def test_metrics_of_an_earlier_run_are_dropped(iterations, expected, tmp_path):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": x, "line": i}) for i, x in enumerate(iterations)]
    path.write_text("\n".join(lines))
    actual = read_metrics(str(path), 100)
    assert [x["iteration"] for x in actual] == expected
    if iterations[-1] != 29:
        assert actual[-1]["line"] == 3


def test_run_without_test_sets_is_refused(folder):
    actual = folder('{"iteration": 19, "time": 0.5}', ["DATASETS.TEST", ()])
    with pytest.raises(AIDError, match="DATASETS.TEST is empty, .* --resume DATASETS.TEST"):
        load_run(actual)


def test_files_of_an_earlier_report_do_not_stay(toy_dataset, tiny_config, tiny_model, tmp_path):
    cfg = load_config(tiny_config("faster_rcnn", ["DATASETS.TEST", (toy_dataset,)]))
    torch.save({"model": tiny_model("faster_rcnn").state_dict()}, tmp_path / "model_final.pth")
    plain = Run(str(tmp_path), cfg, [{"iteration": 1, "bbox/AP": 20.0, "bbox/AP50": 30.0}])
    folder = tmp_path / "report"
    folder.mkdir()
    for name in OPTIONAL:
        (folder / name).touch()
    write_report([plain], str(folder), num_images=1, num_train=1, threshold=0.5)
    assert (folder / "report.md").exists() and not {*os.listdir(folder)} & {*OPTIONAL}

"""Summary sentences of the report, for artificial runs."""

import json
import math

import pytest

from aid.config import load_config
from aid_tools.cost import Cost
from aid_tools.report.outcome import doubt_about_labels, outcome, plain_student
from aid_tools.report.runs import Run

NAN = math.nan
# Parameters, in millions.
R50, R34, R18 = 31.5, 21.95, 11.84
SECONDS = {R50: 0.0885, R34: 0.055, R18: 0.036}


@pytest.fixture
def make(tiny_config):
    """A function (name, AP, keywords) -> (run, cost)."""

    def make(
        name, ap, size=R18, teacher=None, steps=200, step=0.2, opts=(), kitti=None, cached=False
    ):
        keys = ["DATASETS.TEST", ("val",), "SOLVER.MAX_ITER", steps, *opts]
        if teacher:
            keys += ["MODEL.META_ARCHITECTURE", "AIDGeneralizedRCNN"]
            keys += ["TEACHER.WEIGHTS", f"{teacher}/model_final.pth"]
        cfg = load_config(tiny_config("faster_rcnn", keys))
        metrics = [{"iteration": steps - 1, "time": step}, {"iteration": steps}]
        if not step:
            del metrics[0]
        if ap is not None:
            metrics[-1]["bbox/AP"] = ap
        for kind, value in zip(("Car", "Cyclist", "Truck"), kitti or (), strict=False):
            metrics[-1] |= {
                f"kitti/AP_R40-{kind}-moderate": value,
                f"kitti/AP_R40-{kind}-hard": 1.0,
                f"kitti/objects-{kind}-moderate": 0 if kind == "Truck" else 50,
            }
        return Run(name, cfg, metrics, cached), Cost(size, 1.0, SECONDS[size])

    return make


def summary(*runs) -> list[str]:
    return outcome(*(list(column) for column in zip(*runs, strict=True)))


@pytest.fixture
def teacher(make):
    return make("R34", 29.9, R34, steps=800, step=0.27)


@pytest.fixture
def student(make):
    return make("R18_from_R34", 24.5, teacher="R34", step=0.3)


@pytest.fixture
def plain(make):
    return make("R18", 16.3)


def test_outcome_of_teacher_plain_and_distilled_student(teacher, plain, student):
    expected = [
        "The student distilled from the teacher (`R18_from_R34`) has 24.5 AP, the plain student "
        "16.3, the teacher 29.9: distillation gains 8.2 AP at equal iterations, 60 % of the gap to "
        "the teacher; inference takes 36 ms per image (teacher: 55 ms)."
    ]
    assert summary(teacher, plain, student) == expected
    assert summary(student, teacher, plain) == expected


def test_differences_are_computed_from_rounded_values(make, teacher):
    actual = summary(make("R18", 16.34), make("s", 24.46, teacher="R34"), teacher)
    assert "has 24.5 AP, the plain student 16.3" in actual[0] and "gains 8.2 AP" in actual[0]
    actual = summary(make("R18", 16.34), make("s", 16.26, teacher="R34"))
    assert "distillation changes nothing at equal iterations" in actual[0]


def test_outcome_without_the_teacher(plain, student):
    assert summary(plain, student) == [
        "The distilled student (`R18_from_R34`) has 24.5 AP, the plain student 16.3: distillation "
        "gains 8.2 AP at equal iterations; inference takes 36 ms per image."
    ]


def test_outcome_without_a_plain_student(teacher, student, make):
    first = (
        "The student distilled from the teacher (`R18_from_R34`) has 24.5 AP, the teacher 29.9; "
        "inference takes 36 ms per image (teacher: 55 ms)."
    )
    second = (
        "The gain of distillation is unknown: the runs include no plain student with the same "
        "network and data."
    )
    assert summary(teacher, student) == [first, second]
    other = make("R18_elsewhere", 40.0, opts=["DATASETS.TRAIN", ("other",)])
    assert summary(teacher, other, student) == [first, second]
    alone = "The distilled student (`R18_from_R34`) has 24.5 AP; inference takes 36 ms per image."
    assert summary(student) == [alone, second]


def test_outcome_without_a_distilled_student(teacher, plain):
    assert summary(teacher, plain) == [
        "The best of 2 runs (`R34`), none of them distilled, has 29.9 AP; inference takes 55 ms "
        "per image."
    ]
    assert summary(plain) == [
        "`R18`, trained without a teacher, has 16.3 AP; inference takes 36 ms per image."
    ]


def test_best_student_is_compared_with_its_plain_counterpart(make, teacher, student, plain):
    worse = make("R18_from_R34_none", 20.0, teacher="R34")
    wide = make("R50_from_R18", 22.0, R50, teacher="elsewhere")
    wide_plain = make("R50", 28.0, R50)
    (actual,) = summary(teacher, plain, worse, student, wide, wide_plain)
    assert actual.startswith(
        "The best of 3 distilled students (`R18_from_R34`) has 24.5 AP, the plain student 16.3, "
        "the teacher 29.9: distillation gains 8.2 AP"
    )
    wide = make("R50_from_R18", 29.0, R50, teacher="elsewhere")
    (actual,) = summary(teacher, plain, worse, student, wide, wide_plain)
    assert actual.startswith(
        "The best of 3 distilled students (`R50_from_R18`) has 29.0 AP, the plain student 28.0: "
        "distillation gains 1.0 AP at equal iterations; inference takes 88 ms per image."
    )


def test_best_student_is_chosen_by_unrounded_ap(make, plain):
    (actual,) = summary(plain, make("a", 24.41, teacher="x"), make("b", 24.44, teacher="x"))
    assert actual.startswith("The best of 2 distilled students (`b`) has 24.4 AP, ")


def test_ambiguous_runs_are_named(make, teacher, student, plain):
    other_rate = make("R18_rate", 18.0, opts=["SOLVER.BASE_LR", 0.5])
    wide_teacher, small = make("R50", 31.0, R50), make("R18_from_R50", 20.0, teacher="R50")
    (actual,) = summary(teacher, plain, other_rate, student, wide_teacher, small)
    assert "the plain student (`R18`) 16.3, the teacher (`R34`) 29.9: " in actual


@pytest.fixture
def three_seeds(make):
    """Plain and distilled students with three seeds; differences of 8, 9 and 7 AP."""
    aps = {1: (16.0, 24.0), 2: (17.0, 26.0), 3: (15.0, 22.0)}
    runs = []
    for seed, (plain, distilled) in aps.items():
        runs.append(make(f"R18_{seed}", plain, opts=["SEED", seed]))
        runs.append(make(f"s_{seed}", distilled, teacher="R34", step=0.3, opts=["SEED", seed]))
    return runs


def test_seeds_are_one_student_with_an_interval(make, teacher, three_seeds):
    (actual,) = summary(teacher, *three_seeds)
    # Mean 8, standard deviation 1: 4.303 / sqrt(3) = 2.48.
    assert actual.startswith(
        "The student distilled from the teacher (`s_*`) has 24.0 AP (mean of 3 seeds), the plain "
        "student 16.0, the teacher 29.9: distillation gains 8.0 AP (95 % interval 5.5 to 10.5) at "
        "equal iterations, 58 % of the gap to the teacher; "
    )
    runs, costs = (list(column) for column in zip(*three_seeds, strict=True))
    assert [run.name for run in plain_student(runs, costs).runs] == ["R18_1", "R18_2", "R18_3"]


def test_only_common_seeds_are_compared(make, three_seeds):
    plain_1, student_1, _, student_2, *_ = three_seeds
    actual = summary(plain_1, student_1, student_2)[0]
    assert (
        "(`s_*`) has 24.0 AP (over the seeds of both, 1), the plain student 16.0: distillation"
        in actual
    )


def test_best_student_is_chosen_on_common_seeds(make):
    """The only run of the other student has an easy seed."""
    runs = [make(f"R18_{seed}", ap, opts=["SEED", seed]) for seed, ap in ((1, 20.0), (2, 40.0))]
    keys = ["AID.ALPHA", 0.3, "SEED"]
    runs.append(make("lucky_2", 41.0, teacher="R34", opts=[*keys, 2]))
    for seed, ap in ((1, 30.0), (2, 50.0)):
        runs.append(make(f"s_{seed}", ap, teacher="R34", opts=["SEED", seed]))
    assert "The best of 2 distilled students (`s_*`) has 40.0 AP (mean of 2" in summary(*runs)[0]


def test_further_run_of_a_seed_stays_alone(make, three_seeds):
    again = make("R18_again", 15.0, opts=["SEED", 1])
    actual = summary(*three_seeds, again)[0]
    assert "(`s_*`) has 24.0 AP (mean of 3 seeds), the plain student (`R18_*`) 16.0" in actual


def test_keys_of_the_place_do_not_separate_seeds(make, three_seeds):
    runs = [
        make(f"s_{seed}", 24.0, teacher="R34", opts=["SEED", seed, "TEACHER.CACHE", f"cache{seed}"])
        for seed in (1, 2)
    ]
    assert "The distilled student (`s_*`) has 24.0 AP (mean of 2 seeds)" in summary(*runs)[0]


def test_seeds_are_compared_at_equal_training_time(make, three_seeds):
    longer = [make(f"long_{seed}", 20.0, steps=300, opts=["SEED", seed]) for seed in (1, 2)]
    actual = summary(*three_seeds, *longer)[1]
    assert actual == (
        "At equal training time (1.0 and 1.0 min) the plain student `long_*`, with 300 iterations "
        "instead of 200, has 20.0 AP (mean of 2 seeds): distillation gains 5.0 AP (95 % interval "
        "-7.7 to 17.7)."
    )


def test_loss_of_ap_by_distillation_is_reported(make, teacher, plain):
    (actual,) = summary(teacher, plain, make("s", 15.5, teacher="R34"))
    assert actual == (
        "The student distilled from the teacher (`s`) has 15.5 AP, the plain student 16.3, the "
        "teacher 29.9: distillation loses 0.8 AP at equal iterations; inference takes 36 ms per "
        "image (teacher: 55 ms)."
    )


@pytest.mark.parametrize("ap", [24.4, 16.3, 10.0, 16.9])
def test_share_of_the_gap_is_omitted_without_a_gap(ap, make, plain):
    """The teacher is worse than its student, or barely better than the plain one."""
    student = make("s", 24.5 if ap != 16.9 else 16.8, teacher="R34")
    actual = summary(make("R34", ap, R34), plain, student)[0]
    assert f"the teacher {ap}: distillation gains" in actual and "%" not in actual


@pytest.mark.parametrize("ap, weak", [(16.4, False), (16.34, True), (10.0, True)])
def test_teacher_that_is_no_better_than_the_plain_student_is_reported(
    ap, weak, make, plain, student
):
    runs = [make("R34", ap, R34), plain, student]
    expected = (
        "The teacher is no better than the plain student: train it longer before you judge the "
        "gain."
    )
    assert summary(*runs)[1:] == weak * [expected]
    runs, costs = (list(column) for column in zip(*runs, strict=True))
    expected = expected.replace("judge the gain", "look for wrong labels")
    assert doubt_about_labels(runs, costs, runs[2]) == weak * expected
    other = make("s", 24.5, teacher="other")[0]
    assert doubt_about_labels(runs, costs, other) == ""


def test_teacher_is_compared_with_the_student_without_a_plain_one(make, student):
    actual = summary(make("R34", 24.5, R34), student)
    assert actual[1].startswith("The teacher is no better than the student: train it longer ")
    assert len(summary(make("R34", 24.6, R34), student)) == 2


def test_several_teachers_are_doubted_only_if_all_of_them_are_weak(make, plain):
    keys = ["TEACHER.MORE_CONFIG_FILES", ["x.yaml"], "TEACHER.MORE_WEIGHTS"]
    student = make("s", 24.5, teacher="R34", opts=[*keys, ["R50/model_final.pth"]])
    weak, weaker = make("R34", 16.0, R34), make("R50", 15.0, R50)
    expected = "The teachers are no better than the plain student: train them longer before "
    assert summary(weak, weaker, plain, student)[1].startswith(expected)
    assert len(summary(weak, make("R50", 17.0, R50), plain, student)) == 1
    assert len(summary(weak, plain, student)) == 1  # the other one is not known


def test_gap_and_time_are_omitted_for_several_teachers(make, teacher, plain):
    keys = ["TEACHER.MORE_CONFIG_FILES", ["x.yaml"], "TEACHER.MORE_WEIGHTS"]
    student = make("s", 24.5, teacher="R34", opts=[*keys, ["R50/model_final.pth"]])
    expected = ": distillation gains 8.2 AP at equal iterations; inference takes 36 ms per image."
    (actual,) = summary(teacher, make("R50", 27.0, R50), plain, student)
    assert f"has 24.5 AP, the plain student 16.3, the teachers 29.9 and 27.0{expected}" in actual
    (actual,) = summary(teacher, plain, student)
    assert f"has 24.5 AP, the plain student 16.3, one of its teachers 29.9{expected}" in actual


def test_unmeasured_times_are_omitted(make, teacher, plain, student):
    without_times = [
        (run, Cost(cost.parameters, 1.0, NAN)) for run, cost in (teacher, plain, student)
    ]
    (actual,) = summary(*without_times)
    assert actual.endswith("at equal iterations, 60 % of the gap to the teacher.")
    (actual,) = summary(without_times[0], plain, student)
    assert actual.endswith("60 % of the gap to the teacher; inference takes 36 ms per image.")


def test_plain_student_of_equal_training_time_is_compared(make, teacher, plain, student):
    """The distilled student trains for 200 x 0.3 s."""
    first = summary(teacher, plain, student)
    longer = make("R18_longer", 21.0, steps=340, step=0.19)
    assert summary(teacher, plain, longer, student) == [
        *first,
        "At equal training time (1.1 and 1.0 min) the plain student `R18_longer`, with 340 "
        "iterations instead of 200, has 21.0 AP: distillation gains 3.5 AP.",
    ]
    better = make("R18_longer", 25.3, steps=340, step=0.19)
    assert summary(teacher, better, plain, student)[1].endswith(": distillation loses 0.8 AP.")
    same = make("R18_longer", 24.5, steps=340, step=0.19)
    assert summary(teacher, same, plain, student)[1].endswith(": distillation changes nothing.")


@pytest.mark.parametrize(
    "step, equal", [(0.3 / 1.7 * 1.14, True), (0.3 / 1.7 / 1.14, True), (0.3 / 1.7 * 1.16, False)]
)
def test_equal_times_lie_within_15_percent(step, equal, make, plain, student):
    actual = summary(plain, student, make("longer", 21.0, steps=340, step=step))[1]
    assert actual.startswith("At equal training time") == equal


def test_plain_student_of_another_training_time_is_reported(make, teacher, plain, student):
    first = summary(teacher, plain, student)
    longer = make("R18_longer", 21.0, steps=400, step=0.2)
    assert summary(teacher, plain, longer, student) == [
        *first,
        "With 400 iterations instead of 200 and 1.33 times the training time, the plain "
        "student `R18_longer` has 21.0 AP, 3.5 less than the distilled one.",
    ]
    longer = make("R18_longer", 26.0, steps=240, step=0.2)
    assert summary(teacher, plain, longer, student)[1].endswith(
        "0.80 times the training time, the plain student `R18_longer` has 26.0 AP, 1.5 more than "
        "the distilled one."
    )
    without_times = make("R18_longer", 24.5, steps=340, step=None)
    assert summary(teacher, plain, without_times, student) == [
        *first,
        "With 340 iterations instead of 200, the plain student `R18_longer` has 24.5 AP, as much "
        "as the distilled one; its training time was not measured.",
    ]


def test_time_of_a_run_with_a_cache_is_not_compared(make, teacher, plain):
    student = make("s", 24.5, teacher="R34", step=0.3, cached=True)
    longer = make("R18_longer", 21.0, steps=340, step=0.19)
    assert summary(teacher, plain, longer, student)[1:] == [
        "With 340 iterations instead of 200, the plain student `R18_longer` has 21.0 AP, 3.5 less "
        "than the distilled one; the training time of `s`, with TEACHER.CACHE, does not compare."
    ]
    unused = make("R18_longer", 21.0, steps=340, step=0.19, cached=True)
    student = make("s", 24.5, teacher="R34", step=0.3)
    assert summary(teacher, plain, unused, student)[1].startswith("At equal training time")


def test_outcome_without_a_plain_student_at_equal_iterations(make, teacher, student):
    actual = summary(teacher, student, make("R18_longer", 21.0, steps=340, step=0.19))
    assert actual[0].startswith(
        "The student distilled from the teacher (`R18_from_R34`) has 24.5 AP, the teacher 29.9; inf"
    )
    assert actual[1].startswith(
        "At equal training time (1.1 and 1.0 min) the plain student `R18_longer`, "
    )
    assert len(actual) == 2
    keys = ["SOLVER.IMS_PER_BATCH", 8]
    actual = summary(teacher, student, make("R18_batch", 21.0, step=0.9, opts=keys))
    assert actual[1].startswith("With 200 iterations of 8 images instead of 200 of 16 and 3.00 ")


def test_other_differences_between_runs_are_listed(make, teacher, student):
    keys = ["SOLVER.BASE_LR", 0.5, "MODEL.WEIGHTS", "x.pkl", "INPUT.MIN_SIZE_TEST", 80]
    assert summary(teacher, student, make("R18", 16.3, opts=keys))[1:] == [
        "`R18` differs from `R18_from_R34` in more than the teacher: `INPUT.MIN_SIZE_TEST`, "
        "`MODEL.WEIGHTS`, `SOLVER.BASE_LR`."
    ]
    keys += ["SOLVER.MOMENTUM", 0.5, "SOLVER.GAMMA", 0.5]
    longer = make("R18_longer", 21.0, steps=340, step=0.19, opts=["SOLVER.STEPS", (9,), *keys])
    assert summary(teacher, student, longer)[2] == (
        "`R18_longer` differs from `R18_from_R34` in more than the teacher: `INPUT.MIN_SIZE_TEST`, "
        "`MODEL.WEIGHTS`, `SOLVER.BASE_LR` and 2 more keys."
    )


CLASS_MAP = ["TEACHER.CLASS_MAP", ["car: Car"]]


def test_mapped_teacher_is_reported_on_the_students_classes(make, plain, teacher, tmp_path):
    opts = [*CLASS_MAP, "TEACHER.EVAL_FIRST", True]
    student = make(str(tmp_path), 24.5, teacher="R34", opts=opts)
    (tmp_path / "teacher").mkdir()
    metrics = {"bbox/AP": 20.04, "bbox/AP-Car": 40.08, "bbox/AP-Cyclist": 0.0, "iteration": 0}
    (tmp_path / "teacher" / "metrics.json").write_text(json.dumps(metrics))
    for runs in ((plain, student), (teacher, plain, student)):  # R34 has 29.9 on its own classes
        first, second = summary(*runs)
        assert "has 24.5 AP, the plain student 16.3: distillation gains 8.2 AP at equal it" in first
        assert second == (
            f"The teacher of `{tmp_path.name}`, whose classes are mapped to the student's, has "
            "20.0 AP on val, with 0 for Cyclist."
        )


def test_ap_of_a_mapped_teacher_is_unknown_unless_it_was_evaluated(make, plain):
    more = ["TEACHER.MORE_CONFIG_FILES", ["b"], "TEACHER.MORE_WEIGHTS", ["b.pth"]]
    maps = ["TEACHER.MORE_CLASS_MAPS", [["car: Car"]]]
    for opts, name in ((CLASS_MAP, "The teacher"), ([*more, *maps], "Teacher 2")):
        _, second = summary(plain, make("s", 24.5, teacher="R34", opts=opts))
        assert second == (
            f"{name} of `s`, whose classes are mapped to the student's, has an unknown AP on val: "
            "TEACHER.EVAL_FIRST measures it."
        )


def test_kitti_metric_is_added_to_coco_ap(make):
    runs = [
        make("R34", 29.9, R34, kitti=(90.0, 40.0, 0.0)),
        make("R18", 16.3, kitti=(70.0, 30.0, 0.0)),
        make("s", 24.5, teacher="R34", kitti=(70.0, 27.0, 0.0)),
    ]
    actual = summary(*runs)
    assert actual[0].endswith("per image (teacher: 55 ms).") and "gains 8.2 AP" in actual[0]
    assert actual[1:] == [
        "By KITTI's official metric, moderate, mean of 2 classes, `s` has 48.5 AP, the "
        "plain student 50.0, the teacher 65.0: distillation loses 1.5 AP at equal iterations."
    ]


def test_kitti_metric_replaces_missing_coco_ap(make):
    runs = [
        make("R34", None, R34, kitti=(90.0, 40.0)),
        make("R18", None, kitti=(70.0, 30.0)),
        make("s", None, teacher="R34", kitti=(76.0, 27.0)),
    ]
    assert summary(*runs) == [
        "By KITTI's official metric, moderate, mean of 2 classes, the student distilled from the "
        "teacher (`s`) has 51.5 AP, the plain student 50.0, the teacher 65.0: distillation gains "
        "1.5 AP at equal iterations, 10 % of the gap to the teacher; inference takes 36 ms per "
        "image (teacher: 55 ms)."
    ]


def test_run_without_detections_has_an_ap_of_0(make, teacher, student):
    """COCO's metric is NaN without detections, which is reported as AP 0."""
    assert "has 24.5 AP, the plain student 0.0, " in summary(teacher, make("R18", NAN), student)[0]
    (actual,) = summary(make("R18", NAN, kitti=(0.0,)), make("s", NAN, teacher="R34", kitti=(0.0,)))
    assert actual == (
        "No run has an AP: no run detected anything on val, or it contains no objects."
    )

"""Studies: which runs there are, in which order they run, and what is made of them."""

import json
import math
import subprocess
import sys

import pytest
import yaml

from aid.errors import AIDError
from aid.study import (
    BASELINES,
    EQUAL_TIME,
    compare,
    load_study,
    paired_difference,
    run_study,
    tune,
    write_study,
)
from aid.study import runner as runner_module

CONTENT = {
    "output": "out",
    "scenes": {
        "options": {"train": 6, "val": 2},
        "sets": {"choose": 100, "report": 200},
        "kinds": {
            "day": {},
            "mixed": {"conditions": "day=0.5 night=0.5", "train": 4, "seed_offset": 7},
        },
    },
    "detectors": {"net": {"teacher": "t.yaml", "plain": "p.yaml", "student": "s.yaml"}},
    "regimes": {"gap": {"teacher": "day", "student": "mixed"}},
    "rules": {
        "plain_student": {"plain": True},
        "longer": {"plain": True, "stretch": 1.667},
        "aid": {"AID.ALPHA": 0.3},
        "control": {"AID.WEIGHTING": "ConstantWeighting", "constant_of": "aid"},
    },
    "experiments": {
        "first": {
            "set": "choose",
            "iterations": 50,
            "detectors": ["net"],
            "regimes": ["gap"],
            "strengths": [2, 8],
            "seeds": [0, 1],
            "rules": ["plain_student", "control"],
        },
        "second": {
            "set": "report",
            "iterations": 50,
            "detectors": ["net"],
            "regimes": ["gap"],
            "strengths": [2],
            "seeds": [0],
            "rules": ["longer", "aid"],
        },
    },
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function (changes of the file) -> the study, whose output is below the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(*only, **changes):
        content = yaml.safe_dump({**CONTENT, **changes}, sort_keys=False)
        (tmp_path / "study.yaml").write_text(content)
        return load_study("study.yaml", only)

    return load


def test_the_runs_of_a_grid(study):
    jobs = study("first").jobs
    folders = [job.folder for job in jobs]
    teacher = "out/teachers/choose/day/net"
    runs = "out/runs/choose/gap/net"
    assert folders == [
        f"{runs}/plain_student_50/strength_0/seed_0",  # one for all strengths
        teacher,
        f"{runs}/aid_50/strength_2/seed_0",  # the control needs it
        f"{runs}/control_50/strength_2/seed_0",
        f"{runs}/aid_50/strength_8/seed_0",
        f"{runs}/control_50/strength_8/seed_0",
        f"{runs}/plain_student_50/strength_0/seed_1",
        f"{runs}/aid_50/strength_2/seed_1",
        f"{runs}/control_50/strength_2/seed_1",
        f"{runs}/aid_50/strength_8/seed_1",
        f"{runs}/control_50/strength_8/seed_1",
    ]
    plain, _, aid, control = jobs[:4]
    assert plain.config == "p.yaml" and plain.needs == ()
    assert "TEACHER.WEIGHTS" not in plain.options
    assert aid.config == "s.yaml" and aid.needs == (teacher,)
    options = dict(zip(aid.options[::2], aid.options[1::2], strict=True))
    assert options == {
        "SEED": "0",
        "SOLVER.MAX_ITER": "50",
        "AID.ALPHA": "0.3",
        "DISTILLATION.WEIGHT": "2.0",
        "TEACHER.WEIGHTS": f"{teacher}/model_final.pth",
    }
    assert control.constant_of == aid.folder and control.needs == (teacher, aid.folder)
    expected = "--train 4 --val 2 --conditions day=0.5 night=0.5 --seed 107"
    assert " ".join(aid.scenes.options) == expected
    assert jobs[1].is_teacher and not aid.is_teacher


def test_one_experiment_of_several(study):
    everything = [job.folder for job in study().jobs]
    assert "SOLVER.MAX_ITER 83" in " ".join(study("second").jobs[0].options)
    some = [job.folder for job in study("second").jobs]
    assert some == [
        "out/runs/report/gap/net/longer_50/strength_0/seed_0",
        "out/teachers/report/day/net",
        "out/runs/report/gap/net/aid_50/strength_2/seed_0",
    ]
    assert everything[-3:] == some and len(everything) == 14
    with pytest.raises(AIDError, match="has no experiment third: choose from first, second"):
        study("first", "third")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rules": {}}, "names 'plain_student', which is not defined"),
        ({"regimes": {"gap": {"student": "day"}}}, "names 'teacher', which is not defined"),
        ({"experiments": 3}, "is not laid out as a study"),
    ],
)
def test_a_study_that_makes_no_sense(study, changes, message):
    with pytest.raises(AIDError, match=f"study.yaml.* {message}"):
        study(**changes)


def test_a_file_that_is_no_study(tmp_path):
    with pytest.raises(AIDError, match="gone.yaml cannot be read"):
        load_study("gone.yaml")
    (tmp_path / "a.yaml").write_text("output: x\nscenes: {}\n")
    with pytest.raises(AIDError, match="has no section detectors, regimes, rules, experiments"):
        load_study(str(tmp_path / "a.yaml"))


@pytest.fixture
def fake_runs(monkeypatch):
    """Jobs that only sleep and note that they ran; one may be told to fail."""
    started, bad = [], set()

    def start(job):
        started.append(job.folder)
        code = f"import time; time.sleep(0.05); raise SystemExit({int(job.folder in bad)})"
        return subprocess.Popen([sys.executable, "-c", code])

    def collect(job):
        import os

        os.makedirs(job.folder, exist_ok=True)
        with open(os.path.join(job.folder, "results.json"), "w") as f:
            json.dump({"AP": 1.0}, f)

    monkeypatch.setattr(runner_module, "POLL", 0.01)
    monkeypatch.setattr(runner_module, "_render", lambda *args: None)
    monkeypatch.setattr(runner_module, "_start", start)
    monkeypatch.setattr(runner_module, "_last_line", lambda job: "its last words")
    monkeypatch.setattr(runner_module, "collect", collect)
    return started, bad


def test_every_run_runs_once_and_after_what_it_needs(study, fake_runs):
    started, _ = fake_runs
    jobs = study().jobs
    assert run_study(study(), workers=3) == []
    assert sorted(started) == sorted(job.folder for job in jobs)
    place = {folder: i for i, folder in enumerate(started)}
    assert all(place[need] < place[job.folder] for job in jobs for need in job.needs)
    assert run_study(study(), workers=3) == []
    assert len(started) == len(jobs)  # all of it was done


def test_what_fails_takes_along_only_what_needs_it(study, fake_runs, capsys):
    started, bad = fake_runs
    jobs = study().jobs
    bad.add("out/runs/choose/gap/net/aid_50/strength_2/seed_0")
    failed = run_study(study(), workers=2)
    expected = bad | {"out/runs/choose/gap/net/control_50/strength_2/seed_0"}
    assert {job.folder for job in failed} == expected
    assert len(started) == len(jobs) - 1
    bad.clear()
    assert run_study(study(), workers=2) == []
    assert len(started) == len(jobs) + 1


def test_a_paired_difference():
    found = paired_difference({0: 3.0, 1: 5.0, 2: 4.0, 9: 8.0}, {0: 1.0, 1: 2.0, 2: 3.0, 7: 0.0})
    assert found.seeds == 3 and found.mean == 2.0
    half = 4.303 * 1.0 / math.sqrt(3)  # differences 2, 3 and 1
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    assert paired_difference({0: 1.0}, {0: 0.0}).interval == (-math.inf, math.inf)


def result(rule, strength, seed, ap, night=None, on="choose"):
    labels = {"set": on, "regime": "gap", "detector": "net", "iterations": 50}
    labels |= {"rule": rule, "strength": strength, "seed": seed}
    conditions = {} if night is None else {"night": {"AP": night, "AP50": night}}
    return {
        "AP": ap, "AP50": 2 * ap, "conditions": conditions, "map_mean": 0.5, "labels": labels
    }  # fmt: skip


RESULTS = [
    *(result("plain_student", 0, seed, 10.0) for seed in (0, 1, 2)),
    *(result("plain_distillation", s, seed, 9.0 + s) for s in (1, 2, 4) for seed in (0, 1, 2)),
    *(result("aid", s, seed, 11.0 + s + seed, 7.0) for s in (1, 2, 4) for seed in (0, 1, 2)),
    *(result("aid_strength", 2, seed, 12.5) for seed in (0, 1)),
    {"AP": 30.0, "labels": {"set": "choose", "scenes": "day", "detector": "net"}},
]


def test_comparisons_are_paired_and_of_one_strength():
    found = {
        (x["rule"], x["strength"], x["against"]): (x["seeds"], x["mean"])
        for x in compare(RESULTS, BASELINES)
        if x["metric"] == "AP"
    }
    assert found["aid", 2, "plain_distillation"] == (3, 3.0)  # 2, 3 and 4
    assert found["aid", 4, "plain_student"] == (3, 6.0)
    assert found["aid", 2, "equal_strength"] == (2, 1.0)  # two seeds have a control
    assert ("aid", 4, "equal_strength") not in found
    assert ("plain_student", 0, "plain_student") not in found
    (entry,) = (
        x for x in compare(RESULTS, BASELINES)
        if (x["rule"], x["strength"], x["metric"]) == ("aid", 2, "AP50")
        and x["against"] == "plain_distillation"
    )  # fmt: skip
    half = 4.303 * 2.0 / math.sqrt(3)
    assert entry["mean"] == 6.0 and entry["ci95"] == pytest.approx([6 - half, 6 + half])


def test_the_control_of_a_rule_of_mean_weight_1_is_plain_distillation():
    normalized = [{**result("normalized", 2, seed, 14.0), "map_mean": 1.0} for seed in (0, 1)]
    found = {
        x["rule"]: x["mean"]
        for x in compare([*RESULTS, *normalized], BASELINES)
        if (x["against"], x["metric"], x["strength"]) == ("equal_strength", "AP", 2)
    }
    assert found == {"normalized": 3.0, "aid": 1.0}


def test_the_best_strength_is_chosen_on_other_scenes():
    chosen = [
        result("aid", strength, seed, ap)
        for strength, ap in ((0.5, 10.0), (2, 12.0), (8, 11.0))
        for seed in (0, 1)
    ]
    judged = [
        result("aid", strength, seed, ap + d * seed, on="report")
        for strength, ap, d in ((0.63, 17, 0), (2, 18, 1), (6.1, 16, 0), (8, 30, 0))
        for seed in (0, 1)
    ]
    two = [result("plain", s, 0, 1.0, on=on) for s in (1, 2) for on in ("choose", "report")]
    (found,) = tune([*chosen, *judged, *two])
    assert (found.rule, found.strength, found.group.set) == ("aid", 2, "report")
    assert found.ap("best") == {0: 18, 1: 19}
    assert found.fall("a 3rd").mean == -1.5 and found.fall("3 times").mean == -2.5
    assert found.fall("10 times") is None and found.ap("a 10th") == {}
    entry = found.as_dict()
    assert entry["best_strength"] == 2 and entry["AP"] == {"a 3rd": 17, "best": 18.5, "3 times": 16}
    assert set(entry["fall"]) == {"a 3rd", "3 times"}


def test_a_comparison_at_equal_time():
    results = [
        *(result("aid", 2, seed, 20.0 + seed) for seed in (0, 1)),
        *(result("plain_student_equal_time", 0, seed, 12.0) for seed in (0, 1)),
    ]
    (entry,) = (x for x in compare(results, EQUAL_TIME) if x["metric"] == "AP")
    assert (entry["rule"], entry["against"], entry["mean"]) == ("aid", "plain_student", 8.5)


def test_the_page_lists_every_run(tmp_path):
    weights = {"labels": RESULTS[9]["labels"], "at": "end", "mean": 0.5, "instances": 9}
    weights |= {"auc": {"night": 0.75, "tiny": None}, "correlation": {"visible": 0.5, "size": 0}}
    reported = [
        {**x, "labels": {**x["labels"], "set": "report"}} for x in RESULTS if "rule" in x["labels"]
    ]
    write_study(RESULTS + reported, [weights], str(tmp_path))
    text = (tmp_path / "tables.md").read_text()
    assert "13.0 14.0 15.0" in text and "+3.0 ± 2.5" in text and "AP50 night" in text
    assert "| 0.75        |            | +0.50" in text
    row = next(x for x in text.splitlines() if x.startswith("| gap      | net        | aid  "))
    # The best is 4; nothing was run near a third or a tenth of it, nor above.
    assert [x.strip() for x in row.split("|")[3:10]] == ["aid", "4", "", "", "16.0", "", ""]
    for name in ("choose_gap_net_50.png", "rules.png", "differences.png"):
        assert (tmp_path / name).stat().st_size > 5000
    found = json.loads((tmp_path / "study.json").read_text())
    assert len(found["comparisons"]) > 10 and found["weights"] == [weights]
    assert len(found["runs"]) == len(RESULTS + reported)
    assert {x["rule"]: x["best_strength"] for x in found["strengths"]} == {
        "aid": 4,
        "plain_distillation": 4,
    }
    with pytest.raises(AIDError, match="no run of the study is done"):
        write_study([], [], str(tmp_path))

"""Evaluation of a study's runs: comparisons, best strengths and tables."""

import json
import math
import re

import pytest

from aid.utils.errors import AIDError
from aid_tools.study import (
    BASELINES,
    EQUAL_TIME,
    compare_rules,
    tune,
    write_study,
)


def result(rule, strength, seed, ap, night=None, on="choose"):
    labels = {"set": on, "regime": "gap", "detector": "net", "iterations": 50}
    labels |= {"rule": rule, "strength": strength, "seed": seed}
    labels["unweighted"] = "answers" if rule.startswith("answers") else "plain_distillation"
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


def test_comparisons_are_paired_by_seed_and_strength():
    actual = {
        (x["rule"], x["strength"], x["against"]): (x["seeds"], x["mean"])
        for x in compare_rules(RESULTS, BASELINES)
        if x["metric"] == "AP"
    }
    assert actual["aid", 2, "plain_distillation"] == (3, 3.0)  # 2, 3 and 4
    assert actual["aid", 4, "plain_student"] == (3, 6.0)
    assert actual["aid", 2, "equal_strength"] == (2, 1.0)  # two seeds have a control run
    assert ("aid", 4, "equal_strength") not in actual
    assert ("plain_student", 0, "plain_student") not in actual
    (entry,) = (
        x for x in compare_rules(RESULTS, BASELINES)
        if (x["rule"], x["strength"], x["metric"]) == ("aid", 2, "AP50")
        and x["against"] == "plain_distillation"
    )  # fmt: skip
    half = 4.303 * 2.0 / math.sqrt(3)
    assert entry["mean"] == 6.0 and entry["ci95"] == pytest.approx([6 - half, 6 + half])


def test_control_of_mean_weight_1_is_plain_distillation():
    normalized = [{**result("normalized", 2, seed, 14.0), "map_mean": 1.0} for seed in (0, 1)]
    actual = {
        x["rule"]: x["mean"]
        for x in compare_rules([*RESULTS, *normalized], BASELINES)
        if (x["against"], x["metric"], x["strength"]) == ("equal_strength", "AP", 2)
    }
    assert actual == {"normalized": 3.0, "aid": 1.0}


def test_best_strength_is_chosen_on_separate_scenes():
    chosen = [
        result("aid", strength, seed, ap)
        for strength, ap in ((0.5, 10.0), (2, 12.0), (8, 11.0))
        for seed in (0, 1)
    ]
    reported = [
        result("aid", strength, seed, ap + d * seed, on="report")
        for strength, ap, d in ((0.63, 17, 0), (2, 18, 1), (6.1, 16, 0), (8, 30, 0))
        for seed in (0, 1)
    ]
    two = [result("plain", s, 0, 1.0, on=on) for s in (1, 2) for on in ("choose", "report")]
    two += [result("aid", 0, 0, 50.0, on=on) for on in ("choose", "report")]  # no imitation
    (actual,) = tune([*chosen, *reported, *two])
    assert (actual.rule, actual.strength, actual.group.set) == ("aid", 2, "report")
    assert actual.ap("best") == {0: 18, 1: 19}
    assert actual.fall("a 3rd").mean == -1.5 and actual.fall("3 times").mean == -2.5
    assert actual.fall("10 times") is None and actual.ap("a 10th") == {}
    entry = actual.as_dict()
    assert entry["best_strength"] == 2 and entry["AP"] == {"a 3rd": 17, "best": 18.5, "3 times": 16}
    assert set(entry["fall"]) == {"a 3rd", "3 times"}


def test_rule_is_compared_with_its_unweighted_baseline():
    runs = [("answers", 5.0, 1.0), ("answers_aid", 6.0, 0.5), ("answers_normalized", 8.0, 1.0)]
    runs += [("answers_aid_strength", 5.5, 0.5), ("plain_distillation", 1.0, 1.0)]
    results = [
        {**result(rule, 2, seed, ap), "map_mean": mean}
        for rule, ap, mean in runs
        for seed in (0, 1)
    ]
    actual = {(x["rule"], x["against"]): x["mean"] for x in compare_rules(results, BASELINES)}
    assert actual["answers_aid", "plain_distillation"] == 2.0  # AP50, the last metric
    assert actual["answers_aid", "equal_strength"] == 1.0
    assert actual["answers_normalized", "equal_strength"] == 6.0
    assert ("answers", "plain_distillation") not in actual


def test_known_comparison_at_equal_time():
    results = [
        *(result("aid", 2, seed, 20.0 + seed) for seed in (0, 1)),
        *(result("plain_student_equal_time", 0, seed, 12.0) for seed in (0, 1)),
    ]
    (entry,) = (x for x in compare_rules(results, EQUAL_TIME) if x["metric"] == "AP")
    assert (entry["rule"], entry["against"], entry["mean"]) == ("aid", "plain_student", 8.5)


def test_study_page_lists_every_run(tmp_path):
    weights = {"labels": RESULTS[9]["labels"], "at": "end", "mean": 0.5, "instances": 9}
    weights |= {"auc": {"night": 0.75, "tiny": None}, "correlation": {"visible": 0.5, "size": 0}}
    reported = [
        {**x, "labels": {**x["labels"], "set": "report"}} for x in RESULTS if "rule" in x["labels"]
    ]
    gradients = {"labels": RESULTS[9]["labels"], "at": "start", "ratio": 6.04, "cosine": -0.1}
    gradients["batches"] = 5
    write_study(RESULTS + reported, [weights], [gradients], str(tmp_path))
    text = (tmp_path / "tables.md").read_text()
    assert "13.0 14.0 15.0" in text and "+3.0 ± 2.5" in text and "AP50 night" in text
    assert "| 0.75        |            | +0.50" in text
    assert "| start | 6.0     | -0.10    |" in text and "medians of 5 batches" in text
    row = next(x for x in text.splitlines() if x.startswith("| gap      | net        | aid  "))
    # The best is 4; no run has a strength near a third or a tenth of it, or above it.
    assert [x.strip() for x in row.split("|")[3:10]] == ["aid", "4", "", "", "16.0", "", ""]
    for name in ("choose_gap_net_50.png", "differences.png"):
        assert (tmp_path / name).stat().st_size > 5000
    actual = json.loads((tmp_path / "study.json").read_text())
    assert len(actual["comparisons"]) > 10 and actual["weights"] == [weights]
    assert actual["gradients"] == [gradients]
    assert len(actual["runs"]) == len(RESULTS + reported)
    assert {x["rule"]: x["best_strength"] for x in actual["strengths"]} == {
        "aid": 4,
        "plain_distillation": 4,
    }
    with pytest.raises(AIDError, match="no run of the study is finished"):
        write_study([], [], [], str(tmp_path))


def test_ap_over_time_needs_plain_students_of_several_lengths(tmp_path):
    rules = {"plain_student": 1.0, "plain_student_double": 2.0, "recipe": 1.5}
    runs = [{**result(x, 0, 0, 10.0), "minutes": minutes} for x, minutes in rules.items()]
    for number, results in enumerate((runs[1:], runs)):
        write_study(results, [], [], str(tmp_path))
        assert ("_time.png" in (tmp_path / "tables.md").read_text()) == bool(number)
    assert (tmp_path / "choose_gap_net_50_time.png").stat().st_size > 5000


def test_special_characters_in_names_are_escaped(tmp_path):
    """Names of rules, detectors and conditions come from a file of the user."""
    names = {"rule": "a|b <i> `c` $x_{", "detector": "../net](x) \x1b"}
    results = [
        {**x, "labels": {**x["labels"], "set": on, **names}, "conditions": {"a|b": {"AP": 1.0}}}
        for on in ("choose", "report")
        for x in (result("", s, seed, 9.0 + s) for s in (1, 2, 4) for seed in (0, 1, 2))
    ]
    results += [result("plain_student", 0, seed, 10.0) for seed in (0, 1, 2)]
    results += [{"AP": 30.0, "labels": {"set": "choose", "scenes": "day", "detector": "a|b"}}]
    write_study(results, [], [], str(tmp_path))
    text = (tmp_path / "tables.md").read_text()
    tables = [x.splitlines() for x in text.split("\n\n") if x.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    assert "| a&#124;b &lt;i> &#96;c&#96; $x_{" in text and "\x1b" not in text
    (figure,) = re.findall(r"!\[AP against strength\]\((choose.*)\)", text)
    assert figure == "choose_gap_.._net__x____50.png" and (tmp_path / figure).exists()
    assert not (tmp_path.parent / "net").exists()

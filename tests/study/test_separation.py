"""Separation of wrong from correct instances by their weights."""

import math

import numpy as np
import pytest

from aid_tools.study import Job, gradients, separation
from aid_tools.study.grid import Scenes
from aid_tools.study.separation import auc, jobs_to_measure, rank_correlation


def test_known_values_of_auc():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    assert auc(weights, np.array([True, True, False, False])) == 1
    assert auc(weights, np.array([False, False, True, True])) == 0
    assert auc(weights, np.array([True, False, True, False])) == 0.75
    assert auc(np.ones(5), np.array([True, False, False, False, True])) == 0.5
    assert auc(np.array([0.5, 0.5, 0.9]), np.array([True, False, False])) == 0.75
    assert auc(weights, np.zeros(4, bool)) is None


def test_known_values_of_rank_correlation():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # Ranks 0 0.5 0.5... of ties: 1, 2, 2, 4 against 1, 3, 2, 4.
    assert rank_correlation(np.array([1.0, 2, 2, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )


def test_only_weighting_rules_are_measured_once_each(monkeypatch):
    def job(rule, strength, seed, *options):
        labels = {"rule": rule, "strength": strength, "seed": seed}
        options += ("TEACHER.WEIGHTS", "x.pth")
        folder = f"{rule}{strength}{seed}"
        return Job(folder, "s.yaml", Scenes("s", ()), options, labels=labels)

    jobs = [
        job("aid", 2, 0),
        job("aid", 8, 0),
        job("aid", 8, 1),  # a checkpoint that is not kept
        job("late", 2, 0),
        job("late", 8, 0),
        job("none", 8, 0, "AID.GRANULARITY", "none", "DISTILLATION.BALANCE", "0.0"),
        job("balanced", 8, 0, "AID.GRANULARITY", "none"),
        job("constant", 8, 0, "AID.WEIGHTING", "ConstantWeighting"),
    ]
    monkeypatch.setattr(separation, "is_done", lambda job: job.folder != "late20")
    assert [x.folder for x in jobs_to_measure(jobs)] == ["aid20", "late80"]
    monkeypatch.setattr(gradients, "is_done", lambda job: True)
    assert [x.folder for x in gradients.jobs_with_gradients(jobs)] == ["none80"]


def test_measured_weights_are_cached(tmp_path, monkeypatch):
    calls = []

    def measure(job, num_images):
        calls.append((job.folder, num_images))
        return [{"at": "end", "auc": {"tiny": None}}]

    monkeypatch.setattr(separation, "_measure", measure)
    job = Job(str(tmp_path), "s.yaml", Scenes("s", ()), ())
    first, second = (separation.measure_weights(job, 7) for _ in range(2))
    assert first == second == [{"at": "end", "auc": {"tiny": None}}]
    assert calls == [(str(tmp_path), 7)]

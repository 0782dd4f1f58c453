"""Whether weights tell right from wrong."""

import math

import numpy as np
import pytest

from aid.study.separation import auc, rank_correlation


def test_auc():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    assert auc(weights, np.array([True, True, False, False])) == 1
    assert auc(weights, np.array([False, False, True, True])) == 0
    assert auc(weights, np.array([True, False, True, False])) == 0.75
    assert auc(np.ones(5), np.array([True, False, False, False, True])) == 0.5
    assert auc(np.array([0.5, 0.5, 0.9]), np.array([True, False, False])) == 0.75
    assert auc(weights, np.zeros(4, bool)) is None


def test_rank_correlation():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # Ranks 0 0.5 0.5... of ties: 1, 2, 2, 4 against 1, 3, 2, 4.
    assert rank_correlation(np.array([1.0, 2, 2, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )

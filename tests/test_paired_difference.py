"""Differences paired by seed, with their intervals."""

import math

import pytest

from aid_tools.paired_difference import paired_difference


def test_known_paired_difference_and_interval():
    actual = paired_difference({0: 3.0, 1: 5.0, 2: 4.0, 9: 8.0}, {0: 1.0, 1: 2.0, 2: 3.0, 7: 0.0})
    assert actual.seeds == 3 and actual.mean == 2.0
    half = 4.303 * 1.0 / math.sqrt(3)  # differences 2, 3 and 1
    assert actual.interval == pytest.approx((2 - half, 2 + half))
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    assert paired_difference({0: 1.0}, {0: 0.0}).interval == (-math.inf, math.inf)

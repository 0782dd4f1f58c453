"""Reuse of freed memory by the C library, counted in page faults."""

import multiprocessing
import resource

import pytest
import torch

from aid.utils.malloc import IS_GLIBC, keep_freed_memory, return_freed_memory

MEGABYTES = 64


def page_faults() -> int:
    """Page faults of ten allocations of a tensor, after ten others."""
    for _ in range(10):  # warm-up
        torch.ones(MEGABYTES << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(MEGABYTES << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def keep() -> int:
    keep_freed_memory()
    return page_faults()


def hand_back() -> int:
    return_freed_memory()
    return page_faults()


@pytest.mark.skipif(not IS_GLIBC, reason="another C library")
def test_freed_memory_is_reused():
    # In separate processes, because the setting holds until a process ends.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        kept, returned = pool.apply(keep), pool.apply(hand_back)
    assert kept < returned / 2

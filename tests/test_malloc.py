"""Reuse of freed memory by the C library, counted in page faults."""

import multiprocessing
import resource

import pytest
import torch

from aid.utils.malloc import IS_GLIBC, keep_freed_memory, return_freed_memory

MEGABYTES = 64


def page_faults() -> int:
    """Page faults of five allocations of a tensor, after five others."""
    for _ in range(5):  # warm-up
        torch.ones(MEGABYTES << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(MEGABYTES << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measure() -> tuple[int, int]:
    """Page faults while freed memory is returned, and after that."""
    return_freed_memory()
    returned = page_faults()
    keep_freed_memory()
    return returned, page_faults()


@pytest.mark.skipif(not IS_GLIBC, reason="another C library")
def test_freed_memory_is_reused():
    # In a process of its own, because the setting holds until the process ends.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        returned, kept = pool.apply(measure)
    assert kept < returned / 2

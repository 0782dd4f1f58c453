"""Freed memory stays with a process that wants it, in pages that the kernel hands out."""

import multiprocessing
import resource

import pytest
import torch

from aid.utils.malloc import IS_GLIBC, keep_freed_memory, return_freed_memory

MEGABYTES = 64


def pages_handed_out() -> int:
    """For a tensor that is made and freed ten times, after some others."""
    for _ in range(10):  # until it finds room
        torch.ones(MEGABYTES << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(MEGABYTES << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def keep() -> int:
    keep_freed_memory()
    return pages_handed_out()


def hand_back() -> int:
    return_freed_memory()
    return pages_handed_out()


@pytest.mark.skipif(not IS_GLIBC, reason="another C library")
def test_what_was_freed_is_used_again():
    # In processes of their own, since the choice holds until a process ends.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        kept, returned = pool.apply(keep), pool.apply(hand_back)
    assert kept < returned / 2

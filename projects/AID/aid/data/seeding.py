"""Seeding of random numbers by position (sample, iteration) instead of by history."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.utils import comm

from ..utils.errors import AIDError

__all__ = ["check_seed", "seed_all", "seeded"]


def check_seed(name: str, seed: int) -> None:
    """Check that NumPy takes a seed, and the following ones, of which each process has one.

    Args:
        name: of the key, for the message.
        seed: 0 or more.

    Raises:
        AIDError: it is too large.
    """
    limit = 2**32 - comm.get_world_size()
    if seed > limit:
        raise AIDError(f"{name} is {seed}: it must be {limit} at most")


def seed_all(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch from a key of non-negative integers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and PyTorch, and restore their states at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_all(*key)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

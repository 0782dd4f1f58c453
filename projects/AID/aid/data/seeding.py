"""Seeding of random numbers by position (sample, iteration) instead of by history."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seed_all", "seeded"]


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

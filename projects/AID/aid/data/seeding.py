"""Random numbers that depend on where they are drawn, not on what was drawn before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seed_all", "seeded"]


def seed_all(*key: int) -> None:
    """Seed Python's, numpy's and torch's generators from a key of non-negative numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's CPU generators inside, leave them as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_all(*key)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

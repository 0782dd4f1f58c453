"""Fixture: visualized values of a sample."""

import pytest
import torch

from aid_tools.visualization.collect import Seen


@pytest.fixture
def make_seen():
    """A function (losses, options) -> Seen with weights exp(-D / 10) on two levels."""

    def make(losses=(1.0, 8.0), **options) -> Seen:
        losses = torch.tensor(losses)
        maps = {"p3": torch.full((2, 4), 0.5), "p4": torch.full((1, 2), 0.25)}
        values = {
            "weights": torch.exp(-losses / 10),
            "losses": losses,
            "parts": {"cls": 0.75 * losses, "box": 0.25 * losses},
            "strides": {"p3": 8, "p4": 16},
            "maps": maps,
            "attention": {level: torch.ones_like(x) for level, x in maps.items()},
            "student_attention": {level: torch.ones_like(x) for level, x in maps.items()},
            "difference": {level: torch.ones_like(x) for level, x in maps.items()},
        }
        return Seen(**{**values, **options})

    return make

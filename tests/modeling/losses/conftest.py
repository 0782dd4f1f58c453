"""Answers of two sides, written down by hand."""

import pytest
import torch

from aid.modeling.losses import Context
from aid.modeling.responses import Answer, Answers


@pytest.fixture
def make_context():
    """A function (student, teacher, owner, image, ...) -> context of a loss on answers.

    ``student`` and ``teacher`` are fields of an :class:`Answer`; what is left out is 0. All weights
    are 1 unless told otherwise. There are as many instances as the highest owner says, and -1
    stands for nobody.
    """

    def make(student, teacher, owner, image, activation="softmax", num_images=None, **weights):
        owner, image = (torch.tensor(x, dtype=torch.long) for x in (owner, image))
        nobody = int(owner.max()) + 1 if len(owner) else 0
        owner = torch.where(owner < 0, nobody, owner)
        n = len(owner)
        blank = {"logits": torch.zeros(n, 2), "boxes": torch.zeros(n, 4)}
        sides = (Answer(**{**blank, **x}) for x in (student, teacher))
        answers = Answers(*sides, activation, owner, nobody, image, owner < nobody)
        given = {k: torch.tensor(v) for k, v in weights.items()}
        answers.weights = {k: given.get(k, torch.ones(n)) for k in ("all", "cls", "box")}
        num_images = num_images or int(image.max()) + 1
        owned = image[owner < nobody]
        counts = [len(owner[owner < nobody][owned == i].unique()) for i in range(num_images)]
        return Context([range(c) for c in counts], {}, answers)

    return make

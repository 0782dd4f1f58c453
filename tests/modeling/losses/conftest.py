"""Fixture: a context with paired predictions of given values."""

import pytest
import torch

from aid.modeling.families import PairedPredictions, Predictions
from aid.modeling.losses import Context


@pytest.fixture
def make_context():
    """A function (student, teacher, matched_gt, image, ...) -> context of a loss on predictions.

    ``student`` and ``teacher`` are fields of :class:`Predictions`; missing fields are 0. Weights
    are 1 by default. -1 stands for background in matched_gt.
    """

    def make(student, teacher, matched_gt, image, activation="softmax", num_images=None, **weights):
        matched_gt, image = (torch.tensor(x, dtype=torch.long) for x in (matched_gt, image))
        background_index = int(matched_gt.max()) + 1 if len(matched_gt) else 0
        matched_gt = torch.where(matched_gt < 0, background_index, matched_gt)
        n = len(matched_gt)
        blank = {"logits": torch.zeros(n, 2), "boxes": torch.zeros(n, 4)}
        sides = (Predictions(**{**blank, **x}) for x in (student, teacher))
        predictions = PairedPredictions(*sides, activation, matched_gt, background_index, image)
        given = {k: torch.tensor(v) for k, v in weights.items()}
        predictions.weights = {k: given.get(k, torch.ones(n)) for k in ("cls", "box")}
        num_images = num_images or int(image.max()) + 1
        foreground = image[matched_gt < background_index]
        counts = [
            len(matched_gt[matched_gt < background_index][foreground == i].unique())
            for i in range(num_images)
        ]
        return Context([range(c) for c in counts], {}, predictions)

    return make

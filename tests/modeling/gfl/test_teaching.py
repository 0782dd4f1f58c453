"""Per-instance losses of a GFL teacher against its training losses and known values."""

import math

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn

from aid.modeling.families import per_instance_losses


def losses_of(model, batch):
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    return per_instance_losses(model, images, features, [x["instances"] for x in batch])


def zero(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def test_known_losses_of_a_zero_initialized_gfl(tiny_model, make_batch):
    model = tiny_model("gfl")
    zero(model.head)
    batch = make_batch()
    # Larger than a cell, so that every instance has positive cells.
    for sample in batch:
        sample["instances"].gt_boxes.tensor[:, 2:] += 10
    losses = losses_of(model, batch)
    # Scores of 1/2 for each of 3 classes: log 2 times the squared distance to the quality.
    negative = 0.25 * math.log(2)
    torch.testing.assert_close(losses.background["cls"], torch.full((2, 5), 3 * negative))
    assert (
        losses.components["cls"] < 3 * negative
    ).all()  # the distance is less than 1/2 for one class
    assert (losses.components["cls"] > 2 * negative).all()
    # 17 equal distances: log 17, and a GIoU between -1 and 1 of boxes of 16 cells.
    box = losses.components["box"] - 0.25 * math.log(17)
    assert (box > 0).all() and (box < 4).all()


def test_sum_over_cells_equals_the_training_loss_of_gfl(tiny_model, make_batch):
    model, batch = tiny_model("gfl"), make_batch((1,))
    zero(model.head.cls_score)  # every box then has the same weight
    batch[0]["instances"].gt_boxes = Boxes(torch.tensor([[20.0, 10, 75, 55]]))
    losses = losses_of(model, batch)
    for norm in model.train().modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    with EventStorage() as storage, torch.no_grad():
        trained_on = model(batch)
    positives = storage.latest()["num_pos_anchors"][0]
    assert positives > 2
    torch.testing.assert_close(
        losses.components["box"][0], trained_on["loss_box_reg"] + trained_on["loss_dfl"]
    )
    num_cells = torch.tensor([8 * 12, 4 * 6, 2 * 3, 2, 1])
    num_negatives = num_cells - losses.level_share[0] * positives
    total = losses.components["cls"][0] * positives
    total += (losses.background["cls"][0] * num_negatives).sum()
    torch.testing.assert_close(total / positives, trained_on["loss_cls"])


def test_fallback_cell_of_a_small_instance_remains_background(tiny_model, make_batch):
    """An instance too small for positive cells uses the nearest, which stays background."""
    model, batch = tiny_model("gfl"), make_batch((1,))
    nn.init.zeros_(model.head.cls_score.bias)  # scores of 1/2, and losses above the tolerance
    instances = batch[0]["instances"]
    instances.gt_boxes = Boxes(torch.tensor([[33.0, 33, 36, 36]]))
    losses = losses_of(model, batch)
    assert losses.level_share.tolist() == [[1, 0, 0, 0, 0]]
    batch[0]["instances"] = instances[:0]
    without = losses_of(model, batch)
    assert torch.equal(losses.background["cls"], without.background["cls"])
    # Predictions of the nearest cell: row 4, column 4.
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(batch).tensor)
        logits, distributions = model.head(list(features.values()))
    cell = distributions[0][0, :, 4, 4], logits[0][0, :, 4, 4]
    sides = cell[0].view(4, 17).softmax(dim=1) @ torch.arange(17.0) * 8
    box = Boxes(32 + sides[None] * torch.tensor([-1, -1, 1, 1]))
    target = torch.zeros(3)
    target[instances.gt_classes] = pairwise_iou(box, instances.gt_boxes)
    entropy = F.binary_cross_entropy_with_logits(cell[1], target, reduction="none")
    expected = ((cell[1].sigmoid() - target) ** 2 * entropy).sum()
    torch.testing.assert_close(losses.components["cls"][0], expected)

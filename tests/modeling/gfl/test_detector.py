"""GFL as a whole: training losses, inference and learning."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aid.modeling.detectors.gfl import assign_cells
from aid.utils.errors import AIDError

LOSSES = {"loss_cls", "loss_box_reg", "loss_dfl"}
PLAIN_NORM = ["MODEL.RESNETS.NORM", "FrozenBN"]


def step(model, batch):
    model.train().zero_grad()
    with EventStorage(19) as storage:
        losses = model(batch)
        sum(losses.values()).backward()
    return losses, storage.latest()


def test_losses_equal_a_reference_by_loops(tiny_model, make_batch):
    """The reference goes cell by cell, as in the paper and the authors' code."""
    model, batch = tiny_model("gfl").train(), make_batch((2, 0, 3))
    for conv in (model.head.cls_score, model.head.bbox_pred):  # scores and boxes that differ
        nn.init.normal_(conv.weight, std=1.0)
    nn.init.constant_(model.head.cls_score.bias, -1.0)
    with torch.no_grad(), EventStorage(19) as storage:
        actual = model(batch)
        features = list(model.backbone(model.preprocess_image(batch).tensor).values())
        anchors = model.anchor_generator(features)
        logits, distributions = model.head(features)
    cells = Boxes.cat(anchors).tensor.tolist()
    strides = [8 * 2**i for i, x in enumerate(anchors) for _ in range(len(x))]
    cls = giou = dfl = score_sum = 0.0
    positives = 0
    for n, truth in enumerate(x["instances"] for x in batch):
        matched_gt, _ = assign_cells(truth.gt_boxes, anchors, 9)
        scores = torch.cat([x[n].flatten(1).T for x in logits]).sigmoid().tolist()
        sides = torch.cat([x[n].flatten(1).T for x in distributions]).view(-1, 4, 17)
        sides = sides.softmax(dim=2).tolist()
        for r, g in enumerate(matched_gt.tolist()):
            target = [0.0] * 3
            if g < len(truth):
                positives += 1
                x, y = (cells[r][0] + cells[r][2]) / 2, (cells[r][1] + cells[r][3]) / 2
                left, top, right, bottom = truth.gt_boxes.tensor[g].tolist()
                true = [(d / strides[r]) for d in (x - left, y - top, right - x, bottom - y)]
                mean = [sum(i * p for i, p in enumerate(side)) for side in sides[r]]
                # In cells, with the center at 0.
                shared = [min(a, b) for a, b in zip(true, mean, strict=True)]
                hull = [max(a, b) for a, b in zip(true, mean, strict=True)]
                inter, hull, area, true_area = (
                    (d[0] + d[2]) * (d[1] + d[3]) for d in (shared, hull, mean, true)
                )
                union = area + true_area - inter
                target[truth.gt_classes[g]] = inter / union
                score = max(scores[r])
                score_sum += score
                giou += score * (1 - inter / union + (hull - union) / hull)
                for side, d in zip(sides[r], true, strict=True):
                    i = int(d)
                    entropy = (i + 1 - d) * math.log(side[i]) + (d - i) * math.log(side[i + 1])
                    dfl -= score * entropy / 4
            for p, q in zip(scores[r], target, strict=True):
                cls -= (p - q) ** 2 * (q * math.log(p) + (1 - q) * math.log(1 - p))
    assert score_sum > 1 and positives > 5
    assert actual.keys() == LOSSES
    assert actual["loss_cls"].item() == pytest.approx(cls / positives, rel=1e-4)
    assert actual["loss_box_reg"].item() == pytest.approx(2 * giou / score_sum, rel=1e-4)
    assert actual["loss_dfl"].item() == pytest.approx(0.25 * dfl / score_sum, rel=1e-4)
    assert storage.latest()["num_pos_anchors"][0] == pytest.approx(positives / 3)


@pytest.mark.parametrize("num_instances", [(2, 3), (0, 1), (0, 0)])
def test_every_parameter_gets_a_gradient(num_instances, tiny_model, make_batch):
    model = tiny_model("gfl")
    losses, log = step(model, make_batch(num_instances))
    assert losses.keys() == LOSSES and all(x.isfinite() for x in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if not sum(num_instances):
        assert losses["loss_cls"] > 0 and losses["loss_box_reg"] == losses["loss_dfl"] == 0
        assert log["num_pos_anchors"][0] == 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_scores_and_boxes_have_separate_losses(name, tiny_model, make_batch):
    """The score is trained on the quality of the box, without gradient to the box."""
    model = tiny_model("gfl").train()
    with EventStorage(19):
        model(make_batch())[name].backward()
    head = model.head
    for conv, branch in ((head.cls_score, "loss_cls"), (head.bbox_pred, "loss_box_reg loss_dfl")):
        learned = conv.weight.grad is not None and bool(conv.weight.grad.any())
        assert learned == (name in branch)


def test_untrained_score_is_the_prior(tiny_model, make_batch):
    model = tiny_model("gfl")
    nn.init.zeros_(model.head.cls_score.weight)
    images = model.preprocess_image(make_batch())
    logits, distributions = model.head(list(model.backbone(images.tensor).values()))
    assert [x.shape[1] for x in (*logits, *distributions)] == [3] * 5 + [68] * 5
    torch.testing.assert_close(logits[0].sigmoid(), torch.full_like(logits[0], 0.01))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32_under_amp(dtype, tiny_model, make_batch):
    model, batch = tiny_model("gfl"), make_batch()
    expected, _ = step(model, batch)
    with torch.autocast("cpu", dtype=dtype):
        losses, _ = step(model, batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.05, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Planted(nn.Module):
    """A head that predicts an object in each of the given cells (image, level, y, x) only."""

    def __init__(self, cells: dict[tuple, tuple]):
        super().__init__()
        self.cells = cells

    def forward(self, features):
        logits = [x.new_full((len(x), 3, *x.shape[2:]), -9.0) for x in features]
        sides = [x.new_full((len(x), 4, 17, *x.shape[2:]), -1e4) for x in features]
        for (image, level, y, x), (label, logit, distances) in self.cells.items():
            logits[level][image, label, y, x] = logit
            for side, distance in enumerate(distances):
                share = distance % 1
                sides[level][image, side, int(distance), y, x] = math.log(1 - share)
                if share:
                    sides[level][image, side, int(distance) + 1, y, x] = math.log(share)
        return logits, [x.flatten(1, 2) for x in sides]


def test_inference_returns_the_planted_boxes(tiny_model, make_batch):
    model, batch = tiny_model("gfl"), make_batch((0, 0))
    model.head = Planted(
        {
            # Stride 16: from its center (32, 16) 1.5, 0.5, 2 and 1.25 cells to the sides.
            (0, 1, 1, 2): (1, 2.0, (1.5, 0.5, 2, 1.25)),
            # The next cell has the same box, one pixel shorter, and a lower score: suppressed.
            (0, 1, 1, 3): (1, 1.0, (2.5, 0.5, 0.9375, 1.25)),
            # The same box of another class is kept.
            (0, 0, 2, 4): (0, 1.0, (3, 1, 4, 2.5)),
            (1, 2, 0, 1): (2, -3.0, (1, 0, 1, 1)),  # a score of 0.047 is not enough
        }
    )
    batch[0]["height"], batch[0]["width"] = 128, 192  # twice the input
    with torch.no_grad():
        actual, empty = (x["instances"] for x in model(batch))
    assert len(empty) == 0 and actual.pred_classes.tolist() == [1, 0]
    boxes = torch.tensor([[8.0, 8, 64, 36]] * 2) * 2
    torch.testing.assert_close(actual.pred_boxes.tensor, boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(actual.scores, torch.tensor([2.0, 1.0]).sigmoid())


def test_training_overfits_one_image(tiny_model, make_batch):
    """Confident detections match the ground truth after training."""
    model, batch = tiny_model("gfl"), make_batch((3,), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        step(model, batch)
        optimizer.step()
    with torch.no_grad():
        actual = model.eval()(batch)[0]["instances"]
    truth: Instances = batch[0]["instances"]
    actual = actual[actual.scores > 0.5]
    assert sorted(actual.pred_classes.tolist()) == sorted(truth.gt_classes.tolist())
    for box, label in zip(actual.pred_boxes.tensor, actual.pred_classes, strict=True):
        near = (truth.gt_boxes.tensor - box).abs().amax(dim=1) < 3
        assert truth.gt_classes[near].tolist() == [label]


def gradients(model, batch):
    with EventStorage(19):
        losses = model(batch)
    sum(losses.values()).backward()
    return {k: p.grad for k, p in getattr(model, "module", model).named_parameters()}


def gradients_of_a_shard(model, batch):
    share = len(batch) // comm.get_world_size()
    start = share * comm.get_rank()
    return gradients(DistributedDataParallel(model), batch[start : start + share])


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_in_several_processes_equal_one(processes, tiny_model, make_batch, in_processes):
    """The normalizers are those of the whole batch, however instances are distributed."""
    model, batch = tiny_model("gfl", PLAIN_NORM).train(), make_batch((3, 0, 5, 1))
    nn.init.constant_(model.head.cls_score.bias, 0.0)  # scores whose sum is more than 1
    expected = gradients(model, batch)
    model.zero_grad()
    actual = in_processes(processes, gradients_of_a_shard, model, batch)
    for name, gradient in expected.items():
        for of_process in actual:
            error = (of_process[name] - gradient).abs().max()
            assert error <= 5e-4 * gradient.abs().max() + 1e-6, name


def test_group_norm_trains(tiny_model, make_batch):
    model = tiny_model("gfl", ["MODEL.GFL.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 32])
    assert sum(isinstance(x, nn.GroupNorm) for x in model.head.modules()) == 2
    losses, _ = step(model, make_batch())
    assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("REG_MAX", 0, "1 or more"),
        ("TOPK", 0, "1 or more"),
        ("NUM_CONVS", 0, "1 or more"),
        ("ANCHOR_SCALE", 0.0, "above 0, and finite"),
        ("GIOU_WEIGHT", -2.0, "0 or more, and finite"),
    ],
)
def test_invalid_keys_are_named(key, value, message, tiny_model):
    with pytest.raises(AIDError, match=f"^MODEL.GFL.{key} is {value}: it must be {message}"):
        tiny_model("gfl", [f"MODEL.GFL.{key}", value])

"""Per-instance losses of a teacher against Detectron2's losses and known values."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from aid.modeling.families import per_instance_losses
from aid.modeling.families.base import box_losses, mean_by
from aid.modeling.teacher import Teacher
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core

KINDS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]


def losses_of(model, batch, **options):
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    return per_instance_losses(model, images, features, [x["instances"] for x in batch], **options)


def zero(*modules):
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


@pytest.mark.parametrize("kind", KINDS)
def test_instance_losses_do_not_depend_on_the_background(kind, tiny_model, make_batch):
    model, batch = tiny_model(kind), make_batch((2, 0, 3))
    whole, reduced = losses_of(model, batch), losses_of(model, batch, background=False)
    for name, component in whole.components.items():
        torch.testing.assert_close(reduced.components[name], component)
    assert torch.equal(reduced.level_share, whole.level_share)
    # An image without instances keeps its background loss.
    for name, component in whole.background.items():
        torch.testing.assert_close(reduced.background[name][1], component[1], rtol=1e-4, atol=0)


def test_background_rois_are_not_pooled_without_the_background(tiny_model, make_batch):
    model, batch = tiny_model("faster_rcnn"), make_batch((2, 0, 3))
    pooled = []
    model.roi_heads.box_pooler.register_forward_pre_hook(
        lambda module, inputs: pooled.append([len(boxes) for boxes in inputs[1]])
    )
    losses_of(model, batch)
    losses_of(model, batch, background=False)
    whole, reduced = pooled
    assert reduced[1] == whole[1]  # the image without instances keeps its background RoIs
    assert 2 <= reduced[0] < whole[0] and 3 <= reduced[2] < whole[2]


def test_known_losses_of_a_zero_initialized_faster_rcnn(tiny_model, make_batch):
    model = tiny_model("faster_rcnn")
    zero(model.proposal_generator.rpn_head, model.roi_heads.box_predictor)
    losses = losses_of(model, make_batch())
    # Logits of 0: probability 1/2 for an object, 1/4 for each of 3 classes and background.
    torch.testing.assert_close(losses.components["rpn_cls"], torch.full((5,), math.log(2)))
    torch.testing.assert_close(losses.components["cls"], torch.full((5,), math.log(4)))
    torch.testing.assert_close(losses.background["rpn_cls"], torch.full((2, 5), math.log(2)))
    # p6 has anchors but no RoIs.
    assert (losses.background["cls"][:, 4] == 0).all()


def test_known_losses_of_a_zero_initialized_cascade_rcnn(tiny_model, make_batch):
    model = tiny_model("cascade_rcnn")
    zero(model.roi_heads.box_predictor)
    losses = losses_of(model, make_batch())
    torch.testing.assert_close(losses.components["cls"], torch.full((5,), math.log(4)))


def test_known_losses_of_a_zero_initialized_retinanet(tiny_model, make_batch):
    model = tiny_model("retinanet")
    zero(model.head)
    losses = losses_of(model, make_batch())
    # Focal loss at p = 1/2, gamma 2, alpha 1/4: one positive class and two negative ones.
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    torch.testing.assert_close(losses.components["cls"], torch.full((5,), positive + 2 * negative))
    torch.testing.assert_close(losses.background["cls"], torch.full((2, 5), 3 * negative))


def test_sum_over_anchors_equals_the_training_loss_of_retinanet(tiny_model, make_batch):
    model, batch = tiny_model("retinanet"), make_batch((1,))
    losses = losses_of(model, batch)
    with EventStorage() as storage, torch.no_grad():
        model.train()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
        trained_on = model(batch)
    positives = storage.latest()["num_pos_anchors"][0]
    assert positives > 0
    torch.testing.assert_close(
        losses.components["box"][0] * positives, trained_on["loss_box_reg"] * model.loss_normalizer
    )


def test_sum_over_samples_equals_the_training_loss_of_faster_rcnn(tiny_model, make_batch):
    opts = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.RPN.POSITIVE_FRACTION", 1.0]
    opts += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000]
    opts += ["MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0]
    model, batch = tiny_model("faster_rcnn", opts), make_batch((1,))
    # The proposals are untrained and overlap the instance only by chance.
    losses = losses_of(model, batch)
    with EventStorage() as storage, torch.no_grad():
        model.train()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
        trained_on = model(batch)
    log = {k: v[0] for k, v in storage.latest().items()}
    anchors, rois = log["rpn/num_pos_anchors"], log["roi_head/num_fg_samples"]
    assert anchors > 0 and rois > 0
    torch.testing.assert_close(
        losses.components["rpn_box"][0] * anchors, trained_on["loss_rpn_loc"] * 100000
    )
    num_rois = rois + log["roi_head/num_bg_samples"]
    torch.testing.assert_close(
        losses.components["box"][0] * rois, trained_on["loss_box_reg"] * num_rois
    )


@pytest.mark.parametrize("kind", KINDS)
def test_coincident_instances_have_separate_losses(kind, tiny_model, make_batch):
    model, batch = tiny_model(kind), make_batch((1,))
    instances = batch[0]["instances"]
    batch[0]["instances"] = Instances.cat([instances] * 3)
    batch[0]["instances"].gt_classes = torch.tensor([0, 1, 2])
    losses = losses_of(model, batch)
    assert (losses.components["cls"] > 0).all()
    # One box with three class labels has three different losses.
    assert losses.components["cls"].unique().numel() == 3


@pytest.mark.parametrize("kind", KINDS)
def test_box_without_area_leaves_other_losses_finite(kind, tiny_model, make_batch):
    model, batch = tiny_model(kind), make_batch((2,))
    alone = losses_of(model, batch)
    flat = Instances((64, 96))
    flat.gt_boxes, flat.gt_classes = Boxes(torch.tensor([[5.0, 5, 5, 9]])), torch.tensor([0])
    batch[0]["instances"] = Instances.cat([batch[0]["instances"], flat])
    combined = losses_of(model, batch)
    assert not sum(combined.components.values())[2].isfinite()
    assert sum(combined.components.values())[:2].isfinite().all()
    # RetinaNet's matcher gives some anchors to the flat box.
    rtol = 0.05 if kind == "retinanet" else 1e-4
    torch.testing.assert_close(
        combined.components["cls"][:2], alone.components["cls"], rtol=rtol, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_losses_preserve_the_detector_and_random_state(kind, tiny_model, make_batch):
    model, batch = tiny_model(kind), make_batch()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = set(vars(model))
    random_state = torch.get_rng_state()
    first = losses_of(model, batch)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert set(vars(model)) == attributes  # RetinaNet would keep its normalizer
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    second = losses_of(model, batch)
    assert all(torch.equal(first.components[k], second.components[k]) for k in first.components)


def test_unsupported_module_is_refused_as_a_teacher():
    with pytest.raises(AIDError, match="^no config file: no loss .* a Linear.*RetinaNet"):
        Teacher(nn.Linear(1, 1), cfg=None)


def test_mean_by_ignores_nan_and_unmatched_values():
    mean, count = mean_by(torch.tensor([0, 2, 0, 3]), torch.tensor([1.0, 5.0, 3.0, torch.nan]), 3)
    assert mean.tolist() == [2, 0, 5] and count.tolist() == [2, 0, 1]


@pytest.mark.parametrize("loss", ["smooth_l1", "giou", "diou", "ciou"])
def test_non_finite_box_leaves_other_box_losses_unchanged(loss, tiny_model):
    """Includes box losses of Detectron2 that assert valid boxes."""
    head = tiny_model("retinanet", ["MODEL.RETINANET.BBOX_REG_LOSS_TYPE", loss])
    boxes = torch.tensor([[0.0, 0, 8, 8]]).expand(2, 4)
    deltas = torch.tensor([[0.1, 0.2, 0.3, 0.4], [math.nan, 0, 0, 0]])
    actual = box_losses(head, boxes, deltas, boxes + 1)
    assert not actual[1].isfinite()
    alone = box_losses(head, boxes[:1], deltas[:1], boxes[:1] + 1)
    torch.testing.assert_close(actual[:1], alone)

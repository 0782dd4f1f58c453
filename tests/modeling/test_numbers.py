"""Training steps on unusual but valid input: losses and gradients stay finite."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

KINDS = ["faster_rcnn", "retinanet", "gfl", "fcos"]
TERMS = {f"loss_distill_{x}" for x in ("feature", "channel", "spatial", "non_local")}


def sample(height, width, boxes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 3
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


BATCHES = {
    "a box without area": [sample(64, 96, [[8, 8, 40, 40], [20, 20, 20, 30], [9, 9, 9, 9]])],
    "a box outside the image": [sample(64, 96, [[8, 8, 40, 40], [200, 200, 240, 260]])],
    "a box larger than the image": [sample(64, 96, [[-50, -50, 900, 900]])],
    "500 boxes on one spot": [sample(64, 96, [[8, 8, 40, 40]] * 500)],
    "no box": [sample(64, 96, [])],
    "no box in one of two": [sample(64, 96, []), sample(64, 96, [[8, 8, 40, 40]], seed=1)],
    "ten times larger": [sample(32, 48, [[4, 4, 20, 20]]), sample(320, 480, [[9, 9, 300, 300]])],
    "smaller than a cell": [sample(20, 30, [[2, 2, 9, 9]]), sample(9, 7, [[1, 1, 5, 5]], seed=1)],
}


def pairs(batch):
    return batch * 2 if len(batch) == 1 else batch


def step(model, batch):
    torch.manual_seed(5)
    model.zero_grad()
    with EventStorage(19) as storage:
        losses = model(batch)
        sum(losses[k] for k in TERMS).backward()
    assert all(losses[k].isfinite() for k in TERMS)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return losses, {k: v for k, (v, _) in storage.latest().items()}


# The "image" granularity does not depend on the family of the teacher.
@pytest.mark.parametrize(
    "kind, granularity",
    [(kind, x) for x in ("instance", "level") for kind in KINDS] + [("faster_rcnn", "image")],
)
def test_terms_and_gradients_are_finite(kind, granularity, student_model, subtests):
    model, _ = student_model(kind, opts=["AID.GRANULARITY", granularity])
    for name, batch in BATCHES.items():
        with subtests.test(name):
            losses, log = step(model, pairs(batch))
            assert all(losses[k] > 0 for k in TERMS)
            assert 0 < log["aid/map_mean"] <= 1
            if name != "a box without area":  # Detectron2 filters such boxes from its data
                assert all(v.isfinite() for v in losses.values())
                assert not log.get("aid/num_non_finite")


# Predictions have no "level" granularity.
@pytest.mark.parametrize(
    "kind, granularity", [*((kind, "instance") for kind in KINDS), ("faster_rcnn", "image")]
)
def test_prediction_terms_and_gradients_are_finite(kind, granularity, student_model, subtests):
    opts = ["DISTILLATION.LOSSES", ["ResponseLoss"], "DISTILLATION.RESPONSE.MIN_SCORE", 0.005]
    model, _ = student_model(kind, opts=[*opts, "AID.GRANULARITY", granularity])
    for name, batch in BATCHES.items():
        with subtests.test(name), EventStorage():
            model.zero_grad()
            terms = {k: v for k, v in model(pairs(batch)).items() if "distill" in k}
            assert len(terms) == 2 and all(v.isfinite() and v >= 0 for v in terms.values())
            sum(terms.values()).backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_have_weight_zero_and_are_counted(kind, student_model):
    model, _ = student_model(kind)
    _, log = step(model, BATCHES["a box without area"] * 2)
    assert log["aid/num_non_finite"] == 4  # two in each image
    assert log["aid/weight_min"] == 0 and log["aid/teacher_loss"] > 0


def test_non_finite_boxes_of_a_cascade_teacher_have_weight_zero(student_model):
    """Its next stage takes no such box."""
    model, _ = student_model("faster_rcnn", "cascade_rcnn")
    nn.init.constant_(model.teacher.detector.roi_heads.box_predictor[0].bbox_pred.bias, torch.nan)
    _, log = step(model, pairs(BATCHES["a box larger than the image"]))
    assert log["aid/num_non_finite"] == 2 and log["aid/weight_min"] == 0


def scale_features(detector, factor):
    """Scale the backbone's features by ``factor`` and cast them to half precision."""

    def scale(module, inputs, output):
        for level in output:
            output[level] = (factor * output[level]).to(torch.get_autocast_dtype("cpu"))

    return detector.backbone.register_forward_hook(scale)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_finite_near_the_half_precision_limit(kind, student_model):
    """Half precision holds the features, but would overflow in sums over a map."""
    model, _ = student_model(kind)
    batch = BATCHES["ten times larger"]
    with torch.no_grad():
        features = model.teacher.view(batch, (320, 480), "RGB").features
    largest = max(x.abs().max().item() for x in features.values())
    scale_features(model.teacher.detector, 60000 / largest)
    with torch.autocast("cpu", dtype=torch.float16), EventStorage(19):
        losses = model(batch)
    assert all(losses[k].dtype == torch.float32 and losses[k].isfinite() for k in TERMS)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_overflow_makes_the_loss_non_finite(kind, student_model):
    model, _ = student_model(kind)
    scale_features(model.teacher.detector, 1e8)
    with torch.autocast("cpu", dtype=torch.float16), EventStorage(19):
        losses = model(BATCHES["ten times larger"])
    assert not losses["loss_distill_feature"].isfinite()
    assert all(v.isfinite() for k, v in losses.items() if k not in TERMS)

"""Distillation losses, weighting rules and families, put together by the config alone.

Not all of their combinations, but every pair: a loss and a family, a loss and a rule, a rule and a
family.
"""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from aid.config import load_config
from aid.modeling import losses as all_losses
from aid.modeling import weighting as all_rules

# The project's own: other tests register theirs.
LOSSES = [x for x in all_losses.__all__ if x in all_losses.DISTILLATION_LOSS_REGISTRY]
RULES = [x for x in all_rules.__all__ if x in all_rules.WEIGHTING_REGISTRY]
TWO_STAGE = [("faster_rcnn",) * 2, ("mask_rcnn",) * 2]
DENSE = [("retinanet",) * 2, ("gfl",) * 2, ("fcos",) * 2]
# Student and teacher.
FAMILIES = [
    *TWO_STAGE,
    *DENSE,
    ("cascade_rcnn",) * 2,
    ("retinanet", "faster_rcnn"),
    ("faster_rcnn", "fcos"),
]
# Losses on predictions; those on features go with every family.
GO_WITH = {
    "CrossKDLoss": DENSE,
    "LocalisationLoss": [("gfl", "gfl")],
    "ResponseLoss": TWO_STAGE + DENSE,
}
# A teacher of random weights takes little for an object.
CONFIG = """
_BASE_: {student}
MODEL:
  META_ARCHITECTURE: AID{architecture}
  FPN: {{OUT_CHANNELS: {channels}}}
DATASETS: {{TRAIN: ["kitti_train"]}}
TEACHER: {{CONFIG_FILE: {teacher}, WEIGHTS: {weights}}}
DISTILLATION:
  LOSSES: [{loss}]
  BALANCE: 0.0
  RESPONSE: {{MIN_SCORE: 0.005}}
AID: {{WEIGHTING: {rule}, DISTRUSTED_CLASSES: ["Cyclist"]}}
"""


def combinations():
    """(loss, rule, family), by which every pair that can be is made at least once."""
    families = {loss: GO_WITH.get(loss, FAMILIES) for loss in LOSSES}
    chosen = [
        (loss, RULES[(i + FAMILIES.index(family)) % len(RULES)], family)
        for i, loss in enumerate(LOSSES)
        for family in families[loss]
    ]
    for rule in RULES:
        for family in FAMILIES:
            if not any(x[1:] == (rule, family) for x in chosen):
                chosen.append((LOSSES[0], rule, family))
        for loss in LOSSES:
            if not any(x[:2] == (loss, rule) for x in chosen):
                chosen.append((loss, rule, families[loss][0]))
    return chosen


@pytest.fixture
def build(tiny_config, tmp_path):
    """A function (loss, rule, family) -> a student with its teacher, from a file."""

    def make(loss, rule, family):
        student, teacher = (tiny_config(kind, name=kind) for kind in family)
        weights = tmp_path / "teacher.pth"
        torch.manual_seed(17)
        torch.save({"model": build_model(load_config(teacher)).state_dict()}, weights)
        architecture = load_config(student).MODEL.META_ARCHITECTURE
        file = tmp_path / "distilled.yaml"
        file.write_text(
            CONFIG.format(
                student=student,
                architecture=architecture,
                teacher=teacher,
                weights=weights,
                loss=loss,
                channels=8 if loss == "CrossKDLoss" else 4,  # the teacher's, or other ones
                rule=rule,
            )
        )
        cfg = load_config(str(file))
        torch.manual_seed(0)
        model = build_model(cfg)
        model.build_distillation(cfg)
        return model.train()

    return make


@pytest.mark.parametrize(
    "loss, rule, family",
    [pytest.param(*x, id=f"{x[0]}-{x[1]}-{'_from_'.join(x[2])}") for x in combinations()],
)
def test_a_step_of_training(loss, rule, family, build, make_batch):
    model = build(loss, rule, family)
    batch = make_batch((2, 0, 3), masks=family[0] == "mask_rcnn")
    with EventStorage(19):
        losses = model(batch)
    assert all(v.isfinite() for v in losses.values())
    terms = [v for k, v in losses.items() if k.startswith("loss_distill")]
    assert terms and all(v > 0 for v in terms)
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    adapters = list(model.distillation["losses"].parameters())
    assert not adapters or any(p.grad.abs().sum() > 0 for p in adapters)
    assert all(module.training for module in model.modules())

"""Combinations of distillation losses, weighting rules and families in the config.

Every pair is covered, but not every triple: loss and family, loss and rule, rule and family.
"""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from aid.config import load_config
from aid.modeling import losses as all_losses
from aid.modeling import weighting as all_rules

# Only the project's own: other tests register more.
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
# Families of losses on predictions; losses on features know no family, two will do.
SUPPORTED = {
    "CrossKDLoss": DENSE,
    "LocalisationLoss": [("gfl", "gfl")],
    "ResponseLoss": TWO_STAGE + DENSE,
}
# MIN_SCORE is low because scores of random weights are low.
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
AID: {{WEIGHTING: {rule}}}
"""


def combinations():
    """Triples (loss, rule, family) that cover every valid pair at least once."""
    families = {loss: SUPPORTED.get(loss, [TWO_STAGE[0], DENSE[0]]) for loss in LOSSES}
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
                channels=8 if loss == "CrossKDLoss" else 4,  # equal to the teacher's, or different
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
def test_training_step_has_finite_terms_and_gradients(loss, rule, family, build, make_batch):
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

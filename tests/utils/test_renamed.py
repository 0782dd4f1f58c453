"""Compatibility with version 0.1: old names that work, and old names that are refused."""

import pytest
import torch
from detectron2.modeling import RetinaNet
from detectron2.structures import Boxes

from aid.config import load_config
from aid.modeling.families import per_instance_losses
from aid.modeling.losses import DistillationLoss
from aid.modeling.weighting import Weighting
from aid.utils.errors import AIDError


def test_old_imports_of_a_detector_family_work(tiny_model, make_batch):
    from aid.errors import AIDError as error
    from aid.modeling.gfl import assign_cells
    from aid.modeling.instance_loss.anchors import losses_per_instance
    from aid.modeling.instance_loss.base import Targets, box_losses, instance_losses
    from aid.modeling.instance_loss.dense import focal_losses

    assert instance_losses is per_instance_losses and error is AIDError

    class OldRetinaNet(RetinaNet):
        pass

    @instance_losses.register
    def _(detector: OldRetinaNet, images, features, targets, background=True):
        truth = Targets.from_instances(targets)
        features = [features[level] for level in detector.head_in_features]
        anchors, predictions = detector.anchor_generator(features), detector.head(features)
        per_level = detector._transpose_dense_predictions(predictions, [detector.num_classes, 4])
        logits, deltas = (torch.cat(x, dim=1).flatten(0, 1) for x in per_level)
        boxes = Boxes.cat(anchors).tensor.repeat(len(targets), 1)

        def losses(owner, at):
            cls = focal_losses(detector, truth, owner, logits[at])
            return cls, box_losses(detector, boxes[at], deltas[at], truth.boxes[owner])

        def match(gt_boxes):
            index, label = detector.anchor_matcher(pairwise_iou(gt_boxes, Boxes.cat(anchors)))
            return index, label, assign_cells(gt_boxes, anchors, topk=9)[1]

        return losses_per_instance(losses, match, anchors, truth, tuple(detector.head_in_features))

    from detectron2.structures import pairwise_iou

    model, batch = tiny_model("retinanet"), make_batch((2, 1))
    targets = [x["instances"] for x in batch]
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    expected = per_instance_losses(model, images, features, targets)
    model.__class__ = OldRetinaNet
    result = per_instance_losses(model, images, features, targets)
    torch.testing.assert_close(result.components["cls"], expected.components["cls"])
    assert result.components.keys() == {"cls", "box"}


@pytest.mark.parametrize(
    "base, old, new",
    [
        (Weighting, "disbelief", "teacher_error"),
        (Weighting, "needs_quality", "requires_quality"),
        (DistillationLoss, "asks", "request"),
    ],
)
def test_old_attribute_names_are_refused(base, old, new):
    with pytest.raises(AIDError, match=f"Mine defines {old}, which is {new} since version 0.2"):
        type("Mine", (base,), {old: True})


def test_lazyconfigs_accept_the_old_functions(monkeypatch):
    from aid.modeling import distilled, distiller, lazy, lesson

    monkeypatch.setattr(lazy, "build_distilled", lambda **kwargs: kwargs)
    first = lesson(teacher="teacher", losses=[], weighting="rule")
    assert first == distiller(teacher="teacher", losses=[], weighting="rule")
    expected = {"student": "student", "distillers": [first], "weight": 2.0}
    assert distilled(student="student", lessons=[first], weight=2.0) == expected


def test_run_config_with_a_removed_key_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("DISTILLATION: {RESPONSE: {WEIGHT: 1.0, CLS_WEIGHT: 3.0}}\nVERSION: 2\n")
    cfg = load_config(str(path))
    assert cfg.DISTILLATION.RESPONSE.CLS_WEIGHT == 3 and "WEIGHT" not in cfg.DISTILLATION.RESPONSE

"""Python blocks of docs/extending.md, registered from a file and selected in the config."""

import json
import os
import re

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from fvcore.nn import sigmoid_focal_loss

from aid.config import load_config
from aid.data import register_from_file
from aid.engine import AIDTrainer
from aid.modeling.losses import DISTILLATION_LOSS_REGISTRY
from aid.modeling.weighting import WEIGHTING_REGISTRY

REGISTRIES = (META_ARCH_REGISTRY, DISTILLATION_LOSS_REGISTRY, WEIGHTING_REGISTRY)
ONE_ANCHOR = ["MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [96]]]
ONE_ANCHOR += ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]]
ATSS = ["MODEL.META_ARCHITECTURE", "AIDATSSRetinaNet", *ONE_ANCHOR]


@pytest.fixture(scope="module")
def blocks(repository):
    """Python blocks of the page."""
    with open(os.path.join(repository, "docs", "extending.md")) as f:
        return re.findall(r"```python\n(.*?)```", f.read(), re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def registered(blocks, tmp_path_factory):
    """Register all blocks from one file, as --register does, and unregister them afterwards."""
    path = tmp_path_factory.mktemp("extending") / "mine.py"
    path.write_text("\n\n".join(blocks))
    before = [dict(registry) for registry in REGISTRIES]
    register_from_file(str(path))
    yield
    for registry, old in zip(REGISTRIES, before, strict=True):
        for name in dict(registry).keys() - old.keys():
            registry._obj_map.pop(name)


def write_teacher(tiny_config, folder):
    """Write config and weights of an ATSSRetinaNet; return the config options of its student."""
    opts = ["MODEL.META_ARCHITECTURE", "ATSSRetinaNet", *ONE_ANCHOR]
    path = tiny_config("retinanet", opts, name="atss_teacher")
    torch.manual_seed(5)
    torch.save({"model": build_model(load_config(path)).state_dict()}, folder / "atss.pth")
    return ["TEACHER.CONFIG_FILE", path, "TEACHER.WEIGHTS", str(folder / "atss.pth")]


def train_one_iteration(cfg, dataset, folder):
    """Train for one iteration and return the metrics."""
    cfg.merge_from_list(
        ["DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (), "OUTPUT_DIR", str(folder)]
        + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "DATALOADER.NUM_WORKERS", 0]
    )
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    "kind, opts",
    [
        ("faster_rcnn", ["DISTILLATION.LOSSES", ["MeanSquaredLoss"]]),
        ("retinanet", ["AID.WEIGHTING", "StepWeighting"]),
        ("retinanet", ATSS),
        ("retinanet", [*ATSS, "DISTILLATION.LOSSES", ["ResponseLoss"]]),
    ],
)
def test_block_trains_a_tiny_network_from_the_config(
    kind, opts, student_config, tiny_config, toy_dataset, tmp_path
):
    if "AIDATSSRetinaNet" in opts:
        opts = [*opts, *write_teacher(tiny_config, tmp_path)]
    torch.manual_seed(1)
    metrics = train_one_iteration(student_config(kind, opts=opts), toy_dataset, tmp_path / "run")
    terms = {k: v for k, v in metrics.items() if k.startswith("loss_")}
    assert all(v == v and abs(v) < 1e6 for v in terms.values())
    assert ("loss_distill_mse" in terms) == (["MeanSquaredLoss"] in opts)
    assert any("distill" in k and v > 0 for k, v in terms.items())


def test_per_instance_losses_of_atss_use_its_training_anchors(
    student_model, tiny_config, make_batch, tmp_path
):
    opts = [*ATSS, *write_teacher(tiny_config, tmp_path)]
    model, _ = student_model("retinanet", opts=opts)
    batch = make_batch((2, 3))
    teacher = model.teacher
    view = teacher.view(batch, batch[0]["image"].shape[-2:], "RGB")
    targets = [x["instances"] for x in batch]
    losses = teacher.per_instance_losses(view, targets)

    detector = teacher.detector
    features = [view.features[level] for level in detector.head_in_features]
    labels, boxes = detector.label_anchors(detector.anchor_generator(features), targets)
    logits, _ = detector._transpose_dense_predictions(detector.head(features), [3, 4])
    logits = torch.cat(logits, dim=1)
    expected = []
    for image, truth in enumerate(targets):
        for box, label in zip(truth.gt_boxes.tensor, truth.gt_classes, strict=True):
            positive = (labels[image] == label) & (boxes[image] == box).all(dim=1)
            one_hot = torch.nn.functional.one_hot(label, 3).expand(int(positive.sum()), 3).float()
            focal = sigmoid_focal_loss(
                logits[image, positive],
                one_hot,
                alpha=detector.focal_loss_alpha,
                gamma=detector.focal_loss_gamma,
            )
            expected.append(focal.sum(dim=1).mean())  # NaN without positives
    expected = torch.stack(expected)
    has_positives = expected.isfinite()
    assert has_positives.sum() >= 3
    torch.testing.assert_close(losses.components["cls"][has_positives], expected[has_positives])
    assert all(x.isfinite().all() for x in losses.components.values())

"""Groups of scalars in TensorBoard; metrics.json keeps Detectron2's names."""

import json
import math
import os

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from aid.engine import AIDTrainer
from aid.engine.tensorboard import grouped


@pytest.mark.parametrize(
    "name, expected",
    [
        ("loss_cls", "student/loss_cls"),
        ("loss_rpn_loc", "student/loss_rpn_loc"),
        ("fast_rcnn/cls_accuracy", "student/fast_rcnn/cls_accuracy"),
        ("num_pos_anchors", "student/num_pos_anchors"),
        ("loss_distill_feature", "distillation/loss_distill_feature"),
        ("aid/weight_mean", "aid/weight_mean"),
        ("aid/teacher_1/weight_mean", "aid/teacher_1/weight_mean"),
        ("data_time", "time/data_time"),
        ("eta_seconds", "time/eta_seconds"),
        ("total_loss", "training/total_loss"),
        ("lr", "training/lr"),
        ("bbox/AP-Car", "evaluation/bbox/AP-Car"),
        ("kitti/AP_R40-Car-easy", "evaluation/kitti/AP_R40-Car-easy"),
        ("fleet_val/segm/AP", "evaluation/fleet_val/segm/AP"),
        ("loss_bbox", "student/loss_bbox"),
    ],
)
def test_scalars_are_grouped(name, expected):
    assert grouped(name) == expected


def test_event_file_equals_metrics_json_in_groups(run_config):
    cfg = run_config("run", opts=["SOLVER.MAX_ITER", 20, "SOLVER.CHECKPOINT_PERIOD", 20])
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")) as f:
        lines = [json.loads(line) for line in f]
    assert all("loss_cls" in x and "loss_distill_feature" in x for x in lines if "lr" in x)

    events = EventAccumulator(cfg.OUTPUT_DIR).Reload()
    names = events.Tags()["scalars"]
    groups = {name.split("/")[0] for name in names}
    assert groups == {"student", "distillation", "aid", "time", "training", "evaluation"}
    written = {(name, x.step): x.value for name in names for x in events.Scalars(name)}
    expected = {
        (grouped(name), line["iteration"]): math.nan if value is None else value
        for line in lines
        for name, value in line.items()
        if name != "iteration"
    }
    assert written == pytest.approx(expected, rel=1e-6, nan_ok=True)

    (layout,) = events.Tensors("custom_scalars__config__")
    read = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in read.category[0].chart}
    assert charts["losses of imitation"] == ["distillation/.*"] and "AP" in charts

"""Student with AID of configs/Quickstart as a LazyConfig, with the same model and training steps.

For tools/lazyconfig_train_net.py, to be run from the root of the repository.
"""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from aid.engine.optimizer import clipped
from aid.evaluation import build_evaluator
from aid.modeling import AIDGeneralizedRCNN, build_distilled, distiller, load_teacher
from aid.modeling.losses import PKDLoss
from aid.modeling.schedule import Schedule
from aid.modeling.weighting import ExponentialWeighting

CHANNELS, LEVELS = 64, ("p2", "p3", "p4", "p5", "p6")
# Channels of student and teacher.
BOTH = {level: (CHANNELS, CHANNELS) for level in LEVELS}

# Student: Detectron2's Mask R-CNN, smaller and without masks.
student = get_config("common/models/mask_rcnn_fpn.py").model
student._target_ = AIDGeneralizedRCNN
for key in ("mask_in_features", "mask_pooler", "mask_head"):
    del student.roi_heads[key]
student.pixel_mean, student.pixel_std = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]
student.input_format = "RGB"
student.backbone.out_channels = CHANNELS
student.backbone.bottom_up.stem.norm = "BN"
student.backbone.bottom_up.stages.update(depth=18, norm="BN")
del student.backbone.bottom_up.stages["stride_in_1x1"]  # exists in bottleneck blocks only
student.proposal_generator.head.in_channels = CHANNELS
student.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [128]]
student.proposal_generator.update(pre_nms_topk=(300, 300), post_nms_topk=(150, 150))
student.roi_heads.update(num_classes=3, batch_size_per_image=64)
student.roi_heads.box_head.input_shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
student.roi_heads.box_head.fc_dims = [128, 128]
student.roi_heads.box_predictor.input_shape = ShapeSpec(channels=128)

# Teacher: config file and weights of its own training.
teacher = L(load_teacher)(
    config_file="configs/Quickstart/faster_rcnn_R34_FPN.yaml",
    weights="output/quickstart/faster_rcnn_R34_FPN/model_final.pth",
)
losses = [L(PKDLoss)(channels=BOTH, weight=6.0)]
weighting = L(ExponentialWeighting)(alpha=0.1, granularity="instance", background="mean")
model = L(build_distilled)(
    student=student,
    distillers=[L(distiller)(teacher=teacher, losses=losses, weighting=weighting, levels=LEVELS)],
    schedule=L(Schedule)(max_iter="${train.max_iter}"),
    balance=10.0,
)

resize = L(T.ResizeShortestEdge)(short_edge_length=96, max_size=320)
dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="synthetic_kitti_train"),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[resize, L(T.RandomFlip)(horizontal=True)],
            image_format="RGB",
        ),
        total_batch_size=4,
        num_workers=0,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="synthetic_kitti_val", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[resize], image_format="RGB"),
        num_workers=0,
    ),
    evaluator=L(build_evaluator)(
        dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
    ),
)

optimizer = L(L(clipped)(optimizer=torch.optim.AdamW))(
    # The training script sets the model.
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
    lr=0.002,
    weight_decay=0.01,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=20 / 120,
    warmup_method="linear",
    warmup_factor=0.001,
)

train = get_config("common/train.py").train
train.update(output_dir="output/lazy/faster_rcnn_R18_from_R34", max_iter=120, device="cpu", seed=1)
train.update(eval_period=0, checkpointer=dict(period=120, max_to_keep=100))
train.inherit = True  # the student starts from the teacher's FPN and heads

"""Fixtures: the features of teacher and student for one batch, and several teachers."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from aid.config import load_config
from aid.modeling.families import PredictionBatch


@pytest.fixture
def paired_batch(make_batch):
    """A function (teacher, student, numbers of instances) -> PredictionBatch of both."""

    def run(teacher, student, num_instances=(2, 0, 3)):
        inputs = make_batch(num_instances)
        images = [x.preprocess_image(inputs) for x in (teacher, student)]
        teacher_features, student_features = (
            x.backbone(i.tensor) for x, i in zip((teacher, student), images, strict=True)
        )
        batch = PredictionBatch(
            images[0], teacher_features, student_features, [x["instances"] for x in inputs]
        )
        if isinstance(student, DenseDetector):
            batch.student_predictions = student.head(
                [student_features[level] for level in student.head_in_features]
            )
        return batch

    return run


@pytest.fixture
def further(tiny_config, tmp_path):
    """A function (kinds or (kind, opts)) -> options that add teachers, saved on disk."""

    def make(*kinds) -> list:
        files, paths = [], []
        for k, kind in enumerate(kinds, 1):
            kind, opts = (kind, []) if isinstance(kind, str) else kind
            files.append(tiny_config(kind, opts, name=f"further_{k}"))
            paths.append(str(tmp_path / f"further_{k}.pth"))
            torch.manual_seed(100 + k)
            torch.save({"model": build_model(load_config(files[-1])).state_dict()}, paths[-1])
        return ["TEACHER.MORE_CONFIG_FILES", files, "TEACHER.MORE_WEIGHTS", paths]

    return make

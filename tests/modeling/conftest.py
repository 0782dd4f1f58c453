"""Fixture: the features of teacher and student for one batch."""

import pytest
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

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

"""Two detectors and one batch."""

import pytest
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from aid.modeling.responses import Batch


@pytest.fixture
def see(make_batch):
    """A function (teacher, student, numbers of instances) -> what both see of a batch."""

    def run(teacher, student, num_instances=(2, 0, 3)):
        inputs = make_batch(num_instances)
        images = [x.preprocess_image(inputs) for x in (teacher, student)]
        theirs, ours = (
            x.backbone(i.tensor) for x, i in zip((teacher, student), images, strict=True)
        )
        batch = Batch(images[0], theirs, ours, [x["instances"] for x in inputs])
        if isinstance(student, DenseDetector):
            batch.student_predictions = student.head(
                [ours[level] for level in student.head_in_features]
            )
        return batch

    return run

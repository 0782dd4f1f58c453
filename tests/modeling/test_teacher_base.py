"""Resampling of a teacher's feature maps at the student's cells."""

import pytest
import torch

from aid.modeling.teacher_base import resampled


def ramp(stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Map (1, 2, *size) of the y and x of the centers of its cells, in pixels."""
    y, x = ((torch.arange(n) + 0.5) * stride for n in size)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]


@pytest.mark.parametrize("size", [(5, 7), (4, 7), (1, 1)])
def test_equal_strides_crop_without_a_copy(size):
    features = ramp(8, (5, 7))
    cropped = resampled(features, 1.0, torch.zeros(1, 3, *size))
    assert torch.equal(cropped, features[:, :, : size[0], : size[1]])
    assert cropped.data_ptr() == features.data_ptr()


@pytest.mark.parametrize(
    "teacher, student", [(16, 8), (16, 4), (14, 8), (14, 32), (16, 64), (8, 32)]
)
def test_image_positions_are_preserved(teacher, student):
    image = (14 * 64, 14 * 128)
    features = ramp(teacher, (image[0] // teacher, image[1] // teacher))
    expected = ramp(student, (image[0] // student, image[1] // student))
    actual = resampled(features, teacher / student, expected[:, :1])
    assert actual.shape == expected.shape
    inner = slice(4, -4) if student < teacher else slice(1, -1)
    torch.testing.assert_close(actual[:, :, inner, inner], expected[:, :, inner, inner])


def test_too_small_map_is_extended():
    features = ramp(16, (6, 6))  # 96 pixels: two cells of stride 64
    extended = resampled(features, 0.25, torch.zeros(1, 1, 2, 2))
    assert extended.shape == (1, 2, 2, 2)
    assert extended[0, 0, 1, 0] > extended[0, 0, 0, 0]
    ones = resampled(torch.ones(1, 1, 6, 6), 0.25, torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(ones, torch.ones(1, 1, 2, 2))


def test_half_precision_is_resampled_in_float32():
    features = ramp(16, (4, 4)).bfloat16()
    assert resampled(features, 2.0, torch.zeros(1, 1, 8, 8)).dtype == torch.float32

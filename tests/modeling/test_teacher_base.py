"""Feature maps of another stride or size at the cells of the student's."""

import pytest
import torch

from aid.modeling.teacher_base import resampled


def ramp(stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Map (1, 2, *size) whose cells hold the y and x of their centers, in pixels."""
    y, x = ((torch.arange(n) + 0.5) * stride for n in size)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]


@pytest.mark.parametrize("size", [(5, 7), (4, 7), (1, 1)])
def test_equal_strides_are_a_crop_without_a_copy(size):
    features = ramp(8, (5, 7))
    found = resampled(features, 1.0, torch.zeros(1, 3, *size))
    assert torch.equal(found, features[:, :, : size[0], : size[1]])
    assert found.data_ptr() == features.data_ptr()


@pytest.mark.parametrize("theirs, ours", [(16, 8), (16, 4), (14, 8), (14, 32), (16, 64), (8, 32)])
def test_positions_in_the_image_stay(theirs, ours):
    image = (14 * 64, 14 * 128)
    features = ramp(theirs, (image[0] // theirs, image[1] // theirs))
    expected = ramp(ours, (image[0] // ours, image[1] // ours))
    found = resampled(features, theirs / ours, expected[:, :1])
    assert found.shape == expected.shape
    inner = slice(4, -4) if ours < theirs else slice(1, -1)
    torch.testing.assert_close(found[:, :, inner, inner], expected[:, :, inner, inner])


def test_a_map_that_ends_too_early_is_continued():
    features = ramp(16, (6, 6))  # 96 pixels, of which a stride of 64 has two cells
    found = resampled(features, 0.25, torch.zeros(1, 1, 2, 2))
    assert found.shape == (1, 2, 2, 2)
    assert found[0, 0, 1, 0] > found[0, 0, 0, 0]
    ones = resampled(torch.ones(1, 1, 6, 6), 0.25, torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(ones, torch.ones(1, 1, 2, 2))


def test_half_precision_is_resampled_in_single():
    features = ramp(16, (4, 4)).bfloat16()
    assert resampled(features, 2.0, torch.zeros(1, 1, 8, 8)).dtype == torch.float32

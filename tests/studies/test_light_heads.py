"""studies/light_heads.py: separable convolutions in place of those of FPN and head."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("name", ["GFL", "Faster R-CNN, RPN"])
def test_separable_convolutions_keep_the_shapes(name, load_script):
    study = load_script("studies/light_heads.py")
    ordinary, separable = (
        study.ConvolutionalPart(study.CONFIGS[name], 64, x).eval() for x in (False, True)
    )
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        shapes = [[x.shape for x in part(image)] for part in (ordinary, separable)]
    assert shapes[0] == shapes[1]
    convolutions = [x for x in separable.head.modules() if isinstance(x, nn.Conv2d)]
    assert {x.groups for x in convolutions if x.kernel_size == (3, 3)} == {64}
    assert study.gflops(separable, image) < study.gflops(ordinary, image)

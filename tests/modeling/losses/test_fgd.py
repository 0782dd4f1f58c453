"""FGD: a reference by loops, known values and the foreground mask."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from aid.modeling.losses import Context, FGDLoss
from aid.modeling.losses.fgd import GlobalContext, foreground_share

pytestmark = pytest.mark.core

TERMS = ["foreground", "background", "attention", "global"]


def make_loss(channels=3, temperature=0.5, scale="sum"):
    return FGDLoss(
        channels={"p2": (channels, channels)},
        temperature=temperature,
        foreground_weight=1.0,
        background_weight=1.0,
        attention_weight=1.0,
        global_weight=1.0,
        scale=scale,
        standardize=False,
    )


def run(loss, student, teacher, weight, boxes, stride=4):
    instances = []
    for image_boxes in boxes:
        instances.append(Instances((99, 99), gt_boxes=Boxes(torch.tensor(image_boxes).view(-1, 4))))
    context = Context(instances, {"p2": stride})
    actual = loss({"p2": student}, {"p2": teacher}, {"p2": weight}, context)
    return {k.removeprefix("loss_distill_fgd_"): v.item() for k, v in actual.items()}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def reference(loss, student, teacher, weight, boxes, stride=4):
    """The four terms of one image by loops over the formula."""
    c, h, w = teacher.shape
    t = loss.temperature
    shares, smallest = np.zeros((h, w)), np.full((h, w), np.inf)
    for x0, y0, x1, y1 in boxes:
        cells = [
            (y, x)
            for y, x in np.ndindex(h, w)
            if y0 < (y + 1) * stride
            and y1 > y * stride
            and x0 < (x + 1) * stride
            and x1 > x * stride
        ]
        for cell in cells:
            if len(cells) < smallest[cell]:
                smallest[cell], shares[cell] = len(cells), 1 / len(cells)
    outside = shares == 0
    valid = weight > 0

    def attention(x):
        energy = valid * np.exp(np.abs(x).mean(axis=0) / t)
        magnitudes = (weight * np.abs(x)).sum(axis=(1, 2)) / weight.sum()
        return valid.sum() * energy / energy.sum(), c * softmax(magnitudes / t)

    def context(block, x):
        kernel = block.attention.weight.detach().numpy().reshape(c, 1, 1)
        energy = valid * np.exp((kernel * x).sum(axis=0))
        pooled = (x * energy / energy.sum()).sum(axis=(1, 2))
        with torch.no_grad():
            return block.transform(torch.from_numpy(pooled)[None]).numpy().reshape(c, 1, 1)

    (s_spatial, s_channel), (t_spatial, t_channel) = attention(student), attention(teacher)
    blocks = loss.blocks["p2"]
    difference = teacher + context(blocks["teacher"], teacher)
    difference = difference - student - context(blocks["student"], student)
    actual = dict.fromkeys(TERMS, 0.0)
    actual["attention"] = weight.mean() * np.abs(t_channel - s_channel).sum()
    for y, x in np.ndindex(h, w):
        squared = t_channel * (teacher - student)[:, y, x] ** 2
        squared = weight[y, x] * t_spatial[y, x] * squared.sum()
        if outside[y, x]:
            actual["background"] += squared / outside.sum()
        else:
            actual["foreground"] += shares[y, x] * squared
        actual["attention"] += weight[y, x] * abs(t_spatial - s_spatial)[y, x]
        actual["global"] += weight[y, x] * (difference[:, y, x] ** 2).sum()
    return actual


BOXES = [
    [[2.0, 3.0, 13.0, 9.0], [8.0, 4.0, 12.0, 8.0], [17.0, 1.0, 19.0, 3.0]],
    [[0.0, 0.0, 20.0, 5.0]],
    [],
]


@pytest.mark.parametrize("equal", [True, False])
def test_terms_equal_a_reference_by_loops(equal):
    torch.manual_seed(0)
    loss = make_loss().double()
    for parameter in loss.parameters():
        nn.init.normal_(parameter)
    student, teacher = random(3, 3, 4, 5), random(3, 3, 4, 5, seed=1)
    weight = torch.ones(3, 1, 4, 5).double() if equal else random(3, 1, 4, 5, seed=2).clamp(min=0)
    images = zip(student.numpy(), teacher.numpy(), weight[:, 0].numpy(), BOXES, strict=True)
    alone = [reference(loss, *image) for image in images]
    actual = run(loss, student, teacher, weight, BOXES)
    assert actual == {k: pytest.approx(np.mean([x[k] for x in alone])) for k in TERMS}
    assert all(actual[k] > 0 for k in TERMS)


def test_known_terms_of_uniform_attention():
    # One box on 2 of 6 cells; |F| is uniform, so all attention is 1 and the context is 0.
    student, teacher = torch.full((1, 2, 2, 3), 1.0), torch.full((1, 2, 2, 3), -3.0)
    weight = torch.full((1, 1, 2, 3), 0.5)
    weight[0, 0, 0, 0] = 1.0  # in the box
    boxes = [[[0.0, 0.0, 8.0, 4.0]]]
    actual = run(make_loss(2), student, teacher, weight, boxes)
    expected = {
        "foreground": 2 * 4**2 * (1.0 + 0.5) / 2,
        "background": 2 * 4**2 * 0.5,
        "attention": 0.0,
        "global": 2 * 4**2 * 3.5,
    }
    assert actual == {k: pytest.approx(v, abs=1e-5) for k, v in expected.items()}
    actual = run(make_loss(2, scale="rms"), student, teacher, weight, boxes)
    elements = {"foreground": 2, "background": 2, "attention": 1, "global": 2 * 6}
    assert actual == {k: pytest.approx(v / elements[k], abs=1e-5) for k, v in expected.items()}


def test_each_box_sums_to_1_and_the_smallest_takes_precedence():
    boxes = torch.tensor([[4.0, 4, 20, 12], [9, 5, 11, 7], [500, -90, 700, -50]])
    actual = foreground_share([boxes], (4, 6), 4)[0, 0]
    expected = torch.zeros(4, 6)
    expected[1:3, 1:5] = 1 / 8
    expected[1, 2] = 1
    expected[0, 5] = 1  # the nearest cell to a box outside the image
    torch.testing.assert_close(actual, expected)
    assert (foreground_share([boxes[:0]], (4, 6), 4) == 0).all()
    torch.testing.assert_close(foreground_share([boxes[:1]], (1, 1), 64), torch.ones(1, 1, 1, 1))


def test_global_context_starts_at_zero_and_ignores_weight_zero():
    torch.manual_seed(0)
    block, x = GlobalContext(4), torch.randn(2, 4, 3, 5)
    weight = torch.ones(2, 1, 3, 5)
    assert (block(x, weight) == 0).all()
    nn.init.normal_(block.transform[-1].weight)
    weight[..., 2] = 0
    expected = block(x, weight)
    x[..., 2] = 1e4
    assert torch.equal(block(x, weight), expected) and (expected != 0).any()

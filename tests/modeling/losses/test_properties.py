"""Properties of every distillation loss on random features."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aid.config import load_config
from aid.modeling.families import PairedPredictions, Predictions
from aid.modeling.losses import DISTILLATION_LOSS_REGISTRY, Context, ResponseLoss

pytestmark = pytest.mark.core

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
ON_PREDICTIONS = ("CrossKDLoss", "LocalisationLoss", "ResponseLoss")
ON_MAPS = sorted(k for k, _ in DISTILLATION_LOSS_REGISTRY if k not in ON_PREDICTIONS)
# MGD generates features: its loss of identical features is not 0.
ZERO_IF_EQUAL = [x for x in ON_MAPS if x != "MGDLoss"]
# FGD and PKD divide by weighted means, like every standardized loss: their loss may rise when
# weights fall.
MONOTONIC = [x for x in ON_MAPS if x not in ("FGDLoss", "PKDLoss")]
# The losses of the paper also compare positions of weight 0.
IGNORE_WEIGHT_ZERO = [x for x in ON_MAPS if x not in ("AttentionGuidedLoss", "NonLocalLoss")]


class Case:
    """A loss with random parameters, and random features of student and teacher."""

    def __init__(self, name, file, sizes, channels, dtype, scale, temperature, form, seed):
        torch.manual_seed(seed)
        cfg = load_config(file)
        cfg.DISTILLATION.SCALE = scale
        keys = ("STANDARDIZE", "ADAPT_EQUAL_WIDTHS")
        cfg.DISTILLATION.update(zip(keys, form, strict=True))
        cfg.DISTILLATION.NON_LOCAL.TRAIN_TEACHER = form[1]
        for keys in (x for x in cfg.DISTILLATION.values() if isinstance(x, CfgNode)):
            keys.update({k: 1.0 for k in keys if k.endswith("WEIGHT")})
            keys.update({k: temperature for k in keys if k == "TEMPERATURE"})
        cfg.DISTILLATION.MGD.MASKED_SHARE = 0.0  # equal in every call
        num_images, *sizes = sizes
        shapes = [
            {f"p{i}": ShapeSpec(channels=c, stride=2**i) for i in range(len(sizes))}
            for c in channels
        ]
        build = DISTILLATION_LOSS_REGISTRY.get(name)
        self.loss = build(cfg, tuple(shapes[0]), *shapes).to(dtype)
        for parameter in self.loss.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.student, self.teacher, self.ones = (
            {f"p{i}": x.to(dtype) for i, x in enumerate(maps)}
            for maps in (
                *([3 * torch.randn(num_images, c, *s) for s in sizes] for c in channels),
                [torch.ones(num_images, 1, *s) for s in sizes],
            )
        )

        corners = torch.rand(num_images, 4, 2) * 12 - 2
        self.boxes = [
            torch.cat([a, a + torch.rand(4, 2) * 6], dim=1)[: torch.randint(5, ())] for a in corners
        ]

    def __call__(self, weights, student=None, teacher=None, boxes=None):
        boxes = self.boxes if boxes is None else boxes
        context = Context(
            [Instances((9, 9), gt_boxes=Boxes(x)) for x in boxes],
            {level: 2**i for i, level in enumerate(self.ones)},
        )
        return self.loss(student or self.student, teacher or self.teacher, weights, context)

    def make_identity(self):
        """Set adapters and blocks to the identity."""
        for module in self.loss.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.dirac_(module.weight) if module.weight.dim() == 4 else nn.init.eye_(
                    module.weight
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        if self.loss.__class__.__name__ == "FGDLoss":
            for blocks in self.loss.blocks.values():
                blocks["student"].load_state_dict(blocks["teacher"].state_dict())


def cases(name, file, same_channels=False, standardize=None):
    side = st.integers(1, 9)

    @st.composite
    def draw_case(draw):
        sizes = [draw(st.integers(1, 3))]
        sizes += draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))
        channels = [draw(st.integers(1, 9)), draw(st.integers(1, 9))]
        channels[1] = channels[0] if same_channels else channels[1]
        dtype = draw(st.sampled_from([torch.float32, torch.float64]))
        scale = draw(st.sampled_from(["sum", "rms"]))
        temperature = draw(st.floats(0.1, 2))
        form = [draw(st.booleans()) if x is None else x for x in (standardize, None)]
        seed = draw(st.integers(0, 2**31))
        return Case(name, file, sizes, channels, dtype, scale, temperature, form, seed)

    return draw_case()


@pytest.fixture
def file(repository):
    return f"{repository}/configs/Base-RCNN-FPN.yaml"


def close(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ON_MAPS)
def test_loss_is_linear_in_a_constant_weight(name, file):
    @given(cases(name, file), st.floats(0, 1))
    @QUICK
    def check(case, constant):
        full = case(case.ones)
        assert all(value.isfinite() and value >= -1e-5 for value in full.values())
        actual = case({k: constant * x for k, x in case.ones.items()})
        close(actual, {k: constant * v for k, v in full.items()})

    check()


@pytest.mark.parametrize("name", ZERO_IF_EQUAL)
def test_loss_of_identical_features_is_zero_with_finite_gradients(name, file):
    @given(cases(name, file, same_channels=True))
    @QUICK
    def check(case):
        case.make_identity()
        student = {k: x.clone().requires_grad_() for k, x in case.teacher.items()}
        # The rounding error of products grows with their size, as in the non-local block.
        others = case(case.ones)
        actual = case(case.ones, student)
        assert all(abs(v) < 1e-5 * (10 + others[k]) for k, v in actual.items())
        sum(actual.values()).backward()
        assert all(x.grad.isfinite().all() for x in student.values())
        assert all(p.grad.isfinite().all() for p in case.loss.parameters())

    check()


@pytest.mark.parametrize("name", MONOTONIC)
def test_smaller_weights_do_not_increase_the_loss(name, file):
    @given(cases(name, file, standardize=False))
    @QUICK
    def check(case):
        smaller = {k: torch.rand_like(x) for k, x in case.ones.items()}
        less, more = case(smaller), case(case.ones)
        assert all(less[k] <= v * (1 + 1e-5) + 1e-5 for k, v in more.items())

    check()


@pytest.mark.parametrize("name", ON_MAPS)
def test_loss_of_a_batch_is_the_mean_over_images(name, file):
    @given(cases(name, file))
    @QUICK
    def check(case):
        case.loss.eval()  # batch norm depends on the batch
        weights = {k: torch.rand_like(x) for k, x in case.ones.items()}
        n = len(case.ones["p0"])
        alone = [
            case(
                *(
                    {k: x[i : i + 1] for k, x in y.items()}
                    for y in (weights, case.student, case.teacher)
                ),
                case.boxes[i : i + 1],
            )
            for i in range(n)
        ]
        close(case(weights), {k: sum(x[k] for x in alone) / n for k in alone[0]})

    check()


@pytest.mark.parametrize("name", IGNORE_WEIGHT_ZERO)
def test_positions_of_weight_zero_have_no_influence(name, file):
    @given(cases(name, file))
    @QUICK
    def check(case):
        weights = {k: torch.rand_like(x) * (torch.rand_like(x) < 0.6) for k, x in case.ones.items()}
        expected = case(weights)
        teacher = {k: torch.where(weights[k] > 0, x, 50.0) for k, x in case.teacher.items()}
        student = case.student
        if name != "MGDLoss":  # which generates features from their neighbors
            student = {k: torch.where(weights[k] > 0, x, -50.0) for k, x in student.items()}
        student = {k: x.requires_grad_() for k, x in student.items()}
        actual = case(weights, student, teacher)
        close(actual, expected)
        sum(actual.values()).backward()
        for k, x in student.items():
            assert x.grad.isfinite().all()
            assert name == "MGDLoss" or (x.grad * (weights[k] == 0)).abs().max() == 0

    check()


@pytest.mark.parametrize("name", ON_MAPS)
def test_every_parameter_gets_a_finite_gradient(name, file):
    @given(cases(name, file), st.sampled_from([0.0, 0.5]), st.booleans())
    @QUICK
    def check(case, share, without_boxes):
        if without_boxes:
            case.boxes = [x[:0] for x in case.boxes]
        weights = {
            k: torch.rand_like(x) * (torch.rand_like(x) < share) for k, x in case.ones.items()
        }
        sum(case(weights).values()).backward() if [*case.loss.parameters()] else case(weights)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in case.loss.parameters())

    check()


@pytest.mark.parametrize("name", ON_MAPS)
def test_loss_under_autocast_equals_float32(name, file):
    """Loss and gradient are equal bit for bit; the gradient is rounded to half once."""
    case = Case(name, file, [2, (5, 7), (3, 4)], [4, 6], torch.float32, "sum", 0.5, [True] * 2, 0)
    student, teacher = (
        {k: x.bfloat16() for k, x in y.items()} for y in (case.student, case.teacher)
    )
    results = []
    for half in (True, False):
        student_maps = {k: (x if half else x.float()).requires_grad_() for k, x in student.items()}
        teacher_maps = {k: x if half else x.float() for k, x in teacher.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            actual = case(case.ones, student_maps, teacher_maps)
        assert all(x.dtype == torch.float32 for x in actual.values())
        gradients = torch.autograd.grad(sum(actual.values()), list(student_maps.values()))
        results.append((actual, [x.bfloat16() for x in gradients]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.integers(1, 9),
    st.floats(0.1, 4),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
@QUICK
def test_properties_of_the_response_loss(counts, num_classes, temperature, constant, seed):
    generator = torch.Generator().manual_seed(seed)
    loss = ResponseLoss(
        temperature=temperature, cls_weight=1.0, box_weight=1.0, num_rois=0, min_score=1.0
    )
    student, teacher = (
        5 * torch.randn(sum(counts), num_classes + 1, generator=generator) for _ in range(2)
    )
    weights = torch.rand(sum(counts), generator=generator)

    matched_gt = torch.arange(sum(counts))
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def cls_loss(student, teacher, weights):
        sides = (Predictions(x, torch.zeros(len(matched_gt), 4)) for x in (student, teacher))
        predictions = PairedPredictions(*sides, "softmax", matched_gt, len(matched_gt), image)
        predictions.weights = {"cls": weights, "box": weights}
        context = Context([Instances((9, 9), x=torch.zeros(n)) for n in counts], {}, predictions)
        return loss({}, {}, {}, context)["loss_distill_response_cls"]

    actual = cls_loss(student, teacher, weights)
    assert actual.isfinite() and actual >= -1e-5
    torch.testing.assert_close(cls_loss(student, teacher, constant * weights), constant * actual)
    order = torch.cat([x.flip(0) for x in torch.arange(sum(counts)).split(counts)])
    reordered = cls_loss(student[order], teacher[order], weights[order])
    torch.testing.assert_close(reordered, actual)
    predictions = teacher.clone().requires_grad_()
    same = cls_loss(predictions, teacher, weights)
    assert same.abs() < 1e-5
    same.backward()
    assert predictions.grad.abs().max() < 1e-5 if sum(counts) else True

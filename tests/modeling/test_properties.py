"""Properties of per-instance losses and weighting rules on random batches."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aid.modeling.families import DetectionQuality, PerInstanceLosses, per_instance_losses
from aid.modeling.weighting import (
    WEIGHTING_REGISTRY,
    ConstantWeighting,
    ExponentialWeighting,
    TeacherMixing,
    TeacherStats,
)

pytestmark = pytest.mark.core

QUICK = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the detectors do not change
)
GRANULARITIES = st.sampled_from(["instance", "level", "image"])
BACKGROUNDS = st.sampled_from(["mean", "loss", "one"])
ALPHAS = st.floats(0, 3)
# From studies/rules.py.
RELATIVE, CLASS, STUDENT_AWARE, STUDENT_RATIO, QUALITY, PRODUCT, SCORE = (
    WEIGHTING_REGISTRY.get(f"{name}Weighting")
    for name in (
        "Relative",
        "Class",
        "StudentAware",
        "StudentRatio",
        "Quality",
        "ScoreTimesIoU",
        "Score",
    )
)
PLAIN_WITH_ALPHA_0 = [ExponentialWeighting, RELATIVE, STUDENT_AWARE, QUALITY, PRODUCT]
ADAPTIVE = [*PLAIN_WITH_ALPHA_0, STUDENT_RATIO]


class RandomBatch:
    """Input of a weighting rule: images of random sizes with random boxes and losses."""

    def __init__(self, counts, shapes, dtype, seed):
        self.counts = counts
        generator = torch.Generator().manual_seed(seed)

        def rand(*size):
            return torch.rand(*size, generator=generator).to(dtype)

        self.levels = {f"p{i}": (size, 2**i) for i, size in enumerate(shapes, start=2)}
        num_images, num_levels, g = len(counts), len(shapes), sum(counts)
        height, width = (4 * side for side in shapes[0])
        self.boxes = []
        for n in counts:
            # Some boxes have no area, some lie far outside the image.
            corner = (rand(n, 2).float() * 2 - 0.5) * torch.tensor([width, height])
            side = (rand(n, 2).float() * 1.2 - 0.2).clamp(min=0) * max(height, width)
            self.boxes.append(torch.cat([corner, corner + side], dim=1))
        share = rand(g, num_levels) + 0.01
        self.share = share / share.sum(dim=1, keepdim=True)
        self.components = {k: 15 * rand(g) ** 3 for k in ("cls", "box")}
        self.rest = {"cls": 2 * rand(num_images, num_levels) ** 3}
        self.student = {k: 15 * rand(g) ** 3 for k in ("cls", "box")}
        self.score, self.iou = rand(g), rand(g)
        self.classes = torch.randint(3, (g,), generator=generator)

    def stats(self):
        levels = tuple(self.levels)
        teacher = PerInstanceLosses(levels, self.components, self.rest, self.share)
        student = PerInstanceLosses(levels, self.student, self.rest, self.share)
        quality = DetectionQuality(self.score, self.iou)
        return TeacherStats(teacher, self.classes, student, quality)

    def maps(self, rule):
        return TeacherMixing([rule])([rule(self.stats(), self.boxes, self.levels)])[0]

    def permuted(self, generator):
        """A copy with the instances of each image permuted, and the permutation."""
        start, orders = 0, []
        for n in self.counts:
            orders.append(torch.randperm(n, generator=generator) + start)
            start += n
        order = torch.cat(orders)
        other = object.__new__(RandomBatch)
        other.__dict__ = dict(self.__dict__)
        other.boxes = list(torch.cat(self.boxes)[order].split(self.counts))
        other.components = {k: v[order] for k, v in self.components.items()}
        other.student = {k: v[order] for k, v in self.student.items()}
        for name in ("share", "score", "iou", "classes"):
            setattr(other, name, getattr(self, name)[order])
        return other, order


@st.composite
def batches(draw):
    counts = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    shapes = [(height, width)]
    for _ in range(draw(st.integers(0, 3))):
        shapes.append(tuple(-(-side // 2) for side in shapes[-1]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return RandomBatch(counts, shapes, dtype, draw(st.integers(0, 2**31)))


@pytest.mark.parametrize("rule", [*PLAIN_WITH_ALPHA_0, SCORE])
@given(batches(), GRANULARITIES, BACKGROUNDS, st.booleans())
@QUICK
def test_alpha_0_is_exactly_plain_distillation(rule, batch, granularity, background, normalize):
    options = {"granularity": granularity, "background": background, "normalize": normalize}
    actual = batch.maps(rule(alpha=0.0, **options))
    assert all((x == 1).all() for x in actual.maps.values())


@given(batches(), ALPHAS, st.floats(0, 20), st.sampled_from(["mean", "loss"]))
@QUICK
def test_equal_losses_make_all_granularities_equal(batch, alpha, loss, background):
    batch.components = {"cls": torch.full_like(batch.components["cls"], loss)}
    batch.rest = {"cls": torch.full_like(batch.rest["cls"], loss)}
    rules = [
        ExponentialWeighting(alpha=alpha, granularity=x, background=background)
        for x in ("instance", "level", "image")
    ]
    instance, level, image = (batch.maps(rule).maps for rule in rules)
    for name in batch.levels:
        assert torch.equal(instance[name], level[name])
        torch.testing.assert_close(image[name], level[name], rtol=3e-5, atol=0)


@given(batches(), st.floats(0.01, 3), st.floats(0.01, 5), st.data())
@QUICK
def test_larger_loss_lowers_only_the_weight_of_that_instance(batch, alpha, more, data):
    assume(sum(batch.counts))
    rule = ExponentialWeighting(alpha=alpha)
    before = batch.maps(rule).instance
    i = data.draw(st.integers(0, sum(batch.counts) - 1))
    batch.components["cls"][i] += more
    after = batch.maps(rule).instance
    assert after[i] < before[i]
    others = torch.arange(len(before)) != i
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("rule", [*ADAPTIVE, SCORE])
@given(batches(), GRANULARITIES, BACKGROUNDS, ALPHAS, st.booleans())
@QUICK
def test_weights_are_permutation_equivariant(
    rule, batch, granularity, background, alpha, normalize
):
    options = {"granularity": granularity, "background": background, "normalize": normalize}
    other, order = batch.permuted(torch.Generator().manual_seed(0))
    actual, reordered = (x.maps(rule(alpha=alpha, **options)) for x in (batch, other))
    torch.testing.assert_close(reordered.instance, actual.instance[order])
    for name, expected in actual.maps.items():
        torch.testing.assert_close(reordered.maps[name], expected)


@pytest.mark.parametrize("rule", [*ADAPTIVE, CLASS, ConstantWeighting])
@given(batches(), GRANULARITIES, BACKGROUNDS, ALPHAS, st.sampled_from([math.nan, math.inf, None]))
@QUICK
def test_weights_are_in_0_1_despite_non_finite_losses(
    rule, batch, granularity, background, alpha, bad
):
    if bad is not None:
        batch.components["cls"][::2] = bad
        batch.rest["cls"][:, ::2] = bad
        batch.student["box"][1::3] = bad
    options = {
        CLASS: {"distrusted": [1]},
        ConstantWeighting: {"constant": min(alpha, 1.0)},
    }.get(rule, {"alpha": alpha})
    actual = batch.maps(rule(granularity=granularity, background=background, **options))
    for name, (size, _) in batch.levels.items():
        weights = actual.maps[name]
        assert weights.shape == (len(batch.counts), 1, *size)
        assert ((weights >= 0) & (weights <= 1)).all()
    if bad is not None and rule is not ConstantWeighting:
        assert (actual.instance[::2] == 0).all()


@pytest.mark.parametrize("rule", ADAPTIVE)
@given(batches(), GRANULARITIES, BACKGROUNDS, ALPHAS)
@QUICK
def test_normalized_maps_have_mean_1(rule, batch, granularity, background, alpha):
    options = {"alpha": alpha, "granularity": granularity, "background": background}
    plain = batch.maps(rule(**options)).maps
    actual = batch.maps(rule(**options, normalize=True)).maps
    for name, weights in actual.items():
        if plain[name].mean() < 1e-6:  # weights near 0 are not scaled up
            assert weights.mean() <= 1
        else:
            torch.testing.assert_close(weights.mean(), torch.ones_like(weights.mean()))
            ratio = plain[name] * weights.amax()
            torch.testing.assert_close(weights * plain[name].amax(), ratio)


@pytest.mark.parametrize(
    "kind", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.integers(1, 130),
    st.integers(1, 130),
    st.integers(0, 2**31),
)
@settings(QUICK, max_examples=12)
def test_per_instance_losses_are_finite_and_permutation_equivariant(
    kind, tiny_model, counts, height, width, seed
):
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for n in counts:
        instances = Instances((height, width))
        size = torch.tensor([width, height])
        corner = torch.rand(n, 2, generator=generator) * size * 0.9
        side = torch.rand(n, 2, generator=generator) ** 3 * 150 + 0.01
        # Clipped to the image, as in Detectron2's data.
        instances.gt_boxes = Boxes(torch.cat([corner, (corner + side).minimum(size)], dim=1))
        instances.gt_classes = torch.randint(3, (n,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator)
        batch.append({"image": image, "instances": instances})
    model = tiny_model(kind)
    orders = [torch.randperm(n, generator=generator) for n in counts]
    random_state = torch.get_rng_state()
    with torch.no_grad():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        targets = [x["instances"] for x in batch]
        actual = per_instance_losses(model, images, features, targets)
        permuted = [x[order] for x, order in zip(targets, orders, strict=True)]
        reordered = per_instance_losses(model, images, features, permuted)
    assert torch.equal(torch.get_rng_state(), random_state)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    order = torch.cat([x + start for x, start in zip(orders, starts, strict=True)])
    assert {"cls", "box"} <= actual.components.keys()
    assert ("rpn_cls" in actual.components) == ("rcnn" in kind)
    assert ("ctr" in actual.components) == (kind == "fcos")
    for name, component in actual.components.items():
        assert (
            component.shape == (sum(counts),)
            and component.isfinite().all()
            and (component >= 0).all()
        )
        torch.testing.assert_close(reordered.components[name], component[order])
    torch.testing.assert_close(reordered.level_share, actual.level_share[order])
    torch.testing.assert_close(actual.level_share.sum(dim=1), torch.ones(sum(counts)))
    for name, component in actual.background.items():
        assert (
            component.shape == (len(counts), 5)
            and component.isfinite().all()
            and (component >= 0).all()
        )
        torch.testing.assert_close(reordered.background[name], component, rtol=1e-4, atol=0)

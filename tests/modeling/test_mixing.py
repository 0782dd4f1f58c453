"""Weights of several teachers: known values and properties of the mixing."""

import pytest
import torch

from aid.modeling.weighting import (
    WEIGHTING_REGISTRY,
    ComponentWeights,
    ConstantWeighting,
    ExponentialWeighting,
    TeacherMixing,
    Weights,
)
from aid.modeling.weighting.mixing import mix
from aid.utils.errors import AIDError


def exponential(**options):
    return ExponentialWeighting(alpha=0.5, **options)


def weights(maps, **others):
    return Weights(
        {level: torch.tensor(x)[:, None, None, :] for level, x in maps.items()}, **others
    )


def mixed(*of_teachers, **options):
    return TeacherMixing([exponential(**options) for _ in of_teachers])(list(of_teachers))


def test_weights_of_a_single_teacher_are_normalized_alone():
    alone = weights({"p2": [[0.3, 0.0]]}, instance=torch.tensor([0.3]))
    assert mixed(alone)[0] is alone
    actual = mixed(alone, normalize=True)[0]
    assert actual.maps["p2"].flatten().tolist() == pytest.approx([2, 0])
    assert torch.equal(actual.instance, alone.instance)


def test_shares_are_the_softmax_of_minus_alpha_times_loss():
    d = torch.tensor([[0.0, 3.0, 8.0], [1.0, 1.0, 8.0], [5.0, 0.5, 8.0]])
    w = exponential().weight(d)
    actual = mix(list(w))
    torch.testing.assert_close(actual / w, (-0.5 * d).softmax(dim=0))
    # The best teacher has the largest weight; the sum never exceeds the best weight alone.
    assert (actual.argmax(dim=0)[:2] == d.argmin(dim=0)[:2]).all()
    assert (actual.sum(dim=0) <= w.amax(dim=0)).all()


def test_teacher_whose_losses_need_no_predictions_keeps_its_place():
    parts = ComponentWeights(*(torch.tensor([x]) for x in (0.5, 0.25, 1.0)))
    instance = torch.tensor([0.5])
    without = weights({"p2": [[0.5]]}, instance=instance)
    with_parts = weights({"p2": [[0.5]]}, instance=instance, components=parts)
    first, second = mixed(without, with_parts)
    assert first.components is None
    assert [x.item() for x in (second.components.cls, second.components.box)] == [0.5, 0.25]


@pytest.mark.parametrize(
    "other, message",
    [
        (ConstantWeighting(constant=1.0), "ConstantWeighting by instance, normalize False"),
        (WEIGHTING_REGISTRY.get("RelativeWeighting")(alpha=0.5), "RelativeWeighting by instance"),
        (exponential(granularity="none"), "ExponentialWeighting by none"),
        (exponential(normalize=True), "instance, normalize True: give .* the same rule"),
    ],
)
def test_different_rules_are_refused(other, message):
    expected = f"2 teachers: ExponentialWeighting by instance, normalize False; .*{message}"
    with pytest.raises(AIDError, match=expected):
        TeacherMixing([exponential(), other])
    with pytest.raises(AIDError, match="0 teachers: none: give at least one"):
        TeacherMixing([])
    TeacherMixing([exponential(), ExponentialWeighting(alpha=2.0, background="loss")])


def test_permuted_teachers_have_permuted_weights():
    generator = torch.Generator().manual_seed(0)
    w = list(torch.rand(3, 50, generator=generator))
    actual = mix(w)
    for order in ([1, 0, 2], [2, 0, 1]):
        permuted = mix([w[t] for t in order])
        for t, x in zip(order, permuted, strict=True):
            torch.testing.assert_close(x, actual[t])


def test_zero_weight_leaves_the_full_weight_to_the_others():
    actual = mix([torch.tensor([0.0, 0.0, 0.25]), torch.tensor([0.7, 0.0, 0.25])])
    assert actual[0].tolist() == [0, 0, 0.125]
    assert actual[1].tolist() == pytest.approx([0.7, 0, 0.125])


def test_level_is_shared_by_the_teachers_that_have_it():
    first = weights({"p2": [[0.5]], "p3": [[0.5]]})
    second = weights({"p3": [[0.25]], "p4": [[0.25]]})
    a, b = mixed(first, second)
    assert {k: x.item() for k, x in a.maps.items()} == pytest.approx({"p2": 0.5, "p3": 1 / 3})
    assert {k: x.item() for k, x in b.maps.items()} == pytest.approx({"p3": 1 / 12, "p4": 0.25})


def test_constant_weights_are_split_evenly():
    rules = [ConstantWeighting(constant=0.6) for _ in range(3)]
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
    levels = {"p2": ((2, 2), 4)}
    for actual in TeacherMixing(rules)([rule(None, boxes, levels) for rule in rules]):
        torch.testing.assert_close(actual.maps["p2"], torch.full((1, 1, 2, 2), 0.2))
        assert actual.instance is None


def test_maps_are_normalized_after_mixing():
    known = {"instance": torch.tensor([0.9, 0.1]), "loss": torch.tensor([0.2, 4.6])}
    a, b = (weights({"p2": [[x, 0.0]]}, **known) for x in (0.9, 0.1))
    first, second = mixed(a, b, normalize=True)
    assert first.maps["p2"].flatten().tolist() == pytest.approx([2 * 0.81 / 0.82, 0])
    assert second.maps["p2"].flatten().tolist() == pytest.approx([2 * 0.01 / 0.82, 0])
    assert first.loss.tolist() == pytest.approx([0.2, 4.6])
    assert first.instance.tolist() == pytest.approx([0.45, 0.05])


@pytest.mark.parametrize("normalize", [False, True])
def test_component_weights_are_mixed_like_maps(normalize):
    known = {"instance": torch.tensor([1.0]), "loss": torch.tensor([0.0])}
    cls, box, background = ([0.6, 0.2], [0.5, 0.0], [0.3, 0.1])
    components = [
        ComponentWeights(*(torch.tensor([x]) for x in values))
        for values in zip(cls, box, background, strict=True)
    ]
    actual = mixed(
        *(weights({"p2": [[1.0]]}, components=x, **known) for x in components), normalize=normalize
    )
    # Sums 0.8, 0.5 and 0.4; normalized jointly, classes together with the background.
    mean_cls = (0.36 / 0.8 + 0.04 / 0.8 + 0.09 / 0.4 + 0.01 / 0.4) / 2 if normalize else 1
    mean_box = 0.5 if normalize else 1
    for k, x in enumerate(actual):
        assert x.components.cls.item() == pytest.approx(cls[k] ** 2 / 0.8 / mean_cls)
        assert x.components.box.item() == pytest.approx(box[k] ** 2 / 0.5 / mean_box)
        assert x.components.background.item() == pytest.approx(background[k] ** 2 / 0.4 / mean_cls)

"""How several teachers share a place: known values, and what holds for all."""

import pytest
import torch

from aid.modeling.weighting import (
    ComponentWeights,
    ConstantWeighting,
    ExponentialWeighting,
    RelativeWeighting,
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


def share(*of_teachers, **options):
    return TeacherMixing([exponential(**options) for _ in of_teachers])(list(of_teachers))


def test_one_teacher_keeps_what_it_had():
    alone = weights({"p2": [[0.3, 0.0]]})
    rule = exponential(normalize=True)
    assert TeacherMixing([rule])([alone])[0] is alone and rule.normalize


def test_the_shares_are_the_softmax_of_minus_alpha_d():
    d = torch.tensor([[0.0, 3.0, 8.0], [1.0, 1.0, 8.0], [5.0, 0.5, 8.0]])
    w = exponential().weight(d)
    found = mix(list(w))
    torch.testing.assert_close(found / w, (-0.5 * d).softmax(dim=0))
    # The better a teacher, the more; and together they never have more than the best alone.
    assert (found.argmax(dim=0)[:2] == d.argmin(dim=0)[:2]).all()
    assert (found.sum(dim=0) <= w.amax(dim=0)).all()


@pytest.mark.parametrize(
    "other, message",
    [
        (ConstantWeighting(constant=1.0), "ConstantWeighting by instance, normalize False"),
        (RelativeWeighting(alpha=0.5, momentum=0.9), "RelativeWeighting by instance"),
        (exponential(granularity="none"), "ExponentialWeighting by none"),
        (exponential(normalize=True), "instance, normalize True: give .* the same rule"),
    ],
)
def test_weights_of_different_rules_are_not_mixed(other, message):
    found = f"2 teachers: ExponentialWeighting by instance, normalize False; .*{message}"
    with pytest.raises(AIDError, match=found):
        TeacherMixing([exponential(), other])
    with pytest.raises(AIDError, match="0 teachers: none: give at least one"):
        TeacherMixing([])
    TeacherMixing([exponential(), ExponentialWeighting(alpha=2.0, background="loss")])


def test_permuted_teachers_have_permuted_weights():
    generator = torch.Generator().manual_seed(0)
    w = list(torch.rand(3, 50, generator=generator))
    found = mix(w)
    for order in ([1, 0, 2], [2, 0, 1]):
        permuted = mix([w[t] for t in order])
        for t, x in zip(order, permuted, strict=True):
            torch.testing.assert_close(x, found[t])


def test_who_is_worth_nothing_leaves_all_to_the_others():
    found = mix([torch.tensor([0.0, 0.0, 0.25]), torch.tensor([0.7, 0.0, 0.25])])
    assert found[0].tolist() == [0, 0, 0.125]
    assert found[1].tolist() == pytest.approx([0.7, 0, 0.125])


def test_a_level_is_shared_by_those_who_have_it():
    first = weights({"p2": [[0.5]], "p3": [[0.5]]})
    second = weights({"p3": [[0.25]], "p4": [[0.25]]})
    a, b = share(first, second)
    assert {k: x.item() for k, x in a.maps.items()} == pytest.approx({"p2": 0.5, "p3": 1 / 3})
    assert {k: x.item() for k, x in b.maps.items()} == pytest.approx({"p3": 1 / 12, "p4": 0.25})


def test_without_evidence_each_has_a_like_share():
    rules = [ConstantWeighting(constant=0.6) for _ in range(3)]
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
    levels = {"p2": ((2, 2), 4)}
    for found in TeacherMixing(rules)([rule(None, boxes, levels) for rule in rules]):
        torch.testing.assert_close(found.maps["p2"], torch.full((1, 1, 2, 2), 0.2))
        assert found.instance is None


def test_maps_are_normalised_after_they_are_shared():
    known = {"instance": torch.tensor([0.9, 0.1]), "loss": torch.tensor([0.2, 4.6])}
    a, b = (weights({"p2": [[x, 0.0]]}, **known) for x in (0.9, 0.1))
    first, second = share(a, b, normalize=True)
    assert first.maps["p2"].flatten().tolist() == pytest.approx([2 * 0.81 / 0.82, 0])
    assert second.maps["p2"].flatten().tolist() == pytest.approx([2 * 0.01 / 0.82, 0])
    assert first.loss.tolist() == pytest.approx([0.2, 4.6])
    assert first.instance.tolist() == pytest.approx([0.45, 0.05])


@pytest.mark.parametrize("normalize", [False, True])
def test_weights_of_parts_are_shared_as_those_of_maps_are(normalize):
    known = {"instance": torch.tensor([1.0]), "loss": torch.tensor([0.0])}
    cls, box, background = ([0.6, 0.2], [0.5, 0.0], [0.3, 0.1])
    parts = [
        ComponentWeights(*(torch.tensor([x]) for x in of_teacher))
        for of_teacher in zip(cls, box, background, strict=True)
    ]
    found = share(
        *(weights({"p2": [[1.0]]}, components=x, **known) for x in parts), normalize=normalize
    )
    # Of 0.8, 0.5 and 0.4; normalised by what they have together, classes with the background.
    mean_cls = (0.36 / 0.8 + 0.04 / 0.8 + 0.09 / 0.4 + 0.01 / 0.4) / 2 if normalize else 1
    mean_box = 0.5 if normalize else 1
    for k, x in enumerate(found):
        assert x.components.cls.item() == pytest.approx(cls[k] ** 2 / 0.8 / mean_cls)
        assert x.components.box.item() == pytest.approx(box[k] ** 2 / 0.5 / mean_box)
        assert x.components.background.item() == pytest.approx(background[k] ** 2 / 0.4 / mean_cls)

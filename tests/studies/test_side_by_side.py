"""studies/side_by_side.py: losses as others compute them have the values of this project's."""

import json
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from aid.config import load_config
from aid.data import register
from aid.modeling.losses import DISTILLATION_LOSS_REGISTRY, Context

SIZES = {"p2": (6, 9), "p3": (3, 5)}
CHANNELS = 8
STRIDES = {"p2": 8, "p3": 16}


@pytest.fixture
def registry(monkeypatch):
    """The registry of losses, from which further losses are removed after the test."""
    monkeypatch.setattr(
        DISTILLATION_LOSS_REGISTRY, "_obj_map", dict(DISTILLATION_LOSS_REGISTRY._obj_map)
    )
    monkeypatch.setattr(register, "REGISTERED", [])
    return DISTILLATION_LOSS_REGISTRY


@pytest.fixture
def build(registry, load_script, tiny_config):
    """A function (name) -> loss with the keys of the papers."""
    load_script("studies/side_by_side_losses.py")
    keys = load_script("studies/side_by_side.py").AID_PAPER
    cfg = load_config(tiny_config("faster_rcnn"), keys)

    def make(name):
        torch.manual_seed(1)
        shapes = {k: ShapeSpec(channels=CHANNELS) for k in SIZES}
        return registry.get(name)(cfg, tuple(SIZES), shapes, shapes)

    return make


def features(num_images, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(num_images, CHANNELS, *size, generator=generator)
        for k, size in SIZES.items()
    }


def make_context(*counts):
    """Context of images with so many random boxes."""
    generator = torch.Generator().manual_seed(5)
    instances = []
    for n in counts:
        low = torch.rand(n, 2, generator=generator) * torch.tensor([60.0, 36.0])
        boxes = torch.cat([low, low + 1 + 11 * torch.rand(n, 2, generator=generator)], dim=1)
        classes = torch.arange(n) % 3
        instances.append(Instances((48, 72), gt_boxes=Boxes(boxes), gt_classes=classes))
    return Context(instances, STRIDES)


def run(loss, student, teacher, context):
    """Terms, and gradients of their sum by the student's features and the parameters."""
    student = {k: x.clone().requires_grad_() for k, x in student.items()}
    weights = {k: torch.ones_like(x[:, :1]) for k, x in student.items()}
    terms = loss(student, teacher, weights, context)
    inputs = [*student.values(), *loss.parameters()]
    return terms, torch.autograd.grad(sum(terms.values()), inputs)


@pytest.mark.parametrize(
    "name, num_images",
    [("AttentionGuidedLoss", 2), ("NonLocalLoss", 2), ("FGDLoss", 2), ("PKDLoss", 1)],
)
def test_other_computation_has_the_same_value_and_gradient(name, num_images, build):
    ours, other = build(name).double(), build(f"Original{name}").double()
    assert type(other).level is not type(ours).level
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)  # blocks that are initially the identity become active
    other.load_state_dict(ours.state_dict())
    student, teacher = (
        {k: x.double() for k, x in features(num_images, seed).items()} for seed in (0, 1)
    )
    context = make_context(*(3, 0)[:num_images])
    expected, gradients = run(ours, student, teacher, context)
    actual, other_gradients = run(other, student, teacher, context)
    assert all(x.item() != 0 for x in expected.values())
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-4, atol=1e-7)


def test_icd_trains_the_student_and_its_decoder_by_separate_terms(build):
    loss = build("ICDLoss")
    student = {k: x.requires_grad_() for k, x in features(2, 0).items()}
    teacher = features(2, 1)
    weights = {k: torch.ones_like(x[:, :1]) for k, x in student.items()}
    terms = loss(student, teacher, weights, make_context(3, 1))
    imitation = terms.pop("loss_distill_icd")
    inputs = [list(student.values()), list(loss.parameters())]
    for term, trained, other in ((imitation, *inputs), (sum(terms.values()), *inputs[::-1])):
        gradients = torch.autograd.grad(term, trained + other, retain_graph=True, allow_unused=True)
        assert all(x.abs().sum() > 0 for x in gradients[: len(trained)])
        assert all(x is None for x in gradients[len(trained) :])
    terms = loss(teacher, teacher, weights, make_context(3, 1))
    assert terms["loss_distill_icd"].item() == pytest.approx(0, abs=1e-9)


def test_icd_attends_to_all_positions_of_each_image(build):
    """With equal keys the attention is uniform: the loss is the mean over positions and heads."""
    loss = build("ICDLoss")
    torch.nn.init.zeros_(loss.key.weight)
    student, teacher = features(2, 0), features(2, 1)
    actual, _ = run(loss, student, teacher, make_context(2, 1))
    squares = []
    for k in range(2):
        flat = ([x[name][k].flatten(1).T for name in SIZES] for x in (student, teacher))
        difference = torch.cat(next(flat)) - torch.cat(next(flat))
        squares.append((difference @ loss.value.weight.T).square().mean())
    expected = 3 * (2 * squares[0] + squares[1]) / 3
    torch.testing.assert_close(actual["loss_distill_icd"], expected)


def test_icd_without_instances_has_gradients(build):
    loss = build("ICDLoss")
    terms, gradients = run(loss, features(1, 0), features(1, 1), make_context(0))
    assert all(x.item() == 0 for x in terms.values())
    assert all(x.isfinite().all() for x in gradients)


def test_steps_are_compared_in_one_table(
    registry, load_script, tiny_config, tmp_path, capsys, monkeypatch
):
    teacher = tiny_config("faster_rcnn", name="teacher")
    keys = ["MODEL.META_ARCHITECTURE", "AIDGeneralizedRCNN", "TEACHER.CONFIG_FILE", teacher]
    config = tiny_config("faster_rcnn", keys, name="student")
    script, path = load_script("studies/side_by_side.py"), tmp_path / "numbers.json"
    monkeypatch.setattr(script, "ROWS", [script.ROWS[1], script.ROWS[-1]])
    options = ["--size", "64x96", "--instances", "2", "--repeat", "1", "--no-memory"]
    script.main(["--config-file", config, *options, "--json", str(path)])
    lines = capsys.readouterr().out.splitlines()
    actual = json.loads(path.read_text())
    assert len(lines) == 2 + len(script.ROWS) == 2 + len(actual["rows"])
    assert actual["setup"]["height"] == 64 and actual["setup"]["torch"] == torch.__version__
    for row, line in zip(actual["rows"], lines[2:], strict=True):
        assert all(step in line for step in row["steps"])
        for name, end in (("step", ""), ("losses", script.LOSSES)):
            ours, other = (actual["seconds"][step + end][0] for step in row["steps"])
            assert math.isclose(row[f"{name}_ratio"], ours / other) and ours > 0
            assert f"{ours / other:.2f}" in line


def test_rows_hold_medians_of_ratios_within_a_round(load_script):
    script = load_script("studies/side_by_side.py")
    seconds = {"a": [1.0, 4.0, 9.0], "b": [2.0, 2.0, 90.0]}
    seconds |= {f"{k}{script.LOSSES}": [x[0]] for k, x in seconds.items()}
    row = script.compared("a", "b", seconds, {"a": 2**21, "b": 2**20})
    assert row["step_seconds"] == [4.0, 2.0] and row["step_ratio"] == 0.5
    assert row["losses_ratio"] == 0.5
    assert row["memory_mib"] == [2.0, 1.0] and row["memory_ratio"] == 2.0
    cells = [x.strip() for x in script.table([row]).splitlines()[-1].split("|")]
    assert cells[1:-1] == ["a", "b", "4, 2", "0.50", "1, 2", "0.50", "2, 1", "2.00"]

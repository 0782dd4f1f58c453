"""Teachers whose classes are mapped to the student's.

A mapped twin must equal its detector: the twin has the same classes in another order, one of them
split into two classes with half of its probability each, and one class that is background to the
detector.
"""

import logging
import math

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from aid.config import load_config
from aid.modeling.class_map import ClassMap
from aid.modeling.families import (
    best_detections,
    merge_classes,
    num_classes,
    per_instance_losses,
)
from aid.modeling.families.base import detect
from aid.modeling.families.merging import LogSumExpOfGroups, MaxOfGroups
from aid.modeling.inheritance import inherit
from aid.modeling.teacher import Teacher, build_teacher, map_classes
from aid.modeling.teacher_base import TeacherView
from aid.modeling.teacher_check import check_match, check_teacher, compare
from aid.modeling.teacher_keys import teacher_kinds
from aid.utils.errors import AIDError

KEYS = {
    "faster_rcnn": "MODEL.ROI_HEADS.NUM_CLASSES",
    "mask_rcnn": "MODEL.ROI_HEADS.NUM_CLASSES",
    "cascade_rcnn": "MODEL.ROI_HEADS.NUM_CLASSES",
    "retinanet": "MODEL.RETINANET.NUM_CLASSES",
    "gfl": "MODEL.GFL.NUM_CLASSES",
    "fcos": "MODEL.FCOS.NUM_CLASSES",
}
SIGMOIDS = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
VARIANTS = [*((kind, ()) for kind in KEYS), ("faster_rcnn", SIGMOIDS)]
STUDENT = ("Car", "Pedestrian", "Cyclist")
TEACHER = ("cyclist", "van", "tree", "person", "car")
TWIN = (2, 0, None, 1, 0)  # class of the detector for each class of the twin
ENTRIES = ["cyclist: Cyclist", "van: Car", "person: Pedestrian", "car: Car"]


def class_layers(model) -> list[tuple[nn.Module, int]]:
    """Layers with outputs for each class, and the number of outputs for each."""
    if hasattr(model, "head"):
        return [(model.head.cls_score, 1)]
    heads, layers = model.roi_heads, []
    cascade = isinstance(heads.box_predictor, nn.ModuleList)
    for predictor in heads.box_predictor if cascade else [heads.box_predictor]:
        layers += [(predictor.cls_score, 1)] + [(predictor.bbox_pred, 4)] * (not cascade)
    return layers + ([(heads.mask_head.predictor, 1)] if heads.mask_on else [])


def copy_classes(layer, twin, size: int, halve: bool) -> None:
    """Copy the weights of a class layer of the detector to that of its twin."""
    has_background = isinstance(layer, nn.Linear) and size == 1
    rows = [3 * has_background if k is None else k for k in TWIN] + [3] * has_background
    for source, target in ((layer.weight, twin.weight), (layer.bias, twin.bias)):
        value = source.unflatten(0, (-1, 3 + has_background, size))[:, rows].clone()
        if halve and has_background and source is layer.bias:
            value[:, [k for k, row in enumerate(rows) if rows.count(row) > 1]] -= math.log(2)
        target.copy_(value.flatten(0, 2))


@pytest.fixture
def pair(tiny_model):
    """Function (kind, opts) -> detector with varied scores and its twin, before any map."""

    @torch.no_grad()
    def make(kind, opts=()):
        model, twin = tiny_model(kind, opts), tiny_model(kind, [*opts, KEYS[kind], 5])
        generator = torch.Generator().manual_seed(5)
        for layer, size in class_layers(model):
            layer.weight.normal_(0, 0.3 / size**2, generator=generator)
            layer.bias.normal_(-0.5, 0.3, generator=generator)
        state = twin.state_dict()
        shared = {k: v for k, v in model.state_dict().items() if v.shape == state[k].shape}
        twin.load_state_dict({**state, **shared})
        for (layer, size), (other, _) in zip(class_layers(model), class_layers(twin), strict=True):
            copy_classes(layer, other, size, halve=SIGMOIDS[0] not in opts)
        return model, twin

    return make


@pytest.fixture
def mapped_config(pair, tiny_config, student_config, tmp_path):
    """Function (kind, entries, opts) -> config of a student whose teacher is a twin on disk."""

    def make(kind, entries=("4: 0",), opts=(), student=None):
        path = tiny_config(kind, [KEYS[kind], 5], name="twin")
        torch.save({"model": pair(kind)[1].state_dict()}, tmp_path / "twin.pth")
        keys = ["TEACHER.CONFIG_FILE", path, "TEACHER.WEIGHTS", str(tmp_path / "twin.pth")]
        return student_config(
            student or kind, kind, [*keys, "TEACHER.CLASS_MAP", list(entries), *opts]
        )

    return make


@pytest.fixture
def named_datasets():
    """Names of the datasets of students and twins, with registered class names."""
    names = {"classes_of_student": STUDENT, "classes_of_teacher": TEACHER}
    names["classes_in_another_order"] = ("Pedestrian", "Car", "Cyclist")
    for name, classes in names.items():
        MetadataCatalog.get(name).thing_classes = list(classes)
    yield tuple(names)
    for name in names:
        MetadataCatalog.remove(name)


def as_teacher(detector, unknown=()):
    """Teacher with a twin as its detector; ``unknown`` classes have no counterpart in it."""
    teacher = Teacher(detector, cfg=None)
    targets = tuple(None if k in unknown else k for k in TWIN)
    teacher.map_classes(ClassMap(TEACHER, STUDENT, targets))
    return teacher


def losses_of(detector, batch, background=True):
    images = detector.preprocess_image(batch)
    targets = [x["instances"] for x in batch]
    features = detector.backbone(images.tensor)
    with EventStorage(), torch.no_grad():
        losses = per_instance_losses(detector, images, features, targets, background)
        detections = detect(detector, images, features)
        quality = best_detections(detections, targets)
    return losses, detections, quality


def test_probabilities_of_a_group_add_up():
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0, -70.0, 0.0]])
    groups = [[0, 2], [3], [], [4], [1, 5]]
    merged = LogSumExpOfGroups(groups)(logits)
    p, q = logits.double().softmax(dim=1)[0], merged.double().softmax(dim=1)[0]
    torch.testing.assert_close(
        q, torch.stack([p[group].sum() for group in groups]), rtol=1e-6, atol=0
    )
    assert q[2] == 0
    assert torch.equal(merged[:, [1, 3]], logits[:, [3, 4]])  # no rounding


def test_merged_logit_is_the_largest_of_its_group():
    logits = torch.randn(2, 3 * 5, 4, 6, generator=torch.Generator().manual_seed(0))
    groups = [[4], [], [0, 2, 3]]
    merged = MaxOfGroups(groups, 5)(logits).view(2, 3, 3, 4, 6)
    per_anchor = logits.view(2, 3, 5, 4, 6)
    assert torch.equal(merged[:, :, 0], per_anchor[:, :, 4])
    assert torch.equal(merged[:, :, 2], per_anchor[:, :, [0, 2, 3]].amax(dim=2))
    assert (merged[:, :, 1].sigmoid() == 0).all()
    half = MaxOfGroups(groups, 5)(logits.half())
    assert half.dtype == torch.half and half.isfinite().all()


@pytest.mark.parametrize("kind, opts", VARIANTS)
def test_mapped_twin_equals_its_detector(kind, opts, pair, make_batch):
    model, twin = pair(kind, opts)
    teacher = as_teacher(twin)
    assert num_classes(twin) == 3
    assert not any(x.training for x in twin.modules())
    batch = make_batch((2, 0, 3))
    expected, expected_detections, expected_quality = losses_of(model, batch)
    losses, detections, quality = losses_of(teacher.detector, batch)
    assert expected.components["cls"].std() > 0.01
    for kind_of_loss in ("components", "background"):
        torch.testing.assert_close(
            getattr(losses, kind_of_loss), getattr(expected, kind_of_loss), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(vars(quality), vars(expected_quality), rtol=1e-4, atol=1e-5)
    assert sum(map(len, expected_detections)) > 0
    for instances, actual in zip(expected_detections, detections, strict=True):
        assert torch.equal(instances.pred_classes, actual.pred_classes)
        for name in set(instances.get_fields()) - {"pred_classes"}:
            x, y = instances.get(name), actual.get(name)
            x, y = (x.tensor, y.tensor) if name == "pred_boxes" else (x, y)
            torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KEYS)
def test_identity_map_preserves_losses_exactly(kind, tiny_model, make_batch):
    model, other = tiny_model(kind), tiny_model(kind)
    teacher = Teacher(other, cfg=None)
    teacher.map_classes(ClassMap(("car", "person", "rider"), STUDENT, (0, 1, 2)))
    assert list(other.state_dict()) == list(model.state_dict())
    assert list(other.modules()) == list(teacher.detector.modules())
    expected, losses = (losses_of(x, make_batch())[0] for x in (model, other))
    assert all(torch.equal(losses.components[k], v) for k, v in expected.components.items())


@pytest.mark.parametrize("kind, opts", VARIANTS)
def test_class_without_a_counterpart_has_zero_class_loss(kind, opts, pair, make_batch):
    model, twin = pair(kind, opts)
    teacher, batch = as_teacher(twin, unknown=(2,)), make_batch((2, 0, 3))
    batch[0]["instances"].gt_classes[:] = torch.tensor([2, 0])
    targets = [x["instances"] for x in batch]
    images = twin.preprocess_image(batch)
    view = TeacherView(images, twin.backbone(images.tensor))
    losses = teacher.per_instance_losses(view, targets)
    expected = losses_of(model, batch)[0].components
    classes = torch.cat([x.gt_classes for x in targets])
    unknown = classes == 2
    assert 0 < unknown.sum() < len(classes)
    assert (losses.components["cls"][unknown] == 0).all()
    assert (losses.components["cls"][~unknown] > 0).all()
    for name in expected.keys() - {"cls"}:
        # Class-specific boxes are those of the best class.
        equal = ~unknown if kind in ("faster_rcnn", "mask_rcnn") else slice(None)
        torch.testing.assert_close(
            losses.components[name][equal], expected[name][equal], rtol=1e-4, atol=1e-5
        )
    assert all(x.isfinite().all() for x in losses.components.values())
    for detections in losses_of(twin, batch)[1]:
        assert not (detections.pred_classes == 2).any()


def test_class_specific_boxes_are_those_of_the_best_class(pair):
    _, twin = pair("faster_rcnn")
    predictor = twin.roi_heads.box_predictor
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    scores, deltas = predictor(x)
    merge_classes(twin, ClassMap(TEACHER, ("a", "b"), (0, None, 0, None, 0)))
    merged = predictor(x)[1].view(40, 2, 4)
    deltas = deltas.view(40, 5, 4)
    best = torch.tensor([0, 2, 4])[scores[:, [0, 2, 4]].argmax(dim=1)]
    assert len(best.unique()) > 1
    assert torch.equal(merged[:, 0], deltas[torch.arange(40), best])
    # b has no counterpart: its box is that of the best class of all.
    assert torch.equal(merged[:, 1], deltas[torch.arange(40), scores[:, :5].argmax(dim=1)])


def test_instances_without_a_counterpart_are_not_compared(mapped_config, make_batch):
    cfg = mapped_config("faster_rcnn", ["4: 0", "3: 1"])
    model = build_model(cfg)
    model.build_distillation(cfg)
    batch = make_batch((2, 0, 3))
    classes = torch.cat([x["instances"].gt_classes for x in batch])
    assert all(x.shape == ((classes != 2).sum(),) for x in compare(model, [model.teacher], batch))
    for sample in batch:
        sample["instances"].gt_classes[:] = 2
    assert all(x.shape == (0,) for x in compare(model, [model.teacher], batch))


@pytest.mark.parametrize(
    "kind, losses",
    [
        ("faster_rcnn", ["ResponseLoss"]),
        ("retinanet", ["ResponseLoss", "CrossKDLoss"]),
        ("gfl", ["ResponseLoss", "CrossKDLoss", "LocalisationLoss"]),
        ("fcos", ["CrossKDLoss"]),
    ],
)
def test_class_predictions_without_a_counterpart_are_not_imitated(
    kind, losses, mapped_config, make_batch, storage
):
    opts = ["DISTILLATION.LOSSES", losses, "DISTILLATION.RESPONSE.MIN_SCORE", 1.0]
    opts += ["DISTILLATION.RESPONSE.NUM_ROIS", 0]  # no sample without an instance
    cfg = mapped_config(kind, ["0: 1", "4: 0", "1: 0"], opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    model.build_distillation(cfg)
    model.train()

    def terms(classes):
        batch = make_batch((2, 3))
        for sample in batch:
            sample["instances"].gt_classes[:] = classes
        return {k: v for k, v in model(batch).items() if "distill" in k}

    known, unknown = terms(0), terms(2)
    for name, term in known.items():
        assert term > 0 and term.isfinite()
        assert (unknown[name] == 0) == name.endswith("cls"), name
    sum(unknown.values()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(x.isfinite().all() for x in grads)


def test_teacher_without_a_class_leaves_its_share_to_the_others(mapped_config, further, make_batch):
    opts = [*further("faster_rcnn"), "DISTILLATION.LOSSES", ["ResponseLoss"]]
    cfg = mapped_config("faster_rcnn", ["4: 0"], opts)
    model = build_model(cfg)
    model.build_distillation(cfg)
    batch = make_batch((2, 0, 3))
    batch[0]["instances"].gt_classes[:] = torch.tensor([2, 0])
    instances, images = [x["instances"] for x in batch], model.preprocess_image(batch).tensor
    with EventStorage():
        outputs = model.evaluate_teachers(batch, instances, images, model.backbone(images))
    alone = model.distillers[1].weights(outputs[1].stats, instances, {}).components.cls
    first, second = (x.weights.components.cls for x in outputs)
    known = torch.cat([x.gt_classes for x in instances]) == 0
    assert (first[~known] == 0).all() and (first[known] > 0).all()
    assert torch.equal(second[~known], alone[~known])
    assert (second[known] < alone[known]).all()


def test_class_layers_of_a_mapped_teacher_are_not_inherited(tiny_model, student_config):
    """Not even if the number of classes is the same."""
    for kind, names in (
        (
            "mask_rcnn",
            ["box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"],
        ),
        ("cascade_rcnn", [f"box_predictor.{k}.cls_score" for k in range(3)]),
        ("retinanet", ["head.cls_score"]),
        ("gfl", ["head.cls_score"]),
        ("fcos", ["head.cls_score"]),
    ):
        student, other = tiny_model(kind, seed=1), tiny_model(kind)
        Teacher(other, cfg=None).map_classes(ClassMap(("a", "b", "c"), STUDENT, (1, 0, 2)))
        taken = inherit(student, other)
        left = {k for k in student.state_dict() if not k.startswith("backbone.bottom_up")}
        left -= set(taken)
        expected = {
            f"{'' if name.startswith('head') else 'roi_heads.'}{name}.{x}"
            for name in names
            for x in ("weight", "bias")
        }
        assert left == expected


def test_config_maps_the_classes_of_its_teacher(
    mapped_config, named_datasets, tiny_model, further, caplog, make_batch
):
    student, teacher, _ = named_datasets
    cfg = mapped_config("faster_rcnn", ENTRIES, ["DATASETS.TRAIN", (student,)])
    path = cfg.TEACHER.CONFIG_FILE
    with pytest.raises(AIDError, match=r"no class 'cyclist'; it has 0, 1, 2, 3, 4 \(names are no"):
        build_teacher(cfg)
    text = load_config(path)
    text.DATASETS.TRAIN = (teacher,)
    with open(path, "w") as f:
        f.write(text.dump())
    built = build_teacher(cfg)
    assert built.class_map.targets == TWIN
    assert check_teacher(built, tiny_model("faster_rcnn"), cfg)
    assert "; classes" not in caplog.text
    model = tiny_model("faster_rcnn", ["MODEL.META_ARCHITECTURE", "AIDGeneralizedRCNN"])
    with caplog.at_level(logging.INFO):
        model.build_distillation(cfg)
    assert (
        "; classes van + car as Car, person as Pedestrian, cyclist as Cyclist; without a "
        "counterpart in the teacher: none; of its classes 1 of 5 are background; levels p2"
    ) in caplog.text


def test_further_teachers_have_separate_maps(mapped_config, further):
    opts = further(("retinanet", [KEYS["retinanet"], 4]), "faster_rcnn")
    opts += ["TEACHER.MORE_CLASS_MAPS", [["0: 2"], []]]
    cfg = mapped_config("faster_rcnn", ["4: 0"], opts)
    maps = [build_teacher(cfg, number).class_map for number in range(3)]
    assert [x and x.unknown for x in maps] == [[1, 2], [0, 1], None]
    for wrong in ([["0: 2"]], ["0: 2", "0: 1"], [[], [], []]):
        bad = cfg.clone()
        bad.TEACHER.MORE_CLASS_MAPS = wrong
        with pytest.raises(AIDError, match="MORE_CLASS_MAPS is .*each further teacher, 2 in all"):
            teacher_kinds(bad)
    cfg.TEACHER.MORE_CLASS_MAPS = [["7: 2"], []]
    with pytest.raises(AIDError, match=r"TEACHER.MORE_CLASS_MAPS\[0\]: the teacher has no class"):
        build_teacher(cfg, 1)


def test_error_for_different_classes_suggests_a_map(
    mapped_config, named_datasets, tiny_model, student_config
):
    names, of_teacher, permuted = named_datasets
    student = tiny_model("faster_rcnn")
    cfg = mapped_config("faster_rcnn", [], ["DATASETS.TRAIN", (names,)])
    teacher = build_teacher(cfg)
    start = "has 5 classes, the student 3: train both on the same class list, or map its classes: "
    form = 'an entry "teacher class: student class"'
    with pytest.raises(AIDError, match=f"{start}set TEACHER.CLASS_MAP to a list with {form} for e"):
        check_teacher(teacher, student, cfg)
    teacher.cfg.DATASETS.TRAIN = (of_teacher,)
    suggested = r'\["cyclist: Cyclist", "car: Car"\]'
    expected = f"{start}set TEACHER.CLASS_MAP to {suggested}, and add {form} for Pedestrian$"
    with pytest.raises(AIDError, match=expected):
        check_teacher(teacher, student, cfg)
    other = build_teacher(student_config("faster_rcnn"))
    other.cfg.DATASETS.TRAIN = (permuted,)
    suggested = r'\["Pedestrian: Pedestrian", "Car: Car", "Cyclist: Cyclist"\]$'
    with pytest.raises(AIDError, match=f"class lists differ.*set TEACHER.CLASS_MAP to {suggested}"):
        check_teacher(other, student, cfg)
    map_classes(other, ["by name"], STUDENT)
    assert other.class_map.targets == (1, 0, 2)
    assert check_teacher(other, student, cfg)
    with pytest.raises(AIDError, match="has 3 classes, the student 4: .* same class list$"):
        check_match(other, tiny_model("faster_rcnn", [KEYS["faster_rcnn"], 4]))


def test_class_count_different_from_the_dataset_is_refused(named_datasets, tiny_model):
    cfg = CfgNode({"DATASETS": {"TRAIN": (named_datasets[1],)}})
    teacher = Teacher(tiny_model("faster_rcnn"), cfg)
    with pytest.raises(AIDError, match="has 3 classes, its DATASETS.TRAIN classes_of_teacher 5"):
        map_classes(teacher, ["car: Car"], STUDENT, "TEACHER.CLASS_MAP")


def test_unsupported_heads_are_refused(tiny_model):
    class_map = ClassMap(("a", "b", "c"), STUDENT, (1, 0, 2))
    with pytest.raises(AIDError, match="classes of a Linear cannot be mapped"):
        merge_classes(nn.Linear(1, 1), class_map)
    for part in ("box_predictor", "mask_head"):
        model = tiny_model("mask_rcnn")
        setattr(model.roi_heads, part, nn.Identity())
        with pytest.raises(AIDError, match="classes of a Identity cannot be mapped"):
            merge_classes(model, class_map)

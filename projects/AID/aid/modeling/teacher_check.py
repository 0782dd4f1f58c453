"""Checks of a teacher against its student, and comparison of their task losses.

Shape letters: G ground-truth instances of the batch.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..data.classes import check_class_lists, class_list, known_classes
from ..data.images import longest_side
from ..utils.d2 import padding
from ..utils.errors import AIDError
from ..utils.text import counted
from .class_map import same_names
from .families import PerInstanceLosses, loss_levels, num_classes, per_instance_losses
from .lazy_teacher import UNKNOWN_SIZE
from .teacher import check_square
from .teacher_base import TeacherBase, round_up

__all__ = [
    "are_comparable",
    "check_match",
    "check_teacher",
    "compare",
    "in_eval_mode",
    "is_of_another_size",
]

# Ratio of the larger to the smaller test size of teacher and student above which they are regarded
# as much different.
MAX_SIZE_RATIO = 1.5


def check_teacher(teacher: TeacherBase, student: nn.Module, cfg: CfgNode) -> tuple[str, ...]:
    """Run :func:`check_match` with DISTILLATION.LEVELS and all DATASETS of a config.

    A warning is logged if teacher and student are tested at much different image sizes.

    Raises:
        AIDError: see :func:`check_match`; or the teacher cannot process the student's images,
            cannot be evaluated as TEACHER.EVAL_FIRST requires, or has features on levels that the
            student lacks.
    """
    if teacher.has_heads and teacher.has_features:
        _check_padding(teacher, student, cfg)
    if cfg.TEACHER.EVAL_FIRST and teacher.cfg.INPUT.MIN_SIZE_TEST == UNKNOWN_SIZE:
        raise AIDError(
            f"TEACHER.EVAL_FIRST is on, but dataloader.test.mapper in {teacher.name} is not a "
            "DatasetMapper with a single ResizeShortestEdge to one size: turn TEACHER.EVAL_FIRST "
            "off, or use such a mapper"
        )
    if not teacher.has_heads:
        _check_levels(teacher, student, cfg.TEACHER.FEATURES)
    datasets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    _compare_sizes(teacher, cfg)
    return check_match(teacher, student, cfg.DISTILLATION.LEVELS, datasets)


def check_match(
    teacher: TeacherBase,
    student: nn.Module,
    levels: Iterable[str] = (),
    datasets: Iterable[str] = (),
) -> tuple[str, ...]:
    """Check that classes and feature levels match; warn if class lists cannot be compared.

    Args:
        teacher: the teacher.
        student: the student as a Detectron2 model.
        levels: levels to imitate; if empty, all common levels.
        datasets: training and test datasets of the student.

    Returns:
        The levels to imitate, finest first.

    Raises:
        AIDError: classes, levels, strides or the formats of images differ.
    """
    if teacher.has_heads:
        _check_classes(teacher, student, tuple(datasets))
    _check_format(teacher, student)
    student_shapes, teacher_shapes = student.backbone.output_shape(), teacher.output_shape()
    shared = [level for level in teacher.levels if level in student_shapes]
    wanted = list(map(str, levels)) or shared
    missing = [level for level in wanted if level not in shared]
    if missing or not wanted:
        raise AIDError(
            f"DISTILLATION.LEVELS: no common level {', '.join(missing)}: the teacher's "
            f"{'heads read' if teacher.has_heads else 'features are on'} "
            f"{', '.join(teacher.levels)} ({teacher.name}), the student's backbone gives "
            f"{', '.join(student_shapes)}"
        )
    for level in wanted if teacher.has_heads else ():
        student_stride, teacher_stride = student_shapes[level].stride, teacher_shapes[level].stride
        if student_stride != teacher_stride:
            raise AIDError(
                f"level {level}: stride {teacher_stride} in the teacher, {student_stride} in the "
                f"student; leave it out of DISTILLATION.LEVELS ({teacher.name})"
            )
    return tuple(sorted(wanted, key=lambda level: student_shapes[level].stride))


def _check_levels(teacher: TeacherBase, student: nn.Module, features: list[str]) -> None:
    """Refuse levels of a feature teacher that the student lacks.

    Args:
        teacher: without heads.
        student: as Detectron2 built it.
        features: TEACHER.FEATURES. If it is empty, the network names the levels, and may have more.
    """
    known = student.backbone.output_shape()
    unknown = [level for level in teacher.levels if level not in known]
    if unknown and (features or len(unknown) == len(teacher.levels)):
        raise AIDError(
            f"TEACHER.FEATURES is {list(features)}: the student has no level "
            f"{', '.join(unknown)}: name one of its levels, {', '.join(known)}, for each output of "
            f"the teacher of {teacher.name}"
        )


def is_of_another_size(teacher: TeacherBase, cfg: CfgNode) -> bool:
    """Whether teacher and student are tested at much different image sizes.

    Args:
        teacher: the teacher.
        cfg: the student's config. Sizes of 0, which disable resizing, are not compared.
    """
    own, of_student = teacher.cfg.INPUT.MIN_SIZE_TEST, max(cfg.INPUT.MIN_SIZE_TRAIN)
    return min(own, of_student) > 0 and max(own, of_student) > MAX_SIZE_RATIO * min(own, of_student)


def _check_classes(teacher: TeacherBase, student: nn.Module, datasets: tuple[str, ...]) -> None:
    """Check the number of classes, and their names unless the teacher is mapped."""
    student_classes, teacher_classes = num_classes(student), num_classes(teacher.detector)
    teacher_datasets = () if teacher.class_map else tuple(teacher.cfg.DATASETS.TRAIN)
    student_names = known_classes(datasets)
    remedy = _remedy(teacher, known_classes(teacher_datasets) or [], student_names or [])
    if student_classes != teacher_classes:
        raise AIDError(
            f"the teacher of {teacher.name} has {counted(teacher_classes, 'class')}, the "
            f"student {student_classes}: train both on the same class list{remedy}"
        )
    of_student = [("the student's dataset", x) for x in datasets]
    check_class_lists(of_student)
    of_teacher = [(f"the dataset of the teacher ({teacher.name})", x) for x in teacher_datasets]
    check_class_lists([*of_student, *of_teacher], remedy)
    unknown = [x for x in teacher_datasets if not class_list(x) and x not in datasets]
    if student_names and unknown:
        logging.getLogger(__name__).warning(
            "The classes of the teacher's dataset %s are not known here: make sure that %s has the "
            "student's classes in the student's order: %s",
            unknown[0],
            teacher.name,
            ", ".join(student_names),
        )


def _remedy(teacher: TeacherBase, teacher_names: list[str], student_names: list[str]) -> str:
    """End of a message about different classes, which suggests a class map."""
    if teacher.class_map:
        return ""
    further = "MORE_CONFIG_FILES" in teacher.name
    key = "its entry of TEACHER.MORE_CLASS_MAPS" if further else "TEACHER.CLASS_MAP"
    pairs = same_names(teacher_names, student_names)
    entries = [f'"{teacher_names[i]}: {student_names[k]}"' for i, k in pairs.items()]
    rest = [x for k, x in enumerate(student_names) if k not in pairs.values()]
    form = 'an entry "teacher class: student class"'
    if not entries:
        return f", or map its classes: set {key} to a list with {form} for each class"
    more = f", and add {form} for {', '.join(rest)}" if rest else ""
    return f", or map its classes: set {key} to [{', '.join(entries)}]{more}"


def _check_padding(teacher: TeacherBase, student: nn.Module, cfg: CfgNode) -> None:
    """Refuse images that are larger than the square to which the teacher pads them."""
    square, _ = padding(teacher.detector.backbone)
    longest = longest_side(cfg, is_train=True)
    if square and longest:
        _, divisibility = padding(student.backbone)
        check_square(round_up((longest, longest), divisibility), square, teacher.name)


def _compare_sizes(teacher: TeacherBase, cfg: CfgNode) -> None:
    """Warn if the student's training images are much larger or smaller than the teacher's size."""
    if is_of_another_size(teacher, cfg):
        logging.getLogger(__name__).warning(
            "INPUT.MIN_SIZE_TEST is %d in %s, INPUT.MIN_SIZE_TRAIN up to %d in the student: the "
            "teacher is imitated on images of the student's training size, where it may be much "
            "worse than at its own; TEACHER.EVAL_FIRST measures its AP at both",
            teacher.cfg.INPUT.MIN_SIZE_TEST,
            teacher.name,
            max(cfg.INPUT.MIN_SIZE_TRAIN),
        )


def _check_format(teacher: TeacherBase, student: nn.Module) -> None:
    student_format, teacher_format = student.input_format, teacher.cfg.INPUT.FORMAT
    # The teacher's input is the student's images, with reversed channels if necessary.
    if student_format != teacher_format and not {student_format, teacher_format} <= {"BGR", "RGB"}:
        raise AIDError(
            f"INPUT.FORMAT is {student_format} in the student, {teacher_format} in the teacher of "
            f"{teacher.name}: use BGR or RGB for both, or the same format"
        )


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Context with a model in eval mode; the mode of each module is restored at its end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def are_comparable(*detectors: nn.Module) -> bool:
    """Whether the losses of detectors are comparable, unlike focal loss and cross-entropy."""
    try:
        for detector in detectors:
            loss_levels(detector)
    except AIDError:  # a student may be of an unknown family
        return False
    return len({per_instance_losses.dispatch(type(detector)) for detector in detectors}) == 1


@torch.no_grad()
def compare(
    student: nn.Module, teachers: list[TeacherBase], batched_inputs: list[dict]
) -> tuple[Tensor, ...]:
    """Losses of a student and of its teachers on instances of a batch, all in eval mode.

    The losses are on the same samples for all detectors, plus the mean over background anchors.
    Instances of classes without a counterpart in one of the teachers are omitted. The student's
    state and the random number generators do not change.

    Args:
        student: student whose losses are comparable to each teacher's, see :func:`are_comparable`.
        teachers: the teachers of the student.
        batched_inputs: standard input of a Detectron2 model.

    Returns:
        (G,) for each teacher and, last, for the student; shorter if instances are omitted.
    """
    targets = [x["instances"].to(student.device) for x in batched_inputs]
    # Without autocast: older versions of torch would cache weights that were cast without gradient,
    # and the student's training would use them.
    with torch.autocast(student.device.type, enabled=False), in_eval_mode(student), EventStorage():
        images = student.preprocess_image(batched_inputs)
        size, losses = tuple(images.tensor.shape[-2:]), []
        for teacher in teachers:
            teacher.follow(student.device)
            view = teacher.view(batched_inputs, size, student.input_format)
            losses.append(teacher.per_instance_losses(view, targets, background=False))
        features = student.backbone(images.tensor)
        losses.append(per_instance_losses(student, images, features, targets, background=False))
    masks = [x for x in (teacher.has_class(targets) for teacher in teachers) if x is not None]
    compared = torch.stack(masks).all(dim=0) if masks else slice(None)
    return tuple(_comparable(x)[compared] for x in losses)


def _comparable(losses: PerInstanceLosses) -> Tensor:
    """Losses (G,), for two-stage detectors without the box loss of the RoI heads.

    No proposal of an untrained detector matches an instance: its only RoI is then the ground-truth
    box, for which an offset of 0 is correct.
    """
    two_stage = "rpn_cls" in losses.components
    components = [v for k, v in losses.components.items() if not two_stage or k != "box"]
    return sum(components) + losses.background["rpn_cls" if two_stage else "cls"].mean()

"""Measured cases: functions without arguments that run a training step or a part of it once.

Parts of a step run on inputs recorded from a step, so that their cost is measured directly and not
as the difference of two noisy times.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from aid.modeling.balance import PERIOD
from aid.modeling.families import Predictions
from aid.modeling.losses import Context
from aid.modeling.teacher_base import TeacherView
from aid.modeling.weighting import Weighting, build_weighting
from aid.utils.errors import AIDError
from aid.utils.text import counted

from .heads import run_heads
from .nets import Nets

__all__ = [
    "AID",
    "AID_STEPS",
    "BALANCE",
    "MEMORY_CASES",
    "PLAIN_DISTILLATION",
    "STUDENT",
    "TEACHER",
    "TEACHER_HEADS",
    "INSTANCE_LOSSES",
    "WEIGHTING",
    "Case",
    "balance_cases",
    "make_case",
    "make_cases",
    "make_replays",
]

Case = Callable[[], object]

STUDENT = "student"
TEACHER = "teacher"
TEACHER_HEADS = "teacher_heads"
INSTANCE_LOSSES = "per_instance_losses"
WEIGHTING = "weighting"
PLAIN_DISTILLATION = "plain_distillation"
BALANCE = "balance"
AID = "aid_instance"
# {step with AID: its AID.GRANULARITY}; the first one is the default of the method.
AID_STEPS = {AID: "instance", "aid_level": "level", "aid_image": "image"}
STEPS = {PLAIN_DISTILLATION: "none", **AID_STEPS}
# Cases whose memory is measured: those of the memory floors, and the steps compared with them.
MEMORY_CASES = (STUDENT, TEACHER, TEACHER_HEADS, PLAIN_DISTILLATION, AID)


def balance_cases(cfg: CfgNode) -> tuple[str, ...]:
    """Name of the step that measures gradients; empty if DISTILLATION.BALANCE is off."""
    return (BALANCE,) if cfg.DISTILLATION.BALANCE > 0 else ()


def make_cases(
    nets: Nets, batch: list[dict], steps: tuple[str, ...] | None = None
) -> dict[str, Case]:
    """Make all cases, in their order within a step.

    Args:
        nets: students and teacher.
        batch: input of all cases.
        steps: names of the distillation steps; None for all.

    Returns:
        {name: case}; distillation losses have their names in DISTILLATION.LOSSES.

    Raises:
        AIDError: the student cannot train on images of this size.
    """
    if steps is None:
        # Adjacent, so that their small difference is measured under the same conditions.
        steps = (PLAIN_DISTILLATION, *balance_cases(nets.cfg), *AID_STEPS)
    whole = (STUDENT, TEACHER, TEACHER_HEADS, INSTANCE_LOSSES)
    replays = make_replays(nets, batch)
    cases = {name: make_case(name, nets, batch) for name in whole} | replays
    return cases | {name: make_case(name, nets, batch) for name in steps}


def make_case(name: str, nets: Nets, batch: list[dict]) -> Case:
    """Make a case other than a distillation loss, and build the networks that it needs."""
    if name == STUDENT:
        return partial(nets.plain.step, batch)
    if name in STEPS:
        return _step(nets, batch, _weighting(nets, STEPS[name]))
    if name == BALANCE:
        return _measuring(nets, make_case(PLAIN_DISTILLATION, nets, batch))
    teacher = nets.teacher  # build it before the first run
    if name == TEACHER:
        return partial(_view, nets, batch)
    view = _view(nets, batch)
    targets = [x["instances"].to(teacher.detector.device) for x in batch]
    if name == TEACHER_HEADS:
        run = partial(run_heads, teacher.detector, view.images, view.features, targets)
    else:
        background = _weighting(nets, STEPS[AID]).requires_background
        run = partial(teacher.per_instance_losses, view, targets, background)
    return _under(nets, run)


def _weighting(nets: Nets, granularity: str) -> Weighting:
    cfg = nets.cfg.clone()
    cfg.AID.GRANULARITY = granularity
    return build_weighting(cfg).to(nets.device)


def _step(nets: Nets, batch: list[dict], weighting: Weighting) -> Case:
    trainee = nets.distilled

    def step() -> None:
        trainee.model.distillers[0].weighting = weighting
        trainee.step(batch)

    return step


def _measuring(nets: Nets, step: Case) -> Case:
    """Make a step at an iteration that measures the gradients for DISTILLATION.BALANCE."""
    balance = nets.distilled.model.balance

    def measuring() -> None:
        with EventStorage(PERIOD):
            step()
        balance.update()  # as the trainer's hook does

    return measuring


def _view(nets: Nets, batch: list[dict]) -> TeacherView:
    """Run the teacher's backbone as plain Detectron2 does."""
    detector = nets.teacher.detector
    with torch.no_grad(), nets.autocast(), nets.teacher.autocast():
        images = detector.preprocess_image(batch)
        return TeacherView(images, detector.backbone(images.tensor))


def _under(nets: Nets, run: Case) -> Case:
    def under_autocast() -> None:
        with nets.autocast():
            run()

    return under_autocast


def make_replays(nets: Nets, batch: list[dict]) -> dict[str, Case]:
    """Make cases of the weighting and of each distillation loss, forward and backward."""
    model = nets.distilled.model
    distiller = model.distillers[0]
    weighting = distiller.weighting = _weighting(nets, AID_STEPS[AID])
    losses = distiller.losses
    recorded = {}

    def record(module: nn.Module, inputs: tuple) -> None:
        recorded[module] = inputs

    hooks = [x.register_forward_pre_hook(record) for x in (weighting, *losses.values())]
    try:
        with nets.autocast():
            model(batch)
    except ValueError as error:  # by batch norm, for a feature map with a single cell
        height, width = batch[0]["image"].shape[-2:]
        raise AIDError(
            f"the student cannot train on {counted(len(batch), 'image')} of {height}x{width} "
            f"({error}): choose a larger --size or --batch"
        ) from error
    for hook in hooks:
        hook.remove()
    cases = {WEIGHTING: _under(nets, partial(weighting, *recorded[weighting]))}
    for name, loss in losses.items():
        cases[name] = _loss(loss, *recorded[loss])
    return cases


def _loss(
    loss: nn.Module,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    weights: dict[str, Tensor],
    context: Context,
) -> Case:
    student = {level: x.detach().requires_grad_() for level, x in student.items()}
    inputs = [*student.values(), *(x for x in loss.parameters() if x.requires_grad)]
    if context.predictions:
        predictions = {}
        for side in ("student", "cross"):
            if recorded := getattr(context.predictions, side):
                tensors = {k: x for k, x in vars(recorded).items() if x is not None}
                tensors = {k: x.detach().requires_grad_() for k, x in tensors.items()}
                predictions[side] = Predictions(**tensors)
                inputs += tensors.values()
        context = replace(context, predictions=replace(context.predictions, **predictions))

    def forward_and_backward() -> None:
        total = sum(loss(student, teacher, weights, context).values())
        torch.autograd.grad(total, inputs, allow_unused=True)

    return forward_and_backward

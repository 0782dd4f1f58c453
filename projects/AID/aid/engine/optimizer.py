"""Optimizers, and the exclusion of adapters while imitation pauses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ..modeling.meta_arch import DistillationMixin
from ..utils.errors import AIDError

__all__ = ["build_optimizer", "clipped", "own_settings", "pause_adapters"]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build SOLVER.OPTIMIZER with Detectron2's parameter groups and gradient clipping.

    Raises:
        AIDError: SOLVER.OPTIMIZER is neither SGD nor AdamW.
    """
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    if cfg.SOLVER.OPTIMIZER != "AdamW":
        raise AIDError(f"SOLVER.OPTIMIZER: {cfg.SOLVER.OPTIMIZER!r} is not one of SGD, AdamW")
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def clipped(
    optimizer: type[torch.optim.Optimizer], clip_type: str = "norm", clip_value: float = 1.0
) -> type[torch.optim.Optimizer]:
    """Create an optimizer class with Detectron2's gradient clipping, for LazyConfig.

    Args:
        optimizer: class without clipping.
        clip_type, clip_value: see SOLVER.CLIP_GRADIENTS.
    """
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clip_value
    return maybe_add_gradient_clipping(cfg, optimizer)


@contextmanager
def own_settings(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keep the learning rates, weight decay etc. of a config while a checkpoint is loaded.

    Detectron2 goes on with those of the checkpoint, also if they were changed. The current learning
    rates are left to the scheduler, which multiplies "initial_lr" of each parameter group.
    """
    settings = [{k: x for k, x in g.items() if k != "params"} for g in optimizer.param_groups]
    yield
    for group, new in zip(optimizer.param_groups, settings, strict=True):
        group.update({"initial_lr": new["lr"], **new, "lr": group["lr"]})


def pause_adapters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Exclude a student's adapters from the steps of an optimizer while imitation pauses.

    Zero gradients, which DDP requires, would not prevent updates by weight decay and momentum.
    Gradients of None would, but Detectron2's clipping by value cannot handle them.

    Args:
        optimizer: neither changes the adapters nor their state in these steps.
        model: detector; nothing is done for one without adapters.
    """
    if not isinstance(model, DistillationMixin):
        return
    ids, complete = {id(p) for p in model.distillation.parameters()}, []

    # PyTorch calls the hooks twice, nested, in a step of a class whose base has a step, too.
    def exclude(*_) -> None:
        if not complete and model.distillation_factor == 0:
            for group in optimizer.param_groups:
                complete.append(group["params"])
                group["params"] = [p for p in group["params"] if id(p) not in ids]

    def restore(*_) -> None:
        for group, parameters_of_group in zip(optimizer.param_groups, complete, strict=False):
            group["params"] = parameters_of_group
        complete.clear()

    optimizer.register_step_pre_hook(exclude)
    optimizer.register_step_post_hook(restore)

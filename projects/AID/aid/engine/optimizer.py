"""The optimizer by config."""

from collections.abc import Callable, Iterable

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ..modeling.meta_arch import DistillationMixin
from ..utils.errors import AIDError

__all__ = ["build_optimizer", "clipped", "pass_over", "pause_adapters"]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over the parameter groups, and with the clipping, of Detectron2.

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
    """An optimizer's class with Detectron2's clipping, for a LazyConfig.

    Args:
        optimizer: the class.
        clip_type, clip_value: see SOLVER.CLIP_GRADIENTS.
    """
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clip_value
    return maybe_add_gradient_clipping(cfg, optimizer)


def pause_adapters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Let ``optimizer`` pass over a student's adapters while its imitation pauses."""
    if isinstance(model, DistillationMixin):
        adapters = model.distillation.parameters()
        pass_over(optimizer, adapters, lambda: model.distillation_factor == 0)


def pass_over(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    when: Callable[[], bool],
) -> None:
    """Let an optimizer know nothing of some parameters in certain steps.

    A gradient of 0, which DDP may ask for, does not keep weight decay and momentum from moving
    them; gradients of None would, but clipping by value refuses them.

    Args:
        optimizer: whose steps, and whose memory of the parameters, this is about.
        parameters: to leave as they are.
        when: asked before each step.
    """
    ids, taken = {id(p) for p in parameters}, []

    # Where torch hooks a class and its base these run twice in a step, one pair inside the other.
    def take(*_) -> None:
        if not taken and when():
            for group in optimizer.param_groups:
                taken.append(group["params"])
                group["params"] = [p for p in group["params"] if id(p) not in ids]

    def put_back(*_) -> None:
        for group, all_of_them in zip(optimizer.param_groups, taken, strict=False):
            group["params"] = all_of_them
        taken.clear()

    optimizer.register_step_pre_hook(take)
    optimizer.register_step_post_hook(put_back)

"""Measured networks with random weights, and their training step."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from aid.engine.optimizer import build_optimizer
from aid.modeling.build import build_detector
from aid.modeling.meta_arch import plain_architecture
from aid.modeling.placement import autocast
from aid.modeling.teacher import Teacher, build_teacher, load_teacher_config

from .settings import precision_of

__all__ = ["Nets", "Trainee", "num_bytes", "write_teacher_weights"]


@dataclass
class Trainee:
    """Detector with its optimizer, whose state is allocated before the first step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: torch.dtype

    def __post_init__(self):
        # With an initial scale of 1 no gradient overflows, so that no step is skipped.
        self._scaler = torch.amp.GradScaler(
            self.model.device.type, init_scale=1.0, enabled=self.precision == torch.float16
        )
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, batch: list[dict]) -> None:
        """Run one step of Detectron2's training loop: forward, backward, optimizer."""
        with autocast(self.model.device, self.precision):
            total = sum(self.model(batch).values())
        self.optimizer.zero_grad()
        self._scaler.scale(total).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()


class Nets:
    """Plain student, distilled student and teacher, each built on first access.

    A process that measures memory thus builds only the networks of its case.
    """

    def __init__(self, cfg: CfgNode, sample: list[dict]):
        """
        Args:
            cfg: the student's config; TEACHER.WEIGHTS is a file of :func:`write_teacher_weights`.
            sample: images for the statistics of the norm layers.
        """
        self.cfg = cfg
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.precision = precision_of(cfg)
        self._sample = sample

    @cached_property
    def plain(self) -> Trainee:
        """Student as built and trained by plain Detectron2."""
        cfg = self.cfg.clone()
        cfg.MODEL.META_ARCHITECTURE = plain_architecture(cfg.MODEL.META_ARCHITECTURE)
        model = random_detector(cfg, self._sample).train()
        return Trainee(model, build_optimizer(cfg, model), self.precision)

    @cached_property
    def distilled(self) -> Trainee:
        """Student with its teacher."""
        model = random_detector(self.cfg, self._sample).train()
        model.build_distillation(self.cfg)
        model.distillers[0].teacher = self.teacher  # shared by all cases
        if model.balance is not None:
            # As after one measurement, with a factor of 1: the initial factor of 0 is not typical.
            model.balance.num_measured.fill_(1)
            model.balance.log_quotient.fill_(-math.log(model.balance.ratio))
        return Trainee(model, build_optimizer(self.cfg, model), self.precision)

    @cached_property
    def teacher(self) -> Teacher:
        return build_teacher(self.cfg)

    def autocast(self) -> AbstractContextManager:
        """Autocast context of a forward pass in training."""
        return autocast(self.device, self.precision)


def write_teacher_weights(cfg: CfgNode, sample: list[dict], path: str) -> None:
    """Save random weights for the detector of TEACHER.CONFIG_FILE.

    Args:
        cfg: the student's config.
        sample: images for the statistics of the norm layers.
        path: path of the checkpoint to write.
    """
    teacher_cfg = load_teacher_config(cfg.TEACHER.CONFIG_FILE)
    teacher_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    teacher_cfg.SEED = cfg.SEED
    detector = random_detector(teacher_cfg, sample).eval()
    torch.save({"model": detector.state_dict()}, path)


def num_bytes(module: nn.Module) -> int:
    """Memory of parameters and buffers, in bytes."""
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


def random_detector(cfg: CfgNode, sample: list[dict]) -> nn.Module:
    """Build a random detector with features of the magnitude of a trained one.

    Norm layers of the backbone take the statistics of the sample. Frozen batch norm starts as the
    identity, with which activations of random weights double from block to block, overflow in half
    precision and move all proposals out of the image, so that a step would have less work than in
    training.

    Args:
        cfg: config of the detector.
        sample: images for the statistics.

    Raises:
        AIDError: the config cannot be used.
    """
    torch.manual_seed(cfg.SEED)
    detector = build_detector(cfg)
    kinds = (FrozenBatchNorm2d, nn.BatchNorm2d)
    norms = [module for module in detector.backbone.modules() if isinstance(module, kinds)]
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    training = detector.training
    with torch.no_grad():
        detector.eval().backbone(detector.preprocess_image(sample).tensor)
    for hook in hooks:
        hook.remove()
    return detector.train(training)


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)

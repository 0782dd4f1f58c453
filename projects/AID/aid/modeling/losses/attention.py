"""Attention-guided distillation (Zhang & Ma, ICLR 2021, section 3.1), with weight maps.

Shape letters: N images, C_s and C_t channels of student and teacher, (H, W) size of a level.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...utils.errors import check_positive
from .base import (
    DISTILLATION_LOSS_REGISTRY,
    Context,
    FeatureLoss,
    average_norm,
    check_scale,
    make_adapter,
    norm_per_image,
)
from .functional import residual_norm

__all__ = ["AttentionGuidedLoss", "channel_attention", "spatial_attention"]


# Sums of magnitudes are computed as 1-norms, which allocate no map of magnitudes.
def spatial_attention(features: Tensor, temperature: float) -> Tensor:
    """Spatial attention, ``H * W * softmax over positions of (mean over channels of |F|) / T``.

    Args:
        features: (N, C, H, W).
        temperature: T.

    Returns:
        (N, 1, H, W), of mean 1.
    """
    n, c, h, w = features.shape
    energy = torch.linalg.vector_norm(features, ord=1, dim=1).flatten(1) / c
    return (energy / temperature).softmax(dim=1).view(n, 1, h, w) * (h * w)


def channel_attention(features: Tensor, temperature: float) -> Tensor:
    """Channel attention, ``C * softmax over channels of (mean over positions of |F|) / T``.

    Args:
        features: (N, C, H, W).
        temperature: T.

    Returns:
        (N, C, 1, 1), of mean 1.
    """
    n, c, h, w = features.shape
    energy = torch.linalg.vector_norm(features, ord=1, dim=(2, 3)) / (h * w)
    return (energy / temperature).softmax(dim=1).view(n, c, 1, 1) * c


class _Means(torch.autograd.Function):
    """Means over positions (N, C) and over channels (N, 1, H, W), with one map for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.shape = x.shape
        return x.mean(dim=(2, 3)), x.mean(dim=1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_channel: Tensor, by_position: Tensor) -> Tensor:
        _, c, h, w = ctx.shape
        return (by_channel / (h * w))[..., None, None] + by_position / c


class _Adapters(nn.Module):
    """Adapters of one level for the student's features and their means over each dimension."""

    def __init__(self, student_channels: int, teacher_channels: int, always: bool):
        super().__init__()
        self.feature = make_adapter((student_channels, teacher_channels), always)
        self.channel, self.spatial = nn.Identity(), nn.Identity()
        if always or student_channels != teacher_channels:
            self.channel = nn.Linear(student_channels, teacher_channels)
        if always:
            self.spatial = nn.Conv2d(1, 1, kernel_size=3, padding=1)


@DISTILLATION_LOSS_REGISTRY.register()
class AttentionGuidedLoss(FeatureLoss):
    """Distance of features, weighted by attention, and of their means over channels and positions.

    With M_s, M_c the spatial and channel attention (without gradient), averaged over student and
    teacher, and w the weight map, per level and image:

        feature: sqrt( sum  w^2 M_s M_c (F_t - conv1x1(F_s))^2 )
        channel: mean(w) * || mean_hw F_t - linear(mean_hw F_s) ||
        spatial: || w (mean_c F_t - conv3x3(mean_c F_s)) ||

    With w^2 under the root a constant map is a factor of the loss. The means are signed, as in the
    authors' code. Where student and teacher differ in channels, which the authors' do not, the
    student's channel attention is computed behind the adapter. The authors always adapt
    (DISTILLATION.ADAPT_EQUAL_WIDTHS), and do not standardize features. For a
    constant weight map, the channel term of standardized features is 0.
    """

    @configurable
    def __init__(
        self,
        *,
        channels: dict[str, tuple[int, int]],
        temperature: float,
        feature_weight: float,
        channel_weight: float,
        spatial_weight: float,
        scale: str,
        standardize: bool = True,
        adapt_equal_widths: bool = False,
    ):
        """
        Args:
            channels: {level: (C_s, C_t)}.
            temperature: T of both attentions; the smaller, the sharper.
            feature_weight, channel_weight, spatial_weight: weights of the three terms.
            scale: "sum" or "rms", see :func:`norm_per_image`.
            standardize, adapt_equal_widths: see the keys of DISTILLATION.

        Raises:
            AIDError: a temperature that is not positive, an unknown scale, or a negative weight.
        """
        term_weights = {
            "loss_distill_feature": feature_weight,
            "loss_distill_channel": channel_weight,
            "loss_distill_spatial": spatial_weight,
        }
        super().__init__(term_weights, standardize, channels)
        check_scale(scale)
        check_positive("DISTILLATION.ATTENTION.TEMPERATURE", temperature)
        self.adapters = nn.ModuleDict(
            {k: _Adapters(*c, adapt_equal_widths) for k, c in channels.items()}
        )
        self.temperature = temperature
        self.scale = scale

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        keys = cfg.DISTILLATION.ATTENTION
        return {
            "temperature": keys.TEMPERATURE,
            "feature_weight": keys.FEATURE_WEIGHT,
            "channel_weight": keys.CHANNEL_WEIGHT,
            "spatial_weight": keys.SPATIAL_WEIGHT,
            "scale": cfg.DISTILLATION.SCALE,
        }

    def extra_repr(self) -> str:
        return f"temperature {self.temperature}, {super().extra_repr()}, scale {self.scale}"

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """Student's features (N, C_s, H, W) behind the adapter: (N, C_t, H, W)."""
        return self.adapters[level].feature(student)

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the feature, channel and spatial term; see :class:`FeatureLoss`."""
        adapters = self.adapters[name]
        adapts = isinstance(adapters.feature, nn.Conv2d)
        with torch.no_grad():
            t = self.temperature
            # Channels correspond only where both have equally many. Otherwise the adapter runs
            # twice, since the norm below does not keep its output.
            same = student.shape[1] == teacher.shape[1]
            adapted = student if same else adapters.feature(student)
            spatial_mask = (spatial_attention(teacher, t) + spatial_attention(student, t)) / 2
            channel_mask = (channel_attention(teacher, t) + channel_attention(adapted, t)) / 2
        matrix = adapters.feature.weight.flatten(1).expand(len(student), -1, -1) if adapts else None
        feature = residual_norm(
            teacher.flatten(2),
            # Square roots, since the norm squares the weights.
            ((weights * spatial_mask.sqrt()).flatten(2), channel_mask.sqrt().flatten(2)),
            adapters.feature.bias[None] if adapts else None,
            (matrix, student.flatten(2)),
        )
        by_channel, by_position = _Means.apply(student)
        channel = teacher.mean(dim=(2, 3)) - adapters.channel(by_channel)
        spatial = teacher.mean(dim=1, keepdim=True) - adapters.spatial(by_position)
        return (
            average_norm(feature, teacher[0].numel(), self.scale),
            norm_per_image(weights.mean(dim=(1, 2, 3))[:, None] * channel, self.scale),
            norm_per_image(weights * spatial, self.scale),
        )

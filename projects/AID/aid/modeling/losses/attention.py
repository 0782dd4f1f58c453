"""Attention-guided distillation (Zhang & Ma, ICLR 2021, section 3.1), with weight maps.

Shape letters: N images, C_s and C_t channels of student and teacher, (H, W) size of a level.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .base import (
    DISTILLATION_LOSS_REGISTRY,
    Context,
    average_norm,
    channels_of,
    check_temperature,
    norm_per_image,
)
from .residual import residual_norm

__all__ = ["AttentionGuidedLoss", "channel_attention", "spatial_attention"]


# Sums of magnitudes are 1-norms, for which no map of magnitudes is made.
def spatial_attention(features: Tensor, temperature: float) -> Tensor:
    """``H * W * softmax over positions of (mean over channels of |F|) / T``.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, 1, H, W), of mean 1.
    """
    n, c, h, w = features.shape
    energy = torch.linalg.vector_norm(features, ord=1, dim=1).flatten(1) / (c * temperature)
    return energy.softmax(dim=1).view(n, 1, h, w) * (h * w)


def channel_attention(features: Tensor, temperature: float) -> Tensor:
    """``C * softmax over channels of (mean over positions of |F|) / T``.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, C, 1, 1), of mean 1.
    """
    n, c, h, w = features.shape
    energy = torch.linalg.vector_norm(features, ord=1, dim=(2, 3)) / (h * w * temperature)
    return energy.softmax(dim=1).view(n, c, 1, 1) * c


class _Means(torch.autograd.Function):
    """Means over positions (N, C) and over channels (N, 1, H, W), whose gradients make one map."""

    @staticmethod
    def forward(ctx, x: Tensor):
        ctx.shape = x.shape
        return x.mean(dim=(2, 3)), x.mean(dim=1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_channel: Tensor, by_position: Tensor):
        _, c, h, w = ctx.shape
        return (by_channel / (h * w))[..., None, None] + by_position / c


class _Adapters(nn.Module):
    """From the student's features of one level, and two of their means, to the teacher's."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.feature = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.channel = nn.Linear(student_channels, teacher_channels)
        self.spatial = nn.Conv2d(1, 1, kernel_size=3, padding=1)


@DISTILLATION_LOSS_REGISTRY.register()
class AttentionGuidedLoss(nn.Module):
    """Imitate features where either net looks, and the means over channels and positions.

    With M_s, M_c the means of both nets' spatial and channel attention (without gradient) and w the
    weight map, per level and image:

        feature: sqrt( sum  w^2 M_s M_c (F_t - conv1x1(F_s))^2 )
        channel: mean(w) * || mean_hw F_t - linear(mean_hw F_s) ||
        spatial: || w (mean_c F_t - conv3x3(mean_c F_s)) ||

    w^2 under the root makes a constant map a factor of the loss. The means are signed, as in the
    authors' code. Where student and teacher differ in channels, which the authors' nets do not, the
    student's channel attention is taken after the adapter.
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
    ):
        """
        Args:
            channels: (C_s, C_t) of each level.
            temperature: T of both attentions; small is sharp.
            feature_weight, channel_weight, spatial_weight: of the three terms.
            scale: "sum" or "rms", see :func:`norm_per_image`.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__()
        check_temperature("DISTILLATION.ATTENTION.TEMPERATURE", temperature)
        self.adapters = nn.ModuleDict({k: _Adapters(*c) for k, c in channels.items()})
        self.temperature = temperature
        self.feature_weight = feature_weight
        self.channel_weight = channel_weight
        self.spatial_weight = spatial_weight
        self.scale = scale

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        return {
            "channels": channels_of(levels, student_shapes, teacher_shapes),
            "temperature": cfg.DISTILLATION.ATTENTION.TEMPERATURE,
            "feature_weight": cfg.DISTILLATION.ATTENTION.FEATURE_WEIGHT,
            "channel_weight": cfg.DISTILLATION.ATTENTION.CHANNEL_WEIGHT,
            "spatial_weight": cfg.DISTILLATION.ATTENTION.SPATIAL_WEIGHT,
            "scale": cfg.DISTILLATION.SCALE,
        }

    def extra_repr(self) -> str:
        return (
            f"temperature {self.temperature}, feature {self.feature_weight}, "
            f"channel {self.channel_weight}, spatial {self.spatial_weight}, scale {self.scale}"
        )

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """The student's features (N, C_s, H, W) as they are compared with the teacher's."""
        return self.adapters[level].feature(student)

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See DISTILLATION_LOSS_REGISTRY.

        Returns:
            "loss_distill_feature", "loss_distill_channel" and "loss_distill_spatial".
        """
        terms = [
            self._level(adapters, student[level], teacher[level], weights[level])
            for level, adapters in self.adapters.items()
        ]
        feature, channel, spatial = (torch.stack(x).sum() for x in zip(*terms, strict=True))
        return {
            "loss_distill_feature": self.feature_weight * feature,
            "loss_distill_channel": self.channel_weight * channel,
            "loss_distill_spatial": self.spatial_weight * spatial,
        }

    def _level(
        self, adapters: _Adapters, student: Tensor, teacher: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            t = self.temperature
            # Channels correspond one to one only where there are as many on both sides. Where not,
            # the adapter runs twice: the norm below does not keep what it gives.
            same = student.shape[1] == teacher.shape[1]
            own_channels = student if same else adapters.feature(student)
            spatial_mask = (spatial_attention(teacher, t) + spatial_attention(student, t)) / 2
            channel_mask = (channel_attention(teacher, t) + channel_attention(own_channels, t)) / 2
        matrix = adapters.feature.weight.flatten(1).expand(len(student), -1, -1)
        feature = residual_norm(
            teacher.flatten(2),
            # The roots of the masks: the norm squares them.
            ((weight * spatial_mask.sqrt()).flatten(2), channel_mask.sqrt().flatten(2)),
            adapters.feature.bias[None],
            (matrix, student.flatten(2)),
        )
        by_channel, by_position = _Means.apply(student)
        channel = teacher.mean(dim=(2, 3)) - adapters.channel(by_channel)
        spatial = teacher.mean(dim=1, keepdim=True) - adapters.spatial(by_position)
        return (
            average_norm(feature, teacher[0].numel(), self.scale),
            norm_per_image(weight.mean(dim=(1, 2, 3))[:, None] * channel, self.scale),
            norm_per_image(weight * spatial, self.scale),
        )

"""Focal and global distillation, FGD (Yang et al., CVPR 2022, arXiv 2111.11837).

Shape letters: N images, G instances of an image, C channels, (H, W) size of a level.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..boxes import covered_cells, rasterize_max
from .base import (
    DISTILLATION_LOSS_REGISTRY,
    Context,
    FeatureLoss,
    average_sum,
    channels_of,
    check_temperature,
    make_adapters,
)
from .functional import spatial_log_softmax, spatial_mean

__all__ = ["FGDLoss", "GlobalContext", "foreground_share"]


def foreground_share(boxes: list[Tensor], size: tuple[int, int], stride: int) -> Tensor:
    """1 / (number of cells) of the smallest box that touches a cell, 0 where none does.

    Args:
        boxes: for each of N images (G_n, 4), XYXY in pixels.
        size: (H, W).
        stride: pixels per cell.

    Returns:
        (N, 1, H, W)
    """
    maps = []
    for of_image in boxes:
        rows, columns = covered_cells(of_image, size, stride)
        share = 1 / (rows.sum(dim=1) * columns.sum(dim=1))
        maps.append(rasterize_max(share, rows, columns))
    return torch.stack(maps)[:, None]


class GlobalContext(nn.Module):
    """What a global context block (Cao et al., arXiv 1904.11492) adds to every position.

    W_2 ReLU(LN(W_1 sum over positions of softmax(W_k F) F)); nothing at first, as in FGD's code.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 2)
        # No bias: the softmax does not see it.
        self.attention = nn.Conv2d(channels, 1, kernel_size=1, bias=False)
        self.transform = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(), nn.Linear(inner, channels)
        )
        nn.init.kaiming_normal_(self.attention.weight, nonlinearity="relu")
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, H, W).
            weights: (N, 1, H, W), of the positions.

        Returns:
            (N, C, 1, 1)
        """
        attention = spatial_log_softmax(self.attention(x), weights).exp()
        context = x.flatten(2) @ attention.flatten(2).transpose(1, 2)  # (N, C, 1)
        return self.transform(context.squeeze(2))[..., None, None]


class _Blocks(nn.Module):
    """The two global context blocks of one level."""

    def __init__(self, channels: int):
        super().__init__()
        self.student = GlobalContext(channels)
        self.teacher = GlobalContext(channels)


@DISTILLATION_LOSS_REGISTRY.register()
class FGDLoss(FeatureLoss):
    """Imitate foreground and background apart, where the teacher looks, and the whole's context.

    With A_s, A_c the attention over positions and channels, S a cell's share, 1 / (cells of its
    smallest box) or, outside all boxes, 1 / (cells there) (section 3.1), and GC the blocks of
    global context (section 3.2), per level and image:

        foreground: sum over cells in boxes of  w S A_s(F_t) A_c(F_t) (F_t - F_s)^2
        background: the same over the other cells
        attention:  || w (A_s(F_t) - A_s(F_s)) ||_1 + mean(w) || A_c(F_t) - A_c(F_s) ||_1
        global:     sum  w (F_t + GC_t(F_t) - F_s - GC_s(F_s))^2

    F_s is the student's after the adapter. An instance's weight is a factor of its cells' terms,
    beside the share that makes large and small instances equal, which is of the ground truth alone.
    The softmaxes of A_s and GC are over cells whose weight w is not 0, and the means of A_c count a
    cell by its weight, so that cells of weight 0 are without influence.

    DISTILLATION.SCALE "rms" divides by C (foreground, background and the attention over channels;
    their cells are averaged already), H W (attention over positions) and C H W (global).
    """

    @configurable
    def __init__(
        self,
        *,
        channels: dict[str, tuple[int, int]],
        temperature: float,
        foreground_weight: float,
        background_weight: float,
        attention_weight: float,
        global_weight: float,
        scale: str,
        relative_temperature: bool = True,
        standardize: bool = True,
        adapt_equal_widths: bool = False,
    ):
        """
        Args:
            channels: (C_s, C_t) of each level.
            temperature: of both attentions; small is sharp.
            foreground_weight, background_weight, attention_weight, global_weight: alpha, beta,
                gamma and lambda of the paper.
            scale: "sum" or "rms", see :func:`average_sum`.
            relative_temperature: see DISTILLATION.RELATIVE_TEMPERATURE.
            standardize: see DISTILLATION.STANDARDIZE.
            adapt_equal_widths: see DISTILLATION.ADAPT_EQUAL_WIDTHS.

        Raises:
            AIDError: a temperature that is not positive.
        """
        term_weights = {
            "loss_distill_fgd_foreground": foreground_weight,
            "loss_distill_fgd_background": background_weight,
            "loss_distill_fgd_attention": attention_weight,
            "loss_distill_fgd_global": global_weight,
        }
        super().__init__(term_weights, standardize)
        check_temperature("DISTILLATION.FGD.TEMPERATURE", temperature)
        self.adapters = make_adapters(channels, adapt_equal_widths)
        self.blocks = nn.ModuleDict({k: _Blocks(c) for k, (_, c) in channels.items()})
        self.temperature = temperature
        self.relative_temperature = relative_temperature
        self.scale = scale

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        keys = cfg.DISTILLATION.FGD
        return {
            "channels": channels_of(levels, student_shapes, teacher_shapes),
            "temperature": keys.TEMPERATURE,
            "foreground_weight": keys.FOREGROUND_WEIGHT,
            "background_weight": keys.BACKGROUND_WEIGHT,
            "attention_weight": keys.ATTENTION_WEIGHT,
            "global_weight": keys.GLOBAL_WEIGHT,
            "scale": cfg.DISTILLATION.SCALE,
            "relative_temperature": cfg.DISTILLATION.RELATIVE_TEMPERATURE,
            "standardize": cfg.DISTILLATION.STANDARDIZE,
            "adapt_equal_widths": cfg.DISTILLATION.ADAPT_EQUAL_WIDTHS,
        }

    def extra_repr(self) -> str:
        return f"temperature {self.temperature}, {super().extra_repr()}, scale {self.scale}"

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """The student's features (N, C_s, H, W) as they are compared with the teacher's."""
        return self.adapters[level](student)

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor, ...]:
        """See :class:`FeatureLoss`: foreground, background, attention and global."""
        boxes = [x.gt_boxes.tensor for x in context.instances]
        share = foreground_share(boxes, teacher.shape[-2:], context.strides[name])
        ours = self.adapt(name, student)
        return (
            *self._focal(ours, teacher, weights, share),
            self._global(self.blocks[name], ours, teacher, weights),
        )

    def _focal(
        self, student: Tensor, teacher: Tensor, weights: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Foreground, background and attention."""
        _, c, h, w = teacher.shape
        ours, theirs = self._attention(student, weights), self._attention(teacher, weights)
        squared = (theirs[1] * (teacher - student).square()).sum(dim=1, keepdim=True)
        squared = weights * theirs[0] * squared
        background = (share == 0).to(share)
        background = background / background.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        spatial, channel = ((a - b).abs() for a, b in zip(ours, theirs, strict=True))
        channel = weights.mean(dim=(1, 2, 3), keepdim=True) * channel
        foreground, background, spatial, channel = (
            average_sum(x.sum(dim=(1, 2, 3)), n, self.scale)
            for x, n in (
                (share * squared, c),
                (background * squared, c),
                (weights * spatial, h * w),
                (channel, c),
            )
        )
        return foreground, background, spatial + channel

    def _attention(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """A_s and A_c: (N, 1, H, W) and (N, C, 1, 1), both of mean 1 where the weight is not 0."""
        magnitude = features.abs()
        by_channel = spatial_mean(magnitude, weights)
        temperature = self.temperature
        if self.relative_temperature:
            temperature = temperature * by_channel.mean(dim=1, keepdim=True).clamp(min=1e-12)
        energy = magnitude.mean(dim=1, keepdim=True) / temperature
        spatial = spatial_log_softmax(energy, weights).exp()
        spatial = (weights > 0).sum(dim=(2, 3), keepdim=True) * spatial
        channel = (by_channel / temperature).softmax(dim=1)
        return spatial, channel.shape[1] * channel

    def _global(self, blocks: _Blocks, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        shift = blocks.teacher(teacher, weights) - blocks.student(student, weights)
        squared = (teacher - student + shift).square().sum(dim=1, keepdim=True)
        sums = (weights * squared).sum(dim=(1, 2, 3))
        return average_sum(sums, teacher[0].numel(), self.scale)

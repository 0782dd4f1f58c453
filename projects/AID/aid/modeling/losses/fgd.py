"""Focal and global distillation, FGD (Yang et al., CVPR 2022, arXiv 2111.11837).

Shape letters: N images, G instances of an image, C channels, (H, W) size of a level.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...utils.errors import check_positive
from ..boxes import covered_cells, rasterize_max
from .base import (
    DISTILLATION_LOSS_REGISTRY,
    Context,
    FeatureLoss,
    average_sum,
    check_scale,
    make_adapters,
)
from .functional import spatial_log_softmax, spatial_mean

__all__ = ["FGDLoss", "GlobalContext", "foreground_share"]


def foreground_share(boxes: list[Tensor], size: tuple[int, int], stride: int) -> Tensor:
    """Share 1 / (number of cells) of the smallest box that touches a cell; 0 where none does.

    Args:
        boxes: N tensors (G_n, 4), one per image, XYXY in pixels.
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
    """Global context (Cao et al., arXiv 1904.11492), to be added to every position.

    W_2 ReLU(LN(W_1 sum over positions of softmax(W_k F) F)), initially 0 as in FGD's code.
    """

    def __init__(self, channels: int):
        """
        Args:
            channels: C.
        """
        super().__init__()
        inner = max(1, channels // 2)
        # Without bias, to which the softmax is invariant.
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
            weights: (N, 1, H, W); positions of weight 0 are left out.

        Returns:
            (N, C, 1, 1)
        """
        attention = spatial_log_softmax(self.attention(x), weights).exp()
        context = x.flatten(2) @ attention.flatten(2).transpose(1, 2)  # (N, C, 1)
        return self.transform(context.squeeze(2))[..., None, None]


@DISTILLATION_LOSS_REGISTRY.register()
class FGDLoss(FeatureLoss):
    """Distance of features in foreground and background, of attention, and of global context.

    With A_s, A_c the attention over positions and channels, S a cell's share, 1 / (cells of its
    smallest box) or, outside all boxes, 1 / (cells outside) (section 3.1), GC the global context
    blocks (section 3.2) and w the weight map, per level and image:

        foreground: sum over cells in boxes of  w S A_s(F_t) A_c(F_t) (F_t - F_s)^2
        background: same sum over the other cells
        attention:  || w (A_s(F_t) - A_s(F_s)) ||_1 + mean(w) || A_c(F_t) - A_c(F_s) ||_1
        global:     sum  w (F_t + GC_t(F_t) - F_s - GC_s(F_s))^2

    F_s is the student's behind the adapter. w is a factor of the terms besides S, which gives large
    and small instances equal weight and depends on the ground truth alone. The softmaxes of A_s and
    GC are over cells whose weight is not 0, and the means of A_c are weighted by w: cells of weight
    0 have no influence.

    DISTILLATION.SCALE "rms" divides by C (foreground, background and the attention over channels,
    which are averaged over cells already), H W (attention over positions) and C H W (global).
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
        standardize: bool = True,
        adapt_equal_widths: bool = False,
    ):
        """
        Args:
            channels: {level: (C_s, C_t)}.
            temperature: of both attentions; the smaller, the sharper.
            foreground_weight, background_weight, attention_weight, global_weight: alpha, beta,
                gamma and lambda of the paper.
            scale: "sum" or "rms", see :func:`average_sum`.
            standardize, adapt_equal_widths: see the keys of DISTILLATION.

        Raises:
            AIDError: a temperature that is not positive, an unknown scale, or a negative weight.
        """
        term_weights = {
            "loss_distill_fgd_foreground": foreground_weight,
            "loss_distill_fgd_background": background_weight,
            "loss_distill_fgd_attention": attention_weight,
            "loss_distill_fgd_global": global_weight,
        }
        super().__init__(term_weights, standardize, channels)
        check_scale(scale)
        check_positive("DISTILLATION.FGD.TEMPERATURE", temperature)
        self.adapters = make_adapters(channels, adapt_equal_widths)
        self.blocks = nn.ModuleDict(
            {
                level: nn.ModuleDict({side: GlobalContext(c) for side in ("student", "teacher")})
                for level, (_, c) in channels.items()
            }
        )
        self.temperature = temperature
        self.scale = scale

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        keys = cfg.DISTILLATION.FGD
        return {
            "temperature": keys.TEMPERATURE,
            "foreground_weight": keys.FOREGROUND_WEIGHT,
            "background_weight": keys.BACKGROUND_WEIGHT,
            "attention_weight": keys.ATTENTION_WEIGHT,
            "global_weight": keys.GLOBAL_WEIGHT,
            "scale": cfg.DISTILLATION.SCALE,
        }

    def extra_repr(self) -> str:
        return f"temperature {self.temperature}, {super().extra_repr()}, scale {self.scale}"

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """Student's features (N, C_s, H, W) behind the adapter: (N, C_t, H, W)."""
        return self.adapters[level](student)

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor, ...]:
        """Compute the foreground, background, attention and global term."""
        boxes = [x.gt_boxes.tensor for x in context.instances]
        height, width = teacher.shape[-2:]
        share = foreground_share(boxes, (height, width), context.strides[name])
        student = self.adapt(name, student)
        return (
            *self._focal(student, teacher, weights, share),
            self._global(name, student, teacher, weights),
        )

    def _focal(
        self, student: Tensor, teacher: Tensor, weights: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the foreground, background and attention term."""
        _, c, h, w = teacher.shape
        of_student, of_teacher = (self._attention(x, weights) for x in (student, teacher))
        squared = (of_teacher[1] * (teacher - student).square()).sum(dim=1, keepdim=True)
        squared = weights * of_teacher[0] * squared
        background = (share == 0).to(share)
        background = background / background.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        spatial, channel = ((a - b).abs() for a, b in zip(of_student, of_teacher, strict=True))
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
        """Attention A_s (N, 1, H, W) and A_c (N, C, 1, 1), of mean 1 where weights are not 0."""
        magnitude = features.abs()
        by_channel = spatial_mean(magnitude, weights)
        energy = magnitude.mean(dim=1, keepdim=True) / self.temperature
        spatial = spatial_log_softmax(energy, weights).exp()
        spatial = (weights > 0).sum(dim=(2, 3), keepdim=True) * spatial
        channel = (by_channel / self.temperature).softmax(dim=1)
        return spatial, channel.shape[1] * channel

    def _global(self, level: str, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        """Compute the global term."""
        blocks = self.blocks[level]
        shift = blocks["teacher"](teacher, weights) - blocks["student"](student, weights)
        squared = (teacher - student + shift).square().sum(dim=1, keepdim=True)
        sums = (weights * squared).sum(dim=(1, 2, 3))
        return average_sum(sums, teacher[0].numel(), self.scale)

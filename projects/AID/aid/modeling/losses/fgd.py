"""Focal and global distillation, FGD (Yang et al., CVPR 2022, arXiv 2111.11837).

Shape letters: N images, G instances of an image, C channels, (H, W) size of a level.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..painting import highest, touched_cells
from .base import (
    DISTILLATION_LOSS_REGISTRY,
    Context,
    average_sum,
    channels_of,
    check_temperature,
    make_adapters,
)
from .positions import position_log_softmax, position_mean

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
        rows, columns = touched_cells(of_image, size, stride)
        share = 1 / (rows.sum(dim=1) * columns.sum(dim=1))
        maps.append(highest(share, rows, columns))
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
        attention = position_log_softmax(self.attention(x), weights).exp()
        context = x.flatten(2) @ attention.flatten(2).transpose(1, 2)  # (N, C, 1)
        return self.transform(context.squeeze(2))[..., None, None]


class _Blocks(nn.Module):
    """The two global context blocks of one level."""

    def __init__(self, channels: int):
        super().__init__()
        self.student = GlobalContext(channels)
        self.teacher = GlobalContext(channels)


@DISTILLATION_LOSS_REGISTRY.register()
class FGDLoss(nn.Module):
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
    ):
        """
        Args:
            channels: (C_s, C_t) of each level.
            temperature: of both attentions; small is sharp.
            foreground_weight, background_weight, attention_weight, global_weight: alpha, beta,
                gamma and lambda of the paper.
            scale: "sum" or "rms", see :func:`average_sum`.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__()
        check_temperature("DISTILLATION.FGD.TEMPERATURE", temperature)
        self.adapters = make_adapters(channels)
        self.blocks = nn.ModuleDict({k: _Blocks(c) for k, (_, c) in channels.items()})
        self.temperature = temperature
        self.weights = {
            "foreground": foreground_weight,
            "background": background_weight,
            "attention": attention_weight,
            "global": global_weight,
        }
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
        }

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name} {weight}" for name, weight in self.weights.items())
        return f"temperature {self.temperature}, {weights}, scale {self.scale}"

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """The student's features (N, C_s, H, W) as they are compared with the teacher's."""
        return self.adapters[level](student)

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See DISTILLATION_LOSS_REGISTRY.

        Returns:
            ``loss_distill_fgd_`` and "foreground", "background", "attention" or "global".
        """
        boxes = [x.gt_boxes.tensor for x in context.instances]
        levels = []
        for name, adapter in self.adapters.items():
            share = foreground_share(boxes, teacher[name].shape[-2:], context.strides[name])
            ours = adapter(student[name])
            levels.append(
                (
                    *self._focal(ours, teacher[name], weights[name], share),
                    self._global(self.blocks[name], ours, teacher[name], weights[name]),
                )
            )
        sums = (torch.stack(x).sum() for x in zip(*levels, strict=True))
        terms = zip(self.weights.items(), sums, strict=True)
        return {f"loss_distill_fgd_{name}": weight * term for (name, weight), term in terms}

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
        energy = magnitude.mean(dim=1, keepdim=True) / self.temperature
        spatial = position_log_softmax(energy, weights).exp()
        spatial = (weights > 0).sum(dim=(2, 3), keepdim=True) * spatial
        channel = (position_mean(magnitude, weights) / self.temperature).softmax(dim=1)
        return spatial, channel.shape[1] * channel

    def _global(self, blocks: _Blocks, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        shift = blocks.teacher(teacher, weights) - blocks.student(student, weights)
        squared = (teacher - student + shift).square().sum(dim=1, keepdim=True)
        sums = (weights * squared).sum(dim=(1, 2, 3))
        return average_sum(sums, teacher[0].numel(), self.scale)

"""Non-local distillation (Zhang & Ma, ICLR 2021, section 3.2), with weight maps.

Shape letters: N images, C channels, c inner channels, (H, W) size of a level, P positions after
subsampling.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from .base import DISTILLATION_LOSS_REGISTRY, Context, average_norm, channels_of
from .residual import residual_norm

__all__ = ["NonLocalBlock", "NonLocalLoss"]


def pointwise(x: Tensor, *convs: nn.Conv2d) -> Tensor:
    """1x1 convolutions of the same map, one after the other along the channels.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, sum of their output channels, H, W)
    """
    matrix = torch.cat([conv.weight.flatten(1) for conv in convs]).expand(len(x), -1, -1)
    bias = torch.cat([conv.bias for conv in convs])[:, None]
    return torch.baddbmm(bias, matrix, x.flatten(2)).unflatten(2, x.shape[-2:])


class NonLocalBlock(nn.Module):
    """Non-local block with dot products (Wang et al., CVPR 2018): F + W(theta (phi^T g) / P).

    Keys phi and values g are max-pooled. There is no softmax, so the product of three may start
    with its small end: phi^T g is (c, c), where theta phi^T would be (H * W, P). The loss below
    takes the block apart and computes the same.
    """

    def __init__(self, channels: int, inner_channels: int, subsample: int):
        """
        Args:
            channels: C.
            inner_channels: c.
            subsample: kernel and stride of the pooling, cut to the size of the map.
        """
        super().__init__()
        self.subsample = subsample
        self.theta = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.phi = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.g = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.out = nn.Conv2d(inner_channels, channels, kernel_size=1)
        # The block starts as the identity, as in the authors' code.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def mix(self, x: Tensor) -> Tensor:
        """W g phi^T / P over all positions: the block is F + mix(F) theta(F) + the bias of W.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, C, c)
        """
        kernel = tuple(min(self.subsample, side) for side in x.shape[-2:])
        both = pointwise(x, self.phi, self.g)  # (N, 2 c, H, W)
        keys, values = F.max_pool2d(both, kernel).flatten(2).chunk(2, dim=1)  # (N, c, P)
        mixing = values @ keys.transpose(1, 2) / keys.shape[2]
        return self.out.weight.flatten(1) @ mixing

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, H, W).

        Returns:
            (N, C, H, W)
        """
        mixed = self.mix(x) @ pointwise(x, self.theta).flatten(2) + self.out.bias[:, None]
        return x + mixed.view_as(x)


class _Blocks(nn.Module):
    """The two non-local blocks of one level, and the adapter between them."""

    def __init__(
        self, student_channels: int, teacher_channels: int, inner_share: float, subsample: int
    ):
        super().__init__()
        self.student = NonLocalBlock(
            student_channels, max(1, int(student_channels * inner_share)), subsample
        )
        self.teacher = NonLocalBlock(
            teacher_channels, max(1, int(teacher_channels * inner_share)), subsample
        )
        self.adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


@DISTILLATION_LOSS_REGISTRY.register()
class NonLocalLoss(nn.Module):
    """Imitate relations between positions: || w (conv1x1(NL_s(F_s)) - NL_t(F_t)) ||.

    Both blocks are trained, the teacher's on its frozen features, as in the authors' code. Inner
    channels are C/4 on the two finest levels and C/2 on the others: the authors' 64 and 128 of 256.
    """

    @configurable
    def __init__(
        self,
        *,
        channels: dict[str, tuple[int, int]],
        subsample: list[int],
        weight: float,
        scale: str,
    ):
        """
        Args:
            channels: student's and teacher's channels of each level, finest first.
            subsample: pooling of keys and values by level; the last entry serves further levels.
            weight: of the loss.
            scale: "sum" or "rms", see :func:`norm_per_image`.
        """
        super().__init__()
        self.blocks = nn.ModuleDict(
            {
                level: _Blocks(
                    *both,
                    inner_share=0.25 if i < 2 else 0.5,
                    subsample=subsample[min(i, len(subsample) - 1)],
                )
                for i, (level, both) in enumerate(channels.items())
            }
        )
        self.weight = weight
        self.scale = scale

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        return {
            "channels": channels_of(levels, student_shapes, teacher_shapes),
            "subsample": cfg.DISTILLATION.NON_LOCAL.SUBSAMPLE,
            "weight": cfg.DISTILLATION.NON_LOCAL.WEIGHT,
            "scale": cfg.DISTILLATION.SCALE,
        }

    def extra_repr(self) -> str:
        return f"weight {self.weight}, scale {self.scale}"

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See DISTILLATION_LOSS_REGISTRY.

        Returns:
            "loss_distill_non_local".
        """
        terms = [
            self._level(blocks, student[level], teacher[level], weights[level])
            for level, blocks in self.blocks.items()
        ]
        return {"loss_distill_non_local": self.weight * torch.stack(terms).sum()}

    def _level(self, blocks: _Blocks, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        # The student's block and the adapter are one matrix on its features, by image.
        mixing = blocks.student.mix(student)
        adapter = blocks.adapter.weight.flatten(1)  # (C_t, C_s)
        matrix = adapter + (adapter @ mixing) @ blocks.student.theta.weight.flatten(1)
        offset = mixing @ blocks.student.theta.bias + blocks.student.out.bias  # (N, C_s)
        offset = offset @ adapter.T + blocks.adapter.bias
        # The teacher's is not: its queries are few.
        mixing = blocks.teacher.mix(teacher)
        queries = pointwise(teacher, blocks.teacher.theta)
        norms = residual_norm(
            teacher.flatten(2),
            (weight.flatten(2),),
            offset - blocks.teacher.out.bias,
            (matrix, student.flatten(2)),
            (-mixing, queries.flatten(2)),
        )
        return average_norm(norms, teacher[0].numel(), self.scale)

"""Non-local distillation (Zhang & Ma, ICLR 2021, section 3.2), with weight maps.

Shape letters: N images, C channels (C_s and C_t of student and teacher), c inner channels, (H, W)
size of a level, P positions after subsampling.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn

from ...utils.errors import AIDError
from .base import (
    DISTILLATION_LOSS_REGISTRY,
    Context,
    FeatureLoss,
    average_norm,
    check_scale,
    make_adapter,
)
from .functional import residual_norm

__all__ = ["NonLocalBlock", "NonLocalLoss"]


def pointwise(x: Tensor, *convs: nn.Conv2d) -> Tensor:
    """Apply 1x1 convolutions to the same map and concatenate their outputs.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, sum of their output channels, H, W)
    """
    matrix = torch.cat([conv.weight.flatten(1) for conv in convs]).expand(len(x), -1, -1)
    bias = torch.cat([conv.bias for conv in convs])[:, None]
    return torch.baddbmm(bias, matrix, x.flatten(2)).unflatten(2, x.shape[-2:])


class NonLocalBlock(nn.Module):
    """Non-local block with dot products (Wang et al., CVPR 2018): F + BN(W(theta (phi^T g) / P)).

    Keys phi and values g are max-pooled. Without a softmax the product is associative, and
    phi^T g (c, c) is computed first instead of theta phi^T (H * W, P). The loss below computes the
    same from :meth:`mix`. Batch norm normalizes the product, which is cubic in the features; its
    statistics are over all processes.
    """

    def __init__(self, channels: int, inner_channels: int, subsample: int):
        """
        Args:
            channels: C.
            inner_channels: c.
            subsample: kernel size and stride of the pooling, at most the size of the map.
        """
        super().__init__()
        self.subsample = subsample
        self.theta = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.phi = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.g = nn.Conv2d(channels, inner_channels, kernel_size=1)
        self.out = nn.Conv2d(inner_channels, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels)
        # Initially the block is the identity, as in the authors' code.
        nn.init.zeros_(self.norm.weight)

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the factors of the block, written as F + A theta(F) + b.

        Args:
            x: (N, C, H, W).

        Returns:
            A (N, C, c), theta(F) (N, c, H * W) and b (C,).
        """
        kernel = tuple(min(self.subsample, side) for side in x.shape[-2:])
        queries, keys, values = pointwise(x, self.theta, self.phi, self.g).chunk(3, dim=1)
        queries = queries.flatten(2)
        keys, values = (F.max_pool2d(y, kernel).flatten(2) for y in (keys, values))  # (N, c, P)
        mixing = values @ keys.transpose(1, 2) / keys.shape[2]
        mixing = self.out.weight.flatten(1) @ mixing
        mean, variance = self._statistics(mixing, queries)
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        offset = self.norm.bias + scale * (self.out.bias - mean)
        return scale[:, None] * mixing, queries, offset

    def _statistics(self, mixing: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of the input of :attr:`norm`, without computing that input.

        Args:
            mixing: (N, C, c).
            queries: (N, c, H * W).
        """
        norm = self.norm
        if not self.training:
            return norm.running_mean, norm.running_var
        center = queries.mean(dim=2, keepdim=True)
        centered = queries - center
        size = queries.shape[2]
        covariance = centered @ centered.transpose(1, 2) / size  # (N, c, c)
        mean = (mixing @ center).squeeze(2)  # (N, C), of each image
        square = ((mixing @ covariance) * mixing).sum(dim=2) + mean.square()
        # Double precision, since the square of a large mean is subtracted from the mean square.
        count = mean.new_full((1,), float(len(mean) * size))
        sums = torch.cat([*(size * x.double().sum(dim=0) for x in (mean, square)), count.double()])
        if comm.get_world_size() > 1:
            sums = differentiable_all_reduce(sums)
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        variance = (square - mean.square()).clamp(min=0).to(mixing.dtype)
        mean = mean.to(mixing.dtype) + self.out.bias
        with torch.no_grad():
            unbiased = variance * (sums[-1] / (sums[-1] - 1).clamp(min=1)).to(mixing.dtype)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(unbiased, norm.momentum)
            norm.num_batches_tracked.add_(1)
        return mean, variance


class _Blocks(nn.Module):
    """Non-local blocks of one level, and the adapter between them."""

    def __init__(
        self,
        channels: tuple[int, int],
        inner_share: float,
        subsample: int,
        train_teacher: bool,
        adapt_equal_widths: bool,
    ):
        super().__init__()
        student, teacher = (
            NonLocalBlock(c, max(1, int(c * inner_share)), subsample) for c in channels
        )
        self.student = student
        self.teacher = teacher if train_teacher else None
        self.adapter = make_adapter(channels, adapt_equal_widths)


@DISTILLATION_LOSS_REGISTRY.register()
class NonLocalLoss(FeatureLoss):
    """Distance behind non-local blocks, || w (conv1x1(NL_s(F_s)) - NL_t(F_t)) ||.

    In the authors' code both blocks are trained, the teacher's on its frozen features. A teacher's
    block that is not trained is the identity. Inner channels are C/4 on the two finest levels and
    C/2 on the others, as the authors' 64 and 128 of 256.
    """

    @configurable
    def __init__(
        self,
        *,
        channels: dict[str, tuple[int, int]],
        subsample: list[int],
        weight: float,
        scale: str,
        train_teacher: bool = False,
        standardize: bool = True,
        adapt_equal_widths: bool = False,
    ):
        """
        Args:
            channels: {level: (C_s, C_t)}, finest first.
            subsample: pooling of keys and values by level; further levels have the last entry.
            weight: weight of the term.
            scale: "sum" or "rms", see :func:`norm_per_image`.
            train_teacher: see DISTILLATION.NON_LOCAL.TRAIN_TEACHER.
            standardize, adapt_equal_widths: see the keys of DISTILLATION.

        Raises:
            AIDError: no kernel size, or one that is no whole number above 0, an unknown scale, or a
                negative weight.
        """
        super().__init__({"loss_distill_non_local": weight}, standardize, channels)
        check_scale(scale)
        if not subsample or not all(type(x) is int and x > 0 for x in subsample):
            raise AIDError(
                f"DISTILLATION.NON_LOCAL.SUBSAMPLE is {list(subsample)}: name kernel sizes, whole "
                "numbers of at least 1"
            )
        self.blocks = nn.ModuleDict(
            {
                level: _Blocks(
                    both,
                    inner_share=0.25 if i < 2 else 0.5,
                    subsample=subsample[min(i, len(subsample) - 1)],
                    train_teacher=train_teacher,
                    adapt_equal_widths=adapt_equal_widths,
                )
                for i, (level, both) in enumerate(channels.items())
            }
        )
        self.scale = scale

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        keys = cfg.DISTILLATION.NON_LOCAL
        return {
            "subsample": keys.SUBSAMPLE,
            "weight": keys.WEIGHT,
            "scale": cfg.DISTILLATION.SCALE,
            "train_teacher": keys.TRAIN_TEACHER,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale {self.scale}"

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        blocks = self.blocks[name]
        mixing, queries, offset = blocks.student.mix(student)
        matrix = None
        if isinstance(blocks.adapter, nn.Conv2d):
            adapter = blocks.adapter.weight.flatten(1)  # (C_t, C_s)
            matrix = adapter.expand(len(student), -1, -1)
            mixing = adapter @ mixing
            offset = adapter @ offset + blocks.adapter.bias
        products = [(matrix, student.flatten(2)), (mixing, queries)]
        if blocks.teacher is not None:
            mixing, queries, shift = blocks.teacher.mix(teacher)
            offset = offset - shift
            products.append((-mixing, queries))
        norms = residual_norm(teacher.flatten(2), (weights.flatten(2),), offset[None], *products)
        return (average_norm(norms, teacher[0].numel(), self.scale),)

"""Distillation losses as others compute them, for studies/side_by_side.py.

The first four are subclasses of this project's losses, with the same parameters and config keys.
They leave out weight maps, and have the same values where these are 1, DISTILLATION.SCALE is "sum",
and student and teacher have equally many channels. ICD has no counterpart.

Shape letters: N images, C channels, (H, W) size of a level, L positions of all levels, M heads, d
channels of a head, Q queries of an image.
"""

import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from aid.config import get_value
from aid.modeling.families import num_classes_key
from aid.modeling.losses import (
    DISTILLATION_LOSS_REGISTRY,
    AttentionGuidedLoss,
    Context,
    DistillationLoss,
    FGDLoss,
    NonLocalLoss,
    PKDLoss,
)
from aid.modeling.losses.fgd import GlobalContext
from aid.modeling.losses.non_local import NonLocalBlock


def attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention over positions (N, 1, H, W) and over channels (N, C, 1, 1), each of mean 1.

    Zhang & Ma, ICLR 2021, section 3.1; Yang et al., CVPR 2022, section 3.1.
    """
    n, c, h, w = features.shape
    magnitude = features.abs()
    by_position = (magnitude.mean(dim=1) / temperature).flatten(1).softmax(dim=1)
    by_channel = (magnitude.mean(dim=(2, 3)) / temperature).softmax(dim=1)
    return h * w * by_position.view(n, 1, h, w), c * by_channel.view(n, c, 1, 1)


def mean_norm(x: Tensor) -> Tensor:
    """2-norm of each image of (N, ...), averaged."""
    return x.flatten(1).norm(dim=1).mean()


@DISTILLATION_LOSS_REGISTRY.register()
class OriginalAttentionGuidedLoss(AttentionGuidedLoss):
    """Attention-guided distillation, term by term as in Zhang & Ma, ICLR 2021, section 3.1."""

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        adapters = self.adapters[name]
        with torch.no_grad():
            both = (attention(x, self.temperature) for x in (student, teacher))
            by_position, by_channel = ((a + b) / 2 for a, b in zip(*both, strict=True))
        squared = (teacher - adapters.feature(student)).square() * by_position * by_channel
        channel = teacher.mean(dim=(2, 3)) - adapters.channel(student.mean(dim=(2, 3)))
        spatial = teacher.mean(dim=1, keepdim=True)
        spatial = spatial - adapters.spatial(student.mean(dim=1, keepdim=True))
        return squared.sum(dim=(1, 2, 3)).sqrt().mean(), mean_norm(channel), mean_norm(spatial)


@DISTILLATION_LOSS_REGISTRY.register()
class OriginalNonLocalLoss(NonLocalLoss):
    """Non-local distillation with the relations of all pairs of positions.

    Zhang & Ma, ICLR 2021, section 3.2, with the blocks of Wang et al., CVPR 2018.
    """

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        blocks = self.blocks[name]
        student = blocks.adapter(self._related(blocks.student, student))
        if blocks.teacher is not None:
            teacher = self._related(blocks.teacher, teacher)
        return (mean_norm(student - teacher),)

    @staticmethod
    def _related(block: NonLocalBlock, x: Tensor) -> Tensor:
        kernel = tuple(min(block.subsample, side) for side in x.shape[-2:])
        queries = block.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(block.phi(x), kernel).flatten(2)
        values = F.max_pool2d(block.g(x), kernel).flatten(2).transpose(1, 2)
        relations = queries @ keys / keys.shape[2]  # (N, H * W, H * W / subsample^2)
        mixed = (relations @ values).transpose(1, 2).unflatten(2, x.shape[-2:])
        return x + block.norm(block.out(mixed))


@DISTILLATION_LOSS_REGISTRY.register()
class OriginalPKDLoss(PKDLoss):
    """Half the mean squared error of features that are standardized over the batch.

    Cao et al., NeurIPS 2022, section 3, as in MMRazor. The statistics are those of all images; for
    a single image the value is that of :class:`PKDLoss`.
    """

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        standardized = []
        for x in (self.adapt(name, student), teacher):
            x = x.transpose(0, 1).flatten(1)  # (C, N * H * W)
            deviation = x.std(dim=1, keepdim=True, correction=0)
            standardized.append((x - x.mean(dim=1, keepdim=True)) / (deviation + 1e-6))
        return (F.mse_loss(*standardized) / 2,)


@DISTILLATION_LOSS_REGISTRY.register()
class OriginalFGDLoss(FGDLoss):
    """FGD in the order of MMRazor's computation, which is the authors'.

    Yang et al., CVPR 2022, sections 3.1 and 3.2: masks are drawn box by box, and features of each
    side multiplied by the roots of attention and mask. Boxes cover the cells that they touch, as in
    :class:`FGDLoss`.
    """

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor, ...]:
        student = self.adapt(name, student)
        n = len(student)
        foreground = self._foreground(teacher, context.instances, context.strides[name])
        background = (foreground == 0).to(foreground)
        background = background / background.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        of_student = attention(student, self.temperature)
        of_teacher = attention(teacher, self.temperature)
        attended = [x * of_teacher[0].sqrt() * of_teacher[1].sqrt() for x in (student, teacher)]
        focal = (
            F.mse_loss(*(x * mask.sqrt() for x in attended), reduction="sum") / n
            for mask in (foreground, background)
        )
        distances = ((a - b).abs().sum() for a, b in zip(of_student, of_teacher, strict=True))
        student = self._with_context(self.blocks[name].student, student)
        teacher = self._with_context(self.blocks[name].teacher, teacher)
        return (*focal, sum(distances) / n, F.mse_loss(student, teacher, reduction="sum") / n)

    @staticmethod
    def _foreground(teacher: Tensor, instances: list[Instances], stride: int) -> Tensor:
        n, _, h, w = teacher.shape
        foreground = teacher.new_zeros(n, 1, h, w)
        for image, of_image in zip(foreground, instances, strict=True):
            for x0, y0, x1, y1 in (of_image.gt_boxes.tensor / stride).tolist():
                x0, y0 = min(math.floor(x0), w - 1), min(math.floor(y0), h - 1)
                x1, y1 = max(math.ceil(x1), x0 + 1), max(math.ceil(y1), y0 + 1)
                cells = image[:, y0:y1, x0:x1]
                cells.clamp_(min=1 / (cells.shape[1] * cells.shape[2]))
        return foreground

    @staticmethod
    def _with_context(block: GlobalContext, x: Tensor) -> Tensor:
        attended = block.attention(x).flatten(2).softmax(dim=2)
        pooled = (x.flatten(2) @ attended.transpose(1, 2)).squeeze(2)
        return x + block.transform(pooled)[..., None, None]


def sine_encoding(points: Tensor, channels: int) -> Tensor:
    """Sines and cosines (..., channels) of points (..., 2) in [0, 1], as in DETR."""
    frequencies = 10000 ** -torch.linspace(0, 1, channels // 4, device=points.device)
    angles = 2 * math.pi * points[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Perceptron of three layers."""
    widths = (inputs, hidden, hidden, outputs)
    first, second, last = map(nn.Linear, widths[:-1], widths[1:])
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


@DISTILLATION_LOSS_REGISTRY.register()
class ICDLoss(DistillationLoss):
    """Instance-conditional distillation (Kang et al., NeurIPS 2021, arXiv 2110.12724, section 3).

    Every instance, described by its class and center, is a query to the positions of all levels of
    the teacher; m_ij is the attention of query i in head j, V_j the values. With r real instances:

        distillation:   1 / (M r)  sum over j and real i of  <m_ij, mean_d (V_j(F_s) - V_j(F_t))^2>
        identification: binary cross-entropy between real instances and false ones
        localization:   L1 distance of the box sides from the center, real instances only

    The last two, the auxiliary task, train the decoder, the first one the student alone. As in the
    authors' code there are 8 heads, one layer, and 5 false instances for each real one, with random
    class and box; padding of images is not masked. The weight 3 is that of their Faster R-CNN.
    Student and teacher must have equally many channels, a multiple of 8.
    """

    heads = 8
    false_ratio = 5
    weight = 3.0

    def __init__(
        self,
        cfg: CfgNode,
        levels: tuple[str, ...],
        student_shapes: dict[str, ShapeSpec],
        teacher_shapes: dict[str, ShapeSpec],
    ):
        super().__init__()
        c = self.channels = teacher_shapes[levels[0]].channels
        self.num_classes = get_value(cfg, num_classes_key(cfg))
        self.describe = mlp(self.num_classes + c, c, c)
        self.position, self.query, self.key, self.value, self.out = (
            nn.Linear(c, c) for _ in range(5)
        )
        self.forward_network = nn.Sequential(nn.Linear(c, 4 * c), nn.ReLU(), nn.Linear(4 * c, c))
        self.norms = nn.ModuleList([nn.LayerNorm(c), nn.LayerNorm(c)])
        self.predict = mlp(c, c, 5)

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        descriptions, sides, real, valid = self._queries(context.instances)
        of_student, of_teacher = (
            torch.cat([x[k].flatten(2) for k in weights], dim=2).transpose(1, 2)
            for x in (student, teacher)
        )
        points = torch.cat([self._points(teacher[k]) for k in weights])
        positions = self.position(sine_encoding(points, self.channels))
        x = self.describe(descriptions)
        queries = self._by_head(self.query(x))
        keys = self._by_head(self.key(of_teacher + positions))
        values = self._by_head(self.value(of_teacher))
        masks = (queries @ keys.transpose(2, 3) / keys.shape[3] ** 0.5).softmax(dim=3)
        x = self.norms[0](x + self.out((masks @ values).transpose(1, 2).flatten(2)))
        x = self.norms[1](x + self.forward_network(x))
        logits, predicted = self.predict(x).split([1, 4], dim=2)
        identification = F.binary_cross_entropy_with_logits(
            logits[..., 0], real, valid, reduction="sum"
        )
        num_real = real.sum().clamp(min=1)
        localization = ((predicted - sides).abs().sum(dim=2) * real).sum() / num_real

        frozen = (p.detach() for p in (self.value.weight, self.value.bias))
        squared = self._by_head(F.linear(of_student, *frozen)) - values.detach()
        squared = squared.square().mean(dim=3)  # (N, M, L)
        attended = (masks.detach() * real[:, None, :, None]).sum(dim=2)
        return {
            "loss_distill_icd": self.weight * (attended * squared).sum() / (self.heads * num_real),
            "loss_distill_icd_identification": identification / valid.sum().clamp(min=1),
            "loss_distill_icd_localization": localization,
        }

    def _by_head(self, x: Tensor) -> Tensor:
        """Split channels: (N, Q or L, C) to (N, M, Q or L, d)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    @staticmethod
    def _points(features: Tensor) -> Tensor:
        """Centers (H * W, 2) of the cells as shares of the map."""
        y, x = ((torch.arange(k, device=features.device) + 0.5) / k for k in features.shape[-2:])
        return torch.cartesian_prod(y, x).flip(1)

    def _queries(self, instances: list[Instances]) -> tuple[Tensor, ...]:
        """Queries, padded to the same number in each image.

        Returns:
            Descriptions (N, Q, classes + C), distances of the box sides from the center (N, Q, 4),
            and 1 for those that are real, and for all that are not padding (N, Q).
        """
        descriptions, sides, real = [], [], []
        for x in instances:
            height, width = x.image_size
            boxes = x.gt_boxes.tensor
            boxes = boxes / boxes.new_tensor([width, height, width, height])
            number = self.false_ratio * len(x)
            false = torch.rand(number, 2, 2, device=boxes.device).sort(dim=1)[0].flatten(1)
            low, high = torch.cat([boxes, false]).chunk(2, dim=1)
            labels = torch.randint(self.num_classes, (number,), device=boxes.device)
            classes = F.one_hot(torch.cat([x.gt_classes, labels]), self.num_classes)
            center = (low + high) / 2
            descriptions.append(torch.cat([classes, sine_encoding(center, self.channels)], dim=1))
            sides.append(torch.cat([center - low, high - center], dim=1))
            real.append(torch.arange(len(low), device=boxes.device) < len(x))
        valid = [torch.ones(len(x), device=x.device) for x in real]
        padded = [pad_sequence(x, batch_first=True) for x in (descriptions, sides, real, valid)]
        return (padded[0], padded[1], padded[2].float(), padded[3])

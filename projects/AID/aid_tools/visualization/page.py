"""Page of an image: ground truth, weight maps, attention and feature differences by teacher."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from torch import Tensor

from aid.utils.text import one_line

from .canvas import MARGIN, Canvas, enlarged, overlay
from .collect import Seen
from .labels import Label, draw_labels, draw_regions
from .words import largest_part, name_of_part

__all__ = ["Picture", "draw_page"]

# Perceptually uniform color maps. Weights have their own, to set them apart.
COLORS = {"weight": "viridis", "attention": "cividis", "difference": "cividis"}
# In inches.
GAP, ROW_LABEL = 0.12, 0.95
CELL_WIDTH, CELL_HEIGHT, MIN_CELL_WIDTH = 3.2, 2.6, 2.2
MAX_CELL_HEIGHT = 4 * CELL_HEIGHT
MIN_BODY, TRUTH_HEIGHT = 12.0, 8.0
TITLE, HEAD, NAMES, FOOT, LINE = 0.75, 0.9, 0.6, 1.1, 0.25
EXPLANATIONS = (
    "Weight: the student imitates the teacher strongly in bright cells and little in dark ones.",
    "Attention: relative magnitude of a model's features, by which the attention-guided "
    "loss weights cells.",
    "Teacher - student: distance between the features, after the student's adapter; 0: equal, "
    "1: the difference is as large as the teacher's features.",
)


@dataclass(frozen=True)
class Picture:
    """Content of a page.

    Attributes:
        title: title of the page.
        image: (H, W, 3), RGB, uint8.
        boxes: (G, 4), XYXY in pixels of ``image``.
        classes: class names of the G instances.
        teachers: heading of each teacher.
        granularity: value of AID.GRANULARITY.
        before: results of each teacher with the student before training.
        after: results with the trained student; None without one.
        notes: remarks on the content.
        regions: (D, 4), XYXY, boxes that are neither object nor background.
    """

    title: str
    image: np.ndarray
    boxes: Tensor
    classes: list[str]
    teachers: list[str]
    granularity: str
    before: list[Seen]
    after: list[Seen] | None
    notes: list[str]
    regions: Tensor = torch.empty(0, 4)


@dataclass(frozen=True)
class _Column:
    title: str
    maps: dict[str, Tensor]
    kind: str


@dataclass(frozen=True)
class _Sizes:
    """Sizes in inches: width of the body, size of a map, size of the ground truth image."""

    body: float
    cell: tuple[float, float]
    truth: tuple[float, float]


def _sizes(image: np.ndarray, num_columns: int) -> _Sizes:
    ratio = image.shape[0] / image.shape[1]
    cell = max(MIN_CELL_WIDTH, min(CELL_WIDTH, CELL_HEIGHT / ratio))
    cell = min(cell, MAX_CELL_HEIGHT / ratio)
    body = max(num_columns * (cell + GAP) - GAP, MIN_BODY)
    truth = min(body, TRUTH_HEIGHT / ratio)
    return _Sizes(body, (cell, cell * ratio), (truth, truth * ratio))


def draw_page(picture: Picture) -> Canvas:
    """Draw the page: for each teacher the labeled ground truth and a row of maps per level."""
    shown = picture.after or picture.before
    after = picture.after or [None] * len(shown)
    sets = [_columns(*both) for both in zip(picture.before, after, strict=True)]
    norms = _norms(sets)
    sizes = _sizes(picture.image, max(len(columns) for columns in sets))
    lines = [*EXPLANATIONS, *picture.notes]
    num_rows = sum(len(seen.strides) for seen in shown)
    height = TITLE + len(sets) * (HEAD + sizes.truth[1] + NAMES + FOOT)
    height += num_rows * (sizes.cell[1] + GAP) + LINE * len(lines) + MARGIN
    canvas = Canvas(2 * MARGIN + ROW_LABEL + sizes.body, height)
    canvas.text(MARGIN, 0.2, one_line(picture.title), 16, weight="bold")
    x, y = MARGIN + ROW_LABEL, TITLE
    for line, seen, columns in zip(picture.teachers, shown, sets, strict=True):
        canvas.text(x, y, one_line(line), 14, weight="bold")
        canvas.text(x, y + 0.3, _explanation(seen, picture.granularity, len(shown)), 11.5)
        y += HEAD
        _draw_truth(canvas, picture, seen, norms["weight"], (x, y, *sizes.truth))
        y += sizes.truth[1] + NAMES
        _draw_maps(canvas, picture.image, (seen.strides, columns), norms, (x, y, *sizes.cell))
        y += len(seen.strides) * (sizes.cell[1] + GAP)
        _draw_bars(canvas, columns, norms, x, y + 0.02, sizes.cell[0])
        y += FOOT
    for line in lines:
        canvas.text(x, y, one_line(line), 11.5)
        y += LINE
    return canvas


def _draw_maps(
    canvas: Canvas,
    image: np.ndarray,
    content: tuple[dict[str, int], list[_Column]],
    norms: dict[str, Normalize],
    place: tuple[float, float, float, float],
) -> None:
    """Draw one row of maps per level; ``place`` is the position and size of the first map."""
    strides, columns = content
    x, y, width, height = place
    for row, (level, stride) in enumerate(strides.items()):
        top = y + row * (height + GAP)
        canvas.text(x - 0.1, top + height / 2, level, 13, ha="right", va="bottom")
        side = f"1 cell =\n{stride} x {stride} px"
        canvas.text(x - 0.1, top + height / 2 + 0.03, side, 8.5, ha="right")
        for k, column in enumerate(columns):
            pixels = overlay(
                image, column.maps[level], stride, COLORS[column.kind], norms[column.kind]
            )
            axes = canvas.image(pixels, x + k * (width + GAP), top, width, height)
            if column.kind == "difference":
                _write_mean(axes, column.maps[level].mean().item())
    for k, column in enumerate(columns):
        middle = x + k * (width + GAP) + width / 2
        canvas.text(middle, y - 0.07, column.title, 11.5, ha="center", va="bottom")


def _columns(before: Seen, after: Seen | None) -> list[_Column]:
    seen = after or before
    columns = [
        _Column("weight of imitation", seen.maps, "weight"),
        _Column("attention\nteacher", seen.attention, "attention"),
        _Column("attention\nstudent, before training", before.student_attention, "attention"),
    ]
    if after:
        columns.append(_Column("attention\nstudent, trained", after.student_attention, "attention"))
    if before.difference:
        columns.append(
            _Column("teacher - student\nbefore training", before.difference, "difference")
        )
    if after and after.difference:
        columns.append(_Column("teacher - student\ntrained", after.difference, "difference"))
    return columns


def _norms(sets: list[list[_Column]]) -> dict[str, Normalize]:
    """Normalization of each kind of map, shared by all levels and teachers of the page."""
    values = {"weight": [1.0], "difference": [1.0]}
    for columns in sets:
        for column in columns:
            if column.kind in values:
                highest = (x[x.isfinite()].flatten().quantile(0.99) for x in column.maps.values())
                values[column.kind] += [x.item() for x in highest]
    return {
        "weight": Normalize(0, max(values["weight"]), clip=True),
        "attention": LogNorm(0.1, 10, clip=True),
        "difference": Normalize(0, max(values["difference"]), clip=True),
    }


def _explanation(seen: Seen, granularity: str, num_teachers: int) -> str:
    if seen.losses is None:
        return "AID.GRANULARITY none: the weight is the same everywhere, and D is not computed"
    others = " after mixing" if num_teachers > 1 else ""
    message = (
        f"On each object: w, the imitation weight of this teacher{others} (color of the box); D, "
        "the teacher's loss, and its largest component"
    )
    if granularity != "instance":
        message += f"\nAID.GRANULARITY {granularity}: maps have one weight per {granularity}; w is "
        message += "the weight of the object on its own"
    return message


def _draw_truth(
    canvas: Canvas,
    picture: Picture,
    seen: Seen,
    norm: Normalize,
    place: tuple[float, float, float, float],
) -> None:
    axes = canvas.image(enlarged(picture.image, 1200), *place)
    factor = axes.get_xlim()[1] / picture.image.shape[1]
    draw_regions(axes, (factor * picture.regions).numpy())
    labels = []
    for i, (box, name) in enumerate(zip(picture.boxes.tolist(), picture.classes, strict=True)):
        text, color = name, (1.0, 1.0, 1.0, 1.0)
        if seen.losses is not None:
            part, _ = largest_part(seen.parts, i)
            text += f"  w {seen.weights[i]:.2f}\nD {seen.losses[i]:.1f}: {name_of_part(part)}"
            color = colormaps[COLORS["weight"]](norm(seen.weights[i].item()))
        labels.append(Label(tuple(factor * side for side in box), text, color))
    draw_labels(axes, labels)


def _write_mean(axes: Axes, mean: float) -> None:
    axes.text(
        0.985,
        0.04,
        f"mean {mean:.2f}",
        fontsize=9.5,
        color="white",
        ha="right",
        transform=axes.transAxes,
        bbox={"facecolor": (0.07, 0.07, 0.07), "edgecolor": "none", "pad": 1.5},
    )


def _draw_bars(
    canvas: Canvas,
    columns: list[_Column],
    norms: dict[str, Normalize],
    x: float,
    y: float,
    width: float,
) -> None:
    """Draw a color bar for each kind of map, below its columns."""
    ticks = {"ticks": [0.1, 0.3, 1, 3, 10], "format": "%g"}
    labels = {
        "weight": ("weight w (0: not imitated)", {}),
        "attention": (
            "attention, in multiples\nof its mean over the level",
            {"extend": "both", **ticks},
        ),
        "difference": (
            "difference, in multiples of\nthe teacher's features (RMS)",
            {"extend": "max"},
        ),
    }
    for kind, (label, options) in labels.items():
        positions = [k for k, column in enumerate(columns) if column.kind == kind]
        if not positions:
            continue
        left = x + positions[0] * (width + GAP)
        total = len(positions) * (width + GAP) - GAP
        used = min(total, 4.5)
        x_bar = left + (total - used) / 2
        canvas.colorbar(COLORS[kind], norms[kind], x_bar, y, used, label, **options)

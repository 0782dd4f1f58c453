"""Matplotlib page with positions in inches from the top left corner."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from aid.utils.drawing import MAX_AREA
from aid.utils.files import whole_file

from ..text import figure_text

__all__ = ["Canvas", "enlarged", "overlay"]

DPI = 100
MARGIN = 0.25
# Strength with which the image darkens or brightens the colors of a map drawn over it.
SHADING = 0.45


class Canvas:
    """Figure of fixed size with images, text and color bars.

    Attributes:
        width, height: size of the page in inches.
        figure: the Matplotlib figure.
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(self.figure)  # works without a display

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes without ticks, with their top left corner at (x, y)."""
        bottom = self.height - y - height
        axes = self.figure.add_axes(
            (x / self.width, bottom / self.height, width / self.width, height / self.height)
        )
        axes.set_axis_off()
        return axes

    def image(self, pixels: np.ndarray, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes filled with an RGB image; their coordinates are its pixels."""
        axes = self.axes(x, y, width, height)
        rows, columns = pixels.shape[:2]
        axes.imshow(pixels, aspect="auto", extent=(0, columns, rows, 0), interpolation="bilinear")
        return axes

    def text(self, x: float, y: float, text: str, size: float = 10, **options) -> None:
        """Add text, by default with its top left corner at (x, y)."""
        options = {"va": "top", "ha": "left", **options}
        position = (x / self.width, 1 - y / self.height)
        self.figure.text(*position, figure_text(text), fontsize=size, **options)

    def colorbar(
        self,
        colormap: str,
        norm: Normalize,
        x: float,
        y: float,
        width: float,
        label: str,
        **options,
    ) -> None:
        """Add a horizontal color bar, 0.16 in high, with ticks and label below it."""
        axes = self.axes(x, y, width, 0.16)
        axes.set_axis_on()
        mappable = ScalarMappable(norm, colormaps[colormap])
        bar = self.figure.colorbar(mappable, cax=axes, orientation="horizontal", **options)
        bar.ax.tick_params(labelsize=10)
        bar.set_label(label, fontsize=11)

    def save(self, path: str) -> None:
        """Write the page as PNG."""
        with whole_file(path) as f:
            self.figure.savefig(f, format="png")


def enlarged(image: np.ndarray, width: int) -> np.ndarray:
    """Enlarge an image (H, W, 3) to ``width`` pixels, bicubically, if it is narrower.

    A high image becomes less wide, so that its area stays within MAX_AREA.
    """
    rows, columns = image.shape[:2]
    if columns >= width:
        return image
    factor = max(1.0, min(width / columns, math.sqrt(MAX_AREA / (rows * columns))))
    width = min(width, round(columns * factor))
    size = (round(rows * width / columns), width)
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False)
    return pixels[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def overlay(
    image: np.ndarray, cells: Tensor, stride: int, colormap: str, norm: Normalize
) -> np.ndarray:
    """Draw the map of a feature level over its image.

    Args:
        image: (H, W, 3), RGB, uint8.
        cells: (H_l, W_l), which may extend beyond the image because of padding.
        stride: pixels per cell.
        colormap, norm: mapping from values to colors.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    height, width = image.shape[:2]
    pixels = cells.repeat_interleave(stride, 0).repeat_interleave(stride, 1)[:height, :width]
    colors = colormaps[colormap](norm(pixels.numpy()))[..., :3]
    gray = image.mean(axis=2, keepdims=True) / 255
    # Shading has zero mean, so that the mean color matches the color bar.
    shade = SHADING * (gray - gray.mean())
    shaded = np.where(shade < 0, colors * (1 + shade), colors + shade * (1 - colors))
    return (255 * shaded).round().astype(np.uint8)

"""A page on which things have their places in inches, from the top left."""

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

from aid.utils.files import whole_file

__all__ = ["Canvas", "enlarged", "overlay"]

DPI = 100
MARGIN = 0.25
# How much darker or brighter an image makes the colours of a map over it.
SHADING = 0.45


class Canvas:
    """A figure of a given size with a few kinds of things on it.

    Attributes:
        width, height: of the page, in inches.
        figure: matplotlib's.
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(self.figure)  # no display is needed

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without ticks, whose top left corner is at (x, y)."""
        bottom = self.height - y - height
        axes = self.figure.add_axes(
            (x / self.width, bottom / self.height, width / self.width, height / self.height)
        )
        axes.set_axis_off()
        return axes

    def image(self, pixels: np.ndarray, x: float, y: float, width: float, height: float) -> Axes:
        """Axes filled with an RGB image, in its own coordinates."""
        axes = self.axes(x, y, width, height)
        rows, columns = pixels.shape[:2]
        axes.imshow(pixels, aspect="auto", extent=(0, columns, rows, 0), interpolation="bilinear")
        return axes

    def text(self, x: float, y: float, text: str, size: float = 10, **options) -> None:
        """Text whose top left corner is at (x, y), unless told otherwise."""
        options = {"va": "top", "ha": "left", **options}
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, fontsize=size, **options)

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
        """A horizontal colour bar, 0.16 in high, with its ticks and label below it."""
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
    """An image (H, W, 3), enlarged smoothly to ``width`` pixels if it is narrower."""
    if image.shape[1] >= width:
        return image
    size = (round(image.shape[0] * width / image.shape[1]), width)
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False)
    return pixels[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def overlay(
    image: np.ndarray, cells: Tensor, stride: int, colormap: str, norm: Normalize
) -> np.ndarray:
    """The map of a level over its image.

    Args:
        image: (H, W, 3), RGB, uint8.
        cells: (H_l, W_l), which may reach beyond the image by the padding.
        stride: pixels per cell.
        colormap, norm: from values to colours.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    height, width = image.shape[:2]
    pixels = cells.repeat_interleave(stride, 0).repeat_interleave(stride, 1)[:height, :width]
    colors = colormaps[colormap](norm(pixels.numpy()))[..., :3]
    grey = image.mean(axis=2, keepdims=True) / 255
    # Towards black and white alike, so that a colour is on average the one in the colour bar.
    shade = SHADING * (grey - grey.mean())
    shaded = np.where(shade < 0, colors * (1 + shade), colors + shade * (1 - colors))
    return (255 * shaded).round().astype(np.uint8)

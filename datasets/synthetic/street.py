"""Street: sky, ground and houses as background, and unlabeled street furniture."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import Camera, Canvas
from .primitives import Ball, Limb, Polygon, Primitive, box, place
from .vehicles import Model

__all__ = ["FURNITURE", "Street", "draw_street", "sample_street"]

NEAR, FAR = 2.5, 160.0
ASPHALT, PAVEMENT, MARKING = (98, 98, 102), (146, 142, 136), (214, 212, 204)
GRASS, EARTH = (84, 112, 58), (126, 108, 84)
WALLS = [(176, 152, 124), (150, 92, 76), (196, 188, 174), (128, 130, 136), (168, 170, 148)]
WINDOW, LIT_WINDOW = (58, 68, 82), (255, 214, 140)
FOLIAGE = [(52, 84, 40), (70, 98, 46), (96, 104, 44), (44, 70, 44)]
WOOD, STEEL = (84, 64, 46), (104, 108, 112)


@dataclass(frozen=True)
class Street:
    """Layout of the street; lengths in meters.

    Attributes:
        left, right: x of the edges of the road.
        pavement: width of the pavements.
        houses: faces of each placed house, the farthest house first.
        ground: color of the ground beside the pavements, RGB.
    """

    left: float
    right: float
    pavement: float
    houses: list[list[Primitive]]
    ground: tuple[int, int, int]


def sample_street(rng: np.random.Generator, camera: Camera, night: bool) -> Street:
    """Sample a street."""
    left, right = -rng.uniform(5.0, 8.5), rng.uniform(3.0, 6.5)
    pavement = rng.uniform(1.8, 3.5)
    houses = []
    for side, edge in ((-1, left), (1, right)):
        z = rng.uniform(6, 14)
        while z < 90:
            length, gap = rng.uniform(7, 18), rng.uniform(0, 9)
            if rng.random() < 0.75:
                x = edge + side * (pavement + rng.uniform(1.0, 5.0))
                parts = _house(rng, side, length, night)
                houses.append((z, place(parts, x, z, -math.pi / 2, camera.height)))
            z += length + gap
    houses = [parts for _, parts in sorted(houses, key=lambda house: -house[0])]
    return Street(left, right, pavement, houses, GRASS if rng.random() < 0.6 else EARTH)


def _house(rng: np.random.Generator, side: int, length: float, night: bool) -> list[Primitive]:
    """Sample a house with its corner next to the road at the origin, forward along the road."""
    height, depth = rng.uniform(4.5, 13.0), 9.0
    wall = WALLS[rng.integers(len(WALLS))]
    front = np.array([(0, 0, 0), (length, 0, 0), (length, 0, height), (0, 0, height)], float)
    end = np.array([(0, 0, 0), (0, side * depth, 0), (0, side * depth, height), (0, 0, height)])
    parts: list[Primitive] = [Polygon(end, wall), Polygon(front, wall)]
    wide, tall, story = 1.1, 1.4, rng.uniform(2.8, 3.4)
    for floor in range(int(height / story)):
        for column in range(int(length / 2.6)):
            f, h = 0.9 + 2.6 * column, 0.9 + story * floor
            pane = [(f, 0, h), (f + wide, 0, h), (f + wide, 0, h + tall), (f, 0, h + tall)]
            lit = night and rng.random() < 0.25
            parts.append(Polygon(np.array(pane), LIT_WINDOW if lit else WINDOW, emissive=lit))
    return parts


def draw_street(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Draw sky, ground, road and houses over the whole canvas."""
    _sky(canvas, rng)
    reach = 80.0
    left, right, p = street.left, street.right, street.pavement
    _strips(canvas, -reach, reach, street.ground)
    _strips(canvas, left - p, right + p, PAVEMENT)
    _strips(canvas, left, right, ASPHALT)
    middle = (left + right) / 2 if right - left > 9 else left + 3.4
    start = rng.uniform(0, 6)
    for z in np.arange(NEAR + start, 70, 6.0):
        _strip(canvas, middle - 0.07, middle + 0.07, z, z + 3.0, MARKING)
    for edge in (left + 0.25, right - 0.25):
        _strips(canvas, edge - 0.06, edge + 0.06, MARKING)
    _mottle(canvas, rng)
    for house in street.houses:
        for face in house:
            canvas.draw_flat(face)


def _sky(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = max(1, int(canvas.camera.center_y) + 1)
    haze = np.array(canvas.light.haze)
    zenith = haze * rng.uniform(0.6, 1.0) * (0.8, 0.92, 1.1)
    share = np.linspace(0, 1, horizon)[:, None, None]
    sky = zenith * (1 - share) + haze * share
    canvas.image[:] = haze.astype(np.uint8)
    canvas.image[:horizon] = np.clip(sky, 0, 255).astype(np.uint8)
    # Distant trees and roofs, almost hidden by haze.
    width = canvas.image.shape[1]
    step = max(2, width // 80)
    heights = 0.02 * horizon + rng.random(width // step + 1) * 0.1 * horizon
    far = canvas.light.shade(FOLIAGE[0], 90.0, None)
    for i, height in enumerate(heights):
        canvas.image[horizon - int(height) : horizon, i * step : (i + 1) * step] = far


def _strips(canvas: Canvas, x1: float, x2: float, color: tuple) -> None:
    """Draw a strip along the road, in pieces so that haze increases with distance."""
    edges = [FAR, 80, 50, 34, 25, 19, 15, 12, 9.5, 8, 6.5, 5, NEAR]
    for far, near in zip(edges, edges[1:], strict=False):
        _strip(canvas, x1, x2, near, far, color)


def _strip(canvas: Canvas, x1: float, x2: float, z1: float, z2: float, color: tuple) -> None:
    y = canvas.camera.height
    corners = np.array([(x1, y, z1), (x2, y, z1), (x2, y, z2), (x1, y, z2)])
    canvas.draw_flat(Polygon(corners, color))


def _mottle(canvas: Canvas, rng: np.random.Generator) -> None:
    """Multiply the ground by coarse and fine noise, for stains and unevenness."""
    top = int(canvas.camera.center_y) + 1
    ground = canvas.image[top:]
    height, width = ground.shape[:2]
    factor = np.zeros((height, width))
    for columns, strength in ((20, 30), (160, 14)):
        cells = rng.integers(64 - strength, 65 + strength, (columns // 4, columns), np.uint8)
        # INTER_LINEAR_EXACT gives the same pixels on every processor.
        factor += cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    ground[:] = np.clip(ground * factor[..., None] / 128, 0, 255).astype(np.uint8)


def _pole(rng: np.random.Generator) -> Model:
    height = rng.uniform(4.0, 7.0)
    parts: list[Primitive] = [_rod((0, 0, 0), (0, 0, height), 0.07, STEEL)]
    if rng.random() < 0.6:
        arm = 1.4 * (1 if rng.random() < 0.5 else -1)
        parts.append(_rod((0, 0, height), (0, arm, height + 0.2), 0.05, STEEL))
        lamp = np.array([(0.0, arm, height + 0.15)])
        parts.append(Ball(lamp, 0.16, (255, 232, 180), emissive=True))
    return Model("", parts, (height, 0.2, 0.2))


def _sign(rng: np.random.Generator) -> Model:
    color = [(196, 30, 34), (28, 76, 160), (222, 186, 40)][rng.integers(3)]
    parts = [_rod((0, 0, 0), (0, 0, 2.4), 0.04, STEEL)]
    parts += [Ball(np.array([(0.0, 0, 2.3)]), 0.34, color)]
    parts += [Ball(np.array([(-0.02, 0, 2.3)]), 0.2, (236, 236, 236))]
    return Model("", parts, (2.6, 0.7, 0.1))


def _bin(rng: np.random.Generator) -> Model:
    color = [(52, 92, 60), (60, 66, 76), (168, 120, 40)][rng.integers(3)]
    height, width = rng.uniform(0.9, 1.5), rng.uniform(0.3, 0.5)
    return Model("", box((-width, width), width, (0.05, height), color), (height, width, width))


def _pillar(rng: np.random.Generator) -> Model:
    """Sample a pillar of about the size of a person, a distractor."""
    height, color = rng.uniform(1.3, 1.9), WALLS[rng.integers(len(WALLS))]
    parts: list[Primitive] = [_rod((0, 0, 0.1), (0, 0, height), 0.22, color)]
    parts.append(Ball(np.array([(0.0, 0, height)]), 0.24, STEEL))
    return Model("", parts, (height, 0.5, 0.5))


def _tree(rng: np.random.Generator) -> Model:
    height = rng.uniform(3.5, 7.5)
    parts: list[Primitive] = [_rod((0, 0, 0), (0, 0, 0.6 * height), 0.15, WOOD)]
    for _ in range(7):
        center = rng.normal(0, 0.16 * height, 3) * (1, 1, 0.6) + (0, 0, 0.72 * height)
        color = FOLIAGE[rng.integers(len(FOLIAGE))]
        parts.append(Ball(center[None], rng.uniform(0.12, 0.2) * height, color))
    return Model("", parts, (height, 2.5, 2.5))


def _bush(rng: np.random.Generator) -> Model:
    parts: list[Primitive] = []
    for _ in range(5):
        center = rng.normal(0, 0.4, 3) * (1, 1, 0.3) + (0, 0, 0.45)
        parts.append(Ball(center[None], rng.uniform(0.3, 0.5), FOLIAGE[rng.integers(4)]))
    return Model("", parts, (1.0, 1.6, 1.6))


def _rod(start: tuple, end: tuple, radius: float, color: tuple) -> Limb:
    return Limb(np.array([start, end], dtype=float), radius, color)


FURNITURE = (_pole, _sign, _bin, _pillar, _tree, _bush)

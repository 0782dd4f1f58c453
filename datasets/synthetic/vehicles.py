"""Models of cars and of similar vehicles: vans, trucks and trailers."""

import math
from dataclasses import dataclass

import numpy as np

from .primitives import Color, Limb, Polygon, Primitive, box, prism

__all__ = ["Model", "car", "trailer", "truck", "van"]

PAINTS = [
    (186, 189, 194), (236, 236, 232), (40, 42, 48), (92, 98, 106), (148, 24, 28), (28, 58, 128),
    (22, 92, 80), (196, 160, 40), (120, 82, 52), (210, 208, 190),
]  # fmt: skip
GLASS = (38, 50, 60)
TIRE, HUB = (24, 24, 26), (150, 152, 156)
HEADLIGHT, TAILLIGHT = (255, 244, 214), (214, 24, 20)


@dataclass(frozen=True)
class Model:
    """Model of an object.

    Attributes:
        type: KITTI type of its label; empty for an unlabeled object.
        parts: primitives in model coordinates.
        size: height, width and length in meters, in KITTI's order.
    """

    type: str
    parts: list[Primitive]
    size: tuple[float, float, float]


def car(rng: np.random.Generator) -> Model:
    """Sample a hatchback, a sedan or a station wagon."""
    length, width = rng.uniform(3.6, 4.6), rng.uniform(1.65, 1.85)
    height = rng.uniform(1.38, 1.62)
    paint = _paint(rng)
    e, w = length / 2, width / 2
    belt, hood, sill = 0.62 * height, 0.56 * height, 0.24
    body = [(-e, sill), (e, sill), (e, 0.8 * hood), (0.28 * length, hood), (-e, belt)]
    rear = rng.choice([-0.49, -0.44, -0.3])  # station wagon, hatchback, sedan
    roof = [
        (rear * length, belt),
        (0.25 * length, hood),
        (0.08 * length, height),
        ((rear + 0.1) * length, height),
    ]
    parts = prism(body, w, paint)
    parts += prism(roof, 0.94 * w, paint, top_half_width=0.76 * w, glass=GLASS)
    parts += _wheels(0.31 * length, w, 0.31) + _lights(e, w, 0.55 * hood, 0.8 * belt)
    return Model("Car", parts, (height, width, length))


def van(rng: np.random.Generator) -> Model:
    """Sample a delivery van, of KITTI's type Van, which resembles a car."""
    length, width, height = rng.uniform(4.6, 5.6), rng.uniform(1.85, 2.05), rng.uniform(2.1, 2.6)
    paint, e, w = _paint(rng), length / 2, width / 2
    nose = [(0.3 * length, 0.3), (e, 0.3), (e, 0.42 * height), (0.3 * length, 0.5 * height)]
    cabin = [
        (0.15 * length, 0.5 * height),
        (0.36 * length, 0.5 * height),
        (0.24 * length, 0.96 * height),
        (0.15 * length, 0.96 * height),
    ]
    parts = box((-e, 0.3 * length), w, (0.3, 0.5 * height), paint)
    parts += box((-e, 0.15 * length), w, (0.5 * height, height), paint)
    parts += prism(nose, w, paint) + prism(cabin, 0.97 * w, paint, glass=GLASS)
    parts += _wheels(0.32 * length, w, 0.34) + _lights(e, w, 0.3 * height, 0.45 * height)
    return Model("Van", parts, (height, width, length))


def truck(rng: np.random.Generator) -> Model:
    """Sample a truck with a box body."""
    length, width, height = rng.uniform(6.5, 8.5), 2.4, rng.uniform(3.0, 3.5)
    e, w = length / 2, width / 2
    parts = box((-e, 0.55 * e), w, (0.9, height), _paint(rng))
    parts += box((0.6 * e, e), w, (0.5, 0.45 * height), paint := _paint(rng))
    parts += prism([(0.6 * e, 0.45 * height), (e, 0.45 * height), (0.96 * e, 0.8 * height),
                    (0.6 * e, 0.8 * height)], w, paint, glass=GLASS)  # fmt: skip
    parts += box((-0.95 * e, 0.95 * e), 0.8 * w, (0.5, 0.9), (52, 52, 54))
    parts += _wheels(0.36 * length, w, 0.48) + _lights(e, w, 0.8, 0.8)
    return Model("Truck", parts, (height, width, length))


def trailer(rng: np.random.Generator) -> Model:
    """Sample a trailer without a car, of KITTI's type Misc."""
    length, width, height = rng.uniform(2.0, 3.2), rng.uniform(1.4, 1.8), rng.uniform(1.1, 1.7)
    parts = box((-length / 2, 0.35 * length), width / 2, (0.45, height), _paint(rng))
    bar = np.array([(0.35 * length, 0.0, 0.5), (0.5 * length, 0.0, 0.45)])
    parts += [Limb(bar, 0.05, (70, 70, 72)), *_wheels(0.0, width / 2, 0.28)]
    return Model("Misc", parts, (height, width, length))


def _paint(rng: np.random.Generator) -> Color:
    base = PAINTS[rng.integers(len(PAINTS))]
    return tuple(int(np.clip(c + rng.integers(-14, 15), 0, 255)) for c in base)


def _wheels(axle: float, half_width: float, radius: float) -> list[Polygon]:
    angles = [2 * math.pi * i / 12 for i in range(12)]
    rim = np.array([(math.cos(a), 0, math.sin(a)) for a in angles])
    wheels = []
    for forward in {axle, -axle}:
        for side in (-1, 1):
            for scale, color, out in ((1.0, TIRE, 0.01), (0.5, HUB, 0.03)):
                center = np.array([forward, side * (half_width + out), radius])
                points = rim * (radius * scale) + center
                wheels.append(Polygon(points, color, outward=np.array([0.0, side, 0.0])))
    return wheels


def _lights(end: float, half_width: float, front: float, rear: float) -> list[Polygon]:
    lights = []
    for side in (-1, 1):
        for forward, up, color in ((end + 0.02, front, HEADLIGHT), (-end - 0.02, rear, TAILLIGHT)):
            corners = [(0.92, -0.08), (0.6, -0.08), (0.6, 0.08), (0.92, 0.08)]
            points = [(forward, side * half_width * v, up + h) for v, h in corners]
            outward = np.array([math.copysign(1, forward), 0.0, 0.0])
            lights.append(Polygon(np.array(points), color, emissive=True, outward=outward))
    return lights

"""Models of pedestrians, sitting people and cyclists."""

import math

import numpy as np

from .primitives import Ball, Color, Limb, Primitive, box
from .vehicles import Model

__all__ = ["cyclist", "pedestrian", "sitting_person"]

CLOTHES = [
    (170, 36, 40), (34, 60, 122), (30, 32, 38), (214, 206, 188), (60, 100, 56), (206, 140, 40),
    (112, 60, 116), (96, 102, 110), (36, 120, 132), (226, 226, 222),
]  # fmt: skip
SKIN = [(228, 186, 158), (196, 146, 110), (132, 90, 64), (92, 62, 46)]
HAIR = [(40, 30, 24), (88, 60, 36), (150, 118, 70), (110, 108, 106)]
STEEL, TIRE = (70, 74, 80), (26, 26, 28)


def pedestrian(rng: np.random.Generator) -> Model:
    """Sample a standing or walking person."""
    height = rng.uniform(1.45, 1.95)
    stride, lean = rng.uniform(0.02, 0.22), rng.uniform(-0.03, 0.05)
    shirt, trousers, skin = _choose(rng, CLOTHES), _choose(rng, CLOTHES), _choose(rng, SKIN)
    hip, shoulder = 0.5 * height, 0.8 * height
    parts: list[Primitive] = [
        _limb((0, 0, hip), (lean, 0, 0.76 * height), 0.17, shirt),
        *_head((lean, 0, 0.915 * height), 0.085 * height, skin, _choose(rng, HAIR)),
    ]
    for side in (-1, 1):
        swing = side * stride
        parts.append(
            _limb((0, side * 0.09, hip), (swing * height, side * 0.1, 0.05), 0.08, trousers)
        )
        elbow = (lean - swing * 0.5, side * 0.27, 0.62 * height)
        parts.append(_limb((lean, side * 0.2, shoulder - 0.06), elbow, 0.055, shirt))
        parts.append(_limb(elbow, (lean - swing, side * 0.27, 0.47 * height), 0.045, skin))
    if rng.random() < 0.3:
        parts.append(
            _limb((-0.2, 0, 0.6 * height), (-0.2, 0, 0.74 * height), 0.13, _choose(rng, CLOTHES))
        )
    return Model("Pedestrian", parts, (height, 0.6, 2 * stride * height + 0.3))


def sitting_person(rng: np.random.Generator) -> Model:
    """Sample a person on a bench, of KITTI's type Person_sitting."""
    shirt, trousers, skin = _choose(rng, CLOTHES), _choose(rng, CLOTHES), _choose(rng, SKIN)
    parts = box((-0.25, 0.25), 0.7, (0.4, 0.46), (112, 84, 58))
    parts += box((-0.28, -0.22), 0.7, (0.46, 0.85), (112, 84, 58))
    parts += [_limb((-0.1, 0, 0.6), (-0.1, 0, 0.98), 0.16, shirt)]
    parts += _head((-0.05, 0, 1.22), 0.14, skin, _choose(rng, HAIR))
    for side in (-1, 1):
        knee = (0.36, side * 0.13, 0.5)
        parts.append(_limb((-0.05, side * 0.1, 0.52), knee, 0.085, trousers))
        parts.append(_limb(knee, (0.38, side * 0.13, 0.06), 0.07, trousers))
        parts.append(_limb((-0.1, side * 0.2, 0.96), (0.22, side * 0.16, 0.58), 0.055, shirt))
    return Model("Person_sitting", parts, (1.36, 1.4, 0.8))


def cyclist(rng: np.random.Generator) -> Model:
    """Sample a rider with a bicycle, one object as in KITTI."""
    scale = rng.uniform(0.92, 1.08)
    shirt, trousers, skin = _choose(rng, CLOTHES), _choose(rng, CLOTHES), _choose(rng, SKIN)
    frame, crank = _choose(rng, CLOTHES), rng.uniform(0, math.pi)
    saddle, head, hub = (-0.22, 0, 0.92), (0.42, 0, 0.9), (0.0, 0, 0.3)
    parts = [*_ring((-0.53, 0, 0.34), 0.31), *_ring((0.55, 0, 0.34), 0.31)]
    for start, end in (
        (saddle, hub), (hub, head), (head, (0.55, 0, 0.34)), (saddle, (-0.53, 0, 0.34)),
        (hub, (-0.53, 0, 0.34)), ((-0.14, 0, 0.72), head),
    ):  # fmt: skip
        parts.append(_limb(start, end, 0.03, frame))
    parts.append(_limb((0.4, -0.25, 1.02), (0.4, 0.25, 1.02), 0.025, STEEL))
    hip, shoulder = (-0.2, 0, 1.0), (rng.uniform(0.05, 0.25), 0, 1.42)
    parts.append(_limb(hip, shoulder, 0.16, shirt))
    helmet = _choose(rng, CLOTHES) if rng.random() < 0.5 else _choose(rng, HAIR)
    parts += _head((shoulder[0] + 0.1, 0, 1.66), 0.14, skin, helmet)
    for side in (-1, 1):
        angle = crank + (math.pi if side > 0 else 0)
        foot = (0.17 * math.cos(angle), side * 0.1, 0.3 + 0.17 * math.sin(angle))
        knee = ((hip[0] + foot[0]) / 2 + 0.22, side * 0.1, (hip[2] + foot[2]) / 2 + 0.08)
        parts += [_limb(hip, knee, 0.08, trousers), _limb(knee, foot, 0.06, trousers)]
        hand = (0.4, side * 0.22, 1.04)
        parts.append(_limb((shoulder[0], side * 0.18, 1.36), hand, 0.05, shirt))
    scaled = [_scale(part, scale) for part in parts]
    return Model("Cyclist", scaled, (1.8 * scale, 0.6, 1.75 * scale))


def _choose(rng: np.random.Generator, colors: list[Color]) -> Color:
    return colors[rng.integers(len(colors))]


def _limb(start: tuple, end: tuple, radius: float, color: Color) -> Limb:
    return Limb(np.array([start, end], dtype=float), radius, color)


def _head(center: tuple, radius: float, skin: Color, hair: Color) -> list[Primitive]:
    f, v, h = center
    return [
        Ball(np.array([(f, v, h)]), radius, skin),
        Ball(np.array([(f - 0.3 * radius, v, h + 0.35 * radius)]), 0.9 * radius, hair),
    ]


def _ring(center: tuple, radius: float, corners: int = 12) -> list[Limb]:
    angles = [2 * math.pi * i / corners for i in range(corners + 1)]
    f, v, h = center
    rim = [(f + radius * math.cos(a), v, h + radius * math.sin(a)) for a in angles]
    return [_limb(a, b, 0.035, TIRE) for a, b in zip(rim, rim[1:], strict=False)]


def _scale(part: Primitive, factor: float) -> Primitive:
    radius = {"radius": part.radius * factor} if hasattr(part, "radius") else {}
    return type(part)(points=part.points * factor, color=part.color, **radius)

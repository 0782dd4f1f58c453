"""Shape primitives, and the placement of models in the world.

Shape letters: P corners of a polygon.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Ball", "Limb", "Polygon", "box", "place", "prism"]

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Polygon:
    """Flat polygon.

    Attributes:
        points: (P, 3), corners.
        color: RGB, 0 to 255.
        emissive: whether it emits light.
        outward: unit normal of a decal (a lamp, a wheel), which is visible from this side only and
            is drawn over the rest of its model; None for other polygons.
    """

    points: np.ndarray
    color: Color
    emissive: bool = False
    outward: np.ndarray | None = None


@dataclass(frozen=True)
class Limb:
    """Round rod with ends ``points`` (2, 3) and a radius in meters."""

    points: np.ndarray
    radius: float
    color: Color
    emissive: bool = False


@dataclass(frozen=True)
class Ball:
    """Sphere with center ``points`` (1, 3) and a radius in meters."""

    points: np.ndarray
    radius: float
    color: Color
    emissive: bool = False


Primitive = Polygon | Limb | Ball


def prism(
    profile: list[tuple[float, float]],
    half_width: float,
    color: Color,
    top_half_width: float | None = None,
    glass: Color | None = None,
) -> list[Polygon]:
    """Extrude a side view (forward, up) to both sides.

    Args:
        profile: corners in order.
        half_width: half of the width in meters.
        color: color of all faces.
        top_half_width: half width of the corners above the middle of the profile, to taper a cabin.
        glass: color of the faces other than top and bottom, if they are windows.
    """
    middle = (max(h for _, h in profile) + min(h for _, h in profile)) / 2
    top = half_width if top_half_width is None else top_half_width
    widths = [top if h > middle else half_width for _, h in profile]
    left = np.array([(f, -w, h) for (f, h), w in zip(profile, widths, strict=True)])
    right = left * (1, -1, 1)
    faces = [Polygon(left, glass or color), Polygon(right, glass or color)]
    for i in range(len(profile)):
        j = (i + 1) % len(profile)
        level = abs(profile[i][1] - profile[j][1]) < 0.05
        face = np.stack([left[i], left[j], right[j], right[i]])
        faces.append(Polygon(face, color if level or glass is None else glass))
    return faces


def box(
    forward: tuple[float, float], half_width: float, up: tuple[float, float], color: Color
) -> list[Polygon]:
    """Create a box between two forward positions and two heights."""
    (f0, f1), (h0, h1) = forward, up
    return prism([(f0, h0), (f1, h0), (f1, h1), (f0, h1)], half_width, color)


def place(
    model: list[Primitive], x: float, z: float, rotation: float, ground: float
) -> list[Primitive]:
    """Move a model from its own coordinates (forward, right, up) into the world.

    Args:
        model: primitives of the model.
        x, z: position of its origin.
        rotation: KITTI's rotation_y; 0 points along x, -pi/2 away from the camera.
        ground: y coordinate of the ground.
    """
    cos, sin = math.cos(rotation), math.sin(rotation)
    # Rows: the forward, right and up axes in world coordinates.
    axes = np.array([[cos, 0, -sin], [-sin, 0, -cos], [0, -1, 0]])
    origin = np.array([x, ground, z])
    return [replace(p, points=p.points @ axes + origin, **_turned(p, axes)) for p in model]


def _turned(p: Primitive, axes: np.ndarray) -> dict:
    outward = getattr(p, "outward", None)
    return {} if outward is None else {"outward": outward @ axes}

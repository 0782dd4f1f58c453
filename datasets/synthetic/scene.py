"""Sampling of a scene: a street with traffic."""

import math
from dataclasses import dataclass

import numpy as np

from .canvas import Camera, Light
from .people import cyclist, pedestrian, sitting_person
from .street import FURNITURE, Street, sample_street
from .vehicles import Model, car, trailer, truck, van

__all__ = ["CONDITIONS", "Scene", "Standing", "sample_scene"]

CONDITIONS = ("day", "night", "fog")
NEAREST, FARTHEST = 6.0, 52.0


@dataclass(frozen=True)
class Standing:
    """Placed model: x and z in meters, KITTI's rotation_y in radians."""

    model: Model
    x: float
    z: float
    rotation: float


@dataclass(frozen=True)
class Scene:
    """Content of an image."""

    camera: Camera
    light: Light
    street: Street
    standing: list[Standing]


def sample_scene(rng: np.random.Generator, height: int, width: int, condition: str) -> Scene:
    """Sample a scene.

    Args:
        rng: source of all random numbers.
        height, width: image size in pixels; the field of view is about that of KITTI.
        condition: one of :data:`CONDITIONS`.
    """
    camera = Camera(
        focal=0.58 * width,
        center_x=width / 2 + rng.uniform(-0.02, 0.02) * width,
        center_y=(0.44 + rng.uniform(-0.03, 0.03)) * height,
        height=rng.uniform(1.5, 1.8),
    )
    light = _sample_light(rng, condition)
    street = sample_street(rng, camera, light.night)
    placer = _Placer(rng, camera)
    for make, low, high, where in (
        (car, 1, 6, _on_road), (car, 0, 3, _parked), (van, 0, 1, _on_road),
        (truck, 0, 1, _on_road), (trailer, 0, 1, _parked), (cyclist, 0, 4, _beside_lane),
        (pedestrian, 0, 5, _on_pavement), (pedestrian, 0, 2, _crossing),
        (sitting_person, 0, 1, _on_pavement),
    ):  # fmt: skip
        for _ in range(rng.integers(low, high + 1)):
            if make in (truck, trailer, sitting_person) and rng.random() < 0.6:
                continue
            placer.add(make(rng), where, street)
    for _ in range(rng.integers(3, 10)):
        placer.add(FURNITURE[rng.integers(len(FURNITURE))](rng), _beside_road, street)
    return Scene(camera, light, street, sorted(placer.standing, key=lambda s: -s.z))


def _sample_light(rng: np.random.Generator, condition: str) -> Light:
    azimuth, elevation = rng.uniform(-math.pi, math.pi), rng.uniform(0.4, 1.2)
    sun = (
        math.cos(elevation) * math.sin(azimuth),
        -math.sin(elevation),
        -math.cos(elevation) * math.cos(azimuth),
    )
    warmth = rng.uniform(-0.06, 0.06)
    if condition == "night":
        tint = (0.6 + warmth / 3, 0.63, 0.74 - warmth / 3)
        haze, visibility = (26, 29, 42), rng.uniform(60, 120)
        return Light(sun, rng.uniform(0.55, 0.8), 0.2, tint, haze, visibility, night=True)
    tint = (1 + warmth, 1.0, 1 - warmth)
    if condition == "fog":
        gray = rng.uniform(165, 205)
        haze = (gray, gray, gray + 4)
        return Light(sun, rng.uniform(0.75, 0.9), 0.1, tint, haze, rng.uniform(16, 34))
    haze = (rng.uniform(180, 214), rng.uniform(196, 220), rng.uniform(214, 238))
    return Light(
        sun, rng.uniform(0.45, 0.7), rng.uniform(0.3, 0.55), tint, haze, rng.uniform(110, 260)
    )


class _Placer:
    """Places models without overlap."""

    def __init__(self, rng: np.random.Generator, camera: Camera):
        self.standing: list[Standing] = []
        self._rng = rng
        self._camera = camera

    def add(self, model: Model, where, street: Street, tries: int = 12) -> None:
        for _ in range(tries):
            # Uniform in 1 / z, so that apparent sizes are uniformly distributed.
            inverse = self._rng.uniform(1 / FARTHEST, 1 / NEAREST)
            z = max(1 / inverse, NEAREST + model.size[2] / 2 - 2)
            x, rotation = where(self._rng, street)
            # Skip positions more than 1 m outside the field of view.
            if abs(x) > z * (self._camera.center_x / self._camera.focal) + 1.0:
                continue
            candidate = Standing(model, x, z, rotation)
            if not any(_collide(candidate, other) for other in self.standing):
                self.standing.append(candidate)
                return


def _collide(a: Standing, b: Standing) -> bool:
    def reach(s: Standing) -> tuple[float, float]:
        _, width, length = s.model.size
        cos, sin = abs(math.cos(s.rotation)), abs(math.sin(s.rotation))
        return (length * cos + width * sin) / 2, (length * sin + width * cos) / 2

    (ax, az), (bx, bz) = reach(a), reach(b)
    return abs(a.x - b.x) < ax + bx + 0.3 and abs(a.z - b.z) < az + bz + 0.3


def _heading(rng: np.random.Generator, away: bool, spread: float) -> float:
    return (-math.pi / 2 if away else math.pi / 2) + rng.normal(0, spread)


def _on_road(rng: np.random.Generator, street: Street) -> tuple[float, float]:
    lanes = (street.left * 0.55 + street.right * 0.45 - 1.2, street.right - 1.8)
    oncoming = rng.random() < 0.5
    if rng.random() < 0.12:  # turning in or out of a side street
        return rng.uniform(street.left + 1, street.right - 1), rng.uniform(-math.pi, math.pi)
    lane = lanes[0] if oncoming else lanes[1]
    return lane + rng.normal(0, 0.4), _heading(rng, not oncoming, 0.06)


def _parked(rng: np.random.Generator, street: Street) -> tuple[float, float]:
    left = rng.random() < 0.5
    x = street.left - 0.2 if left else street.right + 0.2
    return x + rng.normal(0, 0.15), _heading(rng, rng.random() < 0.5, 0.04)


def _beside_lane(rng: np.random.Generator, street: Street) -> tuple[float, float]:
    if rng.random() < 0.25:
        return _crossing(rng, street)
    left = rng.random() < 0.5
    x = street.left + 0.9 if left else street.right - 0.7
    return x + rng.normal(0, 0.3), _heading(rng, not left, 0.25)


def _on_pavement(rng: np.random.Generator, street: Street) -> tuple[float, float]:
    inner = rng.uniform(0.3, street.pavement)
    x = street.left - inner if rng.random() < 0.5 else street.right + inner
    return x, rng.uniform(-math.pi, math.pi)


def _crossing(rng: np.random.Generator, street: Street) -> tuple[float, float]:
    toward = 0.0 if rng.random() < 0.5 else math.pi
    return rng.uniform(street.left, street.right), toward + rng.normal(0, 0.3)


def _beside_road(rng: np.random.Generator, street: Street) -> tuple[float, float]:
    outer = rng.uniform(0.2, street.pavement + 1.5)
    x = street.left - outer if rng.random() < 0.5 else street.right + outer
    return x, rng.uniform(-math.pi, math.pi)

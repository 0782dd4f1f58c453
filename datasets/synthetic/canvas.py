"""Rasterization of primitives, from far to near, with the object index of each pixel.

Shape letters: (H, W) size of the image, P points.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .primitives import Ball, Limb, Polygon, Primitive

__all__ = ["Camera", "Canvas", "Drawn", "Light"]

SHIFT = 4  # fractional bits of OpenCV's coordinates
NOTHING = -1


@dataclass(frozen=True)
class Camera:
    """Pinhole camera: focal length and principal point in pixels, height above ground in meters."""

    focal: float
    center_x: float
    center_y: float
    height: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project world points (P, 3), all in front of the camera, to pixels (P, 2)."""
        return points[:, :2] / points[:, 2:] * self.focal + (self.center_x, self.center_y)


@dataclass(frozen=True)
class Light:
    """Illumination of a scene.

    Attributes:
        sun: unit vector toward the light.
        ambient, diffuse: strength of ambient and of diffuse reflection.
        tint: factor of each channel.
        haze: color of the haze, RGB.
        visibility: distance in meters at which haze replaces 63 % of a color.
        night: whether lamps have a halo.
    """

    sun: tuple[float, float, float]
    ambient: float
    diffuse: float
    tint: tuple[float, float, float]
    haze: tuple[float, float, float]
    visibility: float
    night: bool = False

    def shade(self, color: tuple, depth: float, normal: np.ndarray | None) -> tuple:
        """Color of a surface with a unit normal, or of a round body (None), at a distance in m."""
        facing = 0.5 if normal is None else max(0.0, float(normal @ self.sun))
        strength = self.ambient + self.diffuse * facing
        clear = math.exp(-depth / self.visibility)
        return tuple(
            int(min(255.0, clear * c * strength * t + (1 - clear) * h))
            for c, t, h in zip(color, self.tint, self.haze, strict=True)
        )


@dataclass(frozen=True)
class Drawn:
    """Result of drawing an object.

    Attributes:
        extent: x1, y1, x2, y2 in pixels, not clipped to the image.
        num_pixels: number of pixels of its silhouette inside the image, including those that other
            objects hide later.
    """

    extent: tuple[float, float, float, float]
    num_pixels: int


class Canvas:
    """Image with the object index and the emitted light of each pixel.

    Attributes:
        image: (H, W, 3), RGB, uint8.
        ids: (H, W), index of the visible object, -1 for none.
        glow: (H, W, 3), uint8, emissive surfaces only.
    """

    def __init__(self, image: np.ndarray, camera: Camera, light: Light):
        self.image = image
        self.camera = camera
        self.light = light
        self.ids = np.full(image.shape[:2], NOTHING, np.int16)
        self.glow = np.zeros_like(image)

    def draw(self, primitives: list[Primitive], number: int = NOTHING) -> Drawn:
        """Draw a placed model, which must be in front of the camera, over the current content."""
        order = _far_to_near(primitives)
        mask = np.zeros(self.ids.shape, np.uint8)
        extents = [self._outline(mask, p, 1) for p in order]
        self.glow[mask > 0] = 0
        for p in order:
            depth = float(p.points[:, 2].mean())
            self._outline(self.image, p, self._color(p, depth))
            if p.emissive:
                clear = math.exp(-depth / self.light.visibility)
                self._outline(self.glow, p, tuple(int(clear * c) for c in p.color))
        self.ids[mask > 0] = number
        extents = np.array(extents)
        low, high = extents[:, :2].min(0), extents[:, 2:].max(0)
        return Drawn((*low.tolist(), *high.tolist()), int(mask.sum()))

    def draw_flat(self, polygon: Polygon) -> None:
        """Draw a polygon of the background."""
        self._outline(self.image, polygon, self._color(polygon, float(polygon.points[:, 2].mean())))
        if polygon.emissive:
            self._outline(self.glow, polygon, polygon.color)

    def _color(self, p: Primitive, depth: float) -> tuple:
        if not isinstance(p, Polygon):
            return self.light.shade(p.color, depth, None)
        a, b, c = p.points[0], p.points[1], p.points[2]
        normal = np.cross(b - a, c - a)
        normal = normal / max(float(np.sqrt(normal @ normal)), 1e-9)
        if normal @ a > 0:  # the visible side of a face points toward the camera
            normal = -normal
        return self.light.shade(p.color, depth, normal)

    def _outline(self, target: np.ndarray, p: Primitive, color) -> tuple:
        pixels = self.camera.project(p.points)
        fixed = np.rint(pixels * (1 << SHIFT)).astype(np.int32)
        if isinstance(p, Polygon):
            cv2.fillPoly(target, [fixed], color, cv2.LINE_8, SHIFT)
            radius = 0.5
        else:
            radius = max(0.5, p.radius * self.camera.focal / float(p.points[:, 2].mean()))
            if isinstance(p, Limb):
                width = max(1, round(2 * radius))
                cv2.line(
                    target, fixed[0].tolist(), fixed[1].tolist(), color, width, cv2.LINE_8, SHIFT
                )
            elif isinstance(p, Ball):
                reach = round(radius * (1 << SHIFT))
                cv2.circle(target, fixed[0].tolist(), reach, color, -1, cv2.LINE_8, SHIFT)
        return (*(pixels.min(0) - radius), *(pixels.max(0) + radius))


def _far_to_near(primitives: list[Primitive]) -> list[Primitive]:
    """Drawing order: bodies by decreasing distance, then the decals that face the camera."""
    bodies, decals = [], []
    for p in primitives:
        outward = getattr(p, "outward", None)
        if outward is None:
            bodies.append(p)
        elif float(outward @ p.points[0]) < 0:
            decals.append(p)
    bodies.sort(key=lambda p: -float(np.square(p.points.mean(0)).sum()))
    return bodies + decals

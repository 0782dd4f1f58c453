"""Rendering of a scene to its image and the visibility of its objects."""

from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import Camera, Canvas
from .primitives import Polygon, place
from .scene import Scene, Standing, sample_scene
from .street import draw_street

__all__ = ["SeenObject", "render", "render_scene"]

SUPERSAMPLING = 2


@dataclass(frozen=True)
class SeenObject:
    """Labeled model in the image.

    Attributes:
        standing: the placed model.
        extent: x1, y1, x2, y2 in pixels of the whole silhouette, including parts that are hidden or
            outside the image.
        visible: share of the silhouette inside the image that is not hidden, 0 to 1.
    """

    standing: Standing
    extent: tuple[float, float, float, float]
    visible: float


def render_scene(
    rng: np.random.Generator, height: int, width: int, condition: str
) -> tuple[np.ndarray, Camera, list[SeenObject]]:
    """Sample and render a scene.

    Returns:
        Image (H, W, 3), RGB, uint8; camera, in pixels of the image; labeled objects, far ones
        first.
    """
    factor = SUPERSAMPLING
    scene = sample_scene(rng, height * factor, width * factor, condition)
    image, seen = render(scene, height, width, rng)
    c = scene.camera
    camera = Camera(c.focal / factor, c.center_x / factor, c.center_y / factor, c.height)
    return image, camera, seen


def render(
    scene: Scene, height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[SeenObject]]:
    """Render a scene that was sampled at :data:`SUPERSAMPLING` times the image size."""
    size = (height * SUPERSAMPLING, width * SUPERSAMPLING, 3)
    canvas = Canvas(np.zeros(size, np.uint8), scene.camera, scene.light)
    draw_street(canvas, scene.street, rng)
    drawn = []
    for number, standing in enumerate(scene.standing):
        _shadow(canvas, standing)
        parts = place(
            standing.model.parts, standing.x, standing.z, standing.rotation, scene.camera.height
        )
        drawn.append(canvas.draw(parts, number))
    counts = np.bincount(canvas.ids.ravel() + 1, minlength=len(drawn) + 1)[1:]
    seen = [
        SeenObject(
            standing,
            tuple(edge / SUPERSAMPLING for edge in silhouette.extent),
            int(count) / max(1, silhouette.num_pixels),
        )
        for standing, silhouette, count in zip(scene.standing, drawn, counts, strict=True)
        if standing.model.type
    ]
    return _expose(canvas, rng), seen


def _shadow(canvas: Canvas, standing: Standing) -> None:
    """Darken the ground below a model."""
    _, width, length = standing.model.size
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (length / 2, width / 2)
    octagon = np.concatenate([corners * (0.7, 1.08), corners * (1.04, 0.7)])
    flat = Polygon(np.column_stack([octagon, np.zeros(len(octagon))]), (0, 0, 0))
    (shadow,) = place([flat], standing.x, standing.z, standing.rotation, canvas.camera.height)
    pixels = canvas.camera.project(shadow.points)
    hull = cv2.convexHull(np.rint(pixels).astype(np.int32))
    mask = np.zeros(canvas.ids.shape, np.uint8)
    cv2.fillConvexPoly(mask, hull, 1)
    # Darken the ground only, not the farther objects drawn before.
    ground = (mask > 0) & (canvas.ids < 0)
    canvas.image[ground] = canvas.image[ground] // 2


def _expose(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Simulate the camera: glow, downsampling, blur, exposure and noise."""
    image = canvas.image
    if canvas.light.night and canvas.glow.any():
        for sigma in (2.0, 7.0):
            halo = cv2.GaussianBlur(canvas.glow, (0, 0), sigma * image.shape[1] / 640)
            image = cv2.add(image, cv2.add(halo, halo))
        image = cv2.add(image, canvas.glow)
    height, width = image.shape[:2]
    f = SUPERSAMPLING
    image = image.reshape(height // f, f, width // f, f, 3).mean(axis=(1, 3))
    image = np.rint(image).astype(np.uint8)
    sigma = rng.uniform(0.0, 0.9) * image.shape[1] / 320
    if sigma > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if rng.random() < 0.25:  # motion blur of a turning camera
        image = cv2.blur(image, (int(rng.integers(2, 5)), 1))
    gain, strength = rng.uniform(0.72, 1.18), rng.uniform(3.0, 11.0)
    noisy = image * gain + rng.normal(0.0, strength, image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)

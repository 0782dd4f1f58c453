"""Visualization of imitation weights, attention and feature differences.

This package exports the drawing functions that training uses as well. ``collect`` and the modules
that draw pages depend on the models and are imported by module name.
"""

from aid.utils.drawing import COLORMAP, draw_boxes, draw_weights, enlarge, weight_image

__all__ = ["COLORMAP", "draw_boxes", "draw_weights", "enlarge", "weight_image"]

"""Pictures of what a student is taught: where, how much, by whom, and what came of it.

Here is what a training step itself draws. ``collect`` and the pages that show it know the models,
and are imported by name.
"""

from aid.utils.drawing import COLORMAP, draw_boxes, draw_weights, enlarge, weight_image

__all__ = ["COLORMAP", "draw_boxes", "draw_weights", "enlarge", "weight_image"]

"""Rendered driving scenes with labels.

`primitives`, `vehicles`, `people` and `street` define shapes and models, `scene` samples their
positions, `canvas` and `render` draw the image, `labels` creates the labels, and `folder` writes
both.

World coordinates are KITTI's camera coordinates in meters: x right, y down, z forward, with the
camera at the origin. Model coordinates are forward, right and up, with the ground at up = 0.
"""

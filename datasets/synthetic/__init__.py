"""Rendered driving scenes with labels.

Shapes and models are in `primitives`, `vehicles`, `people` and `street`; what stands where in
`scene`; pixels in `canvas` and `render`; what the labels say in `labels`.

World coordinates are KITTI's camera coordinates in metres: x right, y down, z forward, the camera
at the origin. Models have coordinates of their own: forward, right and up, on the ground at 0.
"""

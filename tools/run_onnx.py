#!/usr/bin/env python3
"""Detect objects with an exported ONNX file, without this project: onnxruntime, NumPy, Pillow.

    python tools/run_onnx.py output/export/model.onnx IMAGE

Reads contract.json beside the model and prints a JSON list of detections in pixels of the image.
An example to copy: tools/export_model.py writes both files. See docs/deploy.md.
"""

import json
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps
except ImportError as error:
    sys.exit(f"error: {error}: run pip install onnxruntime numpy pillow")


def resized(width: int, height: int, shorter: int, longest: int) -> tuple[int, int]:
    """Size at which the detector sees an image; a ``shorter`` of 0 keeps the size."""
    if not shorter:
        return width, height
    scale = shorter / min(width, height)
    sides = [shorter if x == min(width, height) else scale * x for x in (width, height)]
    scale = min(1.0, longest / max(sides))
    return int(sides[0] * scale + 0.5), int(sides[1] * scale + 0.5)


def detect(model: str, path: str) -> list[dict]:
    contract = json.loads(Path(model).with_name("contract.json").read_text(encoding="utf-8"))
    feed = contract["input"]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size = resized(*image.size, feed["shorter_side"], feed["longest_side"])
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    pixels = pixels if feed["channels"] == "RGB" else pixels[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    boxes, scores, classes = session.run(["boxes", "scores", "classes"], {feed["name"]: pixels})
    boxes = boxes * np.tile(np.divide(image.size, size), 2)
    return [
        {**contract["classes"][k], "score": float(score), "box": box.tolist()}
        for k, score, box in zip(classes, scores, boxes, strict=True)
    ]


if __name__ == "__main__":
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(__doc__)
        sys.exit()
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(json.dumps(detect(*sys.argv[1:]), indent=1))
    except Exception as error:  # those of ONNX Runtime have no common type
        sys.exit(f"error: {' '.join(str(error).split())}")

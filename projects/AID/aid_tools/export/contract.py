"""Description of inputs and outputs of the exported files, for programs that run them."""

from aid.inference import Predictor

from .deployed import OUTPUTS
from .formats import OPSET

__all__ = ["contract"]

DESCRIPTIONS = {
    "boxes": {
        "type": "float32",
        "shape": ["detections", 4],
        "content": "x1, y1, x2, y2 in pixels of the resized image",
    },
    "scores": {"type": "float32", "shape": ["detections"], "content": "0 to 1, descending"},
    "classes": {"type": "int64", "shape": ["detections"], "content": "index into classes"},
    "masks": {
        "type": "float32",
        "shape": ["detections", 1, "side", "side"],
        "content": "probabilities within each box",
    },
}


def contract(predictor: Predictor) -> dict:
    """Describe how to feed the files of a detector, and what they return.

    Normalization and padding are part of the files.

    Args:
        predictor: the detector.

    Returns:
        Content of a JSON file.
    """
    cfg = predictor.cfg
    names = OUTPUTS if cfg.MODEL.MASK_ON else OUTPUTS[:3]
    return {
        "input": {
            "name": "image",
            "type": "float32",
            "shape": [3, "height", "width"],
            "range": [0, 255],
            "channels": cfg.INPUT.FORMAT,
            "resize": "bilinear with antialiasing, on 8 bits, keeping the aspect ratio",
            "shorter_side": cfg.INPUT.MIN_SIZE_TEST,  # 0: not resized
            "longest_side": cfg.INPUT.MAX_SIZE_TEST,
        },
        "outputs": {name: DESCRIPTIONS[name] for name in names},
        "classes": [
            {"id": k, "name": name}
            for k, name in zip(predictor.class_ids, predictor.class_names, strict=True)
        ],
        "onnx_opset": OPSET,
    }

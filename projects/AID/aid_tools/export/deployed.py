"""Wrapper of a detector for tracing, from one image to tensors.

Shape letters: (H, W) size of the image, D detections, M side of a mask.
"""

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor, nn

from aid.utils.errors import AIDError

__all__ = ["OUTPUTS", "deployed"]

# Output names in order; masks exist only for detectors with a mask head.
OUTPUTS = ("boxes", "scores", "classes", "masks")


class _Deployed(nn.Module):
    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        self.eval()  # the ONNX exporter sets all modules to the mode of the outermost one

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        result = self.detect([{"image": image}])[0]
        result.pred_boxes.clip(result.image_size)
        keep = result.pred_boxes.nonempty()
        masks = [result.pred_masks[keep]] if result.has("pred_masks") else []
        boxes = result.pred_boxes.tensor[keep]
        return boxes, result.scores[keep], result.pred_classes[keep], *masks


class _DeployedRCNN(_Deployed):
    def detect(self, batch: list[dict]) -> list[Instances]:
        return self.detector.inference(batch, do_postprocess=False)


class _DeployedDense(_Deployed):
    def detect(self, batch: list[dict]) -> list[Instances]:
        # As Detectron2's forward, which would also rescale the boxes to the original size.
        images = self.detector.preprocess_image(batch)
        maps = self.detector.backbone(images.tensor)
        features = [maps[level] for level in self.detector.head_in_features]
        return self.detector.forward_inference(images, features, self.detector.head(features))


def deployed(detector: nn.Module) -> nn.Module:
    """Wrap a detector in a module from an image to the tensors of :data:`OUTPUTS`.

    The input is (3, H, W), float32, 0 to 255, resized and with the channel order of the config.
    Boxes (D, 4) are XYXY in its pixels, scores and classes are (D,), and masks (D, 1, M, M) are
    probabilities within the boxes. The detections equal those of the detector's ``forward``
    without the rescaling to the original image size.

    Raises:
        AIDError: the detector is neither an R-CNN nor a dense detector, or predicts keypoints.
    """
    if isinstance(detector, GeneralizedRCNN):
        if getattr(detector.roi_heads, "keypoint_on", False):
            raise AIDError("detectors with keypoints are not exported: set MODEL.KEYPOINT_ON False")
        return _DeployedRCNN(detector)
    if isinstance(detector, DenseDetector):
        return _DeployedDense(detector)
    raise AIDError(
        f"{type(detector).__name__} is not exported: choose an R-CNN, RetinaNet, GFL or FCOS"
    )

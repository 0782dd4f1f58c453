"""Wrapper of a detector for tracing and scripting, from one image to tensors.

Shape letters: (H, W) size of the image, D detections, M side of a mask.
"""

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
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


class _DeployedRCNN(_Deployed):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = self.detector.inference([{"image": image}], do_postprocess=False)[0]
        result.pred_boxes.clip(result.image_size)
        keep = result.pred_boxes.nonempty()
        return result.pred_boxes.tensor[keep], result.scores[keep], result.pred_classes[keep]


class _DeployedMaskRCNN(_Deployed):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        result = self.detector.inference([{"image": image}], do_postprocess=False)[0]
        result.pred_boxes.clip(result.image_size)
        keep = result.pred_boxes.nonempty()
        boxes, masks = result.pred_boxes.tensor[keep], result.pred_masks[keep]
        return boxes, result.scores[keep], result.pred_classes[keep], masks


class _DeployedDense(_Deployed):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The return type of Detectron2's forward depends on whether it is scripted.
        images = self.detector.preprocess_image([{"image": image}])
        maps = self.detector.backbone(images.tensor)
        features = [maps[level] for level in self.detector.head_in_features]
        predictions = self.detector.head(features)
        result = self.detector.forward_inference(images, features, predictions)[0]
        result.pred_boxes.clip(result.image_size)
        keep = result.pred_boxes.nonempty()
        return result.pred_boxes.tensor[keep], result.scores[keep], result.pred_classes[keep]


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
        has_masks = getattr(detector.roi_heads, "mask_on", False)
        return _DeployedMaskRCNN(detector) if has_masks else _DeployedRCNN(detector)
    if isinstance(detector, DenseDetector):
        return _DeployedDense(detector)
    raise AIDError(
        f"{type(detector).__name__} is not exported: choose an R-CNN, RetinaNet, GFL or FCOS"
    )

"""A detector as a function of one image, which can be traced and scripted."""

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from aid.utils.errors import AIDError

__all__ = ["OUTPUTS", "deployed"]

# In this order; the last one of detectors with masks only.
OUTPUTS = ("boxes", "scores", "classes", "masks")


class _Deployed(nn.Module):
    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        self.eval()  # torch's exporter to ONNX leaves everything in the mode of the outermost


class _DeployedRCNN(_Deployed):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.detector.inference([{"image": image}], do_postprocess=False)[0]
        found.pred_boxes.clip(found.image_size)
        keep = found.pred_boxes.nonempty()
        return found.pred_boxes.tensor[keep], found.scores[keep], found.pred_classes[keep]


class _DeployedMaskRCNN(_Deployed):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = self.detector.inference([{"image": image}], do_postprocess=False)[0]
        found.pred_boxes.clip(found.image_size)
        keep = found.pred_boxes.nonempty()
        boxes, masks = found.pred_boxes.tensor[keep], found.pred_masks[keep]
        return boxes, found.scores[keep], found.pred_classes[keep], masks


class _DeployedDense(_Deployed):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Detectron2's forward would return one thing when scripted and another when not.
        images = self.detector.preprocess_image([{"image": image}])
        maps = self.detector.backbone(images.tensor)
        features = [maps[level] for level in self.detector.head_in_features]
        found = self.detector.forward_inference(images, features, self.detector.head(features))[0]
        found.pred_boxes.clip(found.image_size)
        keep = found.pred_boxes.nonempty()
        return found.pred_boxes.tensor[keep], found.scores[keep], found.pred_classes[keep]


def deployed(detector: nn.Module) -> nn.Module:
    """The detector as a module from an image to tensors, :data:`OUTPUTS`.

    The image is (3, H, W), float32, 0 to 255, resized and in the channel order as its config has
    it. Boxes (D, 4) are XYXY in its pixels, with scores and classes (D,); masks (D, 1, M, M) are
    probabilities within each box. These are the detections of the detector's own ``forward`` on an
    image that is not resized back.

    Raises:
        AIDError: neither an R-CNN nor a dense detector.
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

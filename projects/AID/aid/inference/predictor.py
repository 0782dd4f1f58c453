"""Predictor for single images, and loading of a detector from its output folder."""

import os
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Instances
from torch import nn

from ..checkpoint import StrictCheckpointer, last_checkpoint
from ..data.images import ImageFault, check_size, longest_side, read_image
from ..modeling.build import build_detector
from ..modeling.meta_arch import plain_architecture
from ..modeling.placement import is_usable
from ..modeling.teacher import load_teacher_config
from ..utils.errors import AIDError, without_known_warnings
from .classes import check_classes, classes_of, numbered_classes

__all__ = ["Predictor", "as_input", "load_config_of", "load_detector"]


class Predictor:
    """Detector of a finished run for single images, after Detectron2's ``DefaultPredictor``.

    Config, weights, and the names and ids of the classes come from the output folder of the run.
    Neither its datasets nor its teachers are needed.

        predictor = Predictor("output/student")
        instances = predictor("street.png")
        names = [predictor.class_names[k] for k in instances.pred_classes]

    Attributes:
        cfg: the detector's config.
        model: the detector, in eval mode.
        class_names: names by class index.
        class_ids: category ids of the dataset by class index.
        metadata: the same for Detectron2's ``Visualizer``.
    """

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        device: str | None = None,
        opts: Sequence[str] = (),
    ):
        """
        Args:
            model, weights, device, opts: see :func:`load_config_of`.

        Raises:
            AIDError: see :func:`load_config_of` and :func:`load_detector`; INPUT.FORMAT is neither
                BGR nor RGB, or nothing names the classes.
        """
        self.cfg = load_config_of(model, weights, device, opts)
        if self.cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise AIDError(f"INPUT.FORMAT is {self.cfg.INPUT.FORMAT}: only BGR and RGB are used")
        self.model, classes = load_detector(self.cfg)
        self.class_names = [row["name"] for row in classes]
        self.class_ids = [row["id"] for row in classes]
        self.metadata = Metadata(
            thing_classes=self.class_names,
            thing_dataset_id_to_contiguous_id={x: k for k, x in enumerate(self.class_ids)},
        )
        self._longest = longest_side(self.cfg, is_train=False)
        self._is_first = True

    def __call__(self, image: np.ndarray | str | os.PathLike) -> Instances:
        """Detect objects in an image.

        Args:
            image: (H, W, 3), BGR, uint8, as ``cv2.imread`` returns it; or the path of a file.

        Returns:
            Detections in pixels of the image, on the CPU: ``pred_boxes``, ``scores``,
            ``pred_classes``, and ``pred_masks`` of a detector with masks.

        Raises:
            AIDError: the image cannot be read or is no such array.
        """
        (instances,) = self.predict([image])
        return instances

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray | str | os.PathLike]) -> list[Instances]:
        """Detect objects in several images with one forward pass; see :meth:`__call__`.

        Images of different sizes are padded to the largest, which may change the last digits.
        """
        if isinstance(images, str | bytes | os.PathLike):
            raise AIDError(
                f"{str(images)!r} is no list of images: write predict([...]), or call the "
                "predictor with the path"
            )
        if not len(images):
            return []
        inputs = [as_input(self._pixels(image), self.cfg) for image in images]
        # torch gives these warnings once; hiding any makes Python repeat those of other code.
        with without_known_warnings() if self._is_first else nullcontext():
            outputs = self.model(inputs)
        self._is_first = False
        return [output["instances"].to("cpu") for output in outputs]

    def _pixels(self, image: object) -> np.ndarray:
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            try:
                return read_image(path, "BGR", self._longest)
            except FileNotFoundError:
                raise AIDError(f"image {path} does not exist") from None
            except ImageFault as error:
                raise AIDError(f"image {path} cannot be used: {error}") from error
        if not isinstance(image, np.ndarray):
            raise AIDError(
                f"the image is a {type(image).__name__}, neither an array nor a path; cv2.imread "
                "returns None for a file that it cannot read"
            )
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            raise AIDError(
                f"the image is an array of shape {image.shape} and type {image.dtype}: give "
                "(H, W, 3), uint8, BGR, as cv2.imread returns it"
            )
        try:
            check_size(image.shape[1], image.shape[0], self._longest)
        except ImageFault as error:
            raise AIDError(f"the image cannot be used: {error}") from error
        return image


def as_input(image: np.ndarray, cfg: CfgNode) -> dict:
    """Prepare an image for a detector as evaluation does.

    Args:
        image: (H, W, 3), BGR, uint8.
        cfg: the detector's config.

    Returns:
        Standard input of a Detectron2 model.
    """
    sample = T.AugInput(image if cfg.INPUT.FORMAT == "BGR" else image[:, :, ::-1])
    T.AugmentationList(build_augmentation(cfg, is_train=False))(sample)
    pixels = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
    return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}


def load_config_of(
    model: str, weights: str | None = None, device: str | None = None, opts: Sequence[str] = ()
) -> CfgNode:
    """Load the config of a detector for inference.

    Args:
        model: output folder of a run, config file, or name in Detectron2's model zoo.
        weights: path or URL; None for the last checkpoint of the folder, which is model_final.pth
            after the training, and for MODEL.WEIGHTS of a config file.
        device: device name such as "cpu" or "cuda:1"; None for MODEL.DEVICE of the config, or the
            CPU if that device is not available.
        opts: ``KEY VALUE`` pairs that override the file.

    Raises:
        AIDError: the config is malformed or names no weights, or ``device`` is not available.
    """
    if os.path.isdir(model):
        config_file = os.path.join(model, "config.yaml")
        if not os.path.isfile(config_file):
            raise AIDError(f"{model} holds no config.yaml: name the output folder of a run")
        if not weights and "MODEL.WEIGHTS" not in opts[::2]:
            weights = _last_weights(model)
    else:
        config_file = model
    cfg = load_teacher_config(config_file, "config file", opts)
    # A student needs no distillation here: build Detectron2's detector, with the same parameters.
    cfg.MODEL.META_ARCHITECTURE = plain_architecture(cfg.MODEL.META_ARCHITECTURE)
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise AIDError(
            f"{config_file} names no weights: name their file (--weights), or the output folder of "
            "a run in place of the config file"
        )
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    if not is_usable(cfg.MODEL.DEVICE):
        if device:
            raise AIDError(f"the device {device} is not available: choose cpu, or leave it out")
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def _last_weights(folder: str) -> str:
    path = os.path.join(folder, last_checkpoint(folder) or "model_final.pth")
    if not os.path.isfile(path):
        raise AIDError(f"{path} does not exist: train first, or name the weights (--weights)")
    return path


def load_detector(cfg: CfgNode) -> tuple[nn.Module, list[dict]]:
    """Build the detector of a config, and load its weights and classes.

    The classes are those in the checkpoint. For files of other programs and of older versions they
    are looked up in the datasets of the config, see :func:`~aid.inference.classes.classes_of`, and
    are numbers if these do not name them.

    Returns:
        The detector in eval mode, and a dict {"id": ..., "name": ...} for each class.

    Raises:
        AIDError: the weights cannot be read or do not fit the config, or the classes are in a
            dataset that is not registered.
    """
    detector = build_detector(cfg)
    weights = cfg.MODEL.WEIGHTS
    stored = StrictCheckpointer(detector, "weights", "the config file").load(weights).get("classes")
    if stored is not None:
        return detector.eval(), check_classes(stored, cfg, weights)
    datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    if datasets and not set(datasets) & set(DatasetCatalog.list()):
        raise AIDError(
            f"weights {weights} hold no names of classes, as files of earlier versions do, and "
            f"their dataset {datasets[0]} is not registered: register it first (--register FILE)"
        )
    return detector.eval(), classes_of(cfg, load=True) or numbered_classes(cfg)

"""Writers of detections: KITTI text files, COCO JSON, annotated images and videos."""

import json
import os
import shutil
import tempfile
from contextlib import ExitStack

import cv2
import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer

from aid.data.kitti_labels import write_result_file
from aid.evaluation.kitti_files import kitti_objects
from aid.utils.drawing import enlargement
from aid.utils.errors import AIDError
from aid.utils.files import whole_file

from .sources import Frame

__all__ = ["COCOWriter", "KITTIWriter", "PictureWriter"]

COLORS = colormap(rgb=True, maximum=1)


class KITTIWriter(ExitStack):
    """Writes one KITTI result file per frame, empty if the frame has no detections."""

    def __init__(self, folder: str, names: list[str]):
        """
        Args:
            folder: folder of the files, which are named after their frames.
            names: class names; whitespace, the separator of the format, becomes an underscore.
        """
        super().__init__()
        self._folder = folder
        self._names = ["_".join(name.split()) for name in names]

    def write(self, frame: Frame, detections: Instances) -> None:
        path = os.path.join(self._folder, f"{frame.name}.txt")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_result_file(path, kitti_objects(detections, self._names))


class COCOWriter(ExitStack):
    """Writes one JSON file in COCO's layout, with detections and their scores as annotations.

    Annotations are written as they arrive. The file gets its final name when it is complete.
    """

    def __init__(self, path: str, names: list[str], ids: list[int]):
        """
        Args:
            path: path of the file.
            names: class names.
            ids: category ids of the classes.
        """
        super().__init__()
        self._ids = ids
        self._file = self.enter_context(whole_file(path))
        self._images = self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (the stack closes it)
        self._num_images = self._num_detections = 0
        categories = [{"id": k, "name": name} for k, name in zip(ids, names, strict=True)]
        self._file.write(b'{"categories": %s, "annotations": [' % json.dumps(categories).encode())

    def write(self, frame: Frame, detections: Instances) -> None:
        height, width = frame.image.shape[:2]
        self._num_images += 1
        image = {"id": self._num_images, "file_name": frame.source.path}
        if frame.source.is_video:
            image["frame"] = frame.number
        _append(self._images, {**image, "height": height, "width": width}, self._num_images)
        for row in instances_to_coco_json(detections, self._num_images):
            self._num_detections += 1
            row["category_id"] = self._ids[row["category_id"]]
            area = row["bbox"][2] * row["bbox"][3]
            row |= {"id": self._num_detections, "area": area, "iscrowd": 0}
            _append(self._file, row, self._num_detections)

    def __exit__(self, *exc_info) -> bool | None:
        if exc_info[0] is None:
            self._images.seek(0)
            self._file.write(b'\n], "images": [')
            shutil.copyfileobj(self._images, self._file)
            self._file.write(b"\n]}\n")
        return super().__exit__(*exc_info)


def _append(file, row: dict, number: int) -> None:
    file.write((",\n" if number > 1 else "\n").encode() + json.dumps(row).encode())


class PictureWriter(ExitStack):
    """Writes each image and each video with the detections drawn on it."""

    def __init__(self, folder: str, names: list[str], channels: str):
        """
        Args:
            folder: folder of the files, which are named after their sources.
            names: class names.
            channels: channel order of the frames, "BGR" or "RGB".
        """
        super().__init__()
        self._folder = folder
        self._names = names
        self._channels = channels
        self._video: tuple[str, cv2.VideoWriter] | None = None

    def write(self, frame: Frame, detections: Instances) -> None:
        rgb = frame.image if self._channels == "RGB" else frame.image[:, :, ::-1]
        picture = draw(rgb, detections, self._names)[:, :, ::-1]
        name = frame.source.name + (".mp4" if frame.source.is_video else ".jpg")
        path = os.path.join(self._folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if frame.source.is_video:
            self._film(path, frame.rate, picture)
        elif not cv2.imwrite(path, picture):
            raise AIDError(f"{path} cannot be written: check the free disk space")

    def _film(self, path: str, rate: float, picture: np.ndarray) -> None:
        if self._video is None or self._video[0] != path:
            self.close()  # the previous video is complete
            size = (picture.shape[1], picture.shape[0])
            writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
            self.callback(writer.release)
            if not writer.isOpened():
                raise AIDError(
                    f"{path} cannot be written: this OpenCV has no mp4v encoder; add --no-pictures"
                )
            self._video = path, writer
        self._video[1].write(np.ascontiguousarray(picture))


def draw(image: np.ndarray, detections: Instances, names: list[str]) -> np.ndarray:
    """Draw detections, with one color per class.

    Args:
        image: (H, W, 3), RGB, uint8; enlarged if it is small.
        detections: detections in pixels of the image, on the CPU.
        names: class names.

    Returns:
        (H', W', 3), RGB, uint8, with even sides, as video encoders require.
    """
    scene = Visualizer(image, scale=enlargement(*image.shape[:2]))
    classes = detections.pred_classes.tolist()
    drawn = scene.overlay_instances(
        boxes=detections.pred_boxes,
        masks=detections.pred_masks.numpy() if detections.has("pred_masks") else None,
        labels=[
            f"{names[k]} {score:.0%}"
            for k, score in zip(classes, detections.scores.tolist(), strict=True)
        ],
        assigned_colors=[COLORS[k % len(COLORS)] for k in classes],
    )
    picture = drawn.get_image()
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]

"""Writers of detections: KITTI text files, COCO JSON, annotated images and videos."""

import json
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress

import cv2
import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer

from aid.data.kitti_labels import write_result_file
from aid.evaluation.kitti_files import kitti_objects
from aid.utils.drawing import enlarge
from aid.utils.errors import AIDError
from aid.utils.files import PART, whole_file
from aid.utils.text import visible

from ..text import figure_text
from .sources import Frame

__all__ = ["COCOWriter", "KITTIWriter", "PictureWriter"]

COLORS = colormap(rgb=True, maximum=1)
# Frames per second; those of MPEG-4 are fractions of numbers below 2^16.
MAX_RATE = 600.0


class KITTIWriter(ExitStack):
    """Writes one KITTI result file per frame, empty if the frame has no detections."""

    def __init__(self, folder: str, names: list[str]):
        """
        Args:
            folder: folder of the files, which are named after their frames.
            names: class names; whitespace, the separator of the format, becomes an underscore.

        Raises:
            AIDError: two classes have the same name then.
        """
        super().__init__()
        self._folder = folder
        self._names = [visible("_".join(name.split())) or "_" for name in names]
        if len(set(self._names)) < len(self._names):
            raise AIDError(
                f"--format kitti: the class names {names} are not distinct with underscores "
                "instead of whitespace: choose --format coco"
            )

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
        self._images = self.enter_context(tempfile.TemporaryFile(dir=os.path.dirname(path)))  # noqa: SIM115  (the stack closes it)
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
    """Writes each image and each video with the detections drawn on it; small ones are enlarged.

    Of a video with odd sides the last row or column is left out, as encoders require. A video gets
    its final name when it is complete.
    """

    def __init__(self, folder: str, names: list[str]):
        """
        Args:
            folder: folder of the files, which are named after their sources.
            names: class names.
        """
        super().__init__()
        self._folder = folder
        self._names = names
        self._video: _Video | None = None

    def write(self, frame: Frame, detections: Instances) -> None:
        picture = draw(frame.image[:, :, ::-1], detections, self._names)[:, :, ::-1]
        name = frame.source.name + (".mp4" if frame.source.is_video else ".jpg")
        path = os.path.join(self._folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if frame.source.is_video:
            height, width = picture.shape[:2]
            self._film(path, frame.rate, picture[: height // 2 * 2, : width // 2 * 2])
            return
        is_encoded, content = cv2.imencode(".jpg", picture)
        if not is_encoded:
            raise AIDError(f"{path} cannot be written: OpenCV cannot encode it as JPEG")
        with whole_file(path, sync=False) as f:
            f.write(content.tobytes())

    def _film(self, path: str, rate: float, picture: np.ndarray) -> None:
        if self._video is None or self._video.path != path:
            self._end_video(is_complete=True)
            self._video = _Video(path, rate, (picture.shape[1], picture.shape[0]))
        self._video.write(picture)

    def _end_video(self, is_complete: bool) -> None:
        video, self._video = self._video, None
        if video is not None:
            video.end(is_complete)

    def __exit__(self, *exc_info) -> bool | None:
        self._end_video(is_complete=exc_info[0] is None)
        return super().__exit__(*exc_info)


class _Video:
    """Video file under a temporary name until it is complete.

    Attributes:
        path: path of the complete file.
    """

    def __init__(self, path: str, rate: float, size: tuple[int, int]):
        self.path = path
        # OpenCV takes the format from the suffix, and "a:b" alone for a URL.
        self._part = f"{os.path.join('.', path)}{PART}.mp4"
        self._number = 0
        fourcc = cv2.VideoWriter_fourcc(*"mp4v")
        rate = min(round(rate, 2), MAX_RATE)
        self._writer = cv2.VideoWriter(self._part, fourcc, rate, size)
        if not self._writer.isOpened():
            self.end(is_complete=False)
            raise AIDError(
                f"{path} cannot be written: this OpenCV has no mp4v encoder; add --no-pictures"
            )

    def write(self, picture: np.ndarray) -> None:
        self._writer.write(np.ascontiguousarray(picture))
        self._number += 1

    def end(self, is_complete: bool) -> None:
        """Close the file, and keep it if it is complete.

        Raises:
            AIDError: the file lacks frames that were written.
        """
        self._writer.release()
        try:
            if is_complete:
                self._check()
                os.replace(self._part, self.path)
        finally:
            with suppress(FileNotFoundError):
                os.remove(self._part)

    def _check(self) -> None:
        with open(self._part, "rb") as f:
            os.fsync(f.fileno())
        # OpenCV reports no failed write.
        video = cv2.VideoCapture(self._part)
        number = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.release()
        if number != self._number:
            raise AIDError(
                f"{self.path} cannot be written, {max(number, 0)} of {self._number} frames are in "
                "the file: make room on the disk"
            )


def draw(image: np.ndarray, detections: Instances, names: list[str]) -> np.ndarray:
    """Draw detections, with one color per class.

    Args:
        image: (H, W, 3), RGB, uint8; a small one is enlarged.
        detections: detections in pixels of the image, on the CPU.
        names: class names.

    Returns:
        (H', W', 3), RGB, uint8.
    """
    image, factor = enlarge(image)
    masks = detections.pred_masks.numpy() if detections.has("pred_masks") else None
    if masks is not None:
        masks = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    classes = detections.pred_classes.tolist()
    drawn = Visualizer(image).overlay_instances(
        boxes=detections.pred_boxes.tensor * factor,
        masks=masks,
        labels=[
            f"{figure_text(names[k])} {score:.0%}"
            for k, score in zip(classes, detections.scores.tolist(), strict=True)
        ],
        assigned_colors=[COLORS[k % len(COLORS)] for k in classes],
    )
    for label in drawn.ax.texts:  # which Detectron2 lets leave the picture
        extent, (x, y) = label.get_window_extent(), label.get_position()
        height, width = image.shape[:2]
        label.set_position((min(x, width - extent.width), min(y, height - extent.height)))
    return drawn.get_image()

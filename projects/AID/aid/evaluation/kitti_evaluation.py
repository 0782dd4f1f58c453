"""KITTI's official metric as a Detectron2 evaluator."""

import logging
import os
from collections import OrderedDict

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.kitti_labels import KITTIObject, parse_label_file, write_result_file
from ..utils.errors import AIDError
from ..utils.text import counted
from .coco_evaluation import CheckedCOCOEvaluator
from .kitti_files import format_table, kitti_objects
from .kitti_metric import kitti_average_precision

__all__ = ["KITTIEvaluator"]


class KITTIEvaluator(DatasetEvaluator):
    """Evaluator for KITTI's official AP and COCO's AP, which also writes KITTI's result files.

    For a dataset without labels, such as KITTI's test set, it only writes the files.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        """
        Args:
            dataset_name: dataset registered by :func:`aid.data.kitti.register_kitti`.
            output_dir: result files are written to ``output_dir``/kitti_results/``dataset_name``.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._labels = metadata.kitti_labels
        self._classes = metadata.thing_classes
        self._folder = os.path.join(output_dir, "kitti_results", dataset_name)
        self._coco = CheckedCOCOEvaluator(dataset_name, output_dir) if self._labels else None
        self._detections: dict[str, list[KITTIObject]] = {}

    def reset(self) -> None:
        self._detections = {}
        if self._coco:
            self._coco.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: of the model, with "file_name".
            outputs: of the model, with "instances" in pixels of the original image.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            name = os.path.splitext(os.path.basename(sample["file_name"]))[0]
            self._detections[name] = kitti_objects(output["instances"].to("cpu"), self._classes)
        if self._coco:
            self._coco.process(inputs, outputs)

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            In the main process: COCO's results, and under "kitti" for each class and difficulty
            "AP_R40-Car-easy" and "AP_R11-Car-easy" in percent and "objects-Car-easy", the number of
            ground-truth objects; also "mAP50" as in the AID paper, COCO's AP at IoU 0.5 over all
            classes. None in other processes.
        """
        results = self._coco.evaluate() if self._coco else OrderedDict()
        gathered = comm.gather(self._detections)
        if not comm.is_main_process():
            return None
        detections = {name: objects for part in gathered for name, objects in part.items()}
        self._write(detections)
        if not self._labels:
            return results
        images = (
            (parse_label_file(os.path.join(self._labels, f"{name}.txt")), objects)
            for name, objects in detections.items()
        )
        precision = kitti_average_precision(images)
        logging.getLogger(__name__).info("KITTI's official metric:\n%s", format_table(precision))
        results["kitti"] = {}
        for name, by_difficulty in precision.items():
            for difficulty, x in by_difficulty.items():
                key = f"{name}-{difficulty}"
                results["kitti"] |= {f"AP_R40-{key}": x.r40, f"AP_R11-{key}": x.r11}
                results["kitti"][f"objects-{key}"] = x.num_valid
        if "bbox" in results:
            results["kitti"]["mAP50"] = results["bbox"]["AP50"]
        return results

    def _write(self, detections: dict[str, list[KITTIObject]]) -> None:
        try:
            os.makedirs(self._folder, exist_ok=True)
            for stale in os.listdir(self._folder):
                if stale.endswith(".txt"):
                    os.remove(os.path.join(self._folder, stale))
            for name, objects in detections.items():
                write_result_file(os.path.join(self._folder, f"{name}.txt"), objects)
        except OSError as error:
            raise AIDError(f"result files cannot be written to {self._folder}: {error}") from error
        logging.getLogger(__name__).info(
            "Result files of %s: %s; KITTI's server takes them zipped without folder",
            counted(len(detections), "image"),
            self._folder,
        )

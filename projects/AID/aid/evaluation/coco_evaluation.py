"""COCO's metric for boxes and masks, for any dataset in Detectron2's catalog."""

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.masks import usable_mask
from ..utils.errors import AIDError
from ..utils.logs import log_to_file

__all__ = ["CheckedCOCOEvaluator"]


class CheckedCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator, for which a detector that finds nothing has an AP of 0.

    Detectron2 reports NaN then, as for a dataset without objects. What COCO's code prints goes to
    log.txt. A dataset without a JSON file is converted anew each time. Masks are evaluated only if
    every label has one; Detectron2 would fail otherwise.
    """

    def __init__(self, dataset_name: str, output_dir: str, kpt_oks_sigmas: Sequence[float] = ()):
        """
        Args:
            dataset_name: in Detectron2's catalogs.
            output_dir: folder for detections.
            kpt_oks_sigmas: see Detectron2's evaluator.

        Raises:
            AIDError: the numbers of a mask are not those of its image.
        """
        metadata = MetadataCatalog.get(dataset_name)
        generated = metadata.get("json_file", None) is None
        super().__init__(
            dataset_name,
            output_dir=output_dir,
            kpt_oks_sigmas=kpt_oks_sigmas,
            allow_cached_coco=False,
        )
        if generated:
            # The converted file is read already. Its path must not stay in the metadata: later
            # evaluators would read this file even if data or output folder have changed.
            del metadata.json_file
        images = self._coco_api.imgs
        labels = self._coco_api.dataset.get("annotations", [])
        # Of images that the file does not list, COCO's code evaluates none.
        labels = [x for x in labels if x["image_id"] in images]
        for label in labels:
            image = images[label["image_id"]]
            try:
                # Of the polygons only those that training sees, too.
                label["segmentation"] = usable_mask(
                    label.get("segmentation"), image["width"], image["height"]
                )
            except (OverflowError, ValueError) as error:
                raise AIDError(
                    f"{dataset_name}: annotation {label['id']} of image {label['image_id']}: "
                    f"{error}"
                ) from None
        self._has_masks = all(label["segmentation"] for label in labels)

    def _tasks_from_predictions(self, predictions: list[dict]) -> list[str]:
        tasks = super()._tasks_from_predictions(predictions)
        return tasks if self._has_masks else [x for x in tasks if x != "segm"]

    def evaluate(self, img_ids: list[int] | None = None) -> dict | None:
        with redirect_stdout(io.StringIO()) as printed:
            results = super().evaluate(img_ids)
        if printed.getvalue():
            log_to_file(logging.INFO, "COCO's evaluation:\n%s", printed.getvalue())
        return results

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        if coco_eval is None:
            with redirect_stdout(io.StringIO()):
                coco_eval = COCOeval(self._coco_api, COCO(), iou_type)
                coco_eval.evaluate()
                coco_eval.accumulate()
                coco_eval.summarize()
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

"""Average precision of exported files."""

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout

from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from tqdm import tqdm

from aid.data import build_test_loader
from aid.evaluation import build_evaluator
from aid.utils.errors import AIDError

__all__ = ["average_precision", "check_drop"]


class _Exported(nn.Module):
    """Exported file in place of a Detectron2 model."""

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, ...]]):
        super().__init__()
        self.run = run

    def forward(self, batch: list[dict]) -> list[dict]:
        return [{"instances": self._instances(sample)} for sample in batch]

    def _instances(self, sample: dict) -> Instances:
        boxes, scores, classes, *masks = self.run(sample["image"].float())
        found = Instances(
            sample["image"].shape[1:], pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
        )
        if masks:
            found.pred_masks = masks[0]
        return detector_postprocess(found, sample["height"], sample["width"])


def average_precision(
    run: Callable[[Tensor], tuple[Tensor, ...]], cfg: CfgNode, dataset: str, title: str
) -> dict[str, float]:
    """Evaluate an exported file.

    Args:
        run: function of the file, see :func:`~aid_tools.export.formats.load_exported`.
        cfg: the detector's config.
        dataset: name of a registered dataset with labels.
        title: of the file, for the progress bar.

    Returns:
        COCO's AP in percent by task: "bbox", and "segm" of a detector with masks.
    """
    loader = build_test_loader(cfg, dataset)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        evaluator = build_evaluator(dataset, folder)
        progress = tqdm(loader, desc=f"AP of {title}", unit="image")
        results = inference_on_dataset(_Exported(run), progress, evaluator)
    return {task: values["AP"] for task, values in results.items() if "AP" in values}


def check_drop(
    before: dict[str, float], after: dict[str, float], max_drop: float, dataset: str
) -> None:
    """Check that quantization has not lowered the AP of any task too much.

    Args:
        before, after: of :func:`average_precision`.
        max_drop: the largest drop that is accepted, in percent points.
        dataset: on which they were measured, for the message.

    Raises:
        AIDError: an AP fell by more or to 0, or there was none before.
    """
    for task, ap in before.items():
        if not ap > 0:
            raise AIDError(
                f"the detector's {task} AP on {dataset} is {ap:.3g}, so that INT8 cannot be "
                "checked: choose another dataset with --evaluate"
            )
        if not (after[task] > 0 and ap - after[task] <= max_drop):
            raise AIDError(
                f"INT8 is not used: its {task} AP on {dataset} is {after[task]:.3g}, the "
                f"detector's {ap:.3g}: --max-ap-drop accepts {max_drop:g} less, but never 0: "
                "calibrate with more images like those of the test set, or accept a larger drop"
            )

"""Teachers defined by LazyConfigs, Detectron2's configs that are Python programs."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetMapper
from detectron2.data.transforms import ResizeShortestEdge
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..config import clear_program_errors
from ..utils.errors import AIDError

__all__ = ["UNKNOWN_SIZE", "read_lazy_config"]

# INPUT.MIN_SIZE_TEST of a teacher whose test mapper is missing or does more than resizing.
UNKNOWN_SIZE = -1


def read_lazy_config(path: str, name: str) -> tuple[CfgNode, Callable[[], nn.Module]]:
    """Run a LazyConfig and translate the settings that a teacher needs.

    Args:
        path: path of the program.
        name: name of the teacher, for messages.

    Returns:
        A config and a function that builds the detector. The config has Detectron2's defaults
        except for INPUT.FORMAT, MIN_SIZE_TEST and MAX_SIZE_TEST from ``dataloader.test.mapper``
        (MIN_SIZE_TEST is UNKNOWN_SIZE for a mapper that these keys cannot describe), DATASETS.TRAIN
        from ``dataloader.train.dataset.names`` and OUTPUT_DIR from ``train.output_dir``. The
        detector is ``model``, or only the student of a distilled one
        (:func:`~aid.modeling.build_distilled`).

    Raises:
        AIDError: the program fails, defines no model, or the channel order is missing or ambiguous.
    """
    cfg = get_cfg()
    with clear_program_errors(name):
        lazy = LazyConfig.load(path)
        if not isinstance(lazy.get("model"), DictConfig):
            raise AIDError(f"{name} defines no `model`: name the LazyConfig of a detector")
        model = lazy.model.get("student", lazy.model)
        mapper = instantiate(OmegaConf.select(lazy, "dataloader.test.mapper"))
        names = OmegaConf.select(lazy, "dataloader.train.dataset.names", default=())
        cfg.OUTPUT_DIR = OmegaConf.select(lazy, "train.output_dir", default=cfg.OUTPUT_DIR)
        values = (model.get("input_format"), getattr(mapper, "image_format", None))
    cfg.DATASETS.TRAIN = (names,) if isinstance(names, str) else tuple(names)
    formats = sorted({x for x in values if x})
    if len(formats) != 1:
        raise AIDError(
            f"{name}: model.input_format and dataloader.test.mapper.image_format are "
            f"{' and '.join(formats) or 'missing'}: set the channel order of the images, in one of "
            "them or the same in both"
        )
    cfg.INPUT.FORMAT = formats[0]
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = _test_size(mapper)

    def build() -> nn.Module:
        with clear_program_errors(name):
            return instantiate(model)

    return cfg, build


def _test_size(mapper: Any) -> tuple[int, int]:
    """Shorter side of the images of a test mapper and limit of the longer one, in pixels."""
    augmentations = mapper.augmentations.augs if type(mapper) is DatasetMapper else None
    match augmentations:
        case []:
            return 0, 0
        case [ResizeShortestEdge() as resize] if len(set(resize.short_edge_length)) == 1:
            return resize.short_edge_length[0], resize.max_size
    return UNKNOWN_SIZE, 0

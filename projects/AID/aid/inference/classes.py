"""Names and category ids of a detector's classes, as checkpoints keep them.

In both they are a list in the order of the class indices, with a dict {"id": ..., "name": ...} for
each class, like the categories of a file in COCO's format.
"""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import get_value
from ..data.coco import read_coco
from ..modeling.families import num_classes_key
from ..utils.errors import AIDError
from ..utils.text import counted

__all__ = ["check_classes", "classes_of", "numbered_classes"]


def classes_of(cfg: CfgNode, load: bool = False) -> list[dict] | None:
    """Look up the classes of a detector in the datasets of its config.

    They are those of the first dataset in DATASETS.TEST or DATASETS.TRAIN that is registered and
    has as many classes as the detector.

    Args:
        cfg: the detector's config.
        load: whether to read the files of datasets whose names are not known otherwise.

    Returns:
        The classes, or None if no dataset names them.

    Raises:
        AIDError: the classes of a dataset are in a file that cannot be read, and no other dataset
            names them.
    """
    number, unread = _number(cfg), None
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        try:
            classes = _classes_in(dataset, load)
        except AIDError as error:
            unread = unread or error
            continue
        if len(classes) == number:
            return classes
    if unread:
        raise unread
    return None


def check_classes(stored: object, cfg: CfgNode, weights: str) -> list[dict]:
    """Check the classes that a checkpoint holds, whose content may be anything.

    Args:
        stored: content of the checkpoint.
        cfg: the detector's config.
        weights: path of the checkpoint, for the message.

    Raises:
        AIDError: they are no list of names and ids, or not as many as the detector's.
    """
    is_list = isinstance(stored, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and isinstance(row.get("id"), int | str)
        for row in stored
    )
    if not is_list or len(stored) != _number(cfg):
        found = counted(len(stored), "class") if is_list else "no list of names and ids"
        raise AIDError(
            f'weights {weights}: "classes" holds {found}, the detector of the config has '
            f"{counted(_number(cfg), 'class')}: name the config of the run that wrote the file"
        )
    return stored


def numbered_classes(cfg: CfgNode) -> list[dict]:
    """Classes of a detector whose names are not known: their indices."""
    return [{"id": k, "name": str(k)} for k in range(_number(cfg))]


def _number(cfg: CfgNode) -> int:
    return get_value(cfg, num_classes_key(cfg) or "MODEL.ROI_HEADS.NUM_CLASSES")


def _classes_in(dataset: str, load: bool) -> list[dict]:
    """Classes of a dataset; empty if they are not known.

    A dataset in COCO's format that is not loaded yet has them in its file only.
    """
    metadata = MetadataCatalog.get(dataset)
    path = metadata.get("json_file", None)
    if load and dataset in DatasetCatalog.list():
        if path and metadata.get("thing_dataset_id_to_contiguous_id", None) is None:
            advice = "DATASETS names its dataset, from which the names of the classes are read"
            rows = sorted(read_coco(path, advice)["categories"], key=lambda row: row["id"])
            return [{"id": row["id"], "name": row["name"]} for row in rows]
        if metadata.get("thing_classes", None) is None:
            try:
                DatasetCatalog.get(dataset)  # which may set them
            except OSError as error:
                raise AIDError(f"DATASETS: {dataset} cannot be loaded: {error}") from error
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})
    to_id = {k: category for category, k in to_class.items()}
    # Built-in types only: a checkpoint with numpy's scalars could not be loaded safely.
    return [
        {"id": _plain(to_id.get(k, k)), "name": str(name)}
        for k, name in enumerate(metadata.get("thing_classes", ()))
    ]


def _plain(category: object) -> int | str:
    return str(category) if isinstance(category, str) else int(category)

"""Class lists of datasets."""

from collections.abc import Iterable
from contextlib import suppress

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..utils.errors import AIDError

__all__ = ["check_class_lists", "class_list", "known_classes"]


def class_list(dataset: str) -> list[str] | None:
    """Class names of a dataset in the order of their ids; None if they are not known.

    Those of some datasets are known only after the dataset was loaded.
    """
    names = MetadataCatalog.get(dataset).get("thing_classes", None)
    return None if names is None else list(names)


def known_classes(datasets: Iterable[str], load: bool = False) -> list[str] | None:
    """Class names of the first dataset with known names; None if there is none.

    Args:
        datasets: names of datasets.
        load: whether to load datasets if no names are registered.
    """
    datasets = list(datasets)
    names = next(filter(None, map(class_list, datasets)), None)
    if names or not load:
        return names
    for name in datasets:
        if name in DatasetCatalog.list():
            with suppress(AIDError, OSError):  # its files may be missing
                DatasetCatalog.get(name)
    return known_classes(datasets)


def check_class_lists(datasets: Iterable[tuple[str, str]], remedy: str = "") -> None:
    """Check that all datasets whose classes are known have the same classes in the same order.

    Args:
        datasets: pairs of where a dataset is named, for the message, and its name.
        remedy: end of the message.

    Raises:
        AIDError: two lists differ.
    """
    known = [(where, name, class_list(name)) for where, name in datasets]
    known = [x for x in known if x[2]]
    for where, name, classes in known[1:]:
        first_where, first_name, first = known[0]
        if classes == first:
            continue
        longest = max(len(classes), len(first))
        both = (x + ["missing"] * (longest - len(x)) for x in (first, classes))
        pairs = enumerate(zip(*both, strict=True))
        number, (a, b) = next((i, pair) for i, pair in pairs if len(set(pair)) > 1)
        raise AIDError(
            f"class lists differ: class {number} is {a} in {first_where} {first_name}, {b} in "
            f"{where} {name}: the datasets of a run and of its teachers need one list of classes "
            f"in one order{remedy}"
        )

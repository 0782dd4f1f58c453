"""Datasets of Detectron2's catalog at the start of a run, which reads them several times."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.data import DatasetCatalog

__all__ = ["datasets_loaded_once"]


@contextmanager
def datasets_loaded_once() -> Iterator[None]:
    """Context in which a dataset of DatasetCatalog is loaded at its first use only.

    The records are kept until the context ends. A name that is registered anew is loaded again.
    """
    if "get" in vars(DatasetCatalog):  # the context is entered already
        yield
        return
    load = DatasetCatalog.get
    kept = {}  # {name: (registered function, its result)}

    def get(name: str) -> list[dict]:
        function = DatasetCatalog.data.get(name)
        if name not in kept or kept[name][0] is not function:
            kept[name] = function, load(name)
        records = kept[name][1]
        # Copied, since Detectron2 adds precomputed proposals to the records. A dataset may also be
        # a torch Dataset.
        return [dict(x) for x in records] if isinstance(records, list) else records

    DatasetCatalog.get = get
    try:
        yield
    finally:
        del DatasetCatalog.get

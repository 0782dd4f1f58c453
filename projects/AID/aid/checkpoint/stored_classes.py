"""Comparison of the classes that a checkpoint holds with those of a dataset."""

from collections.abc import Sequence

from ..utils.errors import AIDError

__all__ = ["check_stored_classes"]


def check_stored_classes(
    stored: object, names: Sequence[str] | None, where: str, others: str, remedy: str
) -> None:
    """Check that the classes that a checkpoint holds are those of a dataset, in the same order.

    Args:
        stored: content of the checkpoint, see :func:`~aid.inference.classes.classes_of`; None in
            files of other programs.
        names: names of the other classes; None if they are not known.
        where, others: names of the checkpoint and of the owner of ``names``, for the message.
        remedy: end of the message.

    Raises:
        AIDError: both are known, and differ.
    """
    if names is None or not isinstance(stored, list):
        return
    before = [str(row.get("name")) if isinstance(row, dict) else str(row) for row in stored]
    if before != list(names):
        raise AIDError(
            f"{where} is of a detector of the classes {_some(before)}, {others} {_some(names)}: "
            f"{remedy}"
        )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)}, {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"

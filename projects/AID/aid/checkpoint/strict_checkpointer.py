"""Weights for inference, which fit or are refused."""

from torch import nn

from ..utils.errors import AIDError
from .reading import SafeCheckpointer, clear_load_errors

__all__ = ["StrictCheckpointer", "mismatches"]

FROM_CONFIG = ("pixel_mean", "pixel_std")


class StrictCheckpointer(SafeCheckpointer):
    """Loads ``model`` alone, and takes no mismatch for an answer.

    Detectron2 warns where weights do not fit, and goes on with random numbers: right for training
    from a classifier's weights, wrong for a detector that is to be used as it is.
    """

    def __init__(self, model: nn.Module, key: str):
        """
        Args:
            model: the detector.
            key: config key that names the file, for the messages.
        """
        super().__init__(model)
        self._key = key

    def load(self, path: str) -> dict:
        """Load the file's weights into the model.

        Raises:
            AIDError: the file cannot be read, or its keys or shapes differ from the model's.
        """
        self._path = path
        with clear_load_errors(self._key, path):
            return super().load(path, checkpointables=[])

    def _log_incompatible_keys(self, incompatible) -> None:
        said = mismatches(incompatible)
        if said:
            raise AIDError(
                f"{self._key} {self._path} does not fit the detector of the config: {said}"
            )


def mismatches(incompatible) -> str:
    """What a file and a model do not share, in words; empty if they fit.

    Args:
        incompatible: what fvcore's ``Checkpointer`` found when it loaded the one into the other.
    """
    # Files of older Detectron2 hold what its newer versions take from the config.
    unexpected = [k for k in incompatible.unexpected_keys if k not in FROM_CONFIG]
    other_shape = {key for key, *_ in incompatible.incorrect_shapes}  # called missing, too
    problems = {
        "missing in the file": [k for k in incompatible.missing_keys if k not in other_shape],
        "unknown to the model": unexpected,
        "of another shape": [
            f"{key} ({'x'.join(map(str, found))} in the file, {'x'.join(map(str, wanted))} "
            "in the model)"
            for key, found, wanted in incompatible.incorrect_shapes
        ],
    }
    return "; ".join(
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in problems.items()
        if keys
    )

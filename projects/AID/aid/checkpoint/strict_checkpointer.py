"""Strict loading of weights, for inference."""

import os

from torch import nn

from ..utils.errors import AIDError
from .reading import SafeCheckpointer, clear_load_errors

__all__ = ["StrictCheckpointer", "mismatches"]

# Number of names of each kind of mismatch in a message.
NAMED = 2

FROM_CONFIG = ("pixel_mean", "pixel_std")


class StrictCheckpointer(SafeCheckpointer):
    """Checkpointer that loads the model only, and raises an error if the weights do not match.

    Detectron2 warns and continues with random values, which suits training from the weights of a
    classifier, but not inference.
    """

    def __init__(self, model: nn.Module, key: str, config_key: str = ""):
        """
        Args:
            model: the detector.
            key: config key of the path, for error messages.
            config_key: key or option that names the detector's YAML config, for error messages;
                empty if there is none.
        """
        super().__init__(model)
        self._key = key
        self._config_key = config_key

    def load(self, path: str) -> dict:
        """Load a file into the model.

        Raises:
            AIDError: the file cannot be read or is not finite, or its keys or shapes are not those
                of the model.
        """
        self._path = path
        with clear_load_errors(self._key, path):
            return super().load(path, checkpointables=[])

    def _log_incompatible_keys(self, incompatible) -> None:
        message = mismatches(incompatible)
        if message:
            # Overrides on the command line are in the config that the run has written only.
            config, key = os.path.join(os.path.dirname(self._path), "config.yaml"), self._config_key
            hint = ""
            if key and os.path.isfile(config):
                hint = f": use {config}, of the run that wrote the file, as {key}"
            elif key:
                hint = f": name the config of the net in the file as {key}, or other weights"
            raise AIDError(
                f"{self._key} {self._path} does not fit the detector of the config: {message}{hint}"
            )


def mismatches(incompatible) -> str:
    """Describe the mismatches of a file and a model; empty if there are none.

    Args:
        incompatible: keys that fvcore's ``Checkpointer`` returns after loading.
    """
    # Files of older versions of Detectron2 have values that newer ones read from the config.
    unexpected = [k for k in incompatible.unexpected_keys if k not in FROM_CONFIG]
    other_shape = {key for key, *_ in incompatible.incorrect_shapes}  # also in missing_keys
    problems = {
        "missing in the file": [k for k in incompatible.missing_keys if k not in other_shape],
        "unknown to the model": unexpected,
        "of another shape": [
            f"{key} ({'x'.join(map(str, in_file))} in the file, {'x'.join(map(str, in_model))} "
            "in the model)"
            for key, in_file, in_model in incompatible.incorrect_shapes
        ],
    }
    return "; ".join(
        f"{len(keys)} {problem}: {', '.join(keys[:NAMED])}{', ...' if len(keys) > NAMED else ''}"
        for problem, keys in problems.items()
        if keys
    )

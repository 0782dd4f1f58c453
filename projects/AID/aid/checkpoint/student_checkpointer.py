"""Checkpoints in which the student stands by itself."""

import os

import torch
from torch import nn

from ..errors import AIDError
from .reading import SafeCheckpointer, clear_load_errors

__all__ = ["StudentCheckpointer"]

PREFIX = "distillation."


class StudentCheckpointer(SafeCheckpointer):
    """Keeps the student and the adapters of its distillation apart.

    ``model`` in a saved file has exactly the keys of the plain Detectron2 detector, so that plain
    Detectron2 loads the file; the adapters are under ``distillation``. Models without adapters are
    saved as Detectron2 does it. A file is written beside its final name and then renamed: a process
    that dies while it writes leaves the older checkpoints as they were.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **kwargs):
        super().__init__(model, save_dir, **kwargs)
        if getattr(self.model, "distillation", None) is not None:
            self.add_checkpointable("distillation", self.model.distillation)

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth into the save folder; see fvcore's ``Checkpointer.save``."""
        if not self.save_dir or not self.save_to_disk:
            return
        student = {k: v for k, v in self.model.state_dict().items() if not k.startswith(PREFIX)}
        data = {"model": student}
        data.update((key, obj.state_dict()) for key, obj in self.checkpointables.items())
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        torch.save(data, path + ".tmp")
        os.replace(path + ".tmp", path)
        self.tag_last_checkpoint(os.path.basename(path))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a checkpoint; see fvcore's ``Checkpointer.load``.

        Raises:
            AIDError: the file cannot be read, has nothing of this detector, or is to be resumed
                from but holds no adapters for this student.
        """
        with clear_load_errors("MODEL.WEIGHTS", path):
            rest = super().load(path, checkpointables)
        resumed = path and (checkpointables is None or "distillation" in checkpointables)
        if resumed and "distillation" in self.checkpointables and not self._adapters_loaded:
            raise AIDError(
                f"{path} has no distillation adapters: it is not a checkpoint of this training; "
                "start without --resume and with MODEL.WEIGHTS, or with another OUTPUT_DIR"
            )
        return rest

    def _load_model(self, checkpoint: dict):
        self._adapters_loaded = "distillation" in checkpoint
        incompatible = super()._load_model(checkpoint)
        wanted = {k for k, _ in self.model.named_parameters() if not k.startswith(PREFIX)}
        other_shape = {key for key, *_ in incompatible.incorrect_shapes}
        if wanted <= other_shape.union(incompatible.missing_keys):
            raise AIDError(
                "MODEL.WEIGHTS: none of the weights in the file belongs to this detector; choose "
                "another file, or an empty MODEL.WEIGHTS for random weights"
            )
        # The adapters are loaded from their own key, or start afresh under new weights.
        incompatible.missing_keys[:] = [
            key for key in incompatible.missing_keys if not key.startswith(PREFIX)
        ]
        return incompatible

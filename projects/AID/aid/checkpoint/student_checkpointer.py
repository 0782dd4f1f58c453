"""Checkpoints that keep the student separate from its distillation."""

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from ..utils.errors import AIDError
from ..utils.files import clear_write_errors, whole_file, write_text
from .finite import NonFiniteError, non_finite
from .reading import (
    SafeCheckpointer,
    check_kinds,
    clear_load_errors,
    load_file,
    of_other_shapes,
)
from .stored_classes import check_stored_classes
from .strict_checkpointer import mismatches

__all__ = ["StudentCheckpointer"]

PREFIX = "distillation."


class StudentCheckpointer(SafeCheckpointer):
    """Checkpointer that saves the student and the modules of its distillation separately.

    "model" in a file has exactly the keys of the plain detector, so that Detectron2 alone can load
    it; adapters and other modules of the distillation are under "distillation", and names and ids
    of the classes, which inference needs and Detectron2 ignores, under "classes". Other models are
    saved as by Detectron2. If the process is killed or the disk is full, all checkpoints in the
    folder are complete, and ``last_checkpoint`` names one of them. A checkpoint with NaN or
    infinity is neither written nor resumed from.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, average=None, classes=None, **kwargs
    ):
        """
        Args:
            model, save_dir, kwargs: see fvcore's ``Checkpointer``.
            average: :class:`~aid.engine.weight_average.WeightAverage` to save as "model"; the
                student's own weights are then under "own_weights".
            classes: of :func:`~aid.inference.classes.classes_of`; None if they are not known.
        """
        super().__init__(model, save_dir, **kwargs)
        self._last_good = ""  # path of the last checkpoint of this run
        self._average = average
        self._classes = classes
        if average is not None:
            self.add_checkpointable("own_weights", average)
        if getattr(self.model, "distillation", None) is not None:
            self.add_checkpointable("distillation", self.model.distillation)

    def save(self, name: str, **kwargs) -> None:
        """Save ``name``.pth to the save folder; see fvcore's ``Checkpointer.save``.

        Raises:
            AIDError: the content is not finite, the disk is full, or the folder cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.student_state()}
        if self._classes is not None:
            data["classes"] = self._classes
        data.update((key, obj.state_dict()) for key, obj in self.checkpointables.items())
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        if broken := non_finite(data):
            raise AIDError(
                f"training diverged: {path} would hold {NonFiniteError(broken)} and is not "
                "written; lower SOLVER.BASE_LR or DISTILLATION.WEIGHT, or turn on "
                "SOLVER.CLIP_GRADIENTS.ENABLED; the last good checkpoint, from which --resume goes "
                f"on, is {self._last_good or 'not there yet'}"
            )
        self.logger.info("Saving checkpoint to %s", path)
        with clear_write_errors(self.save_dir):
            with whole_file(path) as f:
                torch.save(data, f)
            self.tag_last_checkpoint(os.path.basename(path))
        self._last_good = path

    def student_state(self) -> dict[str, torch.Tensor]:
        """State dict of the plain detector that is saved under "model"."""
        if self._average is not None:
            return self._average.weights
        return {k: v for k, v in self.model.state_dict().items() if not k.startswith(PREFIX)}

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the checkpoint to resume from to ``last_checkpoint``."""
        write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a checkpoint; see fvcore's ``Checkpointer.load``.

        Raises:
            AIDError: the file cannot be read, is not finite, or has no weights of this detector; on
                resume also if any weights do not match, the adapters are missing, or only one of
                the file and this run has an average of the weights.
        """
        resumed = path and (checkpointables is None or "distillation" in checkpointables)
        self._resumes_from = path if resumed else None
        self._path = path
        key, remedy = ("--resume:", _way_back) if resumed else ("MODEL.WEIGHTS", None)
        with clear_load_errors(key, path, remedy):
            rest = super().load(path, checkpointables)
        if resumed and (self._average is not None) != ("own_weights" in self._content):
            on, off = ("without", "with") if self._average is None else ("with", "without")
            raise AIDError(
                f"--resume: this run is {on} MODEL_EMA.ENABLED, {path} was saved {off} it: leave "
                "the key as it was, or choose another OUTPUT_DIR"
            )
        if (
            resumed
            and "distillation" in self.checkpointables
            and "distillation" not in self._content
        ):
            raise AIDError(
                f"{path} has no distillation adapters: it is not a checkpoint of this training; "
                "start without --resume and with MODEL.WEIGHTS, or with another OUTPUT_DIR"
            )
        self._last_good = self._resumes_from or ""
        return rest

    def _load_model(self, checkpoint: dict):
        path = self._resumes_from
        if path and (broken := non_finite(checkpoint)):  # the state of the optimizer, too
            raise AIDError(
                f"--resume: {path} holds {NonFiniteError(broken)}: training diverged before it was "
                f"written; {_way_back(path)}, and lower SOLVER.BASE_LR"
            )
        self._content = set(checkpoint)
        if path:
            names = self._classes and [row["name"] for row in self._classes]
            check_stored_classes(
                checkpoint.get("classes"),
                names,
                f"--resume: {path}",
                "the datasets have",
                "resume with the datasets of that run, or choose another OUTPUT_DIR",
            )
        if path and "distillation" in self._content & set(self.checkpointables):
            adapters, expected = checkpoint["distillation"], self.model.distillation.state_dict()
            check_kinds(adapters, expected)
            if others := of_other_shapes(adapters, expected):
                raise AIDError(
                    f"--resume: the adapters in {path} are of other teachers or losses "
                    f"({len(others)} tensors, first {others[0]}): leave the keys of TEACHER and "
                    "DISTILLATION as they were, or choose another OUTPUT_DIR"
                )
        incompatible = super()._load_model(checkpoint)
        # Adapters are loaded from the key "distillation", or initialized with new weights.
        incompatible.missing_keys[:] = [
            key for key in incompatible.missing_keys if not key.startswith(PREFIX)
        ]
        own_keys = {k for k, _ in self.model.named_parameters() if not k.startswith(PREFIX)}
        other_shape = {key for key, *_ in incompatible.incorrect_shapes}
        if own_keys <= other_shape.union(incompatible.missing_keys):
            advice = "append ?matching_heuristics=True to a file for MODEL.TORCHVISION, "
            raise AIDError(
                f"MODEL.WEIGHTS {self._path} has no weights of this detector "
                f"({mismatches(incompatible)}): "
                f"{'' if checkpoint.get('matching_heuristics') else advice}"
                "choose another file, or an empty MODEL.WEIGHTS for random weights"
            )
        return incompatible

    def _log_incompatible_keys(self, incompatible) -> None:
        # Detectron2 would continue with random values for mismatched weights.
        if self._resumes_from and (message := mismatches(incompatible)):
            raise AIDError(
                f"--resume: {self._resumes_from} is a checkpoint of another detector ({message}): "
                "choose another OUTPUT_DIR, or the config of that run"
            )
        super()._log_incompatible_keys(incompatible)


def _way_back(path: str) -> str:
    """Advice that names the newest good checkpoint in the folder of a damaged one."""
    others = [x for x in Path(path).parent.glob("*.pth") if x.name != os.path.basename(path)]
    for other in sorted(others, key=lambda x: x.stat().st_mtime, reverse=True):
        with suppress(Exception):  # a damaged file can raise any
            if not non_finite(load_file(str(other))):
                return f"write {other.name}, the last good one, into last_checkpoint beside it"
    return "no other checkpoint beside it is good: start without --resume"

"""Gradients of the distillation and task losses with respect to the student's backbone."""

from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from aid.checkpoint import StudentCheckpointer
from aid.config import clear_value_errors
from aid.data.build import build_train_loader
from aid.engine import AIDTrainer

from .grid import Job
from .measured import config_of, final_weights, kept, training_set
from .runner import is_done

__all__ = ["compare_gradients", "jobs_with_gradients", "measure_gradients"]

GRADIENTS = "gradients.json"


def jobs_with_gradients(jobs: list[Job]) -> list[Job]:
    """Finished runs to measure: plain distillation at every strength, one seed."""
    return [x for x in jobs if x.keeps_weights and x.imitates_everywhere and is_done(x)]


def measure_gradients(job: Job, num_batches: int) -> list[dict]:
    """Measure the gradients of a finished run, with its initial and its final weights.

    The result is saved in the run's folder, and read from there by later calls.

    Args:
        job: a run with a teacher whose checkpoint was kept.
        num_batches: number of training batches.

    Returns:
        An entry for the start and one for the end of training: "labels" of the run; "at", start or
        end; medians over the batches of "ratio", the gradient norm of the distillation loss over
        that of the task loss, and of "cosine" between both gradients; "batches".

    Raises:
        AIDError: the teacher's or the student's checkpoint is missing.
    """
    return kept(job, GRADIENTS, lambda: _measure(job, num_batches))


def _measure(job: Job, num_batches: int) -> list[dict]:
    weights = {"start": None, "end": final_weights(job)}
    with training_set(job) as name:
        cfg = config_of(job, "DATALOADER.NUM_WORKERS", 0, "DATASETS.TRAIN", (name,))
        return [
            {"labels": job.labels, "at": at, "batches": num_batches, **_medians(values)}
            for at, values in ((at, _of_run(cfg, x, num_batches)) for at, x in weights.items())
        ]


def _medians(values: list[tuple[float, float]]) -> dict[str, float]:
    ratios, cosines = zip(*values, strict=True)
    return {"ratio": median(ratios), "cosine": median(cosines)}


def _of_run(cfg: CfgNode, weights: str | None, num_batches: int) -> list[tuple[float, float]]:
    seed_all_rng(cfg.SEED)
    with clear_value_errors(cfg):
        model = AIDTrainer.build_model(cfg)
    if weights:
        StudentCheckpointer(model).load(weights)
    return list(compare_gradients(model.train(), islice(build_train_loader(cfg), num_batches)))


def compare_gradients(
    model: nn.Module, batches: Iterable[list[dict]]
) -> Iterator[tuple[float, float]]:
    """Compare the backbone gradients of the distillation loss and the task loss for each batch.

    Args:
        model: a student in training mode, with its teacher.
        batches: standard inputs of a Detectron2 model.

    Yields:
        Gradient norm of the distillation loss over that of the task loss, and the cosine between
        both gradients.
    """
    parameters = [p for p in model.backbone.parameters() if p.requires_grad]
    for batch in batches:
        with EventStorage():
            losses = model(batch)
        distillation_loss = sum(v for k, v in losses.items() if k.startswith("loss_distill"))
        task_loss = sum(v for k, v in losses.items() if not k.startswith("loss_distill"))
        distillation = _flat_gradient(distillation_loss, parameters)
        task = _flat_gradient(task_loss, parameters)
        cosine = nn.functional.cosine_similarity(distillation, task, dim=0)
        yield (distillation.norm() / task.norm()).item(), cosine.item()


def _flat_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([x.flatten() for x in gradients])

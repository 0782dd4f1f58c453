"""How strong imitation is beside the task: their gradients on the student's backbone."""

from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from aid.checkpoint import StudentCheckpointer
from aid.data.build import build_train_loader
from aid.engine import AIDTrainer

from .grid import Job
from .measured import config_of, final_weights, kept, training_set
from .runner import is_done

__all__ = ["compare_gradients", "jobs_with_gradients", "measure_gradients"]

GRADIENTS = "gradients.json"


def jobs_with_gradients(jobs: list[Job]) -> list[Job]:
    """The finished runs to measure: plain distillation, of one seed, at every strength."""
    return [x for x in jobs if x.keeps_weights and x.imitates_everywhere and is_done(x)]


def measure_gradients(job: Job, num_batches: int) -> list[dict]:
    """Gradients of a finished run, with fresh weights and with those at its end.

    They are kept in the run's folder and read from there the next time.

    Args:
        job: a run with a teacher whose checkpoint was kept.
        num_batches: of its training images.

    Returns:
        An entry for the start and one for the end of training: labels of the run; "at" start or
        end; medians over the batches of "ratio", the norm of imitation's gradient over that of the
        task's, and of "cosine" between both; "batches".

    Raises:
        AIDError: the teacher's or the student's checkpoint is missing.
    """
    return kept(job, GRADIENTS, lambda: _measure(job, num_batches))


def _measure(job: Job, num_batches: int) -> list[dict]:
    weights = {"start": None, "end": final_weights(job)}
    with training_set(job) as name:
        cfg = config_of(job, "DATALOADER.NUM_WORKERS", 0, "DATASETS.TRAIN", (name,))
        return [
            {"labels": job.labels, "at": at, "batches": num_batches, **_medians(found)}
            for at, found in ((at, _of_run(cfg, x, num_batches)) for at, x in weights.items())
        ]


def _medians(found: list[tuple[float, float]]) -> dict[str, float]:
    ratios, cosines = zip(*found, strict=True)
    return {"ratio": median(ratios), "cosine": median(cosines)}


def _of_run(cfg: CfgNode, weights: str | None, num_batches: int) -> list[tuple[float, float]]:
    seed_all_rng(cfg.SEED)
    model = AIDTrainer.build_model(cfg)
    if weights:
        StudentCheckpointer(model).load(weights)
    return list(compare_gradients(model.train(), islice(build_train_loader(cfg), num_batches)))


def compare_gradients(
    model: nn.Module, batches: Iterable[list[dict]]
) -> Iterator[tuple[float, float]]:
    """Compare what imitation and the task want of the backbone, batch by batch.

    Args:
        model: a student in training mode, with its teacher.
        batches: the standard input of a Detectron2 model.

    Yields:
        The norm of imitation's gradient over that of the task's, and the cosine between both.
    """
    parameters = [p for p in model.backbone.parameters() if p.requires_grad]
    for batch in batches:
        with EventStorage():
            losses = model(batch)
        imitation = sum(v for k, v in losses.items() if k.startswith("loss_distill"))
        task = sum(v for k, v in losses.items() if not k.startswith("loss_distill"))
        ours = _flat_gradient(imitation, parameters)
        theirs = _flat_gradient(task, parameters)
        cosine = nn.functional.cosine_similarity(ours, theirs, dim=0)
        yield (ours.norm() / theirs.norm()).item(), cosine.item()


def _flat_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([x.flatten() for x in found])

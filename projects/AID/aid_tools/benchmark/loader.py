"""Throughput of the training loader."""

import time
from itertools import islice

from detectron2.config import CfgNode
from tqdm import tqdm

from aid.data.build import build_train_loader
from aid.utils.errors import AIDError
from aid.utils.text import counted

__all__ = ["measure_loader"]


def measure_loader(cfg: CfgNode, workers: list[int], num_batches: int) -> dict[int, float]:
    """Measure images per second of reading, decoding, augmenting and collating, without training.

    The first batches are excluded, since workers start and fill their queues then.

    Args:
        cfg: a training config with SEED >= 0.
        workers: numbers of loader processes to measure; 0 loads in this process.
        num_batches: number of timed batches of SOLVER.IMS_PER_BATCH images.

    Returns:
        {number of workers: images per second}.

    Raises:
        AIDError: no batch to time, a negative number of workers, or an unreadable image.
    """
    if num_batches < 1:
        raise AIDError(f"--batches: {num_batches} is below 1")
    if min(workers) < 0:
        raise AIDError(f"--workers: {min(workers)} is negative")
    cfg = cfg.clone()
    rates = {}
    for number in workers:
        cfg.DATALOADER.NUM_WORKERS = number
        loader = build_train_loader(cfg)
        warm_up = 1 + 2 * number * (loader.prefetch_factor or 0)
        batches = iter(loader)
        for _ in islice(batches, warm_up):
            pass
        total = num_batches * cfg.SOLVER.ACCUMULATION_STEPS  # the loader yields micro-batches
        start = time.perf_counter()
        for _ in tqdm(islice(batches, total), counted(number, "worker"), total, False):
            pass
        seconds = time.perf_counter() - start
        rates[number] = num_batches * cfg.SOLVER.IMS_PER_BATCH / seconds
    return rates

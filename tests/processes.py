"""Run a function in several processes, connected like those of a run, on one CPU machine."""

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm


def run(folder: str, number: int, function, *args) -> list:
    """Results of ``function(*args)`` in each of ``number`` forked processes.

    Args:
        folder: for their files.
    """
    folder = tempfile.mkdtemp(dir=folder)
    mp.start_processes(work, (number, folder, function, args), nprocs=number, start_method="fork")
    return [torch.load(f"{folder}/{rank}.pth", weights_only=False) for rank in range(number)]


def work(rank: int, number: int, folder: str, function, args: tuple) -> None:
    """Run ``function`` in one of the processes and save its result."""
    store = dist.FileStore(f"{folder}/store", number)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=number)
    comm.create_local_process_group(number)
    torch.save(function(*args), f"{folder}/{rank}.pth")
    dist.destroy_process_group()

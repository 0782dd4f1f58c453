"""Memory and open files of a process and its descendants, from Linux's /proc."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Usage", "can_count", "usage"]

MEMORY = "/proc/{}/smaps_rollup"


@dataclass(frozen=True)
class Usage:
    """Resources of a process and all its descendants at one moment.

    Attributes:
        memory: resident memory in MiB. A page shared by several of the processes counts once.
            File-backed pages (libraries) do not count, since unrelated processes share them, too.
        descriptors: number of open file descriptors.
        processes: number of processes.
    """

    memory: float
    descriptors: int
    processes: int


def can_count() -> bool:
    """Whether :func:`usage` works on this system: Linux 5.4 and later."""
    with suppress(OSError), open(MEMORY.format("self")) as f:
        return "Pss_Anon:" in f.read()
    return False


def usage(pid: int) -> Usage:
    """Measure the resources of a process of this user; all values are 0 after its end."""
    memory = descriptors = processes = 0
    for member in _family(pid):
        with suppress(OSError):  # the process has ended meanwhile
            with open(MEMORY.format(member)) as f:
                kib = re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", f.read(), re.MULTILINE)
            descriptors += len(os.listdir(f"/proc/{member}/fd"))
            memory += sum(map(int, kib)) / 1024
            processes += 1
    return Usage(memory, descriptors, processes)


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as f:
            parent = int(f.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    family = [pid]
    for member in family:  # the list grows during the iteration
        family += children.get(member, [])
    return family

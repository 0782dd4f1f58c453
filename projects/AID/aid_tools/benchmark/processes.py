"""What a process and those that it started hold, as Linux counts it."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Usage", "can_count", "usage"]

MEMORY = "/proc/{}/smaps_rollup"


@dataclass(frozen=True)
class Usage:
    """Of a process and all its descendants, at one moment.

    Attributes:
        memory: resident memory in MiB. A page that several of them share counts once, and those of
            files (libraries) not at all: other processes that come and go share them.
        descriptors: number of open file descriptors.
        processes: how many they are.
    """

    memory: float
    descriptors: int
    processes: int


def can_count() -> bool:
    """Whether this system says what :func:`usage` request for: Linux 5.4 and later."""
    with suppress(OSError), open(MEMORY.format("self")) as f:
        return "Pss_Anon:" in f.read()
    return False


def usage(pid: int) -> Usage:
    """Look at a process of this user; all is 0 once it has ended."""
    memory = descriptors = processes = 0
    for member in _family(pid):
        with suppress(OSError):  # it ends meanwhile
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
    found = [pid]
    for member in found:  # which grows on the way
        found += children.get(member, [])
    return found

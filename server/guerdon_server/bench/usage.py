"""CPU and memory of processes, as the kernel counts them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


def cpu_seconds(pid: int) -> float:
    """User + system CPU of the process and of all its descendants, also of those that it has seen end.

    What a child has used moves to its parent's account when it is reaped, so that the sum never falls.
    """
    process = psutil.Process(pid)
    return sum(map(_own_seconds, [process, *process.children(recursive=True)]))


def _own_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # it ended between listing and looking; its parent has the account now
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def cpu_seconds_of(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """`cpu_seconds` by name, of several processes together."""
    return {name: sum(map(cpu_seconds, several)) for name, several in pids.items()}


def machine_cpu_seconds() -> float:
    """What all processes of the machine have used."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def rss_bytes(pid: int) -> int:
    """Resident memory of one process, without its children."""
    return int(psutil.Process(pid).memory_info().rss)


def tree_bytes(pid: int) -> int:
    """Memory of the process and its children; what they share is counted once where the system tells (Linux).

    Huge pages with it: the most that one of them has touched, because they share them.
    """
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(map(_own_bytes, family)) + max(_huge_bytes(each.pid) for each in family)


def _own_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.uss))
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:  # another user's
        return int(process.memory_info().rss)


def _huge_bytes(pid: int) -> int:
    """In huge pages, which no other figure of a process's memory counts; 0 where the system does not tell."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it ended meanwhile, it is another user's, or this is not Linux
        return 0
    return huge_bytes(rollup)


def huge_bytes(rollup: str) -> int:
    """Of a process whose /proc/PID/smaps_rollup is `rollup`, shared and its own."""
    return sum(int(size) * 1024 for size in re.findall(r"_Hugetlb: +(\d+) kB", rollup))

"""On what a figure was measured: without it a performance claim says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("guerdon-server", "guerdon", "grpcio", "protobuf", "asyncpg", "redis", "hiredis", "uvloop")
_OPTIONAL = ("pygrpc-native",)


def surroundings(engines: Mapping[str, str]) -> dict[str, Any]:
    """Commit, machine and versions; call it inside `on_cores`."""
    return {
        "commit": commit(),
        "machine": {
            "cpu": _cpu_model(),
            "cores_used": cores(),
            "cores_there": psutil.cpu_count(),
            "memory_bytes": memory_bytes(),
            "system": f"{platform.system()} {platform.release()}",
            "load_average_before": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **dict(engines),
            **{name: version(name) for name in _PACKAGES},
            **{name: found for name in _OPTIONAL if (found := _version(name))},
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """Of the checkout that the package lies in, with `+changes` where it differs; empty where there is none."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(here), *arguments],  # noqa: S607
            check=False,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", __file__) else ""
        return head + ("+changes" if head and git("status", "--porcelain", "--", str(here.parent)) else "")
    except FileNotFoundError:
        return ""


def cores() -> int:
    """On how many cores we and our children may run."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)
    return len(affinity()) if affinity is not None else int(psutil.cpu_count() or 1)


def memory_bytes() -> int:
    """That we and our children may use: the machine's, or less where our control group (a container) has a limit."""
    machine = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:  # no control group, or of the first version
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep this process, and what it starts, on so many cores, where the system can (Linux)."""
    process = psutil.Process()
    affinity = getattr(process, "cpu_affinity", None)
    before = affinity() if affinity is not None else None
    if affinity is not None and before is not None and len(before) > count:
        affinity(before[:count])
    try:
        yield
    finally:
        if affinity is not None:
            affinity(before)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

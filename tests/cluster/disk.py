"""A small file system in memory, so that a full disk is nobody else's."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import psutil

from tests.cluster.waiting import until

_SOURCE = "guerdon-cluster-disk"
_MOUNT_SECONDS_MAX = 20.0


class Disk:
    """A folder; with `size_bytes` and where mounting is permitted, a file system of its own.

    `why_not`: why it can't be filled; empty where it can.
    """

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        self.path = path
        self.why_not = ""
        self._size_bytes = size_bytes
        self._mounted = False

    async def mount(self) -> None:
        """Make the folder, and the file system if it can be had. Does nothing the second time."""
        if self.path.exists():
            return
        self.path.mkdir(mode=0o711)
        self.path.chmod(0o711)  # whatever the umask: PostgreSQL runs as another user
        if not self._size_bytes:
            self.why_not = "the data is on the folder's own disk, which others use"
            return
        await asyncio.to_thread(_free_leftovers)
        options = f"size={self._size_bytes},mode=0711"
        self.why_not = await asyncio.to_thread(
            _run, "mount", "-t", "tmpfs", "-o", options, f"{_SOURCE}-{os.getpid()}", str(self.path)
        )
        self._mounted = not self.why_not

    async def unmount(self) -> None:
        """The data is gone after this."""
        if self._mounted:
            self._mounted = False
            # Lazily: a process that has not quite ended may still have a file open.
            refused = await asyncio.to_thread(_run, "umount", "-l", str(self.path))
            assert not refused, refused

    @property
    def free_bytes(self) -> int:
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    async def fill(self) -> None:
        """Not a byte is left: it becomes as small as what is on it, which costs no memory."""
        assert not self.why_not, self.why_not

        async def full() -> bool:
            state = os.statvfs(self.path)
            used_bytes = (state.f_blocks - state.f_bfree) * state.f_frsize
            return not await self._resize(used_bytes) and not self.free_bytes  # both may move under us: again

        await until(full, f"{self.path} to be full")

    async def free(self) -> None:
        """There is room again."""
        if self._mounted:
            refused = await self._resize(self._size_bytes)
            assert not refused, refused

    async def _resize(self, size_bytes: int) -> str:
        return await asyncio.to_thread(_run, "mount", "-o", f"remount,size={size_bytes}", str(self.path))


def _run(*command: str) -> str:
    """What it complained of; empty: done."""
    try:
        done = subprocess.run(  # noqa: S603  mount and umount
            command, capture_output=True, text=True, check=False, timeout=_MOUNT_SECONDS_MAX
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else f"{command[0]}: {done.stderr.strip()}"


def _free_leftovers() -> None:
    """File systems of test processes that were killed before they could clean up."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return
    for line in mounts.read_text().splitlines():
        source, path, *_ = line.split()
        owner = re.fullmatch(rf"{_SOURCE}-(\d+)", source)
        if owner is not None and not psutil.pid_exists(int(owner[1])):
            _run("umount", "-l", path.encode().decode("unicode_escape"))

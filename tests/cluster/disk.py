"""A small file system in memory, so that a full disk is nobody else's."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import psutil

_SOURCE = "guerdon-cluster-disk"
_FILLER = "filler"
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

    def fill(self) -> None:
        """Not a byte is left."""
        assert not self.why_not, self.why_not
        descriptor = os.open(self.path / _FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            while free := self.free_bytes:  # somebody else may take or give some meanwhile
                try:
                    os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, free)
                except OSError:
                    os.write(descriptor, bytes(4096))
        except OSError:  # that was the last of it
            pass
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.path / _FILLER).unlink(missing_ok=True)


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

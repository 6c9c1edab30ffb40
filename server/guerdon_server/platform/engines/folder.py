"""The data folder: who holds it, the passwords in it, which process runs on it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from guerdon_server.platform.engines.errors import DataFolderError, DataFolderInUseError

_HOLDER_UNKNOWN_SECONDS_MAX = 1.0
_CLOCK_TOLERANCE_SECONDS = 5.0


def make_folder(path: Path) -> Path:
    """Create the data folder if it is missing; absolute path. One that exists keeps its permissions."""
    path = path.expanduser().absolute()
    if not path.exists():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataFolderError(f"{path} cannot be made: {error}. Choose another data folder.") from error
        # Ours, so we may: as root another user has to get through to its own subfolder.
        path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    elif not path.is_dir():
        raise DataFolderError(f"{path} is not a folder. Choose another data folder.")
    elif path.stat().st_uid != os.geteuid() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise DataFolderError(f"{path} belongs to another user. Choose another data folder, or run as that user.")
    (path / "logs").mkdir(mode=0o700, exist_ok=True)
    return path


class FolderLock:
    """An flock on a file that names its holder; the kernel lets go of it however the holder ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises DataFolderInUseError at once if another process (or another owner here) holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, command = self._holder(descriptor)
            os.close(descriptor)
            raise DataFolderInUseError(self._path.parent, pid=pid, command=command) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{shlex.join([sys.executable, *sys.argv])}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _holder(descriptor: int) -> tuple[int, str]:
        deadline = time.monotonic() + _HOLDER_UNKNOWN_SECONDS_MAX
        while time.monotonic() < deadline:  # the holder locks first and writes its name a moment later
            pid, _, command = os.pread(descriptor, 65536, 0).decode(errors="replace").partition("\n")
            if pid.isdigit() and command:
                return int(pid), command.strip()
            time.sleep(0.01)
        return 0, "unknown"


@dataclass(frozen=True, slots=True)
class Secrets:
    """Generated once for a data folder; kept in `secrets.json`, readable by its owner only."""

    postgres_password: str
    redis_password: str


def load_secrets(folder: Path) -> Secrets:
    """Read the folder's passwords, making them the first time."""
    path = folder / "secrets.json"
    if not path.exists():
        made = Secrets(secrets.token_urlsafe(24), secrets.token_urlsafe(24))
        write_private(path, json.dumps(asdict(made), indent=2) + "\n")
    try:
        return Secrets(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataFolderError(
            f"{path} cannot be read ({error}). Restore it, or start with another data folder."
        ) from error


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically and durably, readable by its owner only."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Which process serves a folder: enough to recognise it after its parent was killed."""

    pid: int
    started: float
    """Start of the process in seconds since the epoch, as the operating system tells it."""
    port: int
    mark: str
    """A path that is among the arguments of the process and of no other."""

    def save(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self)) + "\n")

    def process(self) -> psutil.Process | None:
        """The live process, if it is really the one recorded (a pid is reused sooner or later)."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE or self.mark not in process.cmdline():
                return None
            same_start = abs(process.create_time() - self.started) < _CLOCK_TOLERANCE_SECONDS
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if same_start else None


def load_record(path: Path) -> ProcessRecord | None:
    try:
        return ProcessRecord(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None

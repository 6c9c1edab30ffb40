"""What can go wrong with an embedded engine; every message says what to do."""

from __future__ import annotations

from pathlib import Path


class EngineError(Exception):
    """Base of all failures of embedded engines."""


class EngineNotFoundError(EngineError):
    """Neither a wheel nor the system has the program."""


class DataFolderError(EngineError):
    """The data folder cannot be used: wrong version, wrong permissions, unreadable secrets."""


class DataFolderInUseError(EngineError):
    """Another live process holds the data folder. `pid` (0 if it could not be read) and `command` name it."""

    def __init__(self, folder: Path, *, pid: int, command: str) -> None:
        holder = f"process {pid} ({command})" if pid else "another process"
        super().__init__(
            f"{folder} is in use by {holder}. Stop it first (kill -TERM {pid or 'PID'}), or choose another data folder."
        )
        self.folder = folder
        self.pid = pid
        self.command = command


class EngineStartError(EngineError):
    """The engine ended before it was ready. `log_tail` holds the last lines that it wrote."""

    def __init__(self, engine: str, message: str, *, log_path: Path, log_tail: str) -> None:
        super().__init__(f"{engine} did not start: {message}. Its log is {log_path}; it ends with:\n{log_tail}")
        self.engine = engine
        self.log_path = log_path
        self.log_tail = log_tail


class EngineStopError(EngineError):
    """The process is still there after SIGKILL (it hangs in the kernel, for example on a dead disk)."""

"""What both engines have in common: one child process that serves one folder."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import psutil

from guerdon_server.platform.engines import process as processes
from guerdon_server.platform.engines.errors import EngineStartError
from guerdon_server.platform.engines.folder import (
    FolderLock,
    ProcessRecord,
    Secrets,
    load_record,
    load_secrets,
    make_folder,
)
from guerdon_server.platform.engines.process import Progress

_START_TRIES_MAX = 5
_PROGRESS_SECONDS = 2.0


class Engine(ABC):
    """A server program as our own child, on 127.0.0.1, with its data in a folder below `data_dir`.

    `start`, `stop` and `kill` may follow one another as often as wanted; data and port stay. While it runs (and its
    starter lives) the folder is locked. Start it from the thread of the event loop: on Linux the engine dies with
    that thread. Not safe for concurrent use by several tasks.
    """

    name: ClassVar[str]
    _death_signal: ClassVar[signal.Signals]
    _stop_ladder: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, data_dir: Path, *, port: int | None = None, on_progress: Progress | None = None) -> None:
        """`port` None: a free one, chosen at the first start. Creates `data_dir` and the passwords in it."""
        self.data_dir = make_folder(data_dir)
        self._secrets: Secrets = load_secrets(self.data_dir)
        self._port = port
        self._port_may_change = port is None
        self._child: subprocess.Popen[bytes] | None = None
        self._on_progress: Progress = on_progress or (lambda _: None)
        self._lock = FolderLock(self.data_dir / f"{self.name}.lock")
        self._record_path = self.data_dir / f"{self.name}.json"

    @property
    def pid(self) -> int:
        """Process id of the running engine. Raises RuntimeError when it was not started or has been stopped."""
        if self._child is None:
            raise RuntimeError(f"{self.name} is not started")
        return self._child.pid

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1; the same over restarts. Raises RuntimeError before the first start."""
        if self._port is None:
            raise RuntimeError(f"{self.name} is not started")
        return self._port

    @property
    def exit_status(self) -> int | None:
        """None while it runs; else the exit status (negative: the signal), when it ended without being asked."""
        return None if self._child is None else self._child.poll()

    @property
    def log_path(self) -> Path:
        return self.data_dir / "logs" / f"{self.name}.log"

    @property
    @abstractmethod
    def version(self) -> str:
        """Version of the program, for example "18.6"."""

    async def start(self) -> None:
        """Start it and wait until it takes connections, however long recovery takes, as long as the process lives.

        Raises DataFolderInUseError, DataFolderError, EngineNotFoundError, EngineStartError.
        """
        if self._child is not None:
            raise RuntimeError(f"{self.name} is already started")
        self._lock.acquire()
        try:
            await self._end_orphan()
            await self._prepare()
            await self._launch()
            await self._after_start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it in order: what is acknowledged is on disk. Escalates after bounded times. Does nothing if stopped."""
        if self._child is not None:
            await processes.end_process(self.name, processes.signal_child(self._child), self._stop_ladder)
            self._child = None
            self._record_path.unlink(missing_ok=True)
        self._lock.release()

    async def kill(self) -> None:
        """SIGKILL to the whole engine, as a crash of the machine would end it; returns when it is gone."""
        if self._child is None:
            return
        parts = [self._child.pid, *self._parts()]
        for part in parts:
            try:
                psutil.Process(part).kill()
            except psutil.NoSuchProcess:
                continue
        await processes.end_process(self.name, processes.signal_child(self._child), [(signal.SIGKILL, 30.0)])
        self._child = None
        self._lock.release()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @abstractmethod
    async def _prepare(self) -> None:
        """Make the data folder and the configuration ready."""

    @abstractmethod
    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        """Start the process."""

    @abstractmethod
    async def _is_ready(self) -> bool:
        """Whether the child takes connections."""

    @abstractmethod
    def _record(self, pid: int, started: float, port: int) -> ProcessRecord:
        """How to recognise the process later."""

    async def _after_start(self) -> None:
        """Make what has to exist inside the running engine."""
        return

    def _parts(self) -> Sequence[int]:
        """Process ids of the engine's own children."""
        return []

    def _worth_another_try(self, tail: str) -> bool:
        """Whether what it wrote before it ended passes by itself; called with the log of this start."""
        return False

    async def _end_orphan(self) -> None:
        """An engine outlives its parent where the kernel cannot tie them, and for the time of its own shutdown."""
        record = load_record(self._record_path)
        orphan = record.process() if record is not None else None
        if orphan is not None:
            self._on_progress(f"{self.name}: ending process {orphan.pid}, left over from a run that was killed")
            await processes.end_process(self.name, processes.signal_orphan(orphan), self._stop_ladder)
        self._record_path.unlink(missing_ok=True)

    async def _launch(self) -> None:
        for tries_left in reversed(range(_START_TRIES_MAX)):
            since = processes.begin_log(self.log_path)
            if self._port is None:
                self._port = processes.free_port()
            child = self._child = self._spawn(self._port)
            self._record(child.pid, _started(child.pid), self._port).save(self._record_path)
            if await self._became_ready(since):
                self._port_may_change = False  # clients know it now
                return
            self._child = None
            tail = processes.log_tail(self.log_path, since=since)
            another_port = self._port_may_change and "address" in tail.lower() and "in use" in tail.lower()
            if not tries_left or not (another_port or self._worth_another_try(tail)):
                raise EngineStartError(
                    self.name, f"it ended with status {child.returncode}", log_path=self.log_path, log_tail=tail
                )
            if another_port:
                self._port = None
            await asyncio.sleep((_START_TRIES_MAX - tries_left) * 0.2)

    async def _became_ready(self, log_since: int) -> bool:
        """False: the process ended."""
        loop = asyncio.get_running_loop()
        report_at = loop.time() + _PROGRESS_SECONDS
        while self.exit_status is None:
            if await self._is_ready():
                return True
            if loop.time() >= report_at:
                report_at += _PROGRESS_SECONDS
                lines = processes.log_tail(self.log_path, since=log_since).splitlines()
                self._on_progress(f"{self.name}: still starting: {lines[-1] if lines else 'nothing in its log yet'}")
            await asyncio.sleep(processes.POLL_SECONDS)
        return False


def _started(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:  # it ended at once; the wait for readiness will tell
        return 0.0

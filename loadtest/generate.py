"""Locust's processes: started, watched, measured, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from guerdon_server.bench import usage
from guerdon_server.platform.engines import child as launcher
from guerdon_server.platform.engines import process as processes
from loadtest.errors import LoadTestError
from loadtest.plan import VARIABLE, Drive, Plan
from loadtest.system import SERVER, System

_ROOT: Final = Path(__file__).parents[1]
_LOCUSTFILE: Final = "loadtest/generator/locustfile.py"
_LOOK_SECONDS: Final = 0.5
_KILL: Final = ((signal.SIGKILL, 10.0),)


@dataclass(frozen=True, slots=True)
class Sample:
    """CPU seconds used so far by process, the memory of the server (0: not ours), and when: seconds since 1970.

    `others_seconds`: CPU of this machine that neither the run nor its children used.
    """

    at: float
    cpu_seconds: Mapping[str, float]
    server_bytes: int = 0
    others_seconds: float = 0.0


@dataclass(slots=True)
class Generator:
    """`await Generator(plan, system, ...).run()`: the whole drive. Cancel it to stop."""

    plan: Plan
    system: System
    on_progress: Callable[[Mapping[str, Any]], None]
    web_port: int | None = None
    samples: list[Sample] = field(default_factory=list)
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    async def run(self) -> Drive:
        """Raises LoadTestError where it could not be done, with the end of the log."""
        self.plan.save()
        self.log_path.unlink(missing_ok=True)
        try:
            self._start()
            tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._listen())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
            await asyncio.to_thread(self._first.wait)
        finally:
            for name, child in self._children.items():
                await processes.end_process(name, processes.signal_child(child), _KILL)
        return self._result()

    @property
    def log_path(self) -> Path:
        """What Locust said, of all its processes."""
        return self.plan.report / "locust.log"

    @property
    def html_path(self) -> Path:
        """Locust's own page."""
        return self.plan.report / "locust.html"

    @property
    def _first(self) -> subprocess.Popen[bytes]:
        return self._children["generator"]

    def _start(self) -> None:
        port = processes.free_port()
        if self.plan.processes == 1:
            self._spawn("generator", self._leader())
            return
        master = ["--master", "--master-bind-host=127.0.0.1", f"--master-bind-port={port}"]
        workers = [f"--expect-workers={self.plan.processes}", "--expect-workers-max-wait=60"]
        self._spawn("generator", [*self._leader(), *master, *workers])
        for number in range(1, self.plan.processes + 1):
            worker = ["--worker", "--master-host=127.0.0.1", f"--master-port={port}"]
            self._spawn(f"generator {number}", worker)

    def _leader(self) -> list[str]:
        report = [f"--html={self.html_path}", f"--json-file={self.plan.folder / 'locust'}", "--only-summary"]
        if self.web_port is None:
            return ["--headless", *report]
        return ["--web-host=127.0.0.1", f"--web-port={self.web_port}", "--autostart", "--autoquit=0", *report]

    def _spawn(self, name: str, arguments: list[str]) -> None:
        ties = [str(os.getpid()), str(int(signal.SIGKILL)), "-", "-", "-"]
        stop = f"--stop-timeout={self.plan.profile.task_seconds_max:g}"
        locust = [sys.executable, "-m", "locust", "-f", _LOCUSTFILE, f"--host={self.plan.target}", "--loglevel=WARNING"]
        first = name == "generator"
        with self.log_path.open("ab") as log:
            self._children[name] = subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, "-I", "-S", launcher.__file__, *ties, *locust, stop, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if first else log,
                stderr=log,
                cwd=_ROOT,
                env={**os.environ, VARIABLE: str(self.plan.path), "GRPC_ENABLE_FORK_SUPPORT": "false"},
                start_new_session=True,  # Ctrl-C reaches only us
            )

    async def _listen(self) -> None:
        """Pass on what the first process tells, until it has told all."""
        assert self._first.stdout is not None
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._first.stdout)
        try:
            while line := await reader.readline():
                if line.startswith(b"{"):  # Locust may have something to say, too
                    self.on_progress(json.loads(line))
        finally:
            transport.close()

    async def _watch(self) -> None:
        """Take samples, for ever. Raises LoadTestError when a worker has died."""
        while True:
            self.samples.append(self._sample())
            for name, child in self._children.items():
                if name != "generator" and child.poll():
                    raise self._trouble(f"{name} ended with status {child.returncode}")
            await asyncio.sleep(_LOOK_SECONDS)

    def _sample(self) -> Sample:
        pids = {**self.system.pids, **{name: child.pid for name, child in self._children.items()}}
        used = {}
        for name, pid in pids.items():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                used[name] = usage.cpu_seconds(pid)
        size = 0
        if SERVER in self.system.pids:
            with suppress(psutil.NoSuchProcess):
                size = usage.rss_bytes(self.system.pids[SERVER])
        others = usage.machine_cpu_seconds() - usage.cpu_seconds(os.getpid())
        return Sample(time.time(), used, size, others)

    def _result(self) -> Drive:
        path = self.plan.folder / "drive.json"
        drive = Drive.load(path) if path.exists() else Drive(error="Locust ended without a result")
        if drive.error:
            raise self._trouble(drive.error)
        return drive

    def _trouble(self, what: str) -> LoadTestError:
        tail = processes.log_tail(self.log_path)
        return LoadTestError(f"the generator stopped: {what}.\nIts log is {self.log_path}; it ends with:\n{tail}")

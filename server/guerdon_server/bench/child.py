"""A server program as a child process that says on its standard output, as one JSON line, where it listens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from guerdon_server.bench.errors import BenchError
from guerdon_server.platform.engines import child as launcher
from guerdon_server.platform.engines import process as processes

_START_SECONDS_MAX = 60.0
_STOP_LADDER = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))


class Child:
    """`async with Child(name, module_arguments, ...) as child`: serves at `child.target` until the block ends, and its
    metrics at `child.metrics` if it has any.

    Start it from the thread of the event loop: on Linux it dies with that thread.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, folder: Path, settings: Mapping[str, str]) -> None:
        """`arguments` of the interpreter: `["-m", "guerdon_server", ...]`."""
        self.name = name
        self.target = ""
        self.metrics = ""
        self.log_path = folder / f"{name}.log"
        self._arguments = arguments
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not started"
        return self._process.pid

    async def __aenter__(self) -> Child:
        self._process = self._spawn()
        try:
            async with asyncio.timeout(_START_SECONDS_MAX):
                await self._ready()
        except BaseException as error:
            await self._stop()
            if isinstance(error, TimeoutError):
                raise self._trouble(f"did not serve within {_START_SECONDS_MAX:.0f} s") from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def check_alive(self) -> None:
        """Raises BenchError if it has ended without being asked."""
        assert self._process is not None, f"{self.name} is not started"
        if (status := self._process.poll()) is not None:
            raise self._trouble(f"ended with status {status}")

    async def _ready(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        try:
            line = await reader.readline()
        finally:
            transport.close()
        if not line:
            raise self._trouble("ended before it served")
        told = json.loads(line)
        self.target, self.metrics = str(told["grpc"]), str(told.get("metrics", ""))

    def _spawn(self) -> subprocess.Popen[bytes]:
        ties = [str(os.getpid()), str(int(signal.SIGKILL)), "-", "-", "-"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GUERDON_")}
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, "-I", "-S", launcher.__file__, *ties, sys.executable, "-P", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._folder,
                env={**kept, **self._settings},
                start_new_session=True,  # Ctrl-C reaches only us, and we stop it in the right order
            )
        finally:
            os.close(log)

    async def _stop(self) -> None:
        if self._process is not None:
            await processes.end_process(self.name, processes.signal_child(self._process), _STOP_LADDER)
            self._process = None

    def _trouble(self, what: str) -> BenchError:
        return BenchError(f"{self.name} {what}; its log ends with:\n{processes.log_tail(self.log_path)}")

"""The server as a child process, as an operator would start it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from guerdon import AsyncClient, GuerdonError, HealthStatus, RetryPolicy
from guerdon_server.demo.errors import DemoError
from guerdon_server.platform.engines import child as launcher
from guerdon_server.platform.engines import process as processes

_START_SECONDS_MAX = 60.0
_PROBE_SECONDS = 0.05
_STOP_LADDER = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))


class ServerProcess:
    """`guerdon serve` on a port of 127.0.0.1 that stays the same over restarts: `async with ServerProcess(...)`.

    Start it from the thread of the event loop: on Linux it dies with that thread, so that even a SIGKILL of the demo
    leaves nothing behind.
    """

    def __init__(self, *, postgres_dsn: str, redis_url: str, folder: Path, log_path: Path) -> None:
        self.log_path = log_path
        self.target = f"127.0.0.1:{processes.free_port()}"
        self._folder = folder
        self._settings = {
            "GUERDON_POSTGRES_DSN": postgres_dsn,
            "GUERDON_REDIS_URL": redis_url,
            "GUERDON_GRPC_PORT": self.target.rsplit(":", 1)[1],
            "GUERDON_METRICS_PORT": "0",
            "GUERDON_LOG_FORMAT": "json",
        }
        self._child: subprocess.Popen[bytes] | None = None
        self._log_begins_at = 0

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return None if self._child is None else self._child.poll()

    async def start(self) -> None:
        """Returns when it serves. Raises DemoError with the end of its log."""
        self._log_begins_at = processes.begin_log(self.log_path)
        self._child = self._spawn()
        try:
            async with asyncio.timeout(_START_SECONDS_MAX):
                while not await self._serves():
                    self.check_alive()
                    await asyncio.sleep(_PROBE_SECONDS)
        except TimeoutError:
            raise self._trouble(f"did not serve within {_START_SECONDS_MAX:.0f} s") from None

    def check_alive(self) -> None:
        """Raises DemoError if it has ended without being asked."""
        if self.exit_status is not None:
            raise self._trouble(f"ended with status {self.exit_status}")

    def kill(self) -> None:
        """SIGKILL, by its own pid."""
        assert self._child is not None, "the server is not started"
        self._child.kill()

    async def wait_killed(self) -> None:
        """Returns when the killed process is gone."""
        assert self._child is not None, "the server is not started"
        await processes.end_process("the server", processes.signal_child(self._child), [(signal.SIGKILL, 30.0)])

    async def stop(self) -> None:
        """End it in order: what is in flight is finished. Does nothing if it has ended."""
        if self._child is not None:
            await processes.end_process("the server", processes.signal_child(self._child), _STOP_LADDER)
            self._child = None

    async def __aenter__(self) -> ServerProcess:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        ties = [str(os.getpid()), str(int(signal.SIGKILL)), "-", "-", "-"]
        # -P: the current folder is the data's, nothing is to be imported from there.
        command = [sys.executable, "-P", "-m", "guerdon_server", "serve"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GUERDON_")}
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603  our own program
                [sys.executable, "-I", "-S", launcher.__file__, *ties, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**kept, **self._settings},
                start_new_session=True,  # Ctrl-C reaches only us, and we stop it in the right order
            )
        finally:
            os.close(log)

    async def _serves(self) -> bool:
        # A client for each look: one that was refused waits longer and longer before it connects again.
        async with AsyncClient(self.target, timeout=1.0, retry=RetryPolicy(max_attempts=1)) as client:
            try:
                return await client.check_health() is HealthStatus.SERVING
            except GuerdonError:
                return False

    def _trouble(self, what: str) -> DemoError:
        tail = processes.log_tail(self.log_path, since=self._log_begins_at)
        return DemoError(f"The server {what}. Its log is {self.log_path}; it ends with:\n{tail}")

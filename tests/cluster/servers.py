"""One `guerdon serve`, and the three ways in and out of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from guerdon_server.platform.engines import process as processes
from tests.cluster.proxy import HOST, Proxy, has_http2_message
from tests.cluster.waiting import STATE_SECONDS_MAX, NotInForce, bounded, let_go, log_tail, stop_still

_SCRAPE_SECONDS_MAX = 5.0
_NOWHERE = (HOST, 1)  # nothing listens there: callers of a server that doesn't run are turned away
_DIES_WITH_US = Path(processes.__file__).with_name("child.py")


class ServerSlot:
    """A server process that can be killed and started again; its addresses stay. `async with` it, then `start`.

    callers: between clients and the server: give clients `slot.target`. to_postgres, to_redis: between the server and
    its stores. Faults of the three proxies are theirs; they survive a restart of the server.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        postgres: tuple[str, int],
        redis: tuple[str, int],
        environment: Callable[[ServerSlot], Mapping[str, str]],
    ) -> None:
        """`environment`: asked at each start for the GUERDON_... variables."""
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.callers = Proxy(*_NOWHERE, counts=has_http2_message)
        self.to_postgres = Proxy(*postgres)
        self.to_redis = Proxy(*redis)
        self._stack = AsyncExitStack()
        self._environment = environment
        self._child: asyncio.subprocess.Process | None = None
        self._metrics = ""
        self.starts = 0

    @property
    def target(self) -> str:
        """HOST:PORT for clients, the same over restarts."""
        return self.callers.address

    @property
    def proxies(self) -> tuple[Proxy, Proxy, Proxy]:
        return self.callers, self.to_postgres, self.to_redis

    @property
    def is_running(self) -> bool:
        """Started and not ended (a frozen one runs)."""
        return self._child is not None and self._child.returncode is None

    @property
    def exit_status(self) -> int | None:
        """Of the last process: None while it runs or before the first start; negative: the signal that ended it."""
        return None if self._child is None else self._child.returncode

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    async def __aenter__(self) -> Self:
        for proxy in self.proxies:
            await self._stack.enter_async_context(proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.kill()
        finally:
            await self._stack.aclose()

    async def start(self, *, failpoints: str = "", clock_offset_seconds: float = 0, **environment: str) -> None:
        """Start it and wait until it serves. `environment`: GUERDON_... variables that win over the cluster's.

        `failpoints` becomes GUERDON_FAILPOINTS. Raises NotInForce with the end of its log if it doesn't serve.
        """
        assert not self.is_running, f"{self.name} runs already"
        variables = {name: value for name, value in os.environ.items() if not name.startswith("GUERDON_")}
        variables |= self._environment(self)
        if failpoints:
            variables["GUERDON_FAILPOINTS"] = failpoints
        if clock_offset_seconds:
            variables["GUERDON_TEST_CLOCK_OFFSET_SECONDS"] = str(clock_offset_seconds)
        child = await self._spawn({**variables, **environment})
        try:
            ready = await self._ready(child)
        except BaseException:
            await self.kill()
            raise
        host, _, port = ready["grpc"].rpartition(":")
        self.callers.retarget(host, int(port))
        self._metrics = ready["metrics"]

    async def _spawn(self, variables: Mapping[str, str]) -> asyncio.subprocess.Process:
        death_signal = str(int(signal.SIGKILL))  # when we are killed, so is it
        with self.log_path.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _DIES_WITH_US, str(os.getpid()), death_signal, "-", "-", "-"),
                *(sys.executable, "-m", "guerdon_server", "serve", "--json"),
                env=variables,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self.starts += 1
        return self._child

    async def _ready(self, child: asyncio.subprocess.Process) -> Mapping[str, str]:
        assert child.stdout is not None
        try:
            async with asyncio.timeout(STATE_SECONDS_MAX):
                line = await child.stdout.readline()
        except TimeoutError:
            line = b""
        told: Mapping[str, str] = json.loads(line) if line else {}
        if told.get("event") != "ready":
            if line:  # it said why not, and ends
                await self.ended()
            raise NotInForce(
                f"{self.name} does not serve: {line.decode()}. Its log is {self.log_path}; it ends with:\n"
                + self.log_tail()
            )
        return told

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone. Does nothing when it has ended."""
        if self.is_running:
            self._signal(signal.SIGKILL)
            await self.ended()

    async def stop(self) -> int:
        """SIGTERM: it finishes what is in flight. Returns the exit status; raises NotInForce if it doesn't end."""
        if self.is_running:
            self._signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait until it ends by itself (a failpoint): the exit status. Raises NotInForce."""
        assert self._child is not None, f"{self.name} was never started"
        await bounded(self._wait(self._child), f"the end of {self.name}", log_path=self.log_path)
        status = self._child.returncode
        assert status is not None
        return status

    async def _wait(self, child: asyncio.subprocess.Process) -> None:
        await child.wait()

    async def freeze(self) -> None:
        """SIGSTOP; returns when it stands still."""
        await stop_still(self._pids, self.name)

    async def thaw(self) -> None:
        """SIGCONT. Does nothing when it isn't frozen."""
        await let_go(self._pids, self.name)

    def _pids(self) -> list[int]:
        return [self._child.pid] if self._child is not None and self.is_running else []

    def _signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        try:
            self._child.send_signal(number)
        except ProcessLookupError:  # it ended this moment
            return

    def log_tail(self) -> str:
        """The last few kilobytes of what it said."""
        return log_tail(self.log_path)

    async def metrics(self) -> Mapping[str, float]:
        """Every sample, by `name` or `name{label="value",...}` with the labels sorted. Raises OSError if it is away."""
        text = await asyncio.to_thread(self._scrape)
        return {
            _sample_name(sample.name, sample.labels): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def _scrape(self) -> str:
        address = f"http://{self._metrics}/metrics"
        with urllib.request.urlopen(address, timeout=_SCRAPE_SECONDS_MAX) as response:
            return str(response.read().decode())


def _sample_name(name: str, labels: Mapping[str, str]) -> str:
    told = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{told}}}" if told else name

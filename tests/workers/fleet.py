"""`guerdon serve --workers N` as processes, and what can be seen of them from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from guerdon_server.settings import Settings
from tests.running import processes
from tests.running.processes import Ended, environment

_END_SECONDS_MAX = 60.0
_HEARD_SECONDS_MAX = 300.0  # a busy machine starts a Python in seconds

# What a busy machine refuses is another matter (tests/issuing/test_overload.py).
_PATIENT = {"GUERDON_QUEUE_MS_MAX": "60000", "GUERDON_BACKLOG_SECONDS_MAX": "600"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


@dataclass(slots=True)
class Fleet:
    """A supervisor and its workers. `said`: its log, a dict an event."""

    child: asyncio.subprocess.Process
    grpc: str
    metrics: str
    said: list[dict[str, object]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    seen: set[psutil.Process] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    silent: bool = False

    @property
    def port(self) -> int:
        return int(self.grpc.rpartition(":")[2])

    def workers(self) -> list[int]:
        """Process ids of those that live."""
        living = [each for each in psutil.Process(self.child.pid).children() if alive(each.pid)]
        self.seen.update(living)
        return [each.pid for each in living]

    def connections(self) -> dict[int, int]:
        """How many connections each worker has."""
        return {pid: sum(each.laddr.port == self.port for each in _established(pid)) for pid in self.workers()}

    def callers_ports(self) -> set[int]:
        """The callers' ends of the connections of all workers."""
        found = [each for pid in self.workers() for each in _established(pid)]
        return {each.raddr.port for each in found if each.laddr.port == self.port}

    def events(self, message: str) -> list[dict[str, object]]:
        """What was logged with these words, in order."""
        return [event for event in self.said if message in str(event.get("message"))]

    async def heard(self, message: str, count: int = 1) -> list[dict[str, object]]:
        """Waits until it was logged so often, or all has ended."""
        async with asyncio.timeout(_HEARD_SECONDS_MAX):
            while len(self.events(message)) < count and not self.silent:
                self.news.clear()
                await self.news.wait()
        assert len(self.events(message)) >= count, self.raw
        return self.events(message)

    def scraped(self) -> Samples:
        """The metrics of all."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=20) as response:
            text = response.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def signal(self, number: signal.Signals) -> None:
        """To the supervisor."""
        self.child.send_signal(number)

    async def ended(self) -> int:
        """Waits for the end of the supervisor; its status."""
        async with asyncio.timeout(_END_SECONDS_MAX):
            return await self.child.wait()


def _established(pid: int) -> list[Any]:
    return [each for each in psutil.Process(pid).net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED]


def alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _started(settings: Settings, workers: int, more: dict[str, str]) -> tuple[dict[str, str], str, str]:
    variables = {**environment(settings, **{**_PATIENT, **more}), "GRPC_ENABLE_FORK_SUPPORT": "false"}
    return variables, "--workers", str(workers)


async def refused(settings: Settings, workers: int = 2, **more: str) -> Ended:
    """A start that must fail."""
    return await processes.refused(*_started(settings, workers, more))


@asynccontextmanager
async def fleet(settings: Settings, workers: int = 2, **more: str) -> AsyncIterator[Fleet]:
    """All of them serve; at the end of the block none is left, whatever happened."""
    child = await processes.spawned(*_started(settings, workers, more))
    one = Fleet(child, "", "")
    listening_to = asyncio.create_task(_listen(child, one))
    try:
        assert child.stdout is not None
        async with asyncio.timeout(_END_SECONDS_MAX):
            line = await child.stdout.readline()
        assert line, one.raw
        ready = json.loads(line)
        one.grpc, one.metrics = ready["grpc"], ready["metrics"]
        yield one
    finally:
        if child.returncode is None:
            one.workers()
            child.kill()
            await child.wait()
        for each in one.seen:  # the supervisor took them with it, unless that is what is broken
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        await asyncio.wait_for(listening_to, _END_SECONDS_MAX)


async def _listen(child: asyncio.subprocess.Process, one: Fleet) -> None:
    assert child.stderr is not None
    async for line in child.stderr:
        text = line.decode(errors="replace")
        one.raw.append(text)
        if text.startswith("{"):
            one.said.append(json.loads(text))
        one.news.set()
    one.silent = True
    one.news.set()


def channel(target: str) -> grpc.aio.Channel:
    """A plain one, with a connection of its own and no policy to retry."""
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)

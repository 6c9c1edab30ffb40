"""`guerdon serve` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from guerdon_server.settings import Settings

_END_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def told(self) -> str:
        """All that it said."""
        return self.stdout + self.stderr


@dataclass(slots=True)
class Process:
    """A server that serves."""

    child: asyncio.subprocess.Process
    grpc: str
    metrics: str

    def signal(self, number: signal.Signals) -> None:
        """To this very process."""
        self.child.send_signal(number)

    async def ended(self) -> Ended:
        """Waits for its end."""
        async with asyncio.timeout(_END_SECONDS_MAX):
            out, err = await self.child.communicate()
        assert self.child.returncode is not None
        return Ended(self.child.returncode, out.decode(), err.decode())


def environment(settings: Settings, **more: str) -> Mapping[str, str]:
    """What `guerdon serve` reads."""
    ours = {
        "GUERDON_POSTGRES_DSN": settings.postgres_dsn,
        "GUERDON_REDIS_URL": settings.redis_url,
        "GUERDON_GRPC_PORT": "0",
        "GUERDON_METRICS_PORT": "0",
        "GUERDON_TRANSPORT": settings.transport,
        "GUERDON_TEST_MODE": "true",
        "GUERDON_LEASE_SECONDS": "1",
        "GUERDON_RECONCILE_INTERVAL_MS": "50",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GUERDON_")}
    return {**inherited, **ours, **more}


async def spawned(variables: Mapping[str, str], *options: str) -> asyncio.subprocess.Process:
    """Starts it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "guerdon_server", "serve", "--json", *options),
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def refused(variables: Mapping[str, str], *options: str) -> Ended:
    """A start that must fail."""
    child = await spawned(variables, *options)
    try:
        async with asyncio.timeout(_END_SECONDS_MAX):
            out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode is not None
    return Ended(child.returncode, out.decode(), err.decode())


@asynccontextmanager
async def serving(settings: Settings, **more: str) -> AsyncIterator[Process]:
    """A server process; killed at the end of the block, if it still runs."""
    child = await spawned(environment(settings, **more))
    try:
        assert child.stdout is not None
        async with asyncio.timeout(_END_SECONDS_MAX):
            line = await child.stdout.readline()
        if not line:
            _, err = await child.communicate()
            raise AssertionError(err.decode())
        ready = json.loads(line)
        yield Process(child, ready["grpc"], ready["metrics"])
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()

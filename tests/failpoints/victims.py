"""Servers as processes that may die: forked from one that has imported everything, which saves a second for each."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import uvloop

from guerdon_server import bootstrap
from guerdon_server.settings import Settings

_SECONDS_MAX = 30.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@dataclass(slots=True)
class Victim:
    """grpc: HOST:PORT, or "" if it died before it was ready."""

    process: BaseProcess
    grpc: str
    errors: Path

    def is_dead(self) -> bool:
        """Whether it has ended."""
        return not self.process.is_alive()

    def stop(self) -> None:
        """SIGTERM, to this very process."""
        self.process.terminate()

    async def died_at(self, point: str) -> None:
        """Waits for its end, which has to be a SIGKILL there."""
        await asyncio.to_thread(self.process.join, _SECONDS_MAX)
        told = self.errors.read_text(encoding="utf-8")
        assert self.process.exitcode == -signal.SIGKILL, f"{point} was not reached: {self.process.exitcode} {told}"
        assert f"killed at failpoint {point}\n" in told, told


@asynccontextmanager
async def victim(settings: Settings, errors: Path) -> AsyncIterator[Victim]:
    """A server that serves, or died before; `errors`: where its standard error goes."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_serve, args=(settings, str(errors), theirs), daemon=True)
    await asyncio.to_thread(process.start)
    theirs.close()
    try:
        grpc = await asyncio.to_thread(_ready, ours)
        yield Victim(process, grpc, errors)
    finally:
        ours.close()
        process.kill()
        await asyncio.to_thread(process.join, _SECONDS_MAX)


def _ready(pipe: Connection) -> str:
    try:
        if pipe.poll(_SECONDS_MAX):
            grpc: str = pipe.recv()
            return grpc
    except (EOFError, ConnectionResetError):
        return ""
    raise AssertionError("a server did not start")


def _serve(settings: Settings, errors: str, ready: Connection) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    uvloop.run(bootstrap.serve(settings, on_ready=lambda endpoints: ready.send(endpoints.grpc)))

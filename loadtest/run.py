"""One load test from end to end: a system, the generator, the books, the verdict, the pages."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import asyncpg

from guerdon import GuerdonError
from guerdon_server.bench.errors import BenchError
from guerdon_server.bench.surroundings import surroundings
from guerdon_server.platform import postgres, redis
from guerdon_server.platform.engines import EngineError
from loadtest.errors import LoadTestError
from loadtest.generate import Generator, Sample
from loadtest.plan import Check, Drive, Plan
from loadtest.profile import Profile
from loadtest.system import System, deployed, embedded
from loadtest.verdict import Verdict, books, judge

_ALIVE_SECONDS = 0.5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """`host` empty: a system of the run's own, its data in a fresh folder of the system's or of `data`.

    `ca`: PEM file of who signed the host's certificate; None: plain text.
    """

    suite: str
    profile: Profile
    folder: Path
    host: str = ""
    ca: Path | None = None
    postgres_dsn: str = ""
    redis_url: str = ""
    processes: int = 1
    web_port: int | None = None
    data: Path | None = None


class Listener(Protocol):
    """Told what goes on."""

    def step(self, text: str) -> None:
        """Something begins."""

    def progress(self, told: Mapping[str, Any]) -> None:
        """The generator says how far it is, about once a second."""


@dataclass(slots=True)
class Outcome:
    """All that a run has found."""

    options: Options
    about: dict[str, Any] = field(default_factory=dict)
    drive: Drive = field(default_factory=Drive)
    samples: list[Sample] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)


async def run(options: Options, listener: Listener) -> Outcome:
    """Raises LoadTestError where it can't be run or judged. Cancel it to stop; what was started is ended."""
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        async with _system(options, listener) as system:
            return await _on(system, options, listener)
    except (BenchError, EngineError, GuerdonError, postgres.MigrationError) as error:
        raise LoadTestError(str(error)) from error


@asynccontextmanager
async def _system(options: Options, listener: Listener) -> AsyncIterator[System]:
    if options.host:
        yield deployed(options.host, postgres_dsn=options.postgres_dsn, redis_url=options.redis_url)
        return
    listener.step("PostgreSQL, Valkey and a server")
    data = Path(tempfile.mkdtemp(prefix="guerdon-loadtest-", dir=options.data))
    try:
        if os.geteuid() == 0:
            data.chmod(0o711)  # noqa: ASYNC240  PostgreSQL runs as another user then, who has to get through
        async with embedded(data / "engines", options.folder) as system:
            yield system
    finally:
        shutil.rmtree(data, ignore_errors=True)


async def _on(system: System, options: Options, listener: Listener) -> Outcome:
    await system.check_stores()
    with tempfile.TemporaryDirectory(prefix="guerdon-loadtest-") as folder:
        plan = Plan(
            suite=options.suite,
            run=f"lt-{secrets.token_hex(5)}",
            target=system.target,
            ca=options.ca,
            folder=Path(folder),
            report=options.folder.absolute(),
            processes=options.processes,
            channels=options.profile.channels,
            profile=options.profile.suite(options.suite),
        )
        return await _judged(plan, system, options, listener)


async def _judged(plan: Plan, system: System, options: Options, listener: Listener) -> Outcome:
    outcome = Outcome(options, about=_about(system, plan))
    listener.step("promotions and prizes")
    generator = Generator(plan, system, listener.progress, options.web_port)
    outcome.drive = await _while_alive(generator.run(), system)
    outcome.samples = generator.samples
    listener.step("the books")
    outcome.verdict = judge(plan.profile, outcome.drive, outcome.samples, await _books(system))
    return outcome


async def _books(system: System) -> Check | None:
    """What could not be read is no proof."""
    try:
        invariants = await system.verify()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, redis.RedisUnavailable) as error:
        return Check("books (guerdon verify)", f"could not be read: {error or type(error).__name__}", "all", False)
    return None if invariants is None else books(invariants)


def _about(system: System, plan: Plan) -> dict[str, Any]:
    found = surroundings(system.versions)
    return {"started_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "run": plan.run, **found}


async def _while_alive(work: Coroutine[None, None, T], system: System) -> T:
    """Until the work is done, or a server of ours has ended: then what BenchError says of it."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_ALIVE_SECONDS)
            system.check_alive()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return task.result()

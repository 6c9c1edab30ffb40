"""The bench from end to end: engines, server and echo as child processes, interleaved rounds, the books at the end."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol

import asyncpg
import grpc.aio

from guerdon import GuerdonError
from guerdon_server import bootstrap
from guerdon_server.bench import echo as echo_server
from guerdon_server.bench import generator as generators
from guerdon_server.bench import usage
from guerdon_server.bench.blast import Ids, Template
from guerdon_server.bench.child import Child
from guerdon_server.bench.errors import BenchError
from guerdon_server.bench.generator import Generator, Shot
from guerdon_server.bench.open_loop import (
    ABOVE,
    CONNECTIONS,
    DEADLINE_SECONDS,
    SHARES,
    STREAMS_MAX,
    Offered,
    OpenRow,
    unknown,
)
from guerdon_server.bench.promotion import create_promotion
from guerdon_server.bench.result import (
    GENERATOR,
    SERVER,
    Memory,
    MemorySample,
    Result,
    Row,
    Window,
)
from guerdon_server.bench.surroundings import on_cores, surroundings
from guerdon_server.bench.workloads import ECHO_CONNECTIONS, ECHO_STREAMS, WORKLOADS, Workload
from guerdon_server.platform import config, postgres
from guerdon_server.platform.engines import EngineError, Engines
from guerdon_server.settings import Settings

_PROBE_SECONDS_MAX = 10.0
_MEMORY_STEPS = 20
_GRANTS = "SELECT coalesce(sum(issuance_count), 0)::bigint FROM guerdon.batch"


@dataclass(frozen=True, slots=True)
class Options:
    """`grants`: in the end the ledger has at least so many, for the memory. `only`: names of workloads; all if empty.

    `cores`: everything is kept on so many. `folder`: where the data goes (removed); None: the system's.
    """

    rounds: int = 5
    seconds: float = 3.0
    warm_up_seconds: float = 1.0
    grants: int = 0
    generator: str = "auto"
    only: Sequence[str] = ()
    cores: int = 2
    folder: Path | None = None


class Listener(Protocol):
    """Told what goes on."""

    def step(self, text: str) -> None:
        """Something begins."""

    def offered(self, title: str, number: int, offered: Offered) -> None:
        """A round of a workload on a schedule is done."""

    def window(self, title: str, number: int, window: Window) -> None:
        """A round of a workload is done; number 0 is its warm-up, which does not count."""


async def run(options: Options, listener: Listener) -> Result:
    """Whatever it finds is in the result, and what stopped it. Cancel it to stop; it cleans up."""
    result = Result()
    folder = _fresh_folder(options.folder)
    try:
        with on_cores(options.cores):
            async with _stage(options, folder, listener, result) as bench:
                await bench.run()
    except (BenchError, EngineError, GuerdonError, postgres.MigrationError) as error:
        result.error = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


@asynccontextmanager
async def _stage(options: Options, folder: Path, listener: Listener, result: Result) -> AsyncIterator[_Bench]:
    """Everything up, the promotion made, one call of each workload tried."""
    generator = generators.choose(options.generator, folder)
    workloads = [workload for workload in WORKLOADS if not options.only or workload.name in options.only]
    async with AsyncExitStack() as stack:
        listener.step("engines, migrations, server")
        engines = await stack.enter_async_context(Engines(folder / "data"))
        versioned, repeatable = bootstrap.migration_sources()
        await postgres.migrate(engines.postgres_dsn, versioned=versioned, repeatable=repeatable)
        server = await stack.enter_async_context(_server(engines, folder))
        await create_promotion(server.target)
        connection = await postgres.connect(engines.postgres_dsn)
        stack.push_async_callback(connection.close)
        loads = [await _prepare(workload, server.target, folder) for workload in workloads]
        echo_size = next((load.response_bytes for load in loads if load.workload.items_per_call == 1), 150)
        arguments = ["-m", echo_server.__name__, "--response-bytes", str(echo_size)]
        echo = await stack.enter_async_context(Child("echo", arguments, folder=folder, settings={}))
        result.about = {
            "started_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            **surroundings(engines.versions),
            "options": {
                "rounds": options.rounds,
                "seconds": options.seconds,
                "warm_up_seconds": options.warm_up_seconds,
                "grants": options.grants,
                "generator": generator.name,
                "generator_note": generator.why,
                "postgresql_fsync": str(await connection.fetchval("SHOW fsync")),
                "postgresql_synchronous_commit": str(await connection.fetchval("SHOW synchronous_commit")),
            },
            "workload_parameters": {
                load.workload.name: {
                    "connections": load.workload.connections,
                    "calls_in_flight": load.workload.connections * load.workload.streams,
                }
                for load in loads
            },
        }
        yield _Bench(options, generator, engines, server, echo, connection, loads, listener, result)


def _fresh_folder(parent: Path | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="guerdon-bench-", dir=parent))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # PostgreSQL runs as another user then, who has to get through
    return folder


def _settings(engines: Engines) -> dict[str, str]:
    return {"GUERDON_POSTGRES_DSN": engines.postgres_dsn, "GUERDON_REDIS_URL": engines.redis_url}


def _server(engines: Engines, folder: Path) -> Child:
    settings = {
        **_settings(engines),
        "GUERDON_GRPC_PORT": "0",
        "GUERDON_METRICS_PORT": "0",
        "GUERDON_LOG_FORMAT": "json",
        "GUERDON_LOG_LEVEL": "warning",
    }
    return Child("server", ["-m", "guerdon_server", "serve", "--json"], folder=folder, settings=settings)


@dataclass(slots=True)
class _Load:
    """A workload, its message files, and its windows."""

    workload: Workload
    files: Sequence[Path]
    response_bytes: int
    windows: list[Window] = field(default_factory=list)
    offered: dict[float, list[Offered]] = field(default_factory=dict)


async def _prepare(workload: Workload, target: str, folder: Path) -> _Load:
    """Write the messages, and see from one call of each that it is answered as the workload means it."""
    files, sizes = [], []
    async with grpc.aio.insecure_channel(target) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(workload.method)
        for number, message in enumerate(workload.messages):
            path = folder / f"{workload.name}-{number}.message"
            path.write_bytes(message)
            files.append(path)
            try:
                answer = await call(Template(message).fill(Ids(None)), timeout=_PROBE_SECONDS_MAX)
            except grpc.aio.AioRpcError as error:
                raise BenchError(f"{workload.name}: {error.code().name}: {error.details()}") from None
            outcome = answer[0] >> 3
            if outcome != workload.outcome:
                raise BenchError(f"{workload.name}: the answer has field {outcome}, not {workload.outcome.name}")
            sizes.append(len(answer))
    return _Load(workload, files, sum(sizes) // len(sizes))


@dataclass(slots=True)
class _Bench:
    options: Options
    generator: Generator
    engines: Engines
    server: Child
    echo: Child
    ledger: asyncpg.Connection[asyncpg.Record]
    loads: Sequence[_Load]
    listener: Listener
    result: Result
    memory: list[MemorySample] = field(default_factory=list)

    async def run(self) -> None:
        await self._sample_memory()
        for load in self.loads:
            if load.workload.repeats:
                self.listener.step(f"{load.workload.name}: granting what is asked again")
                while (await self._shoot(load, calls=load.workload.repeats)).refused:
                    continue  # all of them: what is granted already is replayed
        for number in range(self.options.rounds + 1):  # round 0 warms up and does not count
            await self._round(number)
        self.result.rows = [self._row(load) for load in self.loads]
        self.result.open_rows = [
            OpenRow(load.workload.name, load.workload.title, share, rounds, load.workload.target)
            for load in self.loads
            for share, rounds in load.offered.items()
        ]
        await self._fill()
        self.result.memory = Memory(self.memory)
        self.listener.step("proving the books")
        settings = config.load(Settings, env=_settings(self.engines)).settings
        self.result.invariants = await bootstrap.verify(settings)

    async def _round(self, number: int) -> None:
        seconds = self.options.seconds if number else self.options.warm_up_seconds
        echo = await self._echo_window(seconds)
        self.listener.window("echo", number, echo)
        if number:
            self.result.echo_windows.append(echo)
        for load in self.loads:
            window = await self._window(load, seconds)
            self.listener.window(load.workload.name, number, window)
            if number:
                load.windows.append(window)
                if load.workload.open_loop and self.generator.keeps_schedules:
                    await self._offer(load, number, window.calls_per_second)
            await self._sample_memory()

    async def _offer(self, load: _Load, number: int, capacity: float) -> None:
        """On a schedule, at every share of what it did in a closed loop just now."""
        workload, seconds = load.workload, self.options.seconds
        for share in SHARES:
            granted_before = await self._grants()
            told = await self.generator.offer(
                self.server.target,
                workload.method,
                load.files,
                rate=share * capacity,
                seconds=seconds,
                connections=CONNECTIONS,
                streams=STREAMS_MAX,
                deadline_seconds=DEADLINE_SECONDS if share == ABOVE else None,
            )
            self.server.check_alive()
            granted = await self._grants() - granted_before
            offered = Offered.of(told, share=share, capacity=capacity, scheduled_seconds=seconds, granted=granted)
            _check_offered(workload, offered, unknown(told))
            load.offered.setdefault(share, []).append(offered)
            self.listener.offered(workload.name, number, offered)

    async def _echo_window(self, seconds: float) -> Window:
        message = self.loads[0].files[0]
        shot, cpu, elsewhere = await self._metered(
            self.generator.shoot(
                self.echo.target,
                echo_server.METHOD,
                [message],
                connections=ECHO_CONNECTIONS,
                streams=ECHO_STREAMS,
                seconds=seconds,
            ),
            {SERVER: self.echo.pid},
        )
        return _window(shot, cpu, elsewhere, granted=0)

    async def _window(self, load: _Load, seconds: float) -> Window:
        granted_before = await self._grants()
        pids = {SERVER: self.server.pid, **self.engines.pids}
        shot, cpu, elsewhere = await self._metered(self._shoot(load, seconds=seconds), pids)
        granted = await self._grants() - granted_before
        _check(load.workload, shot, granted)
        return _window(shot, cpu, elsewhere, granted=granted)

    async def _metered(
        self, shooting: Awaitable[Shot], pids: Mapping[str, int]
    ) -> tuple[Shot, dict[str, float], float]:
        """With the CPU seconds by process, and how many cores others kept busy."""
        machine, own = usage.machine_cpu_seconds(), usage.cpu_seconds(os.getpid())
        before = usage.cpu_seconds_of(pids)
        started = perf_counter()
        shot = await shooting
        seconds = perf_counter() - started
        self.server.check_alive()
        after = usage.cpu_seconds_of(pids)
        # Our own tree is all that we started: engines, servers, generators.
        others = usage.machine_cpu_seconds() - machine - (usage.cpu_seconds(os.getpid()) - own)
        cpu = {name: after[name] - before[name] for name in pids}
        return shot, cpu, max(0.0, others / seconds)

    async def _shoot(self, load: _Load, *, seconds: float | None = None, calls: int | None = None) -> Shot:
        workload = load.workload
        return await self.generator.shoot(
            self.server.target,
            workload.method,
            load.files,
            connections=workload.connections,
            streams=workload.streams,
            seconds=seconds,
            calls=calls,
            identity=workload.name if workload.repeats else None,
            repeats=workload.repeats,
        )

    def _row(self, load: _Load) -> Row:
        workload = load.workload
        return Row(
            name=workload.name,
            title=workload.title,
            items_per_call=workload.items_per_call,
            request_bytes=sum(map(len, workload.messages)) // len(workload.messages),
            response_bytes=load.response_bytes,
            windows=load.windows,
            echoes=self.result.echo_windows,
            target=workload.target,
        )

    async def _fill(self) -> None:
        """Grant until the ledger has as many as wanted, and look at the memory on the way."""
        load = max(self.loads, key=lambda load: load.workload.items_per_call * load.workload.durable)
        items = load.workload.items_per_call
        wanted = self.options.grants - await self._grants()
        if wanted <= 0 or not load.workload.durable:
            return
        self.listener.step(f"granting {wanted:,} more, for the memory")
        calls = -(-wanted // (items * _MEMORY_STEPS))
        for _ in range(_MEMORY_STEPS):
            await self._shoot(load, calls=calls)
            await self._sample_memory()

    async def _sample_memory(self) -> None:
        self.memory.append(MemorySample(await self._grants(), usage.rss_bytes(self.server.pid)))

    async def _grants(self) -> int:
        return int(await self.ledger.fetchval(_GRANTS))


def _check(workload: Workload, shot: Shot, granted: int) -> None:
    """That every answer was the one meant, and that the ledger has what was acknowledged: no more and no less."""
    if shot.fields.keys() - {int(workload.outcome)}:
        raise BenchError(f"{workload.name}: answers by first field {shot.fields}, wanted {workload.outcome.name} only")
    expected = shot.calls * workload.items_per_call if workload.durable else 0
    if granted != expected:
        raise BenchError(f"{workload.name}: {expected:,} grants were acknowledged, the ledger has {granted:,} more")


def _check_offered(workload: Workload, offered: Offered, unknown: Mapping[str, int]) -> None:
    """That nothing was answered but OK and refusals, and that the ledger has all that was acknowledged.

    It may have more: the caller of a grant that came too late was told so, not what became of it.
    """
    if unknown:
        raise BenchError(f"{workload.name} at {offered.share:g} x capacity was answered with {dict(unknown)}")
    # Items of a batch that is OK may be refused each: only single calls say what they were granted.
    acknowledged = offered.ok if workload.items_per_call == 1 else 0
    if offered.granted < acknowledged:
        raise BenchError(
            f"{workload.name}: {acknowledged:,} grants were acknowledged, the ledger has {offered.granted:,}"
        )


def _window(shot: Shot, cpu_seconds: Mapping[str, float], elsewhere_cores: float, *, granted: int) -> Window:
    per_call = {name: seconds / shot.calls * 1e6 for name, seconds in cpu_seconds.items()}
    return Window(
        calls=shot.calls,
        seconds=shot.seconds,
        granted=granted,
        refused=shot.refused,
        p50_ms=shot.p50_ms,
        p99_ms=shot.p99_ms,
        cpu_us_per_call={**per_call, GENERATOR: shot.cpu_us_per_call},
        elsewhere_cores=elsewhere_cores,
    )

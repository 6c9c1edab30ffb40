"""What every part of the bench stands on: engines, servers and a generator as child processes, and how one round of a
workload is measured."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import asyncpg
import grpc.aio

from guerdon_server import bootstrap
from guerdon_server.bench import echo as echo_server
from guerdon_server.bench import generator as generators
from guerdon_server.bench import usage
from guerdon_server.bench.blast import Ids, Template
from guerdon_server.bench.child import Child
from guerdon_server.bench.counts import NOTHING_COUNTED, Counts, ServerCounts
from guerdon_server.bench.errors import BenchError
from guerdon_server.bench.generator import Generator, Shot
from guerdon_server.bench.open_loop import (
    COMMIT_BYTES,
    COMMITS_A_SECOND,
    CONNECTIONS,
    STREAMS_MAX,
    Alone,
    Offered,
    unknown,
)
from guerdon_server.bench.promotion import create_promotion
from guerdon_server.bench.result import GENERATOR, SERVER, Window
from guerdon_server.bench.surroundings import memory_bytes, surroundings
from guerdon_server.bench.workloads import ECHO_CONNECTIONS, ECHO_STREAMS, Workload
from guerdon_server.core.ledger.invariants import Check
from guerdon_server.platform import config, postgres
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings

if TYPE_CHECKING:
    from guerdon_server.bench.soak import Sample

Told = TypeVar("Told")
_PROBE_SECONDS_MAX = 10.0
_REST_SECONDS: Final = 0.5
_GRANTS = "SELECT coalesce(sum(issuance_count), 0)::bigint FROM guerdon.batch"
_MB: Final = 1 << 20
_SEGMENT_BYTES: Final = 16 * _MB
_BARE_COMMIT: Final = "SELECT pg_logical_emit_message(true, 'guerdon', $1::bytea)"
_NEXT_SEGMENT: Final = "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'guerdon', '')"
_POSTGRES_SETTINGS_TOLD: Final = (
    *("fsync", "synchronous_commit", "full_page_writes", "autovacuum"),
    *("checkpoint_timeout", "max_wal_size", "min_wal_size", "shared_buffers", "huge_pages_status"),
)


@dataclass(frozen=True, slots=True)
class Options:
    """`grants`: in the end the ledger has at least so many, for the memory. `only`: names of workloads; all if empty.

    `servers`: 1, 2 and 4 servers beside the model, instead of the workloads; `soak_minutes`: a soak instead, if not 0.
    `cores`: everything is kept on so many. `folder`: where the data goes (removed); None: the system's.
    `transport`: grpcio or native; of the servers and of the echo.
    """

    rounds: int = 5
    seconds: float = 3.0
    warm_up_seconds: float = 1.0
    grants: int = 0
    servers: bool = False
    soak_minutes: float = 0.0
    generator: str = "auto"
    only: Sequence[str] = ()
    cores: int = 2
    transport: str = "grpcio"
    folder: Path | None = None


class Listener(Protocol):
    """Told what goes on."""

    def step(self, text: str) -> None:
        """Something begins."""

    def offered(self, title: str, number: int, offered: Offered) -> None:
        """A round of a workload on a schedule is done."""

    def window(self, title: str, number: int, window: Window) -> None:
        """A round of a workload is done; number 0 is its warm-up, which does not count."""

    def sampled(self, sample: Sample) -> None:
        """Another piece of a soak is done."""


@dataclass(slots=True)
class Load:
    """A workload, its message files, and its windows."""

    workload: Workload
    files: Sequence[Path]
    response_bytes: int
    windows: list[Window] = field(default_factory=list)
    offered: dict[float, list[Offered]] = field(default_factory=dict)


@asynccontextmanager
async def opened(
    options: Options, folder: Path, listener: Listener, *, servers: int = 1, spread_prizes: int = 0
) -> AsyncIterator[Stage]:
    """Everything up and the promotion made; `spread_prizes`: so many more prizes. The data is left in `folder`."""
    if options.transport == "native" and find_spec("pygrpc_native") is None:
        raise BenchError("the native transport is not installed: install guerdon-server[native]")
    generator = generators.choose(options.generator, folder)
    async with AsyncExitStack() as stack:
        listener.step("engines, migrations, " + ("server" if servers == 1 else f"{servers} servers"))
        engines = await stack.enter_async_context(Engines(folder / "data", postgres_settings=_postgres_settings()))
        versioned, repeatable = bootstrap.migration_sources()
        await postgres.migrate(engines.postgres_dsn, versioned=versioned, repeatable=repeatable)
        children = [
            await stack.enter_async_context(_server(number, engines, folder, options.transport))
            for number in range(servers)
        ]
        await create_promotion(children[0].target, spread_prizes=spread_prizes)
        connection = await postgres.connect(engines.postgres_dsn)
        stack.push_async_callback(connection.close)
        yield Stage(options, folder, generator, engines, children, ServerCounts(children), connection, listener)


def fresh_folder(parent: Path | None) -> Path:
    """For everything that a run writes."""
    folder = Path(tempfile.mkdtemp(prefix="guerdon-bench-", dir=parent))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # PostgreSQL runs as another user then, who has to get through
    return folder


def _postgres_settings() -> Mapping[str, str]:
    """What docs/PERFORMANCE.md advises for a machine of PostgreSQL's own; that of `guerdon up` is small.

    What of its buffers is not used takes no memory.
    """
    return {"shared_buffers": f"{memory_bytes() // 4 // _MB}MB", "max_wal_size": "16GB", "min_wal_size": "16GB"}


def _settings(engines: Engines) -> dict[str, str]:
    return {"GUERDON_POSTGRES_DSN": engines.postgres_dsn, "GUERDON_REDIS_URL": engines.redis_url}


def _server(number: int, engines: Engines, folder: Path, transport: str) -> Child:
    settings = {
        **_settings(engines),
        "GUERDON_GRPC_PORT": "0",
        "GUERDON_METRICS_PORT": "0",
        "GUERDON_TRANSPORT": transport,
        "GUERDON_LOG_FORMAT": "json",
        "GUERDON_LOG_LEVEL": "warning",
    }
    name = f"server-{number + 1}" if number else "server"
    return Child(name, ["-m", "guerdon_server", "serve", "--json"], folder=folder, settings=settings)


@dataclass(slots=True)
class Stage:
    """Engines, servers and a generator that run.

    What takes `servers` loads the first so many of them at once, each with the workload's calls in flight. The CPU of
    all of them is counted together.
    """

    options: Options
    folder: Path
    generator: Generator
    engines: Engines
    servers: Sequence[Child]
    counts: ServerCounts
    ledger: asyncpg.Connection[asyncpg.Record]
    listener: Listener
    recycled_segments: int = 0

    async def use_up_log(self, log_bytes: int) -> None:
        """As if so much log had been written already, and a checkpoint made: what is written next is in used segments.

        So is the log of a ledger that is older than its first checkpoints. A new one writes each segment twice, the
        first time with zeros, while commits wait (docs/PERFORMANCE.md).
        """
        self.recycled_segments = -(-log_bytes // _SEGMENT_BYTES)
        self.listener.step(f"using up {self.recycled_segments} segments of PostgreSQL's log, to be used again")
        for _ in range(self.recycled_segments):
            await self.ledger.execute(_NEXT_SEGMENT)
        await self.ledger.execute("CHECKPOINT")

    async def log_position(self) -> int:
        """Bytes of log that PostgreSQL has written since it was made."""
        return int(await self.ledger.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"))

    async def about(self, loads: Sequence[Load]) -> dict[str, Any]:
        """What a reader needs to believe the figures."""
        options = self.options
        return {
            "started_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            **surroundings(self.engines.versions),
            "options": {
                "rounds": options.rounds,
                "seconds": options.seconds,
                "warm_up_seconds": options.warm_up_seconds,
                "grants": options.grants,
                "servers": options.servers,
                "soak_minutes": options.soak_minutes,
                "transport": options.transport,
                "generator": self.generator.name,
                "generator_note": self.generator.why,
                **{
                    f"postgresql_{name}": str(await self.ledger.fetchval(f"SHOW {name}"))
                    for name in _POSTGRES_SETTINGS_TOLD
                },
                "postgresql_recycled_segments": self.recycled_segments,
            },
            "workload_parameters": {
                load.workload.name: {
                    "connections": load.workload.connections,
                    "calls_in_flight": load.workload.connections * load.workload.streams,
                }
                for load in loads
            },
        }

    async def prepare(self, workload: Workload) -> Load:
        """Write the messages, and see from one call of each that it is answered as the workload means it."""
        files, sizes = [], []
        async with grpc.aio.insecure_channel(self.servers[0].target) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(workload.method)
            for number, message in enumerate(workload.messages):
                path = self.folder / f"{workload.name}-{number}.message"
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
        return Load(workload, files, sum(sizes) // len(sizes))

    async def window(self, load: Load, seconds: float, *, servers: int = 1) -> Window:
        """One round in a closed loop; every answer is checked, and the ledger. Raises BenchError."""
        granted_before, before = await self.grants(), await self.counts.read()
        shot, cpu, elsewhere = await self.metered(self.shoot(load, seconds=seconds, servers=servers))
        granted, counted = await self.grants() - granted_before, await self.counts.read() - before
        _check(load.workload, shot, granted, counted.refused_items)
        return window_of(shot, cpu, elsewhere, granted=granted, counted=counted)

    def echo(self, response_bytes: int) -> Child:
        """A server of the same transport that answers anything with so many bytes: the least that a call can cost."""
        arguments = ["--response-bytes", str(response_bytes), "--transport", self.options.transport]
        return Child("echo", ["-m", echo_server.__name__, *arguments], folder=self.folder, settings={})

    async def echo_window(self, echo: Child, load: Load, seconds: float) -> Window:
        """One round of the echo, with the messages of `load`."""
        shooting = self.generator.shoot(
            [echo.target],
            echo_server.METHOD,
            load.files[:1],
            connections=ECHO_CONNECTIONS,
            streams=ECHO_STREAMS,
            seconds=seconds,
        )
        shot, cpu, elsewhere = await self.metered(shooting, {SERVER: [echo.pid]})
        return window_of(shot, cpu, elsewhere, granted=0)

    async def echo_alone(self, echo: Child, load: Load, rate: float) -> Alone:
        """So many calls a second of the echo, with the messages of `load`, on the schedule of `offer`."""
        told = await self.generator.offer(
            [echo.target],
            echo_server.METHOD,
            load.files[:1],
            rate=rate,
            seconds=self.options.seconds,
            connections=CONNECTIONS,
            streams=STREAMS_MAX,
        )
        latency = told["ok_latency_ms"]
        return Alone(told["requests"], latency["p50"], latency["p99"], latency["max"])

    async def commits_alone(self) -> Alone:
        """Transactions that only write to PostgreSQL's log and wait until that is on the disk, one after another."""
        took: list[float] = []
        due = began = perf_counter()
        while due < began + self.options.seconds:
            await asyncio.sleep(max(0.0, due - perf_counter()))
            started = perf_counter()
            await self.ledger.execute(_BARE_COMMIT, os.urandom(COMMIT_BYTES))
            took.append(perf_counter() - started)
            due = max(due + 1 / COMMITS_A_SECOND, perf_counter())
        return Alone.of(took)

    async def shoot(
        self, load: Load, *, seconds: float | None = None, calls: int | None = None, servers: int = 1
    ) -> Shot:
        """In a closed loop, for so many seconds or calls to each server."""
        workload = load.workload
        return await self.generator.shoot(
            self._targets(servers),
            workload.method,
            load.files,
            connections=workload.connections,
            streams=workload.streams,
            seconds=seconds,
            calls=calls,
            identity=workload.name if workload.repeats else None,
            repeats=workload.repeats,
        )

    async def offer(
        self,
        load: Load,
        *,
        share: float,
        capacity: float,
        servers: int = 1,
        at_random: bool = False,
        deadline_seconds: float | None = None,
    ) -> Offered:
        """One round at a share of `capacity` (calls a second), whatever becomes of them. Raises BenchError."""
        granted_before = await self.grants()
        offering = self.generator.offer(
            self._targets(servers),
            load.workload.method,
            load.files,
            rate=share * capacity,
            seconds=self.options.seconds,
            connections=CONNECTIONS,
            streams=STREAMS_MAX,
            deadline_seconds=deadline_seconds,
            at_random=at_random,
        )
        told, _, elsewhere = await self.metered(offering)
        granted = await self._grants_at_rest() - granted_before
        offered = Offered.of(
            told,
            share=share,
            capacity=capacity,
            scheduled_seconds=self.options.seconds,
            granted=granted,
            elsewhere_cores=elsewhere,
        )
        _check_offered(load.workload, offered, unknown(told))
        return offered

    async def metered(
        self, shooting: Awaitable[Told], pids: Mapping[str, Sequence[int]] | None = None
    ) -> tuple[Told, dict[str, float], float]:
        """With the CPU seconds by process, and how many cores others kept busy. `pids`: of others than its own."""
        pids = self._pids() if pids is None else pids
        machine, own = usage.machine_cpu_seconds(), usage.cpu_seconds(os.getpid())
        before = usage.cpu_seconds_of(pids)
        started = perf_counter()
        told = await shooting
        seconds = perf_counter() - started
        self.check_alive()
        after = usage.cpu_seconds_of(pids)
        # Our own tree is all that we started: engines, servers, generators.
        others = usage.machine_cpu_seconds() - machine - (usage.cpu_seconds(os.getpid()) - own)
        cpu = {name: after[name] - before[name] for name in pids}
        return told, cpu, max(0.0, others / seconds)

    async def grants(self) -> int:
        """That the ledger has."""
        return int(await self.ledger.fetchval(_GRANTS))

    async def _grants_at_rest(self) -> int:
        """Once no more are added: calls that nobody waits for any more may still be granted."""
        before = -1
        while (now := await self.grants()) != before:
            before = now
            await asyncio.sleep(_REST_SECONDS)
        return now

    async def verify(self) -> list[Check]:
        """The books and the gate."""
        self.listener.step("proving the books")
        return await bootstrap.verify(config.load(Settings, env=_settings(self.engines)).settings)

    def check_alive(self) -> None:
        """Raises BenchError if a server has ended."""
        for server in self.servers:
            server.check_alive()

    def _pids(self) -> Mapping[str, Sequence[int]]:
        engines = {name: [pid] for name, pid in self.engines.pids.items()}
        return {SERVER: [server.pid for server in self.servers], **engines}

    def _targets(self, servers: int) -> Sequence[str]:
        return [server.target for server in self.servers[:servers]]


def _check(workload: Workload, shot: Shot, granted: int, refused_items: int) -> None:
    """That every answer was the one meant, and that the ledger has what was acknowledged: no more and no less."""
    if shot.fields.keys() - {int(workload.outcome)}:
        raise BenchError(f"{workload.name}: answers by first field {shot.fields}, wanted {workload.outcome.name} only")
    expected = shot.calls * workload.items_per_call - refused_items if workload.durable else 0
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


def window_of(
    shot: Shot,
    cpu_seconds: Mapping[str, float],
    elsewhere_cores: float,
    *,
    granted: int,
    counted: Counts = NOTHING_COUNTED,
) -> Window:
    """From a shot and the CPU seconds by process."""
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
        mean_ms=shot.mean_ms,
        refused_items=counted.refused_items,
        batches=counted.batches,
    )

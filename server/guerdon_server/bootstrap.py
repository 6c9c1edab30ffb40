"""The composition root: the only place where adapters are chosen and put together."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from guerdon_server.core.entrance.service import EntranceService
from guerdon_server.core.issuance.catalogue import Catalogue, keep_fresh
from guerdon_server.core.issuance.committer import Committer
from guerdon_server.core.issuance.gate_view import RedisGateView
from guerdon_server.core.issuance.metrics import IssuingMetrics
from guerdon_server.core.issuance.pipeline import AdmissionIds, Issuer, IssuerSettings
from guerdon_server.core.issuance.postgres.capacity_watch import CapacityWatch, keep_watching
from guerdon_server.core.issuance.postgres.gate_source import PostgresGateSource
from guerdon_server.core.issuance.postgres.invariant_watch import InvariantWatch, keep_looking
from guerdon_server.core.issuance.postgres.terms import PostgresTerms
from guerdon_server.core.issuance.sweeper import Sweeper, keep_sweeping
from guerdon_server.core.ledger.invariants import Check
from guerdon_server.core.ledger.model import AccountId, PromotionSid
from guerdon_server.core.ledger.ports import OutcomeUnknown
from guerdon_server.core.ledger.postgres import invariants as postgres_invariants
from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.core.ledger.postgres.statement import PostgresStatement
from guerdon_server.core.ledger.postgres.workers import Workers
from guerdon_server.core.prize.service import PrizeService
from guerdon_server.core.promotion.service import PromotionService
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.core.stock.service import Gate, keep_looking_at_epochs
from guerdon_server.core.stock.settings import GateSettings
from guerdon_server.platform import logs, postgres, postgres_pooler, redis, redis_deployment, telemetry
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.platform.masking import mask_passwords
from guerdon_server.platform.postgres_pool import PoolMetrics, WatchedPool
from guerdon_server.platform.pulse import Pulses, RedisPulse
from guerdon_server.platform.supervision import SupervisorLink
from guerdon_server.rpc.account import AccountServicer
from guerdon_server.rpc.call_limit import CallLimit
from guerdon_server.rpc.calls import Bounds
from guerdon_server.rpc.entrance import EntranceServicer
from guerdon_server.rpc.grpcio import GrpcioTransport
from guerdon_server.rpc.issuance_read import IssuanceReads
from guerdon_server.rpc.issue import IssueServicer
from guerdon_server.rpc.prize import PrizeCatalogueServicer
from guerdon_server.rpc.promotion import PromotionServicer
from guerdon_server.rpc.server import METHODS, MakeTransport, Server
from guerdon_server.rpc.tls import TlsFiles, TlsFilesError
from guerdon_server.settings import Settings

_log = logging.getLogger(__name__)
_GC_THRESHOLDS = (50_000, 20, 10)
_GC_SECONDS = 1.0
_POSTGRES_VERSION_MIN = 150_000
_REDIS_PULSE_SECONDS = 1.0
_CANCEL_AGAIN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a server listens, HOST:PORT; and its number among the workers of the ledger."""

    grpc: str
    metrics: str
    incarnation: int


class StartRefused(Exception):
    """The server can't start as things are; the message says what to do."""


def migration_sources() -> tuple[Traversable, Sequence[Traversable]]:
    """The folder of versioned migrations, and those of the SQL functions beside the modules that own them."""
    root = files("guerdon_server")
    modules = sorted((root / "core").iterdir(), key=lambda folder: folder.name)
    return root / "migrations", [sql for module in modules if (sql := module / "postgres" / "sql").is_dir()]


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[[Endpoints], None],
    secrets: Sequence[str] = (),
    link: SupervisorLink | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight. Raises StartRefused, OSError.

    `secrets` are texts that no log line may show. `link`: of a worker, which shares its port and stops without its
    supervisor, too.
    """
    fields = {} if link is None else {"worker": link.slot}
    logs.configure_logging(
        level=settings.log_level.upper(), log_format=settings.log_format, secrets=secrets, fields=fields
    )
    if link is not None and settings.transport == "native":
        raise StartRefused(
            "Several workers need transport = grpcio: native can't move connections, for which a rolling restart waits."
            " Set transport = grpcio, or leave out --workers and start several servers on ports of their own."
        )
    loop = asyncio.get_running_loop()
    logs.log_uncaught(loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, shares_port=link is not None) as endpoints:
        _collect_seldom()
        obeying = [] if link is None else [_obey(link, endpoints, stop)]
        async with _background(_collect_regularly(), *obeying):
            on_ready(endpoints)
            _log.info("serving", extra={"grpc": endpoints.grpc, "metrics": endpoints.metrics})
            await stop.wait()
        _log.info("stopping: what is in flight is finished")
    _log.info("stopped")


async def _obey(link: SupervisorLink, endpoints: Endpoints, stop: asyncio.Event) -> None:
    try:
        await link.obey(int(endpoints.grpc.rpartition(":")[2]))
    finally:
        stop.set()


def _collect_seldom() -> None:
    """A request leaves no cycles behind, so looking for them after every 700 objects is a tenth of all CPU.

    What lives as long as the process is not looked at any more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def _collect_regularly() -> None:
    """However little is allocated: gRPC counts a call among those of its connection until its last object is gone.

    Ours leave no cycles behind; those that gRPC itself aborts do (an unknown service in a health check).
    """
    while True:
        await asyncio.sleep(_GC_SECONDS)
        gc.collect(1)


@asynccontextmanager
async def running(
    settings: Settings, *, failpoints: Failpoints | None = None, shares_port: bool = False
) -> AsyncIterator[Endpoints]:
    """A whole server inside this event loop, drained in reverse order of its start when the block ends.

    `failpoints`: of a test that arms and disarms them while the server runs, instead of those in the settings.
    `shares_port`: other processes of this user may listen on the port of gRPC, too (SO_REUSEPORT).
    """
    failpoints = _failpoints(settings, failpoints)
    transport = _transport(settings, shares_port=shares_port)
    async with AsyncExitStack() as stack:
        pools = await _pools(stack, settings, failpoints)
        workers = Workers(pools.issuing, lease_seconds=settings.lease_seconds)
        incarnation = await _registered(workers)
        stack.push_async_callback(_stop_worker, workers, incarnation)

        registry = telemetry.new_registry(
            namespace="guerdon", build={"version": version("guerdon-server"), "grpcio": version("grpcio")}
        )
        metrics = IssuingMetrics(registry)
        PoolMetrics(pools.named(), registry=registry, namespace="guerdon")
        client = redis_deployment.connect(settings.redis_url, failpoints=failpoints)
        pulses = Pulses(("postgres", RedisPulse.ENGINE), registry=registry, namespace="guerdon")
        stack.push_async_callback(_close_client, client)
        gate = _gate(settings, client, pools.issuing, metrics)
        stack.push_async_callback(gate.aclose)
        ledger = PostgresLedger(
            pools.commits, pools.issuing, worker=incarnation, commit_seconds_max=settings.commit_seconds_max
        )
        committer = _committer(settings, ledger, gate, metrics)
        stack.push_async_callback(committer.aclose)
        catalogue = Catalogue(PostgresTerms(pools.issuing), promotions_max=settings.catalogue_promotions_max)
        stack.push_async_callback(catalogue.aclose)
        issuer = Issuer(
            catalogue=catalogue,
            gate=gate,
            committer=committer,
            ledger=ledger,
            principal=workers.principal,
            ids=AdmissionIds(incarnation, now_ms=_wall_clock_ms(settings)),
            settings=IssuerSettings(twin_wait_seconds_max=settings.twin_wait_ms_max / 1000),
        )
        stack.push_async_callback(issuer.aclose)
        sweeper = Sweeper(
            gate=gate,
            ledger=ledger,
            workers=workers,
            incarnation=incarnation,
            age_ms_max=settings.admission_age_ms_max,
        )
        watch = InvariantWatch(pools.issuing, workers, incarnation)
        capacities = CapacityWatch(pools.issuing, workers, incarnation)
        lag = telemetry.LoopLag(registry=registry, namespace="guerdon")
        redis_pulse = RedisPulse(
            client, pulses, registry=registry, namespace="guerdon", interval_seconds=_REDIS_PULSE_SECONDS
        )
        await stack.enter_async_context(
            _background(
                _keep_beating(workers, incarnation, settings.lease_seconds / 3, pulses),
                keep_fresh(catalogue, settings.catalogue_poll_ms / 1000),
                keep_looking_at_epochs(gate, settings.catalogue_poll_ms / 1000),
                keep_sweeping(sweeper, settings.reconcile_interval_ms / 1000),
                keep_looking(watch, settings.invariants_interval_seconds),
                keep_watching(capacities, settings.capacity_interval_seconds),
                redis_pulse.run(),
                lag.run(),
            )
        )

        server = _server(
            settings,
            transport,
            pools=pools,
            issuer=issuer,
            changes=_Changes(gate, catalogue),
            queue_age_seconds=lambda: max(gate.queue_age_seconds(), committer.batches.queue_age_seconds()),
            registry=registry,
        )
        metrics.watch(
            issuer=issuer,
            gate=gate,
            committer=committer,
            ledger=ledger,
            sweeper=sweeper,
            invariants=watch,
            capacities=capacities,
            calls=server.limit,
        )
        metrics_server = telemetry.MetricsServer(registry, host=settings.metrics_host, port=settings.metrics_port)
        stack.callback(metrics_server.close)
        await server.start(settings.grpc_host, settings.grpc_port)
        stack.push_async_callback(server.stop, settings.drain_seconds_max)
        yield Endpoints(
            f"{settings.grpc_host}:{server.port}", f"{settings.metrics_host}:{metrics_server.port}", incarnation
        )


@dataclass(frozen=True, slots=True)
class _Pools:
    """Connections to PostgreSQL by what they are for: whatever one kind of call takes, the others keep theirs."""

    issuing: WatchedPool
    """Look-ups, terms, the gate's source, the server's own jobs: few at once, whatever is asked of the server."""
    commits: WatchedPool
    """And fences."""
    operators: WatchedPool
    """Changes of the catalogue; they may wait for locks."""
    reads: WatchedPool
    """Callers' own."""

    def named(self) -> dict[str, WatchedPool]:
        """As metrics name them."""
        return {"issuing": self.issuing, "commits": self.commits, "operators": self.operators, "reads": self.reads}


async def _pools(stack: AsyncExitStack, settings: Settings, failpoints: Failpoints | None) -> _Pools:
    """Raises StartRefused."""
    third = settings.postgres_connections_max // 3
    asking = partial(_pool, stack, settings, answer_seconds_max=settings.read_seconds_max, failpoints=failpoints)
    try:
        issuing = await asking(size_max=settings.postgres_connections_max - 2 * third, name="guerdon")
        operators = await asking(size_max=third, name="guerdon-operator")
        reads = await asking(size_max=third, name="guerdon-read")
    except Exception as error:
        if not isinstance(error, OSError) and not postgres.is_refused(error):
            raise
        # Without the error itself: it may quote the DSN.
        raise StartRefused(_unreachable(settings.postgres_dsn, error)) from None
    await _check_database(issuing, settings)
    # Before the connection would be cut, which leaves a backend behind that waits on, and an unknown outcome.
    lock_timeout_seconds = 0.8 * settings.commit_seconds_max
    commits = await _pool(
        stack,
        settings,
        # One connection for each commit in flight, and as many for fences, which must not wait behind them.
        size_max=2 * settings.commit_batches_in_flight_max,
        name="guerdon-commit",
        lock_timeout_seconds=lock_timeout_seconds,
        failpoints=failpoints,
    )
    try:
        await postgres_pooler.check(commits, postgres.session_settings(lock_timeout_seconds=lock_timeout_seconds))
    except postgres_pooler.PoolerUnsuitable as error:
        raise StartRefused(str(error)) from error
    return _Pools(issuing=issuing, commits=commits, operators=operators, reads=reads)


async def _registered(workers: Workers) -> int:
    try:
        return await workers.register()
    except OutcomeUnknown as error:
        raise StartRefused(f"This server could not be registered: {error.message}. Start it again.") from error


def _failpoints(settings: Settings, given: Failpoints | None) -> Failpoints | None:
    """None in production: then the drivers' own classes run."""
    if given is None and not settings.failpoints:
        return None
    if not settings.test_mode:
        raise StartRefused("Failpoints break a server on purpose: only in test mode. Remove failpoints.")
    return given or Failpoints(settings.failpoints)


def _wall_clock_ms(settings: Settings) -> int:
    return time.time_ns() // 1_000_000 + round(settings.test_clock_offset_seconds * 1000)


def _gate(settings: Settings, client: redis.AnyClient, reads: postgres.Pool, metrics: IssuingMetrics) -> Gate:
    return Gate(
        RedisGate(client),
        PostgresGateSource(reads),
        settings=GateSettings(
            items_max=settings.admit_batch_items_max,
            in_flight_max=settings.admit_batches_in_flight_max,
            queue_items_max=settings.admit_queue_items_max,
            queue_seconds_max=settings.queue_ms_max / 1000,
        ),
        on_batch=metrics.admitted,
        on_settled=metrics.settled,
    )


def _committer(settings: Settings, ledger: PostgresLedger, gate: Gate, metrics: IssuingMetrics) -> Committer:
    return Committer(
        ledger,
        gate,
        items_max=settings.commit_batch_items_max,
        in_flight_max=settings.commit_batches_in_flight_max,
        queue_items_max=settings.commit_queue_items_max,
        queue_seconds_max=settings.queue_ms_max / 1000,
        on_batch=metrics.committed,
    )


def _server(
    settings: Settings,
    transport: MakeTransport,
    *,
    pools: _Pools,
    issuer: Issuer,
    changes: _Changes,
    queue_age_seconds: Callable[[], float],
    registry: CollectorRegistry,
) -> Server:
    reads, writes = pools.reads, pools.operators
    promotions = PromotionService(changes, reads=reads, writes=writes)
    prizes = PrizeService(changes, reads=reads, writes=writes)
    statement = PostgresStatement(reads)
    by_id = IssuanceReads(PostgresStatement(pools.issuing), by_id_at_once_max=max(1, pools.issuing.get_max_size() // 2))
    queue_seconds_max = settings.queue_ms_max / 1000
    return Server(
        (
            PromotionServicer(promotions),
            EntranceServicer(EntranceService(reads=reads, writes=writes), promotions, prizes),
            PrizeCatalogueServicer(prizes),
            AccountServicer(statement),
            IssuanceReads(statement),
            IssueServicer(issuer, by_id),
        ),
        metrics=telemetry.RpcMetrics(registry=registry, methods=METHODS),
        limit=CallLimit(
            settings.requests_in_flight_max,
            queue_seconds_max,
            reads_in_flight_max=settings.reads_in_flight_max,
            busy=lambda: queue_age_seconds() > queue_seconds_max / 2,
        ),
        message_bytes_max=settings.message_bytes_max,
        transport=transport,
    )


def _tls_files(settings: Settings) -> TlsFiles | None:
    if not settings.tls_certificate_file:
        return None
    client_ca = Path(settings.tls_client_ca_file) if settings.tls_client_ca_file else None
    files = TlsFiles(Path(settings.tls_certificate_file), Path(settings.tls_key_file), client_ca)
    try:
        files.read()
    except TlsFilesError as error:
        raise StartRefused(f"{error}. Mend it, or the settings tls_..._file.") from error
    return files


def _transport(settings: Settings, *, shares_port: bool) -> MakeTransport:
    bounds = Bounds(
        message_bytes_max=settings.message_bytes_max,
        calls_per_connection_max=settings.calls_per_connection,
        backlog_seconds_max=settings.backlog_seconds_max,
    )
    if settings.transport == "native":
        try:
            from guerdon_server.rpc.native import NativeTransport  # noqa: PLC0415  its package is optional
        except ImportError as error:
            raise StartRefused(
                f"The native transport needs the package pygrpc-native ({error}). Install guerdon-server[native] (in a"
                " checkout: .venv/bin/pip install --require-hashes -r requirements/native.txt), or set"
                " transport = grpcio."
            ) from error
        return partial(NativeTransport, bounds=bounds, shares_port=shares_port)
    return partial(
        GrpcioTransport,
        bounds=bounds,
        connection_age_seconds_max=settings.connection_age_seconds,
        shares_port=shares_port,
        tls=_tls_files(settings),
    )


async def verify(settings: Settings, *, on_check: Callable[[Check], None] | None = None) -> list[Check]:
    """Prove the invariants of the books and of the gate, on a live or a stopped system; changes nothing.

    `on_check` is called as each is done. Raises OSError, TimeoutError or asyncpg's errors if the database can't be
    read, RedisUnavailable if the gate can't.
    """
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, settings, size_max=2, name="guerdon-verify")
        client = redis_deployment.connect(settings.redis_url)
        stack.push_async_callback(client.aclose)
        checks = await postgres_invariants.verify(pool, on_check=on_check)
        checks.append(await postgres_invariants.verify_gate(pool, RedisGateView(RedisGate(client))))
        if on_check is not None:
            on_check(checks[-1])
    return checks


def _unreachable(dsn: str, error: Exception) -> str:
    address = urlsplit(dsn)
    where = f"{address.hostname or 'localhost'}:{address.port or 5432}"
    why = mask_passwords(str(error)) or type(error).__name__
    return f"PostgreSQL at {where} can't be used: {why}. Look at postgres_dsn (GUERDON_POSTGRES_DSN)."


async def _pool(
    stack: AsyncExitStack,
    settings: Settings,
    *,
    size_max: int,
    name: str,
    lock_timeout_seconds: float | None = None,
    answer_seconds_max: float | None = None,
    failpoints: Failpoints | None = None,
) -> WatchedPool:
    pool = await postgres.create_pool(
        settings.postgres_dsn,
        size_min=min(2, size_max),
        size_max=size_max,
        application_name=name,
        lock_timeout_seconds=lock_timeout_seconds,
        answer_seconds_max=answer_seconds_max,
        statement_cache_size=settings.statement_cache_items_max,
        failpoints=failpoints,
    )
    stack.push_async_callback(_close_pool, pool)
    return pool


async def _close_pool(pool: postgres.Pool) -> None:
    """Best effort: all is done, and a connection that breaks now is closed, too."""
    try:
        await asyncio.wait_for(pool.close(), timeout=5)
    except Exception as error:
        _log.warning("connections to PostgreSQL were cut, not closed", extra={"why": str(error)})
        pool.terminate()


async def _close_client(client: redis.AnyClient) -> None:
    try:
        await client.aclose()
    except Exception as error:
        _log.warning("connections to Redis could not be closed", extra={"why": str(error)})


async def _check_database(pool: postgres.Pool, settings: Settings) -> None:
    """Refuse what the promises can't be kept on."""
    number = int(await pool.fetchval("SHOW server_version_num"))
    if number < _POSTGRES_VERSION_MIN:
        raise StartRefused(f"PostgreSQL {number // 10_000} is too old: 15 or newer is needed.")
    versioned, repeatable = migration_sources()
    async with pool.acquire() as connection:
        steps = await postgres.pending(
            cast("postgres.Connection", connection), versioned=versioned, repeatable=repeatable
        )
    if steps:
        names = ", ".join(step.name for step in steps[:3]) + (", ..." if len(steps) > 3 else "")
        raise StartRefused(f"The database lacks {len(steps)} migrations ({names}). Run `guerdon migrate` first.")
    if settings.test_mode:
        return
    if offset_us := await pool.fetchval("SELECT offset_us FROM guerdon.clock"):
        raise StartRefused(
            f"The clock of this database was moved by {offset_us} us in test mode. Set offset_us = 0 in guerdon.clock."
        )
    for setting in ("fsync", "synchronous_commit"):
        if await pool.fetchval(f"SHOW {setting}") == "off":
            raise StartRefused(
                f"PostgreSQL runs with {setting} = off: an acknowledged grant could be lost in a crash."
                f" Set {setting} = on (or test_mode for a server that may forget)."
            )


class _Changes:
    """`PromotionChanges` and `PrizeChanges`: this worker learns at once; the others poll, and commits compare."""

    def __init__(self, gate: Gate, catalogue: Catalogue) -> None:
        self._gate = gate
        self._catalogue = catalogue

    async def promotion_changed(self, promotion: PromotionSid) -> None:
        await self._catalogue.poll()

    async def capacity_changed(self, promotion: PromotionSid, account: AccountId, capacity: int, version: int) -> None:
        await self._gate.set_capacity(promotion, resource=account, capacity=capacity, version=version)


async def _keep_beating(workers: Workers, incarnation: int, interval_seconds: float, pulses: Pulses) -> None:
    while True:
        try:
            await pulses.of("postgres", workers.beat(incarnation))
        except Exception as error:
            _log.warning("this worker could not say that it lives", extra={"why": str(error)})
        await asyncio.sleep(interval_seconds)


@asynccontextmanager
async def _background(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs the jobs beside the block; their end is waited for."""
    tasks = {asyncio.create_task(job) for job in jobs}
    try:
        yield
    finally:
        # Again and again: redis-py loses a cancellation that meets an answer, and then a job would go on for ever.
        while tasks:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_SECONDS)


async def _stop_worker(workers: Workers, incarnation: int) -> None:
    """Best effort: without it the lease runs out."""
    try:
        await workers.stop(incarnation)
    except Exception as error:
        _log.warning("this worker could not say that it stops", extra={"why": str(error)})

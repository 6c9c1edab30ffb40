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
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, cast
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from guerdon_server.core.entrance.service import EntranceService
from guerdon_server.core.issuance.catalogue import Catalogue, keep_fresh
from guerdon_server.core.issuance.committer import Committer
from guerdon_server.core.issuance.gate_view import RedisGateView
from guerdon_server.core.issuance.metrics import IssuingMetrics
from guerdon_server.core.issuance.pipeline import AdmissionIds, Issuer, IssuerSettings
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
from guerdon_server.core.stock.service import Gate, GateSettings
from guerdon_server.platform import logs, postgres, redis, telemetry
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.platform.masking import mask_passwords
from guerdon_server.rpc.account import AccountServicer
from guerdon_server.rpc.entrance import EntranceServicer
from guerdon_server.rpc.issuance_read import IssuanceReads
from guerdon_server.rpc.issue import IssueServicer
from guerdon_server.rpc.prize import PrizeCatalogueServicer
from guerdon_server.rpc.promotion import PromotionServicer
from guerdon_server.rpc.server import METHODS, Server
from guerdon_server.settings import Settings

_log = logging.getLogger(__name__)
_GC_THRESHOLDS = (50_000, 20, 10)
_GC_SECONDS = 1.0
_POSTGRES_VERSION_MIN = 150_000


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a server listens, HOST:PORT."""

    grpc: str
    metrics: str


class StartRefused(Exception):
    """The server can't start as things are; the message says what to do."""


def migration_sources() -> tuple[Traversable, Sequence[Traversable]]:
    """The folder of versioned migrations, and those of the SQL functions beside the modules that own them."""
    root = files("guerdon_server")
    modules = sorted((root / "core").iterdir(), key=lambda folder: folder.name)
    return root / "migrations", [sql for module in modules if (sql := module / "postgres" / "sql").is_dir()]


async def serve(settings: Settings, *, on_ready: Callable[[Endpoints], None], secrets: Sequence[str] = ()) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight. Raises StartRefused, OSError.

    `secrets` are texts that no log line may show.
    """
    logs.configure_logging(level=settings.log_level.upper(), log_format=settings.log_format, secrets=secrets)
    loop = asyncio.get_running_loop()
    logs.log_uncaught(loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as endpoints:
        _collect_seldom()
        async with _background(_collect_regularly()):
            on_ready(endpoints)
            _log.info("serving", extra={"grpc": endpoints.grpc, "metrics": endpoints.metrics})
            await stop.wait()
        _log.info("stopping: what is in flight is finished")
    _log.info("stopped")


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
async def running(settings: Settings, *, failpoints: Failpoints | None = None) -> AsyncIterator[Endpoints]:
    """A whole server inside this event loop, drained in reverse order of its start when the block ends.

    `failpoints`: of a test that arms and disarms them while the server runs, instead of those in the settings.
    """
    failpoints = _failpoints(settings, failpoints)
    async with AsyncExitStack() as stack:
        reads, commits = await _pools(stack, settings, failpoints)
        workers = Workers(reads, lease_seconds=settings.lease_seconds)
        incarnation = await _registered(workers)
        stack.push_async_callback(_stop_worker, workers, incarnation)

        registry = telemetry.new_registry(
            namespace="guerdon", build={"version": version("guerdon-server"), "grpcio": version("grpcio")}
        )
        metrics = IssuingMetrics(registry)
        client = redis.connect(settings.redis_url, failpoints=failpoints)
        stack.push_async_callback(_close_client, client)
        gate = _gate(settings, client, reads, metrics)
        stack.push_async_callback(gate.aclose)
        ledger = PostgresLedger(commits, reads, worker=incarnation, commit_seconds_max=settings.commit_seconds_max)
        committer = _committer(settings, ledger, gate, metrics)
        stack.push_async_callback(committer.aclose)
        catalogue = Catalogue(PostgresTerms(reads), promotions_max=settings.catalogue_promotions_max)
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
        watch = InvariantWatch(reads, workers, incarnation)
        lag = telemetry.LoopLag(registry=registry, namespace="guerdon")
        await stack.enter_async_context(
            _background(
                _keep_beating(workers, incarnation, settings.lease_seconds / 3),
                keep_fresh(catalogue, settings.catalogue_poll_ms / 1000),
                keep_sweeping(sweeper, settings.reconcile_interval_ms / 1000),
                keep_looking(watch, settings.invariants_interval_seconds),
                lag.run(),
            )
        )

        server = _server(settings, reads, issuer, _Changes(gate, catalogue), registry)
        metrics.watch(
            issuer=issuer,
            gate=gate,
            committer=committer,
            ledger=ledger,
            sweeper=sweeper,
            invariants=watch,
            calls=server.limit,
        )
        metrics_server = telemetry.MetricsServer(registry, host=settings.metrics_host, port=settings.metrics_port)
        stack.callback(metrics_server.close)
        await server.start(settings.grpc_host, settings.grpc_port)
        stack.push_async_callback(server.stop, settings.drain_seconds_max)
        yield Endpoints(f"{settings.grpc_host}:{server.port}", f"{settings.metrics_host}:{metrics_server.port}")


async def _pools(
    stack: AsyncExitStack, settings: Settings, failpoints: Failpoints | None
) -> tuple[postgres.Pool, postgres.Pool]:
    """Connections for reads and changes of the catalogue, and those for commits and fences. Raises StartRefused."""
    try:
        reads = await _pool(
            stack,
            settings,
            size_max=settings.postgres_connections_max,
            name="guerdon",
            answer_seconds_max=settings.read_seconds_max,
            failpoints=failpoints,
        )
    except Exception as error:
        if not isinstance(error, OSError) and not postgres.is_refused(error):
            raise
        # Without the error itself: it may quote the DSN.
        raise StartRefused(_unreachable(settings.postgres_dsn, error)) from None
    await _check_database(reads, settings)
    commits = await _pool(
        stack,
        settings,
        # One connection for each commit in flight, and as many for fences, which must not wait behind them.
        size_max=2 * settings.commit_batches_in_flight_max,
        name="guerdon-commit",
        # Before the connection would be cut, which leaves a backend behind that waits on, and an unknown outcome.
        lock_timeout_seconds=0.8 * settings.commit_seconds_max,
        failpoints=failpoints,
    )
    return reads, commits


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


def _gate(settings: Settings, client: redis.Client, reads: postgres.Pool, metrics: IssuingMetrics) -> Gate:
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
    settings: Settings, reads: postgres.Pool, issuer: Issuer, changes: _Changes, registry: CollectorRegistry
) -> Server:
    promotions = PromotionService(reads, changes)
    prizes = PrizeService(reads, changes)
    statement = PostgresStatement(reads)
    issuance_reads = IssuanceReads(statement)
    return Server(
        (
            PromotionServicer(promotions),
            EntranceServicer(EntranceService(reads), promotions, prizes),
            PrizeCatalogueServicer(prizes),
            AccountServicer(statement),
            issuance_reads,
            IssueServicer(issuer, issuance_reads),
        ),
        metrics=telemetry.RpcMetrics(registry=registry, methods=METHODS),
        in_flight_max=settings.requests_in_flight_max,
        message_bytes_max=settings.message_bytes_max,
        calls_per_connection_max=settings.calls_per_connection_max,
        backlog_seconds_max=settings.backlog_seconds_max,
        connection_age_seconds_max=settings.connection_age_seconds_max,
    )


async def verify(settings: Settings, *, on_check: Callable[[Check], None] | None = None) -> list[Check]:
    """Prove the invariants of the books and of the gate, on a live or a stopped system; changes nothing.

    `on_check` is called as each is done. Raises OSError, TimeoutError or asyncpg's errors if the database can't be
    read, RedisUnavailable if the gate can't.
    """
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, settings, size_max=2, name="guerdon-verify")
        client = redis.connect(settings.redis_url)
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
) -> postgres.Pool:
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


async def _close_client(client: redis.Client) -> None:
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


async def _keep_beating(workers: Workers, incarnation: int, interval_seconds: float) -> None:
    while True:
        try:
            await workers.beat(incarnation)
        except Exception as error:
            _log.warning("this worker could not say that it lives", extra={"why": str(error)})
        await asyncio.sleep(interval_seconds)


@asynccontextmanager
async def _background(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs the jobs beside the block; their end is waited for."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stop_worker(workers: Workers, incarnation: int) -> None:
    """Best effort: without it the lease runs out."""
    try:
        await workers.stop(incarnation)
    except Exception as error:
        _log.warning("this worker could not say that it stops", extra={"why": str(error)})

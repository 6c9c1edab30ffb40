"""The composition of `guerdon serve --workers N`: a supervisor, its workers on one port, one view of their metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry

from guerdon_server.core.ledger.postgres.workers import Workers
from guerdon_server.platform import listening, logs, postgres, telemetry
from guerdon_server.platform.supervision import Supervisor
from guerdon_server.settings import Settings

_log = logging.getLogger(__name__)
# gRPC spreads the end of connections by a tenth, and gives the calls on them 30 s more (rpc/grpcio.py).
_AGE_JITTER = 1.1
_AGE_GRACE_SECONDS = 30.0
_MARGIN_SECONDS = 15.0
_SAY_AGAIN_SECONDS = 0.5


async def serve(
    settings: Settings,
    command: Sequence[str],
    *,
    config_file: Path | None,
    overrides: Mapping[str, object],
    workers: int,
    on_ready: Callable[[str, str], None],
    secrets: Sequence[str] = (),
) -> int:
    """Serve with so many workers until SIGTERM or SIGINT; the exit status. Raises OSError if a port is taken.

    `command`: the program of a worker (`guerdon worker`), which reads `config_file` and `overrides` again by itself.
    `on_ready` is called with the addresses of gRPC and of the metrics, HOST:PORT.
    """
    logs.configure_logging(level=settings.log_level.upper(), log_format=settings.log_format, secrets=secrets)
    logs.log_uncaught(asyncio.get_running_loop())
    with ExitStack() as stack:
        held = stack.enter_context(listening.reserve(settings.grpc_host, settings.grpc_port))
        port = held.getsockname()[1]
        registry = CollectorRegistry()
        supervisor = Supervisor(
            command,
            {
                "config_file": str(config_file) if config_file else None,
                "overrides": {
                    **overrides,
                    **{"grpc_host": settings.grpc_host, "grpc_port": str(port)},
                    **{"metrics_host": "127.0.0.1", "metrics_port": "0"},
                },
            },
            count=workers,
            registry=registry,
            on_end=lambda ready: _say_that_it_is_gone(settings, ready.incarnation),
            retire_seconds_max=_AGE_JITTER * settings.connection_age_seconds + _AGE_GRACE_SECONDS + _MARGIN_SECONDS,
            drain_seconds_max=settings.drain_seconds_max + _MARGIN_SECONDS,
        )
        metrics = stack.enter_context(
            telemetry.MetricsServer(registry, host=settings.metrics_host, port=settings.metrics_port)
        )

        def ready() -> None:
            grpc = f"{settings.grpc_host}:{port}"
            _log.info("serving", extra={"grpc": grpc, "metrics": metrics.port, "workers": workers})
            on_ready(grpc, f"{settings.metrics_host}:{metrics.port}")

        status = await supervisor.run(on_ready=ready)
    _log.info("stopped", extra={"status": status})
    return status


async def _say_that_it_is_gone(settings: Settings, incarnation: int) -> None:
    """Its admissions are fenced by a living worker at once, not when its lease has run out.

    While PostgreSQL is away it is said again and again, at the most for as long as the lease would have held.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.lease_seconds
    while True:
        try:
            pool = await postgres.create_pool(
                settings.postgres_dsn,
                size_min=1,
                size_max=1,
                application_name="guerdon-supervisor",
                answer_seconds_max=settings.read_seconds_max,
                statement_cache_size=settings.statement_cache_items_max,
            )
            try:
                await Workers(pool, lease_seconds=settings.lease_seconds).stop(incarnation)
            finally:
                pool.terminate()
        except Exception as error:
            _log.warning("it could not be said that a worker is gone", extra={"why": str(error)})
            if loop.time() > until:
                return
            await asyncio.sleep(_SAY_AGAIN_SECONDS)
        else:
            _log.info("a worker is gone: what it had admitted can be fenced", extra={"incarnation": incarnation})
            return

"""`guerdon serve`: the server on your PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from guerdon_server.cli.failures import refuse
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.loading import (
    connection_options,
    load_settings,
    overrides_of,
    port_options,
    settings_options,
)
from guerdon_server.cli.options import is_json, json_option
from guerdon_server.cli.output import print_json, say

if TYPE_CHECKING:
    from guerdon_server.bootstrap import Endpoints
    from guerdon_server.platform.config import Loaded
    from guerdon_server.settings import Settings

WORKERS_MAX: Final = 256


@click.command(
    epilog=examples(
        "export GUERDON_POSTGRES_DSN=postgresql://guerdon:secret@db/guerdon",
        "export GUERDON_REDIS_URL=redis://:secret@cache:6379/0",
        "guerdon migrate",
        "guerdon serve --set grpc_host=0.0.0.0",
        "guerdon serve --workers 4    # four processes on one port; kill -HUP replaces them without a failed call",
        "guerdon serve --config guerdon.toml --grpc-port 7460 --metrics-port 7461    # a second one beside it",
        "guerdon serve --transport native    # HTTP/2 in Rust: less CPU; needs guerdon-server[native]",
    )
)
@settings_options
@connection_options
@port_options
@click.option(
    "--workers",
    type=click.IntRange(1, WORKERS_MAX),
    default=1,
    show_default=True,
    metavar="N",
    envvar="GUERDON_WORKERS",
    show_envvar=True,
    help="Processes that share the port, one a core; more than one needs Linux, and the transport grpcio.",
)
@click.option(
    "--transport",
    metavar="NAME",
    help="What carries gRPC: grpcio (the default), or native: less CPU, fewer features, for trusted callers.",
)
@json_option
def serve(
    *,
    config_file: Path | None,
    assignments: tuple[str, ...],
    postgres_dsn: str | None,
    redis_url: str | None,
    grpc_port: str | None,
    metrics_port: str | None,
    workers: int,
    transport: str | None,
) -> None:
    """Serve on your PostgreSQL and Redis, until SIGTERM or Ctrl-C.

    Any number of servers may share one database and one Redis. Needs GUERDON_POSTGRES_DSN and GUERDON_REDIS_URL; wrong
    settings are all told at once (exit status 2), and a database that was not migrated is refused: guerdon migrate.
    On SIGTERM it reports itself as not serving, finishes what is in flight, and ends with status 0. Logs go to stderr.

    With --workers a supervisor keeps so many processes on one port and shows their metrics as one. A dead one is
    replaced, and what it had admitted is freed at once. SIGHUP replaces one after the other, with the program and
    the settings as they are then, and no call fails: an old one goes on until its connections have moved away, after
    connection_age_seconds_max and a tenth at the latest.
    """
    overrides = overrides_of(
        assignments,
        postgres_dsn=postgres_dsn,
        redis_url=redis_url,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        transport=transport,
    )
    loaded = load_settings(config_file, overrides)
    if workers > 1:
        _supervise(loaded, config_file, overrides, workers)
        return
    import uvloop  # noqa: PLC0415

    from guerdon_server import bootstrap  # noqa: PLC0415

    def ready(endpoints: Endpoints) -> None:
        _ready(endpoints.grpc, endpoints.metrics)

    uvloop.run(bootstrap.serve(loaded.settings, on_ready=ready, secrets=loaded.secrets()))


def _supervise(loaded: Loaded[Settings], config_file: Path | None, overrides: dict[str, object], workers: int) -> None:
    if sys.platform != "linux":
        raise refuse(
            "Several workers share a port only on Linux.",
            next="Leave out --workers, and start several servers on ports of their own.",
        )
    from guerdon_server import supervise  # noqa: PLC0415

    ctx = click.get_current_context()
    command = [sys.executable, "-m", "guerdon_server", "worker", *(["--json"] if is_json(ctx) else [])]
    serving = supervise.serve(
        loaded.settings,
        command,
        config_file=config_file,
        overrides=overrides,
        workers=workers,
        on_ready=_ready,
        secrets=loaded.secrets(),
    )
    ctx.exit(asyncio.run(serving))


def _ready(grpc: str, metrics: str) -> None:
    if is_json(click.get_current_context()):
        print_json({"event": "ready", "grpc": grpc, "metrics": metrics})
    else:
        say(f"Serving gRPC on {grpc}, metrics on {metrics}.")

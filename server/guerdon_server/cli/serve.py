"""`guerdon serve`: the server on your PostgreSQL and Redis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

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


@click.command(
    epilog=examples(
        "export GUERDON_POSTGRES_DSN=postgresql://guerdon:secret@db/guerdon",
        "export GUERDON_REDIS_URL=redis://:secret@cache:6379/0",
        "guerdon migrate",
        "guerdon serve --set grpc_host=0.0.0.0",
        "guerdon serve --config guerdon.toml --grpc-port 7460 --metrics-port 7461    # a second one beside it",
    )
)
@settings_options
@connection_options
@port_options
@json_option
def serve(
    *,
    config_file: Path | None,
    assignments: tuple[str, ...],
    postgres_dsn: str | None,
    redis_url: str | None,
    grpc_port: str | None,
    metrics_port: str | None,
) -> None:
    """Serve on your PostgreSQL and Redis, until SIGTERM or Ctrl-C.

    Any number of servers may share one database and one Redis. Needs GUERDON_POSTGRES_DSN and GUERDON_REDIS_URL; wrong
    settings are all told at once (exit status 2), and a database that was not migrated is refused: guerdon migrate.
    On SIGTERM it reports itself as not serving, finishes what is in flight, and ends with status 0. Logs go to stderr.
    """
    overrides = overrides_of(
        assignments, postgres_dsn=postgres_dsn, redis_url=redis_url, grpc_port=grpc_port, metrics_port=metrics_port
    )
    loaded = load_settings(config_file, overrides)
    import uvloop  # noqa: PLC0415

    from guerdon_server import bootstrap  # noqa: PLC0415

    uvloop.run(bootstrap.serve(loaded.settings, on_ready=_ready, secrets=loaded.secrets()))


def _ready(endpoints: Endpoints) -> None:
    if is_json(click.get_current_context()):
        print_json({"event": "ready", "grpc": endpoints.grpc, "metrics": endpoints.metrics})
    else:
        say(f"Serving gRPC on {endpoints.grpc}, metrics on {endpoints.metrics}.")

"""`guerdon worker`: one of several servers on one port; only `guerdon serve --workers` calls it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guerdon_server.cli.failures import Failure, failure_of
from guerdon_server.cli.loading import load_settings
from guerdon_server.cli.options import json_option

if TYPE_CHECKING:
    from guerdon_server.bootstrap import Endpoints


@click.command(hidden=True)
@click.argument("channel", type=click.IntRange(0))
@json_option
@click.pass_context
def worker(ctx: click.Context, channel: int) -> None:
    """Serve on a port that is shared, as the supervisor at the other end of CHANNEL (a file descriptor) says."""
    import uvloop  # noqa: PLC0415

    from guerdon_server import bootstrap  # noqa: PLC0415
    from guerdon_server.platform.supervision import SupervisorLink  # noqa: PLC0415

    link = SupervisorLink(channel)
    first = link.first()

    def ready(endpoints: Endpoints) -> None:
        link.send(ready=dataclasses.asdict(endpoints))

    try:
        # Read anew by each worker: so a restart by SIGHUP takes what has changed in file and program.
        loaded = load_settings(Path(first["config_file"]) if first["config_file"] else None, first["overrides"])
        uvloop.run(bootstrap.serve(loaded.settings, on_ready=ready, secrets=loaded.secrets(), link=link))
    except Exception as error:
        failure = failure_of(error, ctx)
        if failure is not None:
            link.send(refused=_in_one_line(failure))
        raise


def _in_one_line(failure: Failure) -> str:
    """For the supervisor's log; the whole of it is told by this process."""
    problems = [", ".join(filter(None, row)) for row in failure.rows[1:]]
    return " ".join(filter(None, (failure.message, *failure.details, *problems, failure.next)))

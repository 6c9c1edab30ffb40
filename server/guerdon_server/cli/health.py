"""`guerdon health`: for containers and scripts."""

from __future__ import annotations

import click

from guerdon import HealthStatus, NotFound
from guerdon_server.cli.connection import connected
from guerdon_server.cli.failures import REFUSED, refuse
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.options import wire
from guerdon_server.cli.output import emit


@click.command(
    epilog=examples("guerdon health", "guerdon health --service guerdon.v1.PrizeService --target 127.0.0.1:7450")
)
@click.option("--service", default="", help="One of its services; otherwise the server as a whole.")
@wire
def health(service: str) -> None:
    """Ask whether the server takes calls.

    Exit status: 0 it does; 1 it does not now (starting, stopping, an engine is away), or has no such service; 3 it
    can't be reached.
    """
    with connected() as client:
        try:
            status = client.check_health(service=service)
        except NotFound:
            raise refuse(
                f"The server has no service {service}.",
                next="Name one in full, such as guerdon.v1.PrizeService, or leave out --service.",
            ) from None
    emit({"service": service, "status": status}, lambda out: out.print(status.value))
    if status is not HealthStatus.SERVING:
        click.get_current_context().exit(REFUSED)

"""`guerdon verify`: the promises about the books, proved."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from guerdon_server.cli.failures import REFUSED, refuse
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.loading import connection_options, load_settings, overrides_of, settings_options
from guerdon_server.cli.migrate import pending_steps
from guerdon_server.cli.options import default_data_dir, json_option
from guerdon_server.cli.output import console, draw, emit, say, table, visible

if TYPE_CHECKING:
    from guerdon_server.core.ledger.invariants import Check
    from guerdon_server.settings import Settings


@click.command(
    epilog=examples(
        "guerdon verify                                  # what `guerdon up` keeps, running or not",
        "guerdon verify --data ./trial",
        "GUERDON_POSTGRES_DSN=… GUERDON_REDIS_URL=… guerdon verify",
    )
)
@click.option("--data", "data_dir", type=click.Path(path_type=Path), help="The data folder of a `guerdon up`.")
@settings_options
@connection_options
@json_option
def verify(
    *,
    data_dir: Path | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    postgres_dsn: str | None,
    redis_url: str | None,
) -> None:
    """Prove the promises about the books, and say for each what was compared.

    Works on a live system, while it serves, and on a stopped one: then the engines of the data folder are started for
    this and stopped again. Nothing is changed. Without --data and without a DSN it looks at the default folder of
    `guerdon up`. Exit status 1 if any promise is violated.
    """
    overrides = overrides_of(assignments, postgres_dsn=postgres_dsn, redis_url=redis_url)
    loaded = load_settings(config_file, overrides, without={"postgres_dsn": "", "redis_url": ""})
    settings = loaded.settings
    if data_dir is None and not (settings.postgres_dsn and settings.redis_url):
        if settings.postgres_dsn or settings.redis_url:
            load_settings(config_file, overrides)  # one without the other: refused with the mend
        data_dir = default_data_dir()
    import uvloop  # noqa: PLC0415

    checks = uvloop.run(_verify(settings, data_dir))
    emit(
        {"ok": all(check.ok for check in checks), "checks": [_document(check) for check in checks]},
        lambda out: _render(out, checks),
    )
    if not all(check.ok for check in checks):
        click.get_current_context().exit(REFUSED)


async def _verify(settings: Settings, data_dir: Path | None) -> Sequence[Check]:
    if data_dir is None:
        await _refuse_unmigrated(settings.postgres_dsn)
        return await _proved(settings)
    async with _engines_of(data_dir) as (postgres_dsn, redis_url):
        await _refuse_unmigrated(postgres_dsn)
        return await _proved(dataclasses.replace(settings, postgres_dsn=postgres_dsn, redis_url=redis_url))


async def _proved(settings: Settings) -> Sequence[Check]:
    """On a terminal it says how far it is: a large ledger takes its time."""
    from guerdon_server import bootstrap  # noqa: PLC0415

    with Status("looking at the books", console=console(sys.stderr)) as status:
        return await bootstrap.verify(settings, on_check=lambda check: status.update(f"done: {check.name}"))


async def _refuse_unmigrated(dsn: str) -> None:
    if await pending_steps(dsn):
        raise refuse("The database is not at the version of this program.", next="guerdon migrate (or guerdon up)")


@asynccontextmanager
async def _engines_of(data_dir: Path) -> AsyncIterator[tuple[str, str]]:
    """DSN and URL of the folder's engines: the running ones, or started for this."""
    from guerdon_server.platform.engines import Engines, find_running  # noqa: PLC0415

    if not (data_dir / "postgres" / "PG_VERSION").exists():
        raise refuse(
            f"{data_dir} holds no data of Guerdon.", next="Name the folder that `guerdon up` printed: --data DIR"
        )
    running = find_running(data_dir)
    if running is not None:
        yield running.postgres_dsn, running.redis_url
        return
    say(f"Starting the engines of {data_dir} for this.")
    async with Engines(data_dir) as engines:
        yield engines.postgres_dsn, engines.redis_url


def _document(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "ok": check.ok,
        "promise": check.promise,
        "compared": check.compared,
        "what": check.what,
        "violations": check.violation_count,
        "examples": list(check.violations),
    }


def _render(out: Console, checks: Sequence[Check]) -> None:
    rows = [
        [
            Text("holds", "green") if check.ok else Text("VIOLATED", "bold red"),
            check.promise,
            f"{check.compared:,} {check.what}",
        ]
        for check in checks
    ]
    draw(out, table(["", "promise", "compared"], rows))
    broken = [check for check in checks if not check.ok]
    for check in broken:
        out.print(f"{check.name}: {check.violation_count} violated", style="bold red")
        for violation in check.violations:
            out.print(f"  - {visible(violation)}", soft_wrap=True)
    if broken:
        say(f"{len(broken)} of {len(checks)} promises are violated.", "bold red")
    else:
        out.print(f"All {len(checks)} promises hold.", style="bold green")

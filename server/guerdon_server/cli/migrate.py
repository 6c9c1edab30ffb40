"""`guerdon migrate`: the database to the version of this program."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.loading import connection_options, load_settings, overrides_of, settings_options
from guerdon_server.cli.options import json_option
from guerdon_server.cli.output import emit, say

if TYPE_CHECKING:
    from guerdon_server.platform.postgres import MigrationStep


@click.command(
    epilog=examples(
        "GUERDON_POSTGRES_DSN=postgresql://guerdon:secret@db/guerdon guerdon migrate",
        "guerdon migrate --config guerdon.toml --dry-run",
    )
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, change nothing; exit status 1 if there is any.")
@settings_options
@connection_options
@json_option
def migrate(
    *,
    dry_run: bool,
    config_file: Path | None,
    assignments: tuple[str, ...],
    postgres_dsn: str | None,
    redis_url: str | None,
) -> None:
    """Bring the database to the version of this program.

    Any number of processes may run it at once: they take turns. A step is applied whole or not at all; a database is
    never migrated back. `guerdon up` does this by itself.
    """
    overrides = overrides_of(assignments, postgres_dsn=postgres_dsn, redis_url=redis_url)
    dsn = load_settings(config_file, overrides, without={"redis_url": "redis://unused"}).settings.postgres_dsn
    steps = asyncio.run(pending_steps(dsn) if dry_run else apply_steps(dsn))
    names = [step.name for step in steps]
    emit(
        {"dry_run": dry_run, "steps": [{"kind": step.kind, "name": step.name} for step in steps]},
        lambda out: out.print(_verdict(names, dry_run=dry_run), soft_wrap=True),
    )
    if dry_run and steps:
        click.get_current_context().exit(1)


async def pending_steps(dsn: str) -> Sequence[MigrationStep]:
    """What the database lacks."""
    from guerdon_server.bootstrap import migration_sources  # noqa: PLC0415  grpc and all that, only when needed
    from guerdon_server.platform import postgres  # noqa: PLC0415

    versioned, repeatable = migration_sources()
    return await postgres.pending(dsn, versioned=versioned, repeatable=repeatable)


async def apply_steps(dsn: str) -> Sequence[MigrationStep]:
    """Applies what it lacks, and says each step on stderr; what was applied."""
    from guerdon_server.bootstrap import migration_sources  # noqa: PLC0415
    from guerdon_server.platform import postgres  # noqa: PLC0415

    versioned, repeatable = migration_sources()
    report = await postgres.migrate(
        dsn, versioned=versioned, repeatable=repeatable, on_step=lambda step: say(f"migrating: {step.name}")
    )
    return report.applied


def _verdict(names: list[str], *, dry_run: bool) -> str:
    if not names:
        return "The database is up to date."
    return f"{'To be applied' if dry_run else 'Applied'}: {', '.join(names)}."

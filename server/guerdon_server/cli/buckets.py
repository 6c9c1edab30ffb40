"""`guerdon buckets`: over how many Redis processes the gate of one promotion is spread."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from guerdon_server.cli.failures import refuse
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.loading import connection_options, load_settings, overrides_of, settings_options
from guerdon_server.cli.options import json_option
from guerdon_server.cli.output import emit
from guerdon_server.cli.params import Id

_BUCKETS_MAX = 32  # stock/buckets.py, by test


@click.command(
    epilog=examples(
        "GUERDON_POSTGRES_DSN=postgresql://guerdon:secret@db/guerdon guerdon buckets flash-sale 3",
        "guerdon buckets flash-sale --config guerdon.toml",
    )
)
@click.argument("promotion_id", type=Id())
@click.argument("count", type=click.IntRange(1, _BUCKETS_MAX), required=False)
@settings_options
@connection_options
@json_option
def buckets(
    *,
    promotion_id: str,
    count: int | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    postgres_dsn: str | None,
    redis_url: str | None,
) -> None:
    """Show or set the number of stock buckets of a promotion.

    For one promotion hotter than one Redis core, on a Redis Cluster: as many as it has primaries. Servers that run
    notice within a second, and callers see a short delay, no more. Most promotions are best off with 1.
    """
    overrides = overrides_of(assignments, postgres_dsn=postgres_dsn, redis_url=redis_url)
    dsn = load_settings(config_file, overrides, without={"redis_url": "redis://unused"}).settings.postgres_dsn
    now = asyncio.run(_set(dsn, promotion_id, count))
    if now is None:
        raise refuse(f"There is no promotion {promotion_id}.")
    emit(
        {"promotion_id": promotion_id, "gate_buckets": now},
        lambda out: out.print(f"{promotion_id} has {now} stock bucket{'s' if now != 1 else ''}.", soft_wrap=True),
    )


async def _set(dsn: str, promotion_id: str, count: int | None) -> int | None:
    from guerdon_server.platform import postgres  # noqa: PLC0415

    connection = await postgres.connect(dsn)
    try:
        now: int | None = await connection.fetchval("SELECT guerdon.set_gate_buckets($1, $2)", promotion_id, count)
    finally:
        await connection.close()
    return now

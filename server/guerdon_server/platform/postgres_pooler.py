"""What a pooler between us and PostgreSQL (pgbouncer) leaves of a session: said at the start, not found out later."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import asyncpg

from guerdon_server.platform.postgres import Pool

_PROBE_SECONDS_MAX = 5.0


class PoolerUnsuitable(Exception):
    """The message says what to set."""


async def check(pool: Pool, settings: Mapping[str, str]) -> None:
    """Whether sessions are what they have to be: `settings` by name, as pg_settings shows them.

    A time limit may be shorter than asked for, but not missing. Where a pooler hands sessions round, also whether
    prepared statements survive that. Raises PoolerUnsuitable, and OSError, TimeoutError or asyncpg's errors.
    """
    async with pool.acquire() as connection:
        rows = await connection.fetch(
            "SELECT pg_backend_pid() AS pid, name, setting FROM pg_settings WHERE name = ANY($1)", list(settings)
        )
        is_pooled = rows[0]["pid"] != connection.get_server_pid()
    wrong = [row["name"] for row in rows if not _is_as_asked(row["name"], row["setting"], settings[row["name"]])]
    if wrong:
        wanted = " ".join(f"SET {name} = '{settings[name]}';" for name in wrong)
        raise PoolerUnsuitable(
            f"Sessions of PostgreSQL lack {', '.join(wrong)}: a pooler ignores what a connection asks for when it"
            f" begins. Set it where the pooler connects (pgbouncer: connect_query = '{wanted}')."
        )
    if is_pooled and await _forgets_statements(pool):
        raise PoolerUnsuitable(
            "A pooler hands the sessions of PostgreSQL round and forgets prepared statements. Set"
            " statement_cache_items_max = 0, or max_prepared_statements in a pgbouncer from 1.21 on."
        )


def _is_as_asked(name: str, found: str, wanted: str) -> bool:
    if name.endswith("_timeout") and wanted != "0":
        return 0 < int(found) <= int(wanted)
    return found == wanted


async def _forgets_statements(pool: Pool) -> bool:
    """Prepares one, keeps the session busy for another client, and uses it again: on the next session."""
    try:
        async with asyncio.timeout(_PROBE_SECONDS_MAX), pool.acquire() as one, pool.acquire() as other:
            await one.fetchval("SELECT 1")
            async with other.transaction():
                await other.fetchval("SELECT 2")
                await one.fetchval("SELECT 1")
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        return True
    except TimeoutError:  # it has one session only, so none is handed round
        return False
    return False

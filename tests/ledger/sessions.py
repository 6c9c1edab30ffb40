"""Interleavings by arrangement: a session that holds what a commit needs, until the test lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from guerdon_server.core.ledger.model import CommitItem
from guerdon_server.platform.postgres import Pool
from tests.stock.waiting import eventually

COMMIT = "SELECT * FROM guerdon.commit_issuances($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, true)"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Holder:
    """A transaction that is open until it lets go; what it took is locked, what it wrote is not yet to be seen."""

    def __init__(self, pool: Pool, connection: Any) -> None:
        self._pool = pool
        self._connection = connection

    async def execute(self, query: str, *arguments: object) -> None:
        await self._connection.execute(query, *arguments)

    async def locks_account(self, account: int) -> None:
        await self.execute("SELECT FROM guerdon.account WHERE id = $1 FOR NO KEY UPDATE", account)

    async def commits(self, items: Sequence[CommitItem]) -> list[int]:
        """The call of a commit, codes, but its transaction stays open."""
        row = await self._connection.fetchrow(COMMIT, *zip(*items, strict=True), 1)
        return list(row["code"])

    async def lets_go(self, *, keep: bool = True) -> None:
        """Ends the transaction; `keep`: what it wrote holds."""
        await self.execute("COMMIT" if keep else "ROLLBACK")

    async def until_waiting(self, *calls: asyncio.Task[Any]) -> None:
        """Returns when all the calls wait for a lock."""
        assert await self.waiting(*calls), [call.exception() or call.result() for call in calls if call.done()]

    async def waiting(self, *calls: asyncio.Task[Any]) -> bool:
        """True as soon as as many sessions wait for a lock as there are calls; False if one of the calls ends first."""
        found = False

        async def known() -> bool:
            nonlocal found
            found = await sessions_waiting(self._pool) >= len(calls)
            return found or any(call.done() for call in calls)

        await eventually(known)
        return found


@asynccontextmanager
async def holder(pool: Pool) -> AsyncIterator[Holder]:
    """At the end it lets go in any case."""
    async with pool.acquire() as connection:
        await connection.execute("BEGIN")
        try:
            yield Holder(pool, connection)
        finally:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")


async def sessions_waiting(pool: Pool) -> int:
    """How many sessions of the database wait for a lock at this moment."""
    return int(await pool.fetchval(_WAITING))


async def free_accounts(pool: Pool, accounts: Sequence[int]) -> set[int]:
    """Those of the accounts that nobody has locked at this moment."""
    rows = await pool.fetch(
        "SELECT id FROM guerdon.account WHERE id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED", accounts
    )
    return {row["id"] for row in rows}

"""A small catalogue put straight into the tables, and commits against it without gate or RPC."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import AsyncIterator

import pytest_asyncio

from guerdon_server.core.ledger.model import CommitItem
from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.platform import postgres

MONEY = "USD/2"


@dataclasses.dataclass
class Books:
    """What the tests ask of the books. Prizes by name: sid and accounts."""

    pool: postgres.Pool
    ledger: PostgresLedger
    promotion: int
    entrance: int
    asset: int
    budget: int
    admission: int = 0

    async def prize(
        self,
        name: str,
        *,
        stock: int | None = None,
        value: int | None = None,
        kind: int = 1,
        limit: int = 0,
        valid_until: dt.datetime | None = None,
        valid_days: int | None = None,
    ) -> int:
        """A prize with its accounts; `stock` None: unlimited."""
        prize = await self.pool.fetchval(
            "SELECT nextval(pg_get_serial_sequence('guerdon.prize', 'sid'))",
        )
        source = await self.account(1, self.promotion, prize)
        units = await self.account(2, self.promotion, prize, floor=None if stock is None else 0)
        if stock:
            await self.move(source, units, stock, kind=1)
        liability = await self.account(7, self.promotion, self.asset) if kind in (1, 4) and value else None
        await self.pool.execute(
            """INSERT INTO guerdon.prize (sid, prize_id, promotion, display_name, kind, asset, fixed_units,
                limit_per_user, limit_per_user_highest, valid_until, valid_days, stock_source_account, stock_account,
                budget_account, liability_account, created_at, updated_at)
            OVERRIDING SYSTEM VALUE
            VALUES ($1, $2, $3, '', $4, $5, $6, $7, $7, $8, $9, $10, $11, $12, $13, now(), now())
            """,
            prize,
            name,
            self.promotion,
            kind,
            self.asset if value else None,
            value,
            limit,
            valid_until,
            valid_days,
            source,
            units,
            self.budget if value else None,
            liability,
        )
        return int(prize)

    async def account(self, kind: int, owner: int, item: int, *, floor: int | None = None) -> int:
        account: int = await self.pool.fetchval(
            """INSERT INTO guerdon.account (kind, owner, item, floor, capacity_version)
            VALUES ($1, $2, $3, $4::bigint, CASE WHEN $4::bigint IS NULL THEN NULL ELSE 1 END)
            ON CONFLICT (kind, owner, item) DO UPDATE SET floor = excluded.floor RETURNING id""",
            kind,
            owner,
            item,
            floor,
        )
        return account

    async def move(self, debit: int, credit: int, amount: int, *, kind: int) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            batch = await connection.fetchval(
                "INSERT INTO guerdon.batch (kind, booked_at, issuance_count, transfer_count)"
                " VALUES (2, guerdon.now(), 0, 1) RETURNING id"
            )
            await connection.execute(
                "INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount) VALUES ($1, $2, $3, $4, $5)",
                batch,
                kind,
                debit,
                credit,
                amount,
            )
            await connection.execute("UPDATE guerdon.account SET debits = debits + $2 WHERE id = $1", debit, amount)
            await connection.execute("UPDATE guerdon.account SET credits = credits + $2 WHERE id = $1", credit, amount)

    def item(
        self,
        prize: int,
        user: str,
        request: str,
        *,
        value: int | None = None,
        group: int = 0,
        admission: int | None = None,
        version: int = 1,
        epoch: int = 0,
        basis: int | None = None,
    ) -> CommitItem:
        if admission is None:
            self.admission += 1
            admission = self.admission
        return CommitItem(
            promotion=self.promotion,
            version=version,
            epoch=epoch,
            admission=admission,
            request_id=request,
            user_id=user,
            prize=prize,
            entrance=self.entrance,
            basis=basis,
            value=value,
            reference=None,
            principal=1,
            group=group,
        )

    async def balance(self, kind: int, owner: int, item: int) -> int:
        return int(
            await self.pool.fetchval(
                "SELECT coalesce(sum(credits - debits), 0) FROM guerdon.account"
                " WHERE (kind, owner, item) = ($1, $2, $3)",
                kind,
                owner,
                item,
            )
        )

    async def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """Everything that a refusal must not change."""
        tables = {
            "account": "SELECT * FROM guerdon.account ORDER BY id",
            "subject": "SELECT * FROM guerdon.subject ORDER BY sid",
            "request": "SELECT * FROM guerdon.request ORDER BY promotion, request_id",
            "transfer": "SELECT * FROM guerdon.transfer ORDER BY id",
            "batch": "SELECT * FROM guerdon.batch ORDER BY id",
        }
        return {name: [tuple(row) for row in await self.pool.fetch(query)] for name, query in tables.items()}


@pytest_asyncio.fixture(loop_scope="session")
async def books(pool: postgres.Pool) -> AsyncIterator[Books]:
    """An active promotion at one entrance with a budget of 1000 units of money."""
    asset = await pool.fetchval("INSERT INTO guerdon.asset (asset) VALUES ($1) RETURNING sid", MONEY)
    entrance = await pool.fetchval(
        "INSERT INTO guerdon.entrance (entrance_id, display_name, created_at, updated_at)"
        " VALUES ('checkout', '', now(), now()) RETURNING sid"
    )
    promotion = await pool.fetchval(
        "INSERT INTO guerdon.promotion (promotion_id, display_name, state, version, created_at, updated_at)"
        " VALUES ('spring', '', 3, 1, now(), now()) RETURNING sid"
    )
    await pool.execute("INSERT INTO guerdon.principal (principal) VALUES ('tests')")
    ledger = PostgresLedger(pool, pool, worker=1, commit_seconds_max=60)
    books = Books(pool=pool, ledger=ledger, promotion=promotion, entrance=entrance, asset=asset, budget=0)
    source = await books.account(4, promotion, asset)
    books.budget = await books.account(5, promotion, asset, floor=0)
    await books.move(source, books.budget, 1000, kind=4)
    yield books

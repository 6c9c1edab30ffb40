"""Books written by the real functions: catalogue rows straight into the tables, capacities and grants as servers do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, TypeAlias

from guerdon_server.core.ledger.model import CommitCode, CommitItem, PromotionSid
from guerdon_server.core.ledger.postgres.capacity import AdjustCode, CapacityKind, adjust_capacity, open_capacity
from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.platform import postgres

Grant: TypeAlias = tuple[str, str, str, int | None, str]
"""Prize, user, request, value, reference."""

COUPON, COIN, CASHBACK, GOODS = 1, 2, 3, 4


@dataclasses.dataclass(frozen=True, slots=True)
class Prize:
    sid: int
    promotion: int
    source: int
    stock: int
    asset: int | None


@dataclasses.dataclass(slots=True)
class Books:
    """Promotions, prizes and entrances by the names that the tests give them."""

    pool: postgres.Pool
    ledger: PostgresLedger
    entrance: int
    promotions: dict[str, int] = dataclasses.field(default_factory=dict)
    prizes: dict[str, Prize] = dataclasses.field(default_factory=dict)
    assets: dict[str, int] = dataclasses.field(default_factory=dict)
    budgets: dict[tuple[int, int], tuple[int, int]] = dataclasses.field(default_factory=dict)
    admissions: itertools.count[int] = dataclasses.field(default_factory=lambda: itertools.count(1))

    async def promotion(self, name: str, budgets: Mapping[str, int | None]) -> int:
        """An active promotion with its budgets (None: unlimited)."""
        sid: int = await self.pool.fetchval(
            "INSERT INTO guerdon.promotion (promotion_id, display_name, state, version, created_at, updated_at)"
            " VALUES ($1, '', 3, $2, now(), now()) RETURNING sid",
            name,
            len(self.promotions) + 1,
        )
        self.promotions[name] = sid
        for asset, units in budgets.items():
            if asset not in self.assets:
                self.assets[asset] = await self.pool.fetchval(
                    "INSERT INTO guerdon.asset (asset) VALUES ($1) RETURNING sid", asset
                )
            item = self.assets[asset]
            async with self.pool.acquire() as connection:
                self.budgets[sid, item] = await open_capacity(
                    connection, kind=CapacityKind.BUDGET, promotion=PromotionSid(sid), item=item, units=units
                )
        return sid

    async def prize(
        self,
        name: str,
        promotion: str,
        kind: int,
        *,
        stock: int | None,
        asset: str | None = None,
        limit: int = 0,
    ) -> Prize:
        """A prize, its accounts and its stock (None: unlimited)."""
        owner = self.promotions[promotion]
        item = None if asset is None else self.assets[asset]
        sid: int = await self.pool.fetchval("SELECT nextval(pg_get_serial_sequence('guerdon.prize', 'sid'))")
        async with self.pool.acquire() as connection, connection.transaction():
            source, account = await open_capacity(
                connection, kind=CapacityKind.STOCK, promotion=PromotionSid(owner), item=sid, units=stock
            )
            liability = None
            if item is not None and kind in (COUPON, GOODS):
                liability = await connection.fetchval(
                    "INSERT INTO guerdon.account (kind, owner, item) VALUES (7, $1, $2)"
                    " ON CONFLICT (kind, owner, item) DO UPDATE SET floor = NULL RETURNING id",
                    owner,
                    item,
                )
            await connection.execute(
                """INSERT INTO guerdon.prize (sid, prize_id, promotion, display_name, kind, asset, fixed_units,
                    limit_per_user, limit_per_user_highest, stock_source_account, stock_account, budget_account,
                    liability_account, created_at, updated_at)
                OVERRIDING SYSTEM VALUE
                VALUES ($1, $2, $3, '', $4, $5, $6, $7, $7, $8, $9, $10, $11, now(), now())""",
                sid,
                name,
                owner,
                kind,
                item,
                None if item is None else 1,
                limit,
                source,
                account,
                None if item is None else self.budgets[owner, item][1],
                liability,
            )
        self.prizes[name] = prize = Prize(sid, owner, source, account, item)
        return prize

    async def adjust_stock(self, name: str, delta: int) -> None:
        prize = self.prizes[name]
        async with self.pool.acquire() as connection, connection.transaction():
            done = await adjust_capacity(
                connection,
                kind=CapacityKind.STOCK,
                promotion=PromotionSid(prize.promotion),
                source=prize.source,  # type: ignore[arg-type]
                account=prize.stock,  # type: ignore[arg-type]
                delta=delta,
            )
        assert done.code is AdjustCode.ADJUSTED

    async def grant(self, name: str, user: str, request: str, *, value: int | None = None, reference: str = "") -> int:
        """Issue one unit in a batch of its own: the issuance id."""
        (issuance,) = await self.grant_all([(name, user, request, value, reference)])
        return issuance

    async def grant_all(self, grants: list[Grant]) -> list[int]:
        """Issue in one batch: the issuance ids."""
        rows = await self.pool.fetch("SELECT sid, version FROM guerdon.promotion")
        versions = {row["sid"]: row["version"] for row in rows}
        results = await self.ledger.commit([self._item(versions, grant) for grant in grants])
        assert {result.code for result in results} == {CommitCode.GRANTED}
        return [result.issuance_id for result in results if result.issuance_id is not None]

    def _item(self, versions: Mapping[int, int], grant: Grant) -> CommitItem:
        name, user, request, value, reference = grant
        prize = self.prizes[name]
        return CommitItem(
            promotion=prize.promotion,
            version=versions[prize.promotion],
            epoch=0,
            admission=next(self.admissions),
            request_id=request,
            user_id=user,
            prize=prize.sid,
            entrance=self.entrance,
            basis=None,
            value=value,
            reference=reference or None,
            principal=1,
            group=0,
        )

    async def account(self, kind: int, owner: int, item: int) -> int:
        """The id of an account that exists."""
        found: Any = await self.pool.fetchval(
            "SELECT id FROM guerdon.account WHERE (kind, owner, item) = ($1, $2, $3)", kind, owner, item
        )
        assert found is not None
        return int(found)

    async def user(self, user_id: str) -> int:
        """The sid of a user that exists."""
        found: Any = await self.pool.fetchval("SELECT sid FROM guerdon.subject WHERE user_id = $1", user_id)
        return int(found)


async def open_books(pool: postgres.Pool) -> Books:
    """Empty books with one entrance, `checkout`, and one principal, `tests`."""
    entrance = await pool.fetchval(
        "INSERT INTO guerdon.entrance (entrance_id, display_name, created_at, updated_at)"
        " VALUES ('checkout', '', now(), now()) RETURNING sid"
    )
    await pool.execute("INSERT INTO guerdon.principal (principal) VALUES ('tests')")
    return Books(pool, PostgresLedger(pool, pool, worker=1, commit_seconds_max=60), entrance)


async def filled_books(pool: postgres.Pool) -> Books:
    """Two promotions; coupons with a face value, coins without limit, cashback, and goods of which one may have two.

    spring: coupon (face USD/2, stock 10 + 5 - 3), coins (COIN, unlimited both), cashback (USD/2); autumn: goods
    (limit 2), and a coupon that nobody has. Granted: 3 coupons, 2 coins, 2 cashbacks, 3 goods; one request is fenced,
    one cancelled.
    """
    books = await open_books(pool)
    await books.promotion("spring", {"USD/2": 10_000, "COIN": None})
    await books.promotion("autumn", {"USD/2": 500})
    await books.prize("coupon", "spring", COUPON, stock=10, asset="USD/2")
    await books.prize("coins", "spring", COIN, stock=None, asset="COIN")
    await books.prize("cashback", "spring", CASHBACK, stock=100, asset="USD/2")
    await books.prize("goods", "autumn", GOODS, stock=20, limit=2)
    await books.prize("unused", "autumn", COUPON, stock=5, asset="USD/2")
    await books.adjust_stock("coupon", 5)
    await books.adjust_stock("coupon", -3)
    await books.grant_all(
        [
            ("coupon", "ada", "c1", 500, "order-1"),
            ("coins", "ada", "k1", 7, "order-1"),
            ("cashback", "ada", "b1", 25, "order-1"),
        ]
    )
    await books.grant_all([("coupon", "bob", "c2", 500, ""), ("coins", "bob", "k2", 3, "")])
    await books.grant("coupon", "eve", "c3", value=500)
    await books.grant("cashback", "bob", "b2", value=75)
    await books.grant_all([("goods", "ada", "g1", None, ""), ("goods", "ada", "g2", None, "")])
    await books.grant("goods", "bob", "g3")
    await books.ledger.fence([(books.promotions["spring"], "lost", 999)])
    await books.ledger.cancel(books.promotions["spring"], "never")
    return books

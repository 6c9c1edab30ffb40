"""The commit alone: the same plays put straight into the tables of a database without servers, and committed there."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence

from guerdon_server.core.ledger.model import CommitCode, CommitItem, CommitResult
from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.platform import postgres
from tests.ledger.conftest import Books
from tests.model.calls import Clock
from tests.model.model import Account, Answer, Item, Model, Rate, Yes
from tests.model.programs import ASSETS, SetUp
from tests.model.stage import Play, Stage

_KINDS = ("", "STOCK_SOURCE", "STOCK", "HOLDING", "BUDGET_SOURCE", "BUDGET", "WALLET", "LIABILITY")
_BOOKS = """
SELECT a.kind, coalesce(s.user_id, p.promotion_id) AS owner, coalesce(z.prize_id, t.asset) AS item, a.debits, a.credits
FROM guerdon.account a
LEFT JOIN guerdon.subject s ON a.kind IN (3, 6) AND s.sid = a.owner
LEFT JOIN guerdon.promotion p ON a.kind NOT IN (3, 6) AND p.sid = a.owner
LEFT JOIN guerdon.prize z ON a.kind <= 3 AND z.sid = a.item
LEFT JOIN guerdon.asset t ON a.kind > 3 AND t.sid = a.item
WHERE starts_with(coalesce(s.user_id, p.promotion_id), $1)
"""


class DirectPlay(Play):
    """A play of the ledger, without gate and servers. One promotion, version 1, epoch 0, one entrance."""

    def __init__(self, pool: postgres.Pool, model: Model, name: str) -> None:
        super().__init__(Stage((), pool, None, Clock(time.time())), model, name)  # type: ignore[arg-type]
        self.ledger = PostgresLedger(pool, pool, worker=1, commit_seconds_max=60)
        self._sids: dict[str, int] = {}
        self._by_asset: dict[str, Books] = {}
        self._admissions = 0

    async def open(self, set_up: SetUp) -> None:
        """Set it up in the tables and in the model."""
        self.open_model(set_up)
        pool = self.stage.pool
        entrance = await pool.fetchval(
            "INSERT INTO guerdon.entrance (entrance_id, display_name, created_at, updated_at)"
            " VALUES ($1, '', now(), now()) RETURNING sid",
            f"{self.name}-door",
        )
        promotion = await pool.fetchval(
            "INSERT INTO guerdon.promotion (promotion_id, display_name, state, version, created_at, updated_at)"
            " VALUES ($1, '', 3, nextval('guerdon.catalogue_version'), now(), now()) RETURNING sid",
            self.promotion,
        )
        self._version: int = await pool.fetchval("SELECT version FROM guerdon.promotion WHERE sid = $1", promotion)
        for asset, units in zip(ASSETS, set_up.budgets, strict=True):
            sid = await pool.fetchval(
                "INSERT INTO guerdon.asset (asset) VALUES ($1)"
                " ON CONFLICT (asset) DO UPDATE SET asset = excluded.asset RETURNING sid",
                asset,
            )
            books = Books(pool=pool, ledger=self.ledger, promotion=promotion, entrance=entrance, asset=sid, budget=0)
            source = await books.account(4, promotion, sid)
            books.budget = await books.account(5, promotion, sid, floor=None if units is None else 0)
            if units:
                await books.move(source, books.budget, units, kind=4)
            self._by_asset[asset] = books
        for prize_id, new in zip(self.prizes, set_up.prizes, strict=True):
            validity = self.model.prizes[prize_id].validity
            until = self.stage.clock.instant(None if validity is None else validity.until)
            self._sids[prize_id] = await self._by_asset[new.asset or ASSETS[0]].prize(
                prize_id,
                stock=new.stock,
                value=None if new.rule is None else 1,  # the caller of a commit says what each grant is worth
                kind=("COUPON", "COIN", "CASHBACK", "GOODS").index(new.kind) + 1,
                limit=new.limit,
                valid_until=until and until.ToDatetime(dt.UTC),
                valid_days=None if validity is None else validity.days,
            )

    def decided(self, item: Item) -> bool:
        """Whether the item is one that goes on to a commit: its refusals, if any, are for the ledger to say."""
        known = self.model.prizes.get(item.prize)
        if item.flawed or known is None or known.promotion != self.promotion:
            return False
        return known.rule is None or isinstance(self.model.priced(known.rule, item), int)

    async def commit(self, items: Sequence[Item], *, together: bool = False) -> list[CommitResult]:
        """In one batch."""
        return await self.ledger.commit([self._commit_item(item, together) for item in items])

    async def cancel(self, request: str) -> None:
        """For ever, here and in the model."""
        self.model.get_issuance(self.promotion, request, cancel_if_absent=True)
        await self.ledger.cancel(self._by_asset[ASSETS[0]].promotion, request)

    def _commit_item(self, item: Item, together: bool) -> CommitItem:
        prize = self.model.prizes[item.prize]
        value, basis = None, None
        if prize.rule is not None:
            priced = self.model.priced(prize.rule, item)
            assert isinstance(priced, int), "only what is decided goes to a commit"
            value = priced
            if isinstance(prize.rule, Rate):
                basis = int(item.attributes[prize.rule.attribute])
        books = self._by_asset[prize.asset or ASSETS[0]]
        self._admissions += 1
        return books.item(
            self._sids[item.prize],
            item.user,
            item.request,
            value=value,
            basis=basis,
            group=int(together),
            admission=self._admissions,
            version=self._version,
        )

    async def ledger_books(self) -> dict[Account, tuple[int, int]]:
        """Debits and credits of every account of the play."""
        rows = await self.stage.pool.fetch(_BOOKS, f"{self.name}-")
        return {(_KINDS[row["kind"]], row["owner"], row["item"]): (row["debits"], row["credits"]) for row in rows}


_CODES = {
    CommitCode.CANCELLED: "CANCELLED",
    CommitCode.VALIDITY_PASSED: "VALIDITY_PASSED",
    CommitCode.LIMIT_REACHED: "LIMIT_REACHED",
    CommitCode.SOLD_OUT: "SOLD_OUT",
    CommitCode.BUDGET_EXHAUSTED: "BUDGET_EXHAUSTED",
    CommitCode.ACCOUNT_LIMIT: "ACCOUNT_LIMIT",
}


def agrees(answer: Answer, result: CommitResult, known: bool) -> bool:
    """Whether a commit's outcome is the model's answer. `known`: the request had been granted before."""
    code = CommitCode(result.code)
    if known:
        return code is CommitCode.EXISTS  # the ledger does not compare what it was granted for
    if isinstance(answer, Yes):
        return code is CommitCode.GRANTED
    seen = ("" if result.observed is None else str(result.observed), str(result.threshold or ""))
    return any(_CODES.get(code) == no.reason and (no.observed, no.threshold) == seen for no in answer)

"""The reads of the ledger on PostgreSQL. The SQL is in queries/."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Final

import asyncpg

from guerdon_server.core.ledger import statement
from guerdon_server.core.ledger.model import Issuance
from guerdon_server.core.ledger.ports import LedgerAway
from guerdon_server.core.ledger.statement import (
    OF_PROMOTION,
    OF_USER,
    UNITS_OF_PRIZES,
    AccountKey,
    AccountKind,
    Balance,
    BalanceCursor,
    Entry,
    EntryCursor,
    IssuanceFilter,
    TransferKind,
    TrialBalanceLine,
)
from guerdon_server.platform.errors import not_found
from guerdon_server.platform.postgres import Pool

_QUERIES = files(__package__) / "queries"
_ID_MAX: Final = 2**63 - 1


def _query(name: str) -> str:
    return (_QUERIES / f"{name}.sql").read_text(encoding="utf-8")


class PostgresStatement:
    """Implements `statement.Statement`. Every call borrows a connection from the pool; none begins a transaction, so
    each statement is a snapshot of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._account_by_key = _query("account_by_key")
        self._balances_of_owner = _query("balances_of_owner")
        self._entries = _query("entries")
        self._trial_balance = _query("trial_balance")
        self._issuance = _query("issuance")
        issuances = _query("issuances")
        self._issuances = {
            column: issuances.replace("{column}", column) for column in ("subject", "promotion", "reference")
        }

    async def balance(self, key: AccountKey) -> Balance:
        row = await self._account(key)
        return Balance(key, row["debits"] or 0, row["credits"] or 0)

    async def balances_of_user(
        self, user_id: str, limit: int, after: BalanceCursor | None
    ) -> tuple[list[Balance], BalanceCursor | None]:
        sid = await self._fetchval("SELECT sid FROM guerdon.subject WHERE user_id = $1", user_id)
        if sid is None:
            return [], None
        return await self._balances(OF_USER, sid, limit, after, user_id=user_id)

    async def balances_of_promotion(
        self, promotion_id: str, limit: int, after: BalanceCursor | None
    ) -> tuple[list[Balance], BalanceCursor | None]:
        sid = await self._promotion(promotion_id)
        return await self._balances(OF_PROMOTION, sid, limit, after, promotion_id=promotion_id)

    async def entries(
        self, key: AccountKey, limit: int, before: EntryCursor | None
    ) -> tuple[list[Entry], EntryCursor | None]:
        account = await self._account(key)
        if account["id"] is None:
            return [], None
        start = _ID_MAX if before is None else before.transfer_id
        rows = await self._fetch(self._entries, account["id"], start, limit + 1)
        if not rows:
            return [], None
        newest = rows[0]["balance"] if before is None else before.balance
        balances = statement.running([row["amount"] for row in rows], newest)
        entries = [_entry(row, balance) for row, balance in zip(rows[:limit], balances, strict=False)]
        if len(rows) <= limit:
            return entries, None
        return entries, EntryCursor(transfer_id=entries[-1].transfer_id, balance=balances[limit])

    async def trial_balance(self) -> list[TrialBalanceLine]:
        return [
            TrialBalanceLine(
                asset=row["asset"] or UNITS_OF_PRIZES,
                kind=AccountKind(row["kind"]),
                account_count=row["account_count"],
                debits=int(row["debits"]),
                credits=int(row["credits"]),
            )
            for row in await self._fetch(self._trial_balance)
        ]

    async def issuance(self, issuance_id: int) -> Issuance | None:
        rows = await self._fetch(self._issuance, issuance_id)
        return Issuance(*rows[0]) if rows else None

    async def issuances(
        self, which: IssuanceFilter, limit: int, before: int | None
    ) -> tuple[list[Issuance], int | None]:
        value: int | str | None
        if which.user_id:
            column = "subject"
            value = await self._fetchval("SELECT sid FROM guerdon.subject WHERE user_id = $1", which.user_id)
        elif which.promotion_id:
            column, value = "promotion", await self._promotion(which.promotion_id)
        else:
            column, value = "reference", which.reference
        if value is None:
            return [], None
        rows = await self._fetch(self._issuances[column], value, before or _ID_MAX, limit + 1)
        found = [Issuance(*row) for row in rows[:limit]]
        return found, found[-1].issuance_id if len(rows) > limit else None

    async def _account(self, key: AccountKey) -> asyncpg.Record:
        (row,) = await self._fetch(
            self._account_by_key, key.kind, key.user_id, key.promotion_id, key.prize_id, key.asset
        )
        if key.promotion_id and row["promotion"] is None:
            raise _promotion_not_found(key.promotion_id)
        if key.prize_id and row["prize"] is None:
            raise not_found("PRIZE_NOT_FOUND", f"There is no prize {key.prize_id}.", prize_id=key.prize_id)
        return row

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(query, *arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise LedgerAway(f"PostgreSQL does not answer: {error}") from error

    async def _fetchval(self, query: str, *arguments: object) -> int | None:
        rows = await self._fetch(query, *arguments)
        return rows[0][0] if rows else None

    async def _promotion(self, promotion_id: str) -> int:
        sid = await self._fetchval("SELECT sid FROM guerdon.promotion WHERE promotion_id = $1", promotion_id)
        if sid is None:
            raise _promotion_not_found(promotion_id)
        return sid

    async def _balances(
        self,
        kinds: Sequence[AccountKind],
        owner: int,
        limit: int,
        after: BalanceCursor | None,
        *,
        user_id: str = "",
        promotion_id: str = "",
    ) -> tuple[list[Balance], BalanceCursor | None]:
        place, item = (1, 0) if after is None else (kinds.index(AccountKind(after.kind)) + 1, after.item)
        rows = await self._fetch(self._balances_of_owner, kinds, owner, place, item, limit + 1)
        page = rows[:limit]
        balances = [
            Balance(
                _key(row["kind"], user_id, promotion_id, row["prize_id"], row["asset"]), row["debits"], row["credits"]
            )
            for row in page
        ]
        return balances, BalanceCursor(page[-1]["kind"], page[-1]["item"]) if len(rows) > limit else None


def _promotion_not_found(promotion_id: str) -> Exception:
    return not_found("PROMOTION_NOT_FOUND", f"There is no promotion {promotion_id}.", promotion_id=promotion_id)


def _key(
    kind: int, user_id: str | None, promotion_id: str | None, prize_id: str | None, asset: str | None
) -> AccountKey:
    """Stock is named by its prize alone, so its promotion is left out."""
    of_stock = kind in (AccountKind.STOCK_SOURCE, AccountKind.STOCK)
    return AccountKey(
        kind=AccountKind(kind),
        user_id=user_id or "",
        promotion_id="" if of_stock else promotion_id or "",
        prize_id=prize_id or "",
        asset=asset or "",
    )


def _entry(row: asyncpg.Record, balance: int) -> Entry:
    return Entry(
        transfer_id=row["id"],
        kind=TransferKind(row["kind"]),
        amount=row["amount"],
        balance=balance,
        counterpart=_key(row["other_kind"], row["user_id"], row["promotion_id"], row["prize_id"], row["asset"]),
        issuance_id=row["issuance"],
        booked_at=row["booked_at"],
    )

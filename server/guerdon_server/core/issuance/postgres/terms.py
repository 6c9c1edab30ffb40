"""Reads the terms of promotions, whole and at one version each."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import asyncpg

from guerdon_server.core.issuance.model import PrizeTerms, PromotionTerms
from guerdon_server.core.ledger.ports import LedgerAway
from guerdon_server.core.prize.model import FixedValue, PrizeKind, RateValue, Rounding, ValueRule
from guerdon_server.core.promotion.model import PromotionState
from guerdon_server.platform.postgres import Pool

_PROMOTIONS = """
SELECT p.sid, p.promotion_id, p.version, p.state, p.starts_at, p.ends_at,
    coalesce(array_agg(e.entrance_id) FILTER (WHERE e.sid IS NOT NULL), '{}') AS entrance_ids,
    coalesce(array_agg(e.sid) FILTER (WHERE e.sid IS NOT NULL), '{}') AS entrances
FROM guerdon.promotion p
LEFT JOIN guerdon.promotion_entrance b ON b.promotion = p.sid
LEFT JOIN guerdon.entrance e ON e.sid = b.entrance
WHERE p.promotion_id = ANY ($1::text[]) GROUP BY p.sid
"""
_PRIZES = """
SELECT z.promotion, z.sid, z.prize_id, z.kind, a.asset, z.fixed_units, z.rate_attribute, z.rate_basis_points,
    z.rate_floor_units, z.rate_cap_units, z.rate_rounding, z.limit_per_user,
    CASE WHEN s.floor IS NOT NULL THEN s.id END AS stock_resource,
    CASE WHEN b.floor IS NOT NULL THEN b.id END AS budget_resource
FROM guerdon.prize z
JOIN guerdon.account s ON s.id = z.stock_account
LEFT JOIN guerdon.account b ON b.id = z.budget_account
LEFT JOIN guerdon.asset a ON a.sid = z.asset
WHERE z.promotion = ANY ($1::bigint[])
"""
_VERSIONS = "SELECT promotion_id, version FROM guerdon.promotion WHERE promotion_id = ANY ($1)"
_CHANGED = "SELECT promotion_id, version FROM guerdon.promotion WHERE version > $1 ORDER BY version"


class PostgresTerms:
    """`core.issuance.ports.TermsSource`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def load(self, promotion_ids: Sequence[str]) -> tuple[dict[str, PromotionTerms], dt.datetime]:
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                # One snapshot: a version never comes with the prizes of another.
                promotions = await connection.fetch(_PROMOTIONS, promotion_ids)
                rows = await connection.fetch(_PRIZES, [row["sid"] for row in promotions]) if promotions else []
                now: dt.datetime = await connection.fetchval("SELECT guerdon.now()")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise LedgerAway(f"the catalogue can't be read: {error}") from error
        prizes: dict[int, dict[str, PrizeTerms]] = defaultdict(dict)
        for row in rows:
            prizes[row["promotion"]][row["prize_id"]] = _prize(row)
        return {row["promotion_id"]: _promotion(row, prizes[row["sid"]]) for row in promotions}, now

    async def versions(self, promotion_ids: Sequence[str]) -> dict[str, int]:
        rows = await self._fetch(_VERSIONS, promotion_ids)
        return {row["promotion_id"]: row["version"] for row in rows}

    async def changed(self, since_version: int) -> tuple[list[str], int]:
        rows = await self._fetch(_CHANGED, since_version)
        return [row["promotion_id"] for row in rows], rows[-1]["version"] if rows else since_version

    async def prize_exists(self, prize_id: str) -> bool:
        return bool(await self._fetch("SELECT 1 FROM guerdon.prize WHERE prize_id = $1", prize_id))

    async def entrance_exists(self, entrance_id: str) -> bool:
        return bool(await self._fetch("SELECT 1 FROM guerdon.entrance WHERE entrance_id = $1", entrance_id))

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(query, *arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise LedgerAway(f"the catalogue can't be read: {error}") from error


def _promotion(row: asyncpg.Record, prizes: dict[str, PrizeTerms]) -> PromotionTerms:
    return PromotionTerms(
        sid=row["sid"],
        promotion_id=row["promotion_id"],
        version=row["version"],
        state=PromotionState(row["state"]),
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        entrances=dict(zip(row["entrance_ids"], row["entrances"], strict=True)),
        prizes=prizes,
    )


def _prize(row: asyncpg.Record) -> PrizeTerms:
    return PrizeTerms(
        sid=row["sid"],
        prize_id=row["prize_id"],
        kind=PrizeKind(row["kind"]),
        asset=row["asset"],
        rule=_rule(row),
        limit_per_user=row["limit_per_user"],
        stock_resource=row["stock_resource"],
        budget_resource=row["budget_resource"],
    )


def _rule(row: asyncpg.Record) -> ValueRule | None:
    if row["fixed_units"] is not None:
        return FixedValue(row["fixed_units"])
    if row["rate_attribute"] is None:
        return None
    return RateValue(
        attribute=row["rate_attribute"],
        basis_points=row["rate_basis_points"],
        floor_units=row["rate_floor_units"],
        cap_units=row["rate_cap_units"],
        rounding=Rounding(row["rate_rounding"]),
    )

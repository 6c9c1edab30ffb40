"""The ledger as the gate sees it: epochs, capacities, granted requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from guerdon_server.core.ledger.ports import LedgerAway
from guerdon_server.core.stock.model import Epoch, ResourceState
from guerdon_server.core.stock.ports import OpenedEpoch
from guerdon_server.platform.postgres import Pool

_RESOURCES = """
SELECT a.id, s.debits - s.credits AS capacity, a.capacity_version, s.debits - s.credits - (a.credits - a.debits) AS used
FROM guerdon.account a JOIN guerdon.account s ON s.kind = a.kind - 1 AND s.owner = a.owner AND s.item = a.item
WHERE a.kind IN (2, 5) AND a.owner = $1 AND a.floor IS NOT NULL
"""
_GRANTED = """
SELECT request_id FROM guerdon.request
WHERE promotion = $1 AND request_id > $2 AND outcome = 1 ORDER BY promotion, request_id LIMIT $3
"""


class PostgresGateSource:
    """`core.stock.ports.GateSource`; a gate group is a promotion's sid. Raises LedgerAway."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def current_epoch(self, group: int) -> Epoch | None:
        rows = await self._fetch("SELECT gate_epoch, gate_run_id FROM guerdon.promotion WHERE sid = $1", group)
        return Epoch(*rows[0]) if rows and rows[0][0] else None

    async def current_epochs(self, groups: Sequence[int]) -> Mapping[int, Epoch]:
        rows = await self._fetch(
            "SELECT sid, gate_epoch, gate_run_id FROM guerdon.promotion WHERE sid = ANY($1) AND gate_epoch <> 0", groups
        )
        return {row["sid"]: Epoch(row["gate_epoch"], row["gate_run_id"]) for row in rows}

    async def open_epoch(self, group: int, *, replacing: int | None, run_id: str) -> OpenedEpoch:
        (row,) = await self._fetch(
            "SELECT * FROM guerdon.open_epoch($1, $2, $3, $4)", group, replacing or 0, secrets.randbits(24), run_id
        )
        return OpenedEpoch(Epoch(row["epoch"], row["run_id"]), row["won"])

    async def resources(self, group: int) -> Sequence[ResourceState]:
        rows = await self._fetch(_RESOURCES, group)
        return [ResourceState(*row) for row in rows]

    async def has_grants(self, group: int) -> bool:
        return bool(
            await self._fetch("SELECT 1 FROM guerdon.request WHERE promotion = $1 AND outcome = 1 LIMIT 1", group)
        )

    async def granted_requests(self, group: int, *, after: str, limit: int) -> Sequence[str]:
        return [row[0] for row in await self._fetch(_GRANTED, group, after, limit)]

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(query, *arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise LedgerAway(f"the ledger can't be read: {error}") from error

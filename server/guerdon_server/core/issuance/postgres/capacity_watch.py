"""How far stock and budget of running promotions are used, now and then, for dashboards and alarms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from guerdon_server.platform.postgres import Pool

_log = logging.getLogger(__name__)
PROMOTIONS_MAX: Final = 20
ACCOUNTS_MAX: Final = 10
"""Of each promotion: so a scrape has at most 200 of these, whatever operators create."""

# The promotions that are nearest to their end come first, those that have reached it last: nothing happens there any
# more. Sums come from the accounts themselves, so it costs an index look-up for each account of an active promotion.
_CAPACITIES = """
SELECT promotion_id, kind, item, capacity, issued FROM (
    SELECT *, dense_rank() OVER (ORDER BY fullest DESC NULLS LAST, sid) AS promotion_place FROM (
        SELECT *, max(share) FILTER (WHERE share < 1) OVER (PARTITION BY sid) AS fullest,
            row_number() OVER (PARTITION BY sid ORDER BY share < 1 DESC, share DESC, kind, item) AS account_place
        FROM (
            SELECT p.sid, p.promotion_id, CASE a.kind WHEN 2 THEN 'stock' ELSE 'budget' END AS kind,
                coalesce(z.prize_id, t.asset) AS item, c.capacity, c.issued,
                CASE WHEN c.capacity > 0 THEN c.issued::double precision / c.capacity ELSE 1 END AS share
            FROM guerdon.promotion p
            JOIN guerdon.account a ON a.kind IN (2, 5) AND a.owner = p.sid AND a.floor IS NOT NULL
            JOIN guerdon.account s ON s.kind = a.kind - 1 AND s.owner = a.owner AND s.item = a.item
            CROSS JOIN LATERAL (SELECT s.debits - s.credits AS capacity,
                s.debits - s.credits - (a.credits - a.debits) AS issued) c
            LEFT JOIN guerdon.prize z ON a.kind = 2 AND z.sid = a.item
            LEFT JOIN guerdon.asset t ON a.kind = 5 AND t.sid = a.item
            WHERE p.state IN (2, 3) AND guerdon.effective_state(p.state, p.starts_at, p.ends_at, guerdon.now()) = 3
        ) shares
    ) ranked
) chosen WHERE promotion_place <= $1 AND account_place <= $2 ORDER BY promotion_place, account_place
"""


class Capacity(NamedTuple):
    """A limited stock (`item`: a prize id) or budget (an asset, in its minor units) of a promotion."""

    promotion_id: str
    kind: str
    item: str
    capacity_units: int
    issued_units: int


class Leadership(Protocol):
    """Whether this process is the one to do a job."""

    async def lead(self, job: str, incarnation: int) -> bool: ...


class CapacityWatch:
    """`capacities` of the last look, the fullest first; none where another process does the looking."""

    def __init__(self, pool: Pool, leadership: Leadership, incarnation: int) -> None:
        self._pool = pool
        self._leadership = leadership
        self._incarnation = incarnation
        self.capacities: Sequence[Capacity] = ()

    async def look(self) -> None:
        """One look, if this process leads. Raises what the pool raises; then there is none until the next one."""
        found: Sequence[Capacity] = ()
        try:
            if await self._leadership.lead("capacity", self._incarnation):
                rows = await self._pool.fetch(_CAPACITIES, PROMOTIONS_MAX, ACCOUNTS_MAX)
                found = [Capacity(*row) for row in rows]
        finally:
            self.capacities = found  # what is old is not shown as if it were true


async def keep_watching(watch: CapacityWatch, interval_seconds: float) -> None:
    """Look for ever; a failure is logged and tried again."""
    while True:
        try:
            await watch.look()
        except Exception as error:
            _log.warning("used capacities could not be read", extra={"why": str(error)})
        await asyncio.sleep(interval_seconds)

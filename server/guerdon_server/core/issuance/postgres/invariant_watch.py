"""Looks at the books now and then, cheaply, so that a dashboard shows a violation before an audit does."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from guerdon_server.platform.postgres import Pool

_log = logging.getLogger(__name__)

# One pass over the accounts, in one snapshot: debits equal credits for each asset and prize; what left a prize's stock
# is what users hold, and what left a budget is in wallets or owed; nothing is below its floor. Over-issued is what lies
# below the floor of a stock or budget, and what users have beyond what left it. `guerdon verify` proves everything,
# against transfers and grants.
_NOTHING = {"stock": 0, "budget": 0}
_LOOK_SECONDS_MAX = 3600.0  # it reads all accounts
_LOOK = """
WITH sums AS (
    SELECT kind, item, sum(debits) AS debits, sum(credits) AS credits,
        count(*) FILTER (WHERE credits - debits < floor) AS below,
        sum(greatest(floor - credits + debits, 0)) FILTER (WHERE kind IN (2, 5)) AS short
    FROM guerdon.account GROUP BY kind, item
), items AS (
    SELECT kind <= 3 AS units, item, sum(debits) AS debits, sum(credits) AS credits, sum(below) AS below,
        coalesce(sum(debits) FILTER (WHERE kind IN (2, 5)), 0) - coalesce(sum(credits) FILTER (WHERE kind IN (1, 4)), 0)
            AS issued,
        coalesce(sum(credits) FILTER (WHERE kind IN (3, 6, 7)), 0) AS held, coalesce(sum(short), 0) AS short
    FROM sums GROUP BY kind <= 3, item
)
SELECT count(*) FILTER (WHERE debits <> credits OR below > 0 OR issued <> held) AS violations,
    coalesce(sum(short + greatest(held - issued, 0)) FILTER (WHERE units), 0)::bigint AS stock,
    coalesce(sum(short + greatest(held - issued, 0)) FILTER (WHERE NOT units), 0)::bigint AS budget
FROM items
"""


class Leadership(Protocol):
    """Whether this process is the one to do a job."""

    async def lead(self, job: str, incarnation: int) -> bool: ...


class InvariantWatch:
    """`violations` of the last look, `over_issued` units by kind (stock, budget), `looks_total`."""

    def __init__(self, pool: Pool, leadership: Leadership, incarnation: int) -> None:
        self._pool = pool
        self._leadership = leadership
        self._incarnation = incarnation
        self.violations = 0
        self.over_issued = dict(_NOTHING)
        self.looks_total = 0

    async def look(self) -> None:
        """One look, if this process leads."""
        if not await self._leadership.lead("invariants", self._incarnation):
            self.violations, self.over_issued = 0, dict(_NOTHING)
            return
        row = await self._pool.fetchrow(_LOOK, timeout=_LOOK_SECONDS_MAX)
        assert row is not None, "sums over all, so there is a row"
        self.violations = row["violations"]
        self.over_issued = {kind: row[kind] for kind in _NOTHING}
        self.looks_total += 1
        if self.violations:
            _log.critical(
                "the books are violated: run `guerdon verify`",
                extra={"violations": self.violations, "over_issued": self.over_issued},
            )


async def keep_looking(watch: InvariantWatch, interval_seconds: float) -> None:
    """Look for ever; a failure is logged and tried again."""
    while True:
        try:
            await watch.look()
        except Exception:
            _log.warning("the books could not be looked at", exc_info=True)
        await asyncio.sleep(interval_seconds)

"""Looks at the books now and then, cheaply, so that a dashboard shows a violation before an audit does."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from guerdon_server.platform.postgres import Pool

_log = logging.getLogger(__name__)

# One pass over the accounts, in one snapshot: debits equal credits for each asset and prize; what left a prize's stock
# is what users hold; nothing is below its floor. `guerdon verify` proves everything, against transfers and grants.
_LOOK_SECONDS_MAX = 3600.0  # it reads all accounts
_LOOK = """
WITH sums AS (
    SELECT kind, item, sum(debits) AS debits, sum(credits) AS credits, count(*) FILTER (
        WHERE credits - debits < floor) AS below
    FROM guerdon.account GROUP BY kind, item
), items AS (
    SELECT kind <= 3 AS units, item, sum(debits) AS debits, sum(credits) AS credits, sum(below) AS below,
        coalesce(sum(debits) FILTER (WHERE kind = 2), 0) - coalesce(sum(credits) FILTER (WHERE kind = 1), 0) AS issued,
        coalesce(sum(credits) FILTER (WHERE kind = 3), 0) AS held
    FROM sums GROUP BY kind <= 3, item
)
SELECT count(*) FROM items WHERE debits <> credits OR below > 0 OR (units AND issued <> held)
"""


class Leadership(Protocol):
    """Whether this process is the one to do a job."""

    async def lead(self, job: str, incarnation: int) -> bool: ...


class InvariantWatch:
    """`violations` of the last look, `looks_total`."""

    def __init__(self, pool: Pool, leadership: Leadership, incarnation: int) -> None:
        self._pool = pool
        self._leadership = leadership
        self._incarnation = incarnation
        self.violations = 0
        self.looks_total = 0

    async def look(self) -> None:
        """One look, if this process leads."""
        if not await self._leadership.lead("invariants", self._incarnation):
            self.violations = 0
            return
        self.violations = int(await self._pool.fetchval(_LOOK, timeout=_LOOK_SECONDS_MAX))
        self.looks_total += 1
        if self.violations:
            _log.critical("the books are violated: run `guerdon verify`", extra={"violations": self.violations})


async def keep_looking(watch: InvariantWatch, interval_seconds: float) -> None:
    """Look for ever; a failure is logged and tried again."""
    while True:
        try:
            await watch.look()
        except Exception:
            _log.warning("the books could not be looked at", exc_info=True)
        await asyncio.sleep(interval_seconds)

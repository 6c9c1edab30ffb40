"""The terms of promotions, in memory: what decisions are made from, without I/O."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence

from guerdon_server.core.issuance.model import PromotionTerms
from guerdon_server.core.issuance.ports import TermsSource
from guerdon_server.platform.batching import ENOUGH_ITEMS, Coalescer
from guerdon_server.platform.errors import ServiceError

_log = logging.getLogger(__name__)
_LOAD_ITEMS_MAX = 500
_LOAD_QUEUE_ITEMS_MAX = 100_000
# Versions are drawn before they commit, so a lower one may appear after a higher one was seen.
_VERSIONS_LOOKED_BACK = 1000


class Catalogue:
    """A bounded cache of terms. Never the authority: the commit compares versions, so staleness costs a refresh only.

    `refresh` is the way to be sure: it reads after it was called, joined with everybody else who asks.
    """

    def __init__(self, source: TermsSource, *, promotions_max: int) -> None:
        self._source = source
        self._promotions_max = promotions_max
        self._terms: OrderedDict[str, PromotionTerms] = OrderedDict()
        self._clock_offset = 0.0
        self._version = 0
        self._loads: Coalescer[str, PromotionTerms | None] = Coalescer(
            self._load,
            items_max=_LOAD_ITEMS_MAX,
            in_flight_max=1,
            queue_items_max=_LOAD_QUEUE_ITEMS_MAX,
            name="catalogue",
        )
        self._versions: Coalescer[str, int | None] = Coalescer(
            self._newest,
            items_max=_LOAD_ITEMS_MAX,
            in_flight_max=1,
            queue_items_max=_LOAD_QUEUE_ITEMS_MAX,
            name="catalogue versions",
            enough_items=ENOUGH_ITEMS,
        )

    def find(self, promotion_id: str) -> PromotionTerms | None:
        """The terms as last read, at once; None: not in memory."""
        return self._terms.get(promotion_id)

    async def refresh(self, promotion_id: str) -> PromotionTerms | None:
        """The terms as they are now; None: there is no such promotion. Raises LedgerAway."""
        (terms,) = await self._loads.submit((promotion_id,))
        return terms

    async def is_current(self, terms: PromotionTerms) -> bool:
        """Whether these are still the newest terms of their promotion, read after this call. Raises LedgerAway."""
        (version,) = await self._versions.submit((terms.promotion_id,))
        return version == terms.version

    def now(self) -> dt.datetime:
        """The system's time, from this machine's monotonic clock and the database's at the last reading."""
        return dt.datetime.fromtimestamp(time.monotonic() + self._clock_offset, dt.UTC)

    async def poll(self) -> None:
        """Look for changes once: reload what is in memory and has changed. Raises LedgerAway."""
        changed, version = await self._source.changed(self._version - _VERSIONS_LOOKED_BACK)
        known = [promotion_id for promotion_id in changed if promotion_id in self._terms]
        for start in range(0, len(known), _LOAD_ITEMS_MAX):
            await self._loads.submit(known[start : start + _LOAD_ITEMS_MAX])
        self._version = max(self._version, version)

    async def prize_exists(self, prize_id: str) -> bool:
        """Whether any promotion has it."""
        return await self._source.prize_exists(prize_id)

    async def entrance_exists(self, entrance_id: str) -> bool:
        """Whether it is in the catalogue."""
        return await self._source.entrance_exists(entrance_id)

    async def aclose(self) -> None:
        """Finish the readings in flight."""
        await self._loads.aclose()
        await self._versions.aclose()

    async def _newest(self, promotion_ids: list[str]) -> Sequence[int | None]:
        newest = await self._source.versions(sorted(set(promotion_ids)))
        return [newest.get(promotion_id) for promotion_id in promotion_ids]

    async def _load(self, promotion_ids: list[str]) -> Sequence[PromotionTerms | None]:
        loaded, now = await self._source.load(sorted(set(promotion_ids)))
        self._clock_offset = now.timestamp() - time.monotonic()
        for promotion_id in promotion_ids:
            terms = loaded.get(promotion_id)
            known = self._terms.get(promotion_id)
            if terms is None:
                self._terms.pop(promotion_id, None)
            elif known is None or known.version <= terms.version:
                self._terms[promotion_id] = terms
                self._terms.move_to_end(promotion_id)
        while len(self._terms) > self._promotions_max:
            self._terms.popitem(last=False)
        return [loaded.get(promotion_id) for promotion_id in promotion_ids]


async def keep_fresh(catalogue: Catalogue, interval_seconds: float) -> None:
    """Poll for ever; a failure is logged and tried again."""
    while True:
        try:
            await catalogue.poll()
        except ServiceError as error:
            _log.warning("the catalogue could not be polled", extra={"why": error.message})
        except Exception:
            _log.exception("polling the catalogue failed")
        await asyncio.sleep(interval_seconds)

"""Delivering requests until each has an answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from time import perf_counter

from guerdon import AsyncClient, Granted, GuerdonError, PendingOutcome, Rejected
from guerdon_server.demo.answers import Answers
from guerdon_server.demo.errors import DemoError
from guerdon_server.demo.scenario import ENTRANCE, Ask, Scenario, Visit

CUSTOMERS_AT_ONCE_MAX = 64
"""Each has at most six requests in flight."""

_PAUSE_SECONDS_MIN = 0.02
_PAUSE_SECONDS_MAX = 0.5
_UNANSWERED_SECONDS_MAX = 120.0


class Delivery:
    """Delivers and records. `serving` is clear while the server is known to be away: nothing is sent then.

    `observe` is called after each recorded answer.
    """

    def __init__(
        self,
        client: AsyncClient,
        scenario: Scenario,
        *,
        serving: asyncio.Event,
        observe: Callable[[Answers], None] = lambda _: None,
    ) -> None:
        self.answers = Answers()
        self.settled_count = 0
        self._client = client
        self._scenario = scenario
        self._serving = serving
        self._observe = observe
        self._turn = asyncio.Semaphore(CUSTOMERS_AT_ONCE_MAX)

    async def by_day(self, visits: Sequence[Visit]) -> None:
        """In date order: the customers of one day at once, each one's purchases in order, then the next day."""
        for _, day in itertools.groupby(visits, key=lambda visit: visit.purchase.day):
            await _all(self._customer(theirs) for theirs in _by_customer(day))

    async def by_customer(self, visits: Sequence[Visit]) -> None:
        """All customers at once, each one's purchases in order."""
        await _all(self._customer(theirs) for theirs in _by_customer(visits))

    async def asks(self, asks: Iterable[Ask]) -> None:
        """Each once, one after the other."""
        for ask in asks:
            await self._ask(ask)

    async def _customer(self, visits: Iterable[Visit]) -> None:
        async with self._turn:
            for visit in visits:
                await _all([self._ask(ask) for ask in (visit.asks * 2 if visit.twin else visit.asks)])
                self.settled_count += len(visit.asks)

    async def _ask(self, ask: Ask) -> None:
        """Deliver again, with the same request id, until there is an answer. Raises DemoError, GuerdonError."""
        pause = _PAUSE_SECONDS_MIN
        give_up_at = perf_counter() + _UNANSWERED_SECONDS_MAX
        while True:
            await self._serving.wait()
            outcome = await self._attempt(ask)
            if outcome is not None:
                self.answers.record(ask, outcome)
                self._observe(self.answers)
                return
            if perf_counter() > give_up_at:
                raise DemoError(f"{ask.request_id} had no answer for {_UNANSWERED_SECONDS_MAX:.0f} s.")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    async def _attempt(self, ask: Ask) -> Granted | Rejected | None:
        """None: no answer, or not yet."""
        started = perf_counter()
        try:
            outcome = await self._client.issue_prize(
                promotion_id=self._scenario.promotion_id,
                entrance_id=ENTRANCE,
                prize_id=ask.prize_id,
                user_id=ask.user_id,
                request_id=ask.request_id,
                reference=ask.reference,
                attributes=ask.attributes,
            )
        except GuerdonError as error:
            if not error.retryable:
                raise
            self.answers.lost_count += 1
            return None
        if isinstance(outcome, PendingOutcome):
            self.answers.pending_count += 1
            return None
        self.answers.latencies_seconds.append(perf_counter() - started)
        return outcome


def _by_customer(visits: Iterable[Visit]) -> Iterable[Sequence[Visit]]:
    customers: dict[str, list[Visit]] = {}
    for visit in visits:
        customers.setdefault(visit.purchase.customer, []).append(visit)
    return customers.values()


async def _all(work: Iterable[Coroutine[None, None, None]]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # one is enough to stop the demo

"""Delivering requests until each has an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from time import perf_counter

from guerdon import AsyncClient, Granted, GuerdonError, PendingOutcome, Rejected
from guerdon_server.demo.answers import Answers
from guerdon_server.demo.errors import DemoError
from guerdon_server.demo.scenario import ENTRANCE, Ask, Scenario, Visit

VISITS_AT_ONCE_MAX = 16
"""Each has three requests in flight, or six. More would only wait longer: this many keep two cores busy."""

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

    async def in_order(self, visits: Iterable[Visit]) -> None:
        """Started in the given order, at most VISITS_AT_ONCE_MAX at once; one customer's each after the one before.

        Raises DemoError, GuerdonError.
        """
        latest: dict[str, asyncio.Task[None]] = {}
        free = asyncio.Semaphore(VISITS_AT_ONCE_MAX)
        async with _first_failure(), asyncio.TaskGroup() as group:
            for visit in visits:
                await free.acquire()
                customer = visit.purchase.customer
                latest[customer] = group.create_task(self._visit(visit, latest.get(customer), free))

    async def asks(self, asks: Iterable[Ask]) -> None:
        """Each once, one after the other."""
        for ask in asks:
            await self._ask(ask)

    async def _visit(self, visit: Visit, before: asyncio.Task[None] | None, free: asyncio.Semaphore) -> None:
        if before is not None:
            await before
        async with asyncio.TaskGroup() as group:
            for ask in visit.asks * 2 if visit.twin else visit.asks:
                group.create_task(self._ask(ask))
        self.settled_count += len(visit.asks)
        free.release()

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


@asynccontextmanager
async def _first_failure() -> AsyncIterator[None]:
    """One failure is enough to stop the demo: the first, instead of groups of groups."""
    try:
        yield
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None

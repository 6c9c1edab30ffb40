"""Settling off the reply path: a bounded queue that outlives an absence of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from guerdon_server.core.stock.model import SettleCode, Settlement
from guerdon_server.platform.redis import RedisUnavailable

_logger = logging.getLogger(__name__)


class SettleQueue:
    """Sends settlements in the background, coalesced by group, and again after a pause while Redis is away.

    `send(group, settlements)` raises RedisUnavailable when it should be tried again. The queue holds `queue_items_max`;
    beyond that the oldest are dropped and counted: their admissions stay open until the sweeper resolves them by
    fences, so what a drop costs is time and never correctness.

    Metrics: `queued_items`, `dropped_total`, `retries_total`.
    """

    def __init__(
        self,
        send: Callable[[int, Sequence[Settlement]], Awaitable[None]],
        *,
        batch_items_max: int,
        queue_items_max: int,
        gather_seconds: float,
        pause_seconds_min: float,
        pause_seconds_max: float,
    ) -> None:
        self.dropped_total = 0
        self.retries_total = 0
        self._send = send
        self._batch_items_max = batch_items_max
        self._queue_items_max = queue_items_max
        self._gather_seconds = gather_seconds
        self._pause_seconds_min = pause_seconds_min
        self._pause_seconds_max = pause_seconds_max
        self._queue: deque[tuple[int, Settlement]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._put_total = 0
        self._done_total = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._closed = False

    @property
    def queued_items(self) -> int:
        """How many wait, those of the batch that is being sent not counted."""
        return len(self._queue)

    def put(self, group: int, settlements: Iterable[Settlement]) -> None:
        """Enqueue; never waits and never fails."""
        added = [(group, settlement) for settlement in settlements]
        self._queue.extend(added)
        self._put_total += len(added)
        if any(settlement.code is SettleCode.GIVEN_BACK for _, settlement in added):
            self._hurry.set()  # somebody is refused what this holds
        self._drop_oldest()
        if self._queue and self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._drain(), name="gate settling")

    async def sent(self, seconds_max: float) -> None:
        """Wait until all that was put before this call has been sent or dropped, for at most `seconds_max`."""
        target = self._put_total
        if self._done_total >= target or self._closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((target, waiter))
        await asyncio.wait({waiter}, timeout=seconds_max)

    def _done(self, count: int) -> None:
        self._done_total += count
        while self._waiters and self._waiters[0][0] <= self._done_total:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def aclose(self, seconds_max: float) -> None:
        """Send what is queued, for at most `seconds_max`; what is left then is dropped and counted."""
        self._closed = True
        if self._task is not None:
            _, unfinished = await asyncio.wait({self._task}, timeout=seconds_max)
            for task in unfinished:
                task.cancel()
                await asyncio.wait({task})
        self.dropped_total += len(self._queue)
        self._queue.clear()

    async def _drain(self) -> None:
        pause_seconds = self._pause_seconds_min
        try:
            while self._queue:
                if len(self._queue) < self._batch_items_max and not self._closed:
                    # A call costs as much as many settlements, and nobody waits for grants to be settled.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._gather_seconds):
                            await self._hurry.wait()
                self._hurry.clear()
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_items_max))]
                unsent = await self._send_batch(batch)
                self._done(len(batch) - len(unsent))
                if not unsent:
                    pause_seconds = self._pause_seconds_min
                    continue
                self.retries_total += 1
                self._queue.extendleft(reversed(unsent))
                self._drop_oldest()
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, self._pause_seconds_max)
        finally:
            self._task = None

    async def _send_batch(self, batch: Sequence[tuple[int, Settlement]]) -> list[tuple[int, Settlement]]:
        """What could not be sent now."""
        by_group: dict[int, list[Settlement]] = {}
        for group, settlement in batch:
            by_group.setdefault(group, []).append(settlement)
        outcomes = await asyncio.gather(
            *(self._send(group, settlements) for group, settlements in by_group.items()), return_exceptions=True
        )
        unsent = []
        for (group, settlements), outcome in zip(by_group.items(), outcomes, strict=True):
            if isinstance(outcome, RedisUnavailable):
                unsent += [(group, settlement) for settlement in settlements]
            elif isinstance(outcome, BaseException):
                # A defect, and these very settlements may be its cause: never again, or the queue stands still.
                self.dropped_total += len(settlements)
                _logger.error("settling failed", exc_info=outcome, extra={"group": group, "items": len(settlements)})
        return unsent

    def _drop_oldest(self) -> None:
        while len(self._queue) > self._queue_items_max:
            self._queue.popleft()
            self.dropped_total += 1
            self._done(1)

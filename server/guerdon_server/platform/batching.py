"""Group commit: while a batch is in flight, the next one forms.

A batch starts when the event loop has been quiet for a few ticks, which take microseconds where nothing is to be done:
idle traffic pays no delay. A call to Redis or PostgreSQL costs as much CPU as several requests, so a busy server must
not make one for each: where the last batch had several items, less than half as many (and less than enough) wait for
`gather_seconds`. Every queue has a named maximum, of items and of the time that the first of them has waited.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Generic, TypeAlias, TypeVar

from guerdon_server.platform.errors import Code, ServiceError

Item = TypeVar("Item")
Result = TypeVar("Result")
QUIET_TICKS = 3
TICKS_MAX = 32
BUSY_ITEMS = 4
"""A batch of so many says that the next items are on their way."""
GATHER_SECONDS = 0.002
ENOUGH_ITEMS = 64
"""For batches that cost a round trip each: a second one in flight should carry at least so many."""


RETRY_AFTER_MS = 100
_Waiter: TypeAlias = tuple[Sequence[Item], asyncio.Future[Sequence[Result]], float]
"""A chunk, what its caller awaits, and when it came."""


class QueueFull(ServiceError):
    """RESOURCE_EXHAUSTED / OVERLOADED: the queue is at its maximum; nothing was enqueued."""

    def __init__(self, name: str, full: str) -> None:
        super().__init__(
            Code.RESOURCE_EXHAUSTED,
            "OVERLOADED",
            f"{name}: {full}; retry with the same request id",
            metadata={"queue": name},
            retry_after_ms=RETRY_AFTER_MS,
        )


class CoalescerClosed(ServiceError):
    """UNAVAILABLE / SHUTTING_DOWN: the coalescer drains or has drained; nothing was enqueued."""

    def __init__(self, name: str) -> None:
        super().__init__(
            Code.UNAVAILABLE,
            "SHUTTING_DOWN",
            f"{name} accepts no more work; retry on another server with the same request id",
            retry_after_ms=RETRY_AFTER_MS,
        )


class BatchCancelled(ServiceError):
    """UNAVAILABLE / OUTCOME_UNKNOWN: the task that ran the batch was cancelled; what it had begun may have happened."""

    def __init__(self, name: str) -> None:
        super().__init__(
            Code.UNAVAILABLE,
            "OUTCOME_UNKNOWN",
            f"{name}: the batch was cancelled, its outcome is unknown: retry with the same request id",
            retry_after_ms=RETRY_AFTER_MS,
        )


class Coalescer(Generic[Item, Result]):
    """Joins the chunks of many callers into batches for `run`, one future per chunk.

    `run` gets between 1 and `items_max` items in order of arrival and returns as many results in the same order; its
    exception goes to every waiter of that batch (BatchCancelled when it is cancelled itself). A chunk is never split.
    At most `in_flight_max` batches run at once, and beside another only one of at least `enough_items`: a small one
    costs a whole round trip too, so less waits for more; and alone, less than half of a last batch of `BUSY_ITEMS` or
    more waits for `gather_seconds`.

    While the first chunk in the queue has waited for `queue_seconds_max`, no more are taken: whoever came now would
    wait at least as long, for an answer that he may have given up by then.

    A caller's cancellation never cancels a batch. A chunk that was cancelled while still queued is not run at all
    (`on_unrun(items)` tells the owner); one that was in flight is run to its end, and `on_dropped(items, results)`
    tells what nobody waits for.

    Metrics are plain attributes, to be read at any time, from any thread: `queued_items`, `in_flight`, `batches_total`,
    `items_total`, `refused_total` (chunks that found no room), `queue_age_seconds()`.
    `on_batch(items, seconds)` is called after each batch, also after one that failed.

    Belongs to the event loop in which `submit` is first called.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        items_max: int,
        in_flight_max: int,
        queue_items_max: int,
        queue_seconds_max: float = inf,
        name: str,
        enough_items: int = 1,
        gather_seconds: float = GATHER_SECONDS,
        quiet_ticks: int = QUIET_TICKS,
        ticks_max: int = TICKS_MAX,
        on_batch: Callable[[int, float], None] | None = None,
        on_dropped: Callable[[Sequence[Item], Sequence[Result]], None] | None = None,
        on_unrun: Callable[[Sequence[Item]], None] | None = None,
    ) -> None:
        assert items_max >= 1
        assert in_flight_max >= 1
        assert enough_items >= 1
        assert queue_items_max >= items_max, "a full batch must fit the queue"
        self.name = name
        self.queued_items = 0
        self.in_flight = 0
        self.batches_total = 0
        self.items_total = 0
        self.refused_total = 0
        self._run = run
        self._gather_seconds = gather_seconds
        self._quiet_ticks_needed = quiet_ticks
        self._ticks_max = ticks_max
        self._items_max = items_max
        self._in_flight_max = in_flight_max
        self._queue_items_max = queue_items_max
        self._queue_seconds_max = queue_seconds_max
        self._enough_items = enough_items
        self._on_batch = on_batch
        self._on_dropped = on_dropped
        self._on_unrun = on_unrun
        self._queue: deque[_Waiter[Item, Result]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering = False
        self._last_items = 0
        self._gathered_items = 0
        self._quiet_ticks = 0
        self._ticks = 0
        self._closed = False
        self._drained: asyncio.Future[None] | None = None

    def submit(self, items: Sequence[Item]) -> asyncio.Future[Sequence[Result]]:
        """Enqueue one chunk of 1..`items_max` items; await the future for its results, in the chunk's order.

        Not a coroutine: this is the hot path of every request, and a future alone is cheaper than both.
        Raises `QueueFull` and `CoalescerClosed` before anything is enqueued.
        """
        count = len(items)
        assert 0 < count <= self._items_max, f"{self.name}: a chunk of {count} items, 1..{self._items_max} are possible"
        now = self.check_room(count)
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[Result]] = loop.create_future()
        self._queue.append((items, future, now))
        self.queued_items += count
        if not self._gathering and self._may_start():
            self._gather_from_now()
        return future

    def check_room(self, count: int) -> float:
        """Whether a chunk of so many would be taken: what `submit` checks, for callers who ask before other work.

        Returns the time, as of `time.monotonic`. Raises `QueueFull` and `CoalescerClosed`.
        """
        if self._closed:
            raise CoalescerClosed(self.name)
        if self.queued_items + count > self._queue_items_max:
            self.refused_total += 1
            raise QueueFull(self.name, f"{self._queue_items_max} items are waiting, the most that may")
        now = time.monotonic()
        if self._queue and (waited := now - self._queue[0][2]) > self._queue_seconds_max:
            self.refused_total += 1
            most_ms = self._queue_seconds_max * 1000
            raise QueueFull(self.name, f"items wait for {waited * 1000:.0f} ms, and {most_ms:.0f} is the most")
        return now

    def queue_age_seconds(self) -> float:
        """How long the first chunk in the queue has waited by now; 0 where none waits. From any thread."""
        try:
            came = self._queue[0][2]
        except IndexError:  # not asked before: a scrape comes from another thread
            return 0.0
        return max(0.0, time.monotonic() - came)

    async def aclose(self) -> None:
        """Refuse new work, finish what is queued and in flight, then return. Idempotent."""
        self._closed = True
        if self._queue or self.in_flight:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def _gather_from_now(self) -> None:
        assert self._loop is not None
        self._gathering = True
        self._gathered_items = self._quiet_ticks = self._ticks = 0
        self._loop.call_soon(self._gather)

    def _gather(self) -> None:
        """Once a loop tick: go on while items keep coming; then, if the last batch says that it is a busy time, sleep.

        Sleeping, not spinning: what is on its way can only arrive when the loop waits for it.
        """
        self._ticks += 1
        if self.queued_items == self._gathered_items:
            self._quiet_ticks += 1
        else:
            self._quiet_ticks = 0
            self._gathered_items = self.queued_items
        if (
            self._quiet_ticks < self._quiet_ticks_needed
            and self._ticks < self._ticks_max
            and self.queued_items < self._items_max
        ):
            assert self._loop is not None
            self._loop.call_soon(self._gather)
            return
        last = self._last_items
        if last >= BUSY_ITEMS and self.queued_items < min(self._enough_items, last / 2):
            assert self._loop is not None
            self._loop.call_later(self._gather_seconds, self._gathered)
        else:
            self._gathered()

    def _gathered(self) -> None:
        self._gathering = False
        self._start()

    def _start(self) -> None:
        """Start as many batches as may be in flight."""
        assert self._loop is not None
        while self._queue and self._may_start():
            items, waiters = self._take()
            if not items:
                continue
            self.in_flight += 1
            self._last_items = len(items)
            task = self._loop.create_task(self._run_batch(items, waiters))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._drained is not None and not self._queue and not self.in_flight and not self._drained.done():
            self._drained.set_result(None)

    def _may_start(self) -> bool:
        if not self.in_flight:
            return True
        return self.in_flight < self._in_flight_max and self.queued_items >= self._enough_items

    def _take(self) -> tuple[list[Item], list[_Waiter[Item, Result]]]:
        """The next batch: whole chunks, oldest first, without those that were cancelled while they waited."""
        items: list[Item] = []
        waiters: list[_Waiter[Item, Result]] = []
        queue = self._queue
        while queue and len(items) + len(queue[0][0]) <= self._items_max:
            waiter = queue.popleft()
            self.queued_items -= len(waiter[0])
            if not waiter[1].cancelled():
                items.extend(waiter[0])
                waiters.append(waiter)
            elif self._on_unrun is not None:
                self._on_unrun(waiter[0])
        return items, waiters

    async def _run_batch(self, items: list[Item], waiters: list[_Waiter[Item, Result]]) -> None:
        count = len(items)
        started = time.perf_counter()
        try:
            results = await self._run(items)
            assert len(results) == count, f"{self.name}: {len(results)} results for {count} items"
        except BaseException as error:
            for _, future, _ in waiters:
                if not future.done():
                    future.set_exception(_as_exception(error, self.name))
            if not isinstance(error, Exception):
                raise
        else:
            self._hand_out(results, waiters)
        finally:
            self.in_flight -= 1
            self.batches_total += 1
            self.items_total += count
            if self._on_batch is not None:
                self._on_batch(count, time.perf_counter() - started)
            if self._queue and not self._closed:
                if not self._gathering and self._may_start():
                    self._gather_from_now()
            else:
                self._start()

    def _hand_out(self, results: Sequence[Result], waiters: list[_Waiter[Item, Result]]) -> None:
        at = 0
        for items, future, _ in waiters:
            until = at + len(items)
            if not future.done():
                future.set_result(results[at:until])
            elif self._on_dropped is not None:
                self._on_dropped(items, results[at:until])
            at = until


def _as_exception(error: BaseException, name: str) -> BaseException:
    """A cancelled batch (its loop is being shut down) must not look to its waiters as if they had been cancelled."""
    if isinstance(error, asyncio.CancelledError):
        return BatchCancelled(name)
    return error

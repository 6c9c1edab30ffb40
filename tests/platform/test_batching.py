"""Group commit without a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf

import pytest

from guerdon_server.platform.batching import BUSY_ITEMS, BatchCancelled, Coalescer, CoalescerClosed, QueueFull


class Recorder:
    """Answers each item with its double; `release` lets batches go on when `held`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.release = asyncio.Event()
        self.release.set()
        self.most_at_once = 0
        self._at_once = 0

    async def run(self, items: list[int]) -> Sequence[int]:
        self.batches.append(items)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await self.release.wait()
        self._at_once -= 1
        if -1 in items:
            raise ValueError("poison")
        return [2 * item for item in items]


def coalescer(
    recorder: Recorder,
    *,
    items_max: int = 4,
    in_flight_max: int = 1,
    queue_items_max: int = 100,
    queue_seconds_max: float = inf,
    enough_items: int = 1,
    gather_seconds: float = 0.002,
) -> Coalescer[int, int]:
    return Coalescer(
        recorder.run,
        items_max=items_max,
        in_flight_max=in_flight_max,
        queue_items_max=queue_items_max,
        queue_seconds_max=queue_seconds_max,
        enough_items=enough_items,
        gather_seconds=gather_seconds,
        name="test",
    )


async def together(*futures: asyncio.Future[Sequence[int]]) -> list[list[int]]:
    return [list(results) for results in await asyncio.gather(*futures)]


async def _ticks(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_chunk_gets_its_own_results() -> None:
    recorder = Recorder()
    joined = coalescer(recorder)
    assert await together(joined.submit([1]), joined.submit([2, 3]), joined.submit([4])) == [[2], [4, 6], [8]]
    assert recorder.batches == [[1, 2, 3, 4]], "the requests of one tick of the loop are one batch"
    assert (joined.batches_total, joined.items_total, joined.queued_items, joined.in_flight) == (1, 4, 0, 0)


async def test_while_a_batch_is_in_flight_the_next_one_forms() -> None:
    recorder = Recorder()
    joined = coalescer(recorder)
    recorder.release.clear()
    first = joined.submit([0])
    await _ticks()
    rest = [joined.submit([number]) for number in range(1, 7)]
    await _ticks()
    assert recorder.batches == [[0]]
    assert (joined.queued_items, joined.in_flight) == (6, 1)
    recorder.release.set()
    await asyncio.gather(first, *rest)
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_chunk_is_never_split() -> None:
    recorder = Recorder()
    joined = coalescer(recorder)
    await asyncio.gather(joined.submit([1, 1, 1]), joined.submit([2, 2]), joined.submit([3, 3]), joined.submit([4]))
    assert recorder.batches == [[1, 1, 1], [2, 2, 3, 3], [4]]
    with pytest.raises(AssertionError, match="5 items"):
        joined.submit([1] * 5)


async def test_a_small_batch_does_not_start_beside_another() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, in_flight_max=2, enough_items=3)
    recorder.release.clear()
    futures = [joined.submit([1])]
    await _ticks(100)
    futures.append(joined.submit([2, 3]))
    await _ticks(100)
    assert recorder.batches == [[1]]
    futures.append(joined.submit([4]))
    await _ticks(100)
    assert recorder.batches == [[1], [2, 3, 4]]
    recorder.release.set()
    assert await together(*futures) == [[2], [4, 6], [8]]


async def test_in_a_busy_time_a_few_items_wait_for_more() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, items_max=100, enough_items=10, gather_seconds=0.2)
    await joined.submit([1] * (BUSY_ITEMS + 2))
    futures = [joined.submit([1])]
    await _ticks(100)
    futures.append(joined.submit([2]))
    assert await together(*futures) == [[2], [4]]
    assert recorder.batches == [[1] * (BUSY_ITEMS + 2), [1, 2]]


async def test_in_a_busy_time_enough_items_do_not_wait() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, items_max=100, enough_items=10, gather_seconds=3600)
    await joined.submit([1] * BUSY_ITEMS)
    assert await joined.submit([1] * 10) == [2] * 10


async def test_in_a_busy_time_half_as_many_as_the_last_batch_do_not_wait() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, items_max=100, enough_items=100, gather_seconds=3600)
    await joined.submit([1] * 20)
    assert await joined.submit([1] * 10) == [2] * 10
    assert await joined.submit([1] * 5) == [2] * 5


async def test_in_a_quiet_time_nobody_waits() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, items_max=100, enough_items=10, gather_seconds=3600)
    for number in range(5):
        assert await joined.submit([number]) == [2 * number]
    assert await joined.submit([1] * (BUSY_ITEMS - 1)) == [2] * (BUSY_ITEMS - 1)
    assert await joined.submit([1]) == [2]


async def test_so_many_batches_are_in_flight_and_no_more() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, items_max=1, in_flight_max=3)
    recorder.release.clear()
    futures = [joined.submit([number]) for number in range(10)]
    await _ticks()
    assert joined.in_flight == 3
    recorder.release.set()
    assert await together(*futures) == [[2 * number] for number in range(10)]
    assert recorder.most_at_once == 3


async def test_a_full_queue_refuses_before_it_enqueues() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, queue_items_max=4)
    recorder.release.clear()
    running = joined.submit([1, 2, 3, 4])
    await _ticks()
    queued = joined.submit([5, 6, 7])
    with pytest.raises(QueueFull) as refusal:
        joined.submit([8, 9])
    assert refusal.value.reason == "OVERLOADED"
    assert joined.queued_items == 3
    fits = joined.submit([8])
    recorder.release.set()
    assert await together(running, queued, fits) == [[2, 4, 6, 8], [10, 12, 14], [16]]


async def test_a_queue_that_does_not_move_refuses_until_it_moves_again() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, items_max=2, queue_seconds_max=0.02)
    recorder.release.clear()
    running = joined.submit([1, 2])
    await _ticks()
    queued = joined.submit([3])
    joined.check_room(1)
    await asyncio.sleep(0.03)
    with pytest.raises(QueueFull, match=r"items wait for \d+ ms, and 20 is the most") as refusal:
        joined.check_room(1)
    assert refusal.value.reason == "OVERLOADED"
    assert refusal.value.retry_after_ms
    with pytest.raises(QueueFull):
        joined.submit([4])
    assert joined.queued_items == 1
    recorder.release.set()
    assert await together(running, queued) == [[2, 4], [6]]
    assert await joined.submit([4]) == [8]


async def test_an_error_goes_to_every_waiter_of_its_batch_and_to_no_other() -> None:
    recorder = Recorder()
    joined = coalescer(recorder)
    futures = [joined.submit(chunk) for chunk in ([1, 2], [-1, 3], [4, 5])]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError, list]
    assert await joined.submit([7]) == [14]


async def test_a_cancelled_batch_leaves_its_callers_in_doubt_and_not_cancelled() -> None:
    async def cancelled(_: list[int]) -> list[int]:
        raise asyncio.CancelledError

    joined = Coalescer(cancelled, items_max=2, in_flight_max=1, queue_items_max=2, name="test")
    with pytest.raises(BatchCancelled) as left_open:
        await joined.submit([1])
    assert left_open.value.reason == "OUTCOME_UNKNOWN"
    await joined.aclose()


async def test_a_cancelled_caller_does_not_cancel_the_batch() -> None:
    recorder = Recorder()
    dropped: list[tuple[Sequence[int], Sequence[int]]] = []
    joined = Coalescer(
        recorder.run,
        items_max=4,
        in_flight_max=1,
        queue_items_max=10,
        name="test",
        on_dropped=lambda items, results: dropped.append((items, results)),
    )
    recorder.release.clear()
    leaves, stays = joined.submit([1]), joined.submit([2])
    await _ticks()
    leaves_queued, stays_queued = joined.submit([3]), joined.submit([4])
    leaves.cancel()
    leaves_queued.cancel()
    recorder.release.set()
    assert await stays == [4]
    assert await stays_queued == [8]
    assert recorder.batches == [[1, 2], [4]], "what was cancelled before it was sent is not sent"
    assert dropped == [([1], [2])]


async def test_closing_finishes_what_is_queued_and_refuses_the_rest() -> None:
    recorder = Recorder()
    joined = coalescer(recorder, items_max=2)
    recorder.release.clear()
    futures = [joined.submit([number]) for number in range(5)]
    closing = asyncio.ensure_future(joined.aclose())
    await _ticks()
    with pytest.raises(CoalescerClosed):
        joined.submit([9])
    assert not closing.done()
    recorder.release.set()
    await closing
    assert [future.result() for future in futures] == [[2 * number] for number in range(5)]
    await joined.aclose()


async def test_closing_when_every_waiter_has_left() -> None:
    recorder = Recorder()
    joined = coalescer(recorder)
    joined.submit([1]).cancel()
    await asyncio.wait_for(joined.aclose(), 10)
    assert recorder.batches == []


async def test_batches_are_reported_also_those_that_failed() -> None:
    recorder = Recorder()
    reported: list[int] = []
    joined = Coalescer(
        recorder.run,
        items_max=4,
        in_flight_max=1,
        queue_items_max=10,
        name="test",
        on_batch=lambda items, seconds: reported.append(items if seconds >= 0 else -1),
    )
    await joined.submit([1, 2])
    with pytest.raises(ValueError, match="poison"):
        await joined.submit([-1])
    assert reported == [2, 1]

"""When calls are too many: more than may be, or more than are answered in time."""

from __future__ import annotations

import asyncio

from guerdon_server.rpc.call_limit import OVERLOADED, SHUTTING_DOWN, CallLimit, Priority
from guerdon_server.rpc.server import METHODS, priority_of

SECONDS_MAX = 0.25


class Shop:
    """A limit under a clock that the test moves."""

    def __init__(self, in_flight_max: int = 100_000, reads_in_flight_max: int = 100) -> None:
        self.now = 100.0
        self.busy = False
        self.limit = CallLimit(
            in_flight_max,
            SECONDS_MAX,
            reads_in_flight_max=reads_in_flight_max,
            busy=lambda: self.busy,
            clock=lambda: self.now,
        )

    def takes(self, calls: int, priority: Priority = Priority.ISSUING) -> int:
        """How many of so many are begun."""
        begun = 0
        for _ in range(calls):
            if self.limit.refusal(priority) is None:
                self.limit.begun(priority)
                begun += 1
        return begun

    @property
    def in_flight(self) -> int:
        return self.limit.in_flight[Priority.ISSUING]

    @property
    def shed_total(self) -> int:
        return self.limit.shed_total[Priority.ISSUING]

    def serves(self, *, per_second: int, arriving: int, seconds: float) -> list[int]:
        """Every 10 ms: calls in flight."""
        seen = []
        for _ in range(round(seconds * 100)):
            self.takes(arriving // 100)
            for _ in range(min(per_second // 100, self.in_flight)):
                self.limit.ended(Priority.ISSUING)
            self.now += 0.01
            seen.append(self.in_flight)
        return seen


async def test_what_is_answered_slowly_is_kept_as_short_as_it_may_wait() -> None:
    shop = Shop()
    steady = shop.serves(per_second=8000, arriving=24_000, seconds=3)[100:]
    assert max(steady) <= 8000 * SECONDS_MAX * 1.2
    assert min(steady) >= 8000 * SECONDS_MAX * 0.5  # and not more than has to be is refused
    assert shop.shed_total > 24_000


async def test_what_is_answered_fast_is_not_refused() -> None:
    shop = Shop()
    shop.serves(per_second=9000, arriving=8000, seconds=3)
    assert shop.shed_total == 0


async def test_an_idle_server_takes_a_burst() -> None:
    shop = Shop()
    shop.serves(per_second=200, arriving=100, seconds=1)
    shop.now += 60
    assert shop.takes(2000) == 2000
    assert shop.shed_total == 0


async def test_a_server_whose_stores_stand_still_takes_no_more_than_a_burst() -> None:
    shop = Shop()
    shop.serves(per_second=8000, arriving=7000, seconds=1)
    shop.serves(per_second=0, arriving=7000, seconds=3)
    assert shop.in_flight <= 8000 * SECONDS_MAX * 1.2
    assert shop.limit.refusal(Priority.ISSUING) is OVERLOADED


async def test_there_is_a_most() -> None:
    shop = Shop(in_flight_max=10)
    assert shop.takes(15) == 10
    assert shop.limit.refusal(Priority.ISSUING) is OVERLOADED


async def test_after_the_drain_began_nothing_is_taken() -> None:
    shop = Shop()
    await shop.limit.drain()
    assert {shop.limit.refusal(priority) for priority in Priority} == {SHUTTING_DOWN}


async def test_a_drain_waits_for_calls_of_every_kind() -> None:
    shop = Shop()
    for priority in Priority:
        assert shop.takes(1, priority) == 1
    drained = asyncio.create_task(shop.limit.drain())
    for priority in Priority:
        await asyncio.sleep(0)
        assert not drained.done()
        shop.limit.ended(priority)
    await drained


async def test_reads_get_what_issuing_leaves() -> None:
    shop = Shop(reads_in_flight_max=100)
    assert shop.takes(90) == 90
    assert shop.takes(50, Priority.READING) == 10
    assert shop.limit.refusal(Priority.READING) is OVERLOADED
    assert shop.takes(1000) == 1000, "reads take nothing from issuing"
    assert shop.shed_total == 0
    assert shop.limit.shed_total[Priority.READING] == 41


async def test_a_few_reads_are_answered_however_much_is_issued() -> None:
    shop = Shop(in_flight_max=1000)
    assert shop.takes(1001) == 1000
    assert shop.takes(10, Priority.READING) == 4


async def test_while_queues_are_old_few_reads_are_taken() -> None:
    shop = Shop()
    shop.busy = True
    assert shop.takes(10, Priority.READING) == 4
    assert shop.takes(10) == 10
    shop.busy = False
    assert shop.takes(10, Priority.READING) == 10


async def test_operators_have_room_of_their_own_and_take_none() -> None:
    shop = Shop(in_flight_max=10)
    assert shop.takes(11) == 10
    assert shop.takes(1000, Priority.READING) < 1000
    assert shop.takes(1000, Priority.OPERATING) == 64
    for _ in range(10):
        shop.limit.ended(Priority.ISSUING)
    assert shop.takes(11) == 10


async def test_reads_and_operators_do_not_count_as_answered_when_issuing_is_slow() -> None:
    shop = Shop()
    shop.serves(per_second=1000, arriving=1000, seconds=1)
    for _ in range(300):
        shop.takes(100)
        for priority in (Priority.READING, Priority.OPERATING):
            for _ in range(shop.takes(60, priority)):
                shop.limit.ended(priority)
        shop.now += 0.01
    assert shop.in_flight < 2000


def test_every_method_has_its_place() -> None:
    found = {priority: set[str]() for priority in Priority}
    for path in METHODS:
        name = path.rpartition("/")[2]
        found[priority_of(name)].add(name)
    assert found[Priority.ISSUING] == {"IssuePrize", "BatchIssuePrizes", "GetIssuance"}
    assert found[Priority.OPERATING] == {
        *("CreatePromotion", "UpdatePromotion", "TransitionPromotion", "AdjustPromotionBudget"),
        *("CreatePrize", "UpdatePrize", "AdjustPrizeStock", "CreateEntrance", "UpdateEntrance"),
    }
    assert all(name.startswith(("Get", "List")) for name in found[Priority.READING])

"""One promotion over several groups: units move between them, none is made, none is stranded, sold out is true."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from redis.crc import key_slot

from guerdon_server.core.stock.buckets import BUCKETS_MAX, bucket_of, tags
from guerdon_server.core.stock.model import (
    AdmitCode,
    AdmitItem,
    Answer,
    GateState,
    GateUnavailable,
    Reconciled,
    SettleCode,
    Settlement,
    Share,
    Tag,
)
from guerdon_server.core.stock.redis.store import RedisGate, keys
from guerdon_server.core.stock.service import Gate
from guerdon_server.platform.redis import Client, RedisUnavailable
from tests.stock.conftest import BUDGET, GROUP, SETTINGS, STOCK, GateFactory, item
from tests.stock.ledger import MemoryLedger
from tests.stock.waiting import eventually, settled

BUCKETS = 3
_numbers = itertools.count()


@pytest.fixture
def ledger() -> MemoryLedger:
    """10 of STOCK, 1000 of BUDGET, three buckets."""
    ledger = MemoryLedger()
    ledger.add(STOCK, 10)
    ledger.add(BUDGET, 1000)
    ledger.set_buckets(GROUP, BUCKETS)
    return ledger


def of(bucket: int, *claims: tuple[int, int], limit: tuple[str, int] = ("-", 0)) -> AdmitItem:
    """An item whose request belongs to this bucket."""
    request_id = next(r for n in _numbers if bucket_of(r := f"r{n}", BUCKETS) == bucket)
    return item(request_id, *claims, limit=limit)


async def admit(gate: Gate, *items: AdmitItem) -> list[Answer]:
    return list((await gate.admit(GROUP, items)).answers)


async def codes(gate: Gate, *items: AdmitItem) -> list[AdmitCode]:
    return [answer.code for answer in await admit(gate, *items)]


async def states(store: RedisGate) -> list[GateState]:
    return [await store.inspect(tag, resources=True) for tag in tags(GROUP, BUCKETS)]


async def free(store: RedisGate, resource: int = STOCK) -> list[int]:
    """Units that each bucket may still admit for."""
    return [r.capacity - r.used for state in await states(store) for r in state.resources if r.resource == resource]


class Broken(RedisGate):
    """Calls that `fails` names are not answered, before or after they took effect."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.fails: dict[tuple[str, Tag], str] = {}

    async def _broken(self, name: str, group: Tag, call: Any) -> Any:
        when = self.fails.get((name, group))
        if when == "before":
            call.close()
            raise RedisUnavailable("lost on its way")
        answer = await call
        if when == "after":
            raise RedisUnavailable("the reply is lost")
        return answer

    async def give(self, group: Tag, **rest: Any) -> Mapping[int, Share] | None:
        return await self._broken("give", group, super().give(group, **rest))  # type: ignore[no-any-return]

    async def receive(self, group: Tag, **rest: Any) -> int | None:
        return await self._broken("receive", group, super().receive(group, **rest))  # type: ignore[no-any-return]

    async def admit(self, group: Tag, **rest: Any) -> list[Answer] | None:
        return await self._broken("admit", group, super().admit(group, **rest))  # type: ignore[no-any-return]

    async def inspect(self, group: Tag, *, resources: bool) -> GateState:
        return await self._broken("inspect", group, super().inspect(group, resources=resources))  # type: ignore[no-any-return]

    def loses(self, *buckets: int) -> None:
        """Nobody answers there."""
        for name in ("give", "receive", "admit", "inspect"):
            for bucket in buckets:
                self.fails[name, tags(GROUP, BUCKETS)[bucket]] = "before"


@pytest.fixture
def broken(redis_client: Client) -> Broken:
    return Broken(redis_client)


# --- which bucket ---------------------------------------------------------------------------------------------------


def test_requests_spread_and_always_come_to_the_same_bucket() -> None:
    counts = Counter(bucket_of(f"order-{number:08}", 8) for number in range(8000))
    assert set(counts) == set(range(8))
    assert min(counts.values()) > 850
    # Never to change, or requests would be admitted twice.
    assert [bucket_of(request_id, 7) for request_id in ("a", "order-1", "ü")] == [4, 6, 4]


@pytest.mark.parametrize("buckets", [2, 3, 6, BUCKETS_MAX])
def test_buckets_are_at_as_many_nodes_as_there_are(buckets: int) -> None:
    for group in range(1, 30):
        slots = [key_slot(str(tag).encode()) for tag in tags(group, buckets)]
        assert tags(group, buckets)[0] == group
        for nodes in (2, 3, 6):
            served = Counter(slot * nodes // 16384 for slot in slots)
            assert len(served) == min(nodes, buckets), (group, served)
            assert max(served.values()) - min(served.values()) <= 2


# --- units move -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", range(BUCKETS))
async def test_one_bucket_gets_all_that_the_others_have(gate: Gate, store: RedisGate, bucket: int) -> None:
    await admit(gate, *(of(b) for b in range(BUCKETS)))  # so that each has some
    assert min(await free(store)) >= 1
    assert await codes(gate, *(of(bucket) for _ in range(8))) == [AdmitCode.ADMITTED] * 7 + [AdmitCode.REFUSED]
    assert await free(store) == [0, 0, 0]
    (answer,) = await admit(gate, of(bucket))
    assert (answer.code, answer.resource, answer.remaining, answer.sure) == (AdmitCode.REFUSED, STOCK, 0, True)


async def test_an_amount_that_no_bucket_has_alone_is_brought_together(gate: Gate, store: RedisGate) -> None:
    await admit(gate, *(of(b, (BUDGET, 10)) for b in range(BUCKETS)))
    assert max(await free(store, BUDGET)) < 900
    assert await codes(gate, of(1, (STOCK, 1), (BUDGET, 971))) == [AdmitCode.REFUSED]
    assert await codes(gate, of(2, (STOCK, 10), (BUDGET, 970))) == [AdmitCode.ADMITTED]
    assert await codes(gate, of(0, (BUDGET, 1))) == [AdmitCode.REFUSED]


async def test_uneven_crowds_at_several_workers_get_exactly_what_there_is(
    new_gate: GateFactory, ledger: MemoryLedger, store: RedisGate
) -> None:
    ledger.set_capacity(STOCK, 500)
    gates = [new_gate() for _ in range(3)]
    chance = random.Random(7)

    async def crowd(gate: Gate) -> Counter[AdmitCode]:
        counts: Counter[AdmitCode] = Counter()
        for _ in range(100):
            some = [of(min(chance.randrange(9), 2)) for _ in range(chance.randrange(1, 6))]
            counts.update(await codes(gate, *some))
        return counts

    found = sum(await asyncio.gather(*map(crowd, gates * 2)), Counter[AdmitCode]())
    assert found[AdmitCode.ADMITTED] == 500
    # Where units are on the move in every look of a call, it can't know that there is nothing: rarely.
    assert found.keys() <= {AdmitCode.ADMITTED, AdmitCode.REFUSED, AdmitCode.UNKNOWN_RESOURCE}
    assert found[AdmitCode.UNKNOWN_RESOURCE] * 20 < found[AdmitCode.REFUSED]
    assert await free(store) == [0, 0, 0]


async def test_nobody_is_refused_while_a_unit_is_free_somewhere(
    new_gate: GateFactory, ledger: MemoryLedger, store: RedisGate
) -> None:
    """As many units as callers, each of whom gives back what it got: there is always one free, and it moves about."""
    gates = [new_gate() for _ in range(2)]
    callers = 10  # as many as units

    async def caller(number: int) -> None:
        gate = gates[number % 2]
        for _ in range(40):
            one = of(number % BUCKETS)
            assert await codes(gate, one) != [AdmitCode.REFUSED]
            gate.settle(GROUP, [Settlement(one.admission, one.request_id, SettleCode.GIVEN_BACK)])
            await gate.settled()

    await asyncio.gather(*map(caller, range(callers)))
    assert sum(await free(store)) == 10


async def test_what_is_given_back_is_found_by_another_bucket(gate: Gate, store: RedisGate) -> None:
    taken = [of(0) for _ in range(10)]
    await admit(gate, *taken)
    for _ in range(2):  # the second look goes by the first
        assert await codes(gate, of(1)) == [AdmitCode.REFUSED]
    await settled(gate, taken[0], SettleCode.GIVEN_BACK)
    assert await codes(gate, of(1)) == [AdmitCode.ADMITTED]
    assert await codes(gate, of(1)) == [AdmitCode.REFUSED]


# --- every step fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [("give", 0), ("give", 1), ("receive", 1), ("admit", 1)])
async def test_a_lost_step_makes_no_units_and_loses_none(
    broken: Broken, ledger: MemoryLedger, step: tuple[str, int], when: str
) -> None:
    gate = Gate(broken, ledger, settings=SETTINGS)
    await admit(gate, of(0))
    name, bucket = step
    broken.fails[name, tags(GROUP, BUCKETS)[bucket]] = when
    one = of(1)
    try:
        (answer,) = await admit(gate, one)
        assert answer.code is AdmitCode.UNKNOWN_RESOURCE  # never sold out
    except GateUnavailable:
        pass
    assert sum(await free(broken)) <= 9
    broken.fails.clear()
    await gate.settled()
    assert await codes(gate, *(of(2) for _ in range(10))) == [AdmitCode.ADMITTED] * 9 + [AdmitCode.REFUSED]
    await gate.aclose()


async def test_units_on_their_way_are_delivered_by_the_reconciler(broken: Broken, ledger: MemoryLedger) -> None:
    gate = Gate(broken, ledger, settings=SETTINGS)
    one = of(0)
    await admit(gate, one)
    broken.fails["receive", tags(GROUP, BUCKETS)[1]] = "before"
    with pytest.raises(GateUnavailable):
        await gate.admit(GROUP, [of(1)])
    await gate.settled()
    assert sum(await free(broken)) < 9
    broken.fails.clear()
    assert ledger.commit(GROUP, ledger.epochs[GROUP][-1].value, one) == "granted"
    await settled(gate, one, SettleCode.GRANTED)
    assert await gate.reconcile(GROUP) is Reconciled.EQUAL
    assert sum(await free(broken)) == 9
    await gate.aclose()


async def test_a_delivery_that_comes_twice_or_late_adds_once(
    gate: Gate, store: RedisGate, ledger: MemoryLedger
) -> None:
    await admit(gate, of(1))
    epoch = ledger.epochs[GROUP][-1]
    source, target = tags(GROUP, BUCKETS)[:2]
    before = await free(store)
    rest: dict[str, Any] = {"epoch": epoch.value, "run_id": epoch.run_ids[0]}
    told = [await store.give(source, **rest, buckets=3, target=1, wanted={STOCK: 1}) for _ in range(2)]
    totals = [shares[STOCK].given[1] for shares in told if shares]
    for total in (totals[1], totals[0], totals[1]):
        await store.receive(target, **rest, deliveries=[(STOCK, 0, total)])
    after = await free(store)
    assert (sum(after), after[2]) == (sum(before), before[2])
    assert after[1] > before[1]


async def test_units_of_a_former_epoch_stay_in_it(gate: Gate, store: RedisGate, ledger: MemoryLedger) -> None:
    await admit(gate, of(1))
    old = ledger.epochs[GROUP][-1]
    source, target = tags(GROUP, BUCKETS)[:2]
    rest: dict[str, Any] = {"epoch": old.value, "run_id": old.run_ids[0]}
    shares = await store.give(source, **rest, buckets=3, target=1, wanted={STOCK: 1})
    assert shares
    ledger.set_buckets(GROUP, BUCKETS)
    await gate.look_at_epochs()
    await admit(gate, of(1))
    assert await store.receive(target, **rest, deliveries=[(STOCK, 0, shares[STOCK].given[1] + 5)]) is None
    assert await store.give(source, **rest, buckets=3, target=1, wanted={STOCK: 1}) is None
    assert sum(await free(store)) == 9


async def test_a_bucket_that_has_what_nobody_gave_is_found(
    gate: Gate, store: RedisGate, ledger: MemoryLedger, redis_client: Client
) -> None:
    """As after a fail-over that lost the last writes, and that nobody noticed."""
    await admit(gate, of(1))
    epoch = ledger.epochs[GROUP][-1]
    before = await redis_client.hgetall(keys(GROUP)[0])
    await store.give(GROUP, epoch=epoch.value, run_id=epoch.run_ids[0], buckets=3, target=2, wanted={STOCK: 3})
    await gate.exchange.level(GROUP, epoch, [STOCK])
    await redis_client.unlink(keys(GROUP)[0])
    await redis_client.hset(keys(GROUP)[0], mapping=dict(before))  # type: ignore[arg-type]
    assert (await gate.inspect(GROUP)).resources[0].capacity > 10
    assert await gate.reconcile(GROUP) is Reconciled.DRIFTED
    assert sum(await free(store)) == 10


# --- buckets close and are away -------------------------------------------------------------------------------------


async def test_a_lost_bucket_opens_a_new_epoch_with_what_the_ledger_has(
    gate: Gate, ledger: MemoryLedger, store: RedisGate, redis_client: Client
) -> None:
    granted = of(1)
    admitted = await gate.admit(GROUP, [granted, of(2)])
    assert ledger.commit(GROUP, admitted.epoch, granted) == "granted"
    await redis_client.unlink(*keys(tags(GROUP, BUCKETS)[1]))
    assert await codes(gate, *(of(0) for _ in range(10))) == [AdmitCode.ADMITTED] * 9 + [AdmitCode.REFUSED]
    await eventually(lambda: gate.counts.backfilled == 1)
    (answer,) = await admit(gate, item(granted.request_id))
    assert (answer.code, answer.sure) == (AdmitCode.GRANTED_BEFORE, True)


@pytest.mark.parametrize("away", range(BUCKETS))
async def test_a_bucket_that_is_away_holds_up_no_other_and_nobody_is_told_sold_out(
    broken: Broken, ledger: MemoryLedger, away: int
) -> None:
    gate = Gate(broken, ledger, settings=SETTINGS)
    await admit(gate, *(of(b) for b in range(BUCKETS)))
    left = [units for bucket, units in enumerate(await free(broken)) if bucket != away]
    broken.loses(away)
    other = (away + 1) % BUCKETS
    with pytest.raises(GateUnavailable):
        await gate.admit(GROUP, [of(away)])
    found = await admit(gate, *(of(other) for _ in range(8)), of(away))
    assert [a.code for a in found] == [AdmitCode.ADMITTED] * sum(left) + [AdmitCode.UNKNOWN_RESOURCE] * (9 - sum(left))
    broken.fails.clear()
    await gate.settled()
    assert await codes(gate, *(of(other) for _ in range(8))) == [AdmitCode.ADMITTED] * (7 - sum(left)) + [
        AdmitCode.REFUSED
    ] * (1 + sum(left))
    await gate.aclose()


async def test_an_epoch_that_was_opened_without_a_bucket_is_replaced_when_it_is_back(
    broken: Broken, ledger: MemoryLedger, redis_client: Client
) -> None:
    gate = Gate(broken, ledger, settings=SETTINGS)
    await admit(gate, of(0))
    broken.loses(2)
    await redis_client.unlink(*keys(tags(GROUP, BUCKETS)[1]))
    assert await codes(gate, of(1), of(0)) == [AdmitCode.ADMITTED] * 2
    without = ledger.epochs[GROUP][-1]
    assert [bool(run_id) for run_id in without.run_ids] == [True, True, False]
    newcomer = Gate(broken, ledger, settings=SETTINGS)
    assert await codes(newcomer, of(1)) == [AdmitCode.ADMITTED]
    assert ledger.epochs[GROUP][-1] == without
    broken.fails.clear()
    assert await codes(gate, of(2)) == [AdmitCode.ADMITTED]
    assert all(ledger.epochs[GROUP][-1].run_ids)
    await gate.aclose()
    await newcomer.aclose()


async def test_the_number_of_buckets_changes_while_requests_come(
    new_gate: GateFactory, ledger: MemoryLedger, store: RedisGate
) -> None:
    ledger.set_capacity(STOCK, 200)
    gates = [new_gate() for _ in range(2)]
    granted: list[str] = []

    async def caller(gate: Gate, number: int) -> None:
        for turn in range(20):
            request_id = f"{number}-{turn}"
            while True:  # as the pipeline: a stale epoch is admitted anew
                one = item(request_id)
                (answer,) = await admit(gate, one)
                assert answer.code is AdmitCode.ADMITTED, answer
                outcome = ledger.commit(GROUP, answer.epoch, one)
                if outcome == "granted":
                    gate.settle(GROUP, [Settlement(one.admission, one.request_id, SettleCode.GRANTED)])
                    granted.append(request_id)
                    break
                assert outcome == "stale"
                gate.epoch_refused(GROUP, answer.epoch)

    async def operator() -> None:
        for buckets in (1, 4, 2, 3):
            await asyncio.sleep(0.02)
            ledger.set_buckets(GROUP, buckets)

    await asyncio.gather(operator(), *(caller(gates[number % 2], number) for number in range(10)))
    await asyncio.gather(*(gate.settled() for gate in gates))
    for gate in gates:
        await gate.look_at_epochs()
        await admit(gate, item("last"))
    assert len(set(granted)) == 200
    assert ledger.accounts[STOCK].used == 200
    assert await gates[0].reconcile(GROUP) is Reconciled.EQUAL


# --- what operators and callers do ----------------------------------------------------------------------------------


async def test_a_top_up_reaches_the_first_bucket_and_from_there_the_others(
    gate: Gate, ledger: MemoryLedger, store: RedisGate
) -> None:
    await admit(gate, *(of(2) for _ in range(10)))
    assert await codes(gate, of(2)) == [AdmitCode.REFUSED]
    state = ledger.set_capacity(STOCK, 13)
    for _ in range(2):
        await gate.set_capacity(GROUP, resource=STOCK, capacity=state.capacity, version=state.version)
    assert await free(store) == [3, 0, 0]
    assert await codes(gate, *(of(1) for _ in range(4))) == [AdmitCode.ADMITTED] * 3 + [AdmitCode.REFUSED]


async def test_a_recall_is_paid_by_all_buckets(gate: Gate, ledger: MemoryLedger, store: RedisGate) -> None:
    ledger.set_capacity(STOCK, 300)
    await admit(gate, *(of(b) for b in range(BUCKETS)))
    assert max(await free(store)) < 200
    state = ledger.set_capacity(STOCK, 50)
    await gate.set_capacity(GROUP, resource=STOCK, capacity=state.capacity, version=state.version)
    left = await free(store)
    assert min(left) >= 0, "a bucket owes what another one has"
    assert sum(left) == 47
    assert await codes(gate, *(of(2) for _ in range(48))) == [AdmitCode.ADMITTED] * 47 + [AdmitCode.REFUSED]


async def test_a_recall_that_one_worker_only_read_is_paid_by_the_reconciler(
    gate: Gate, ledger: MemoryLedger, store: RedisGate
) -> None:
    ledger.set_capacity(STOCK, 300)
    await admit(gate, *(of(b) for b in range(BUCKETS)))
    ledger.set_capacity(STOCK, 50)
    assert await gate.reconcile(GROUP) is Reconciled.PUSHED
    assert (min(await free(store)) >= 0, sum(await free(store))) == (True, 47)


async def test_a_new_prize_is_known_in_each_bucket(gate: Gate, ledger: MemoryLedger, store: RedisGate) -> None:
    await admit(gate, *(of(b) for b in range(BUCKETS)))
    ledger.add(77, 6, used=2)
    found = [await codes(gate, of(bucket, (77, 1))) for bucket in (2, 1, 0, 2, 1)]
    assert found == [[AdmitCode.ADMITTED]] * 4 + [[AdmitCode.REFUSED]]


async def test_twins_at_two_workers_meet_in_one_bucket(new_gate: GateFactory) -> None:
    one, two = new_gate(), new_gate()
    for bucket in range(BUCKETS):
        first = of(bucket)
        assert await codes(one, first) == [AdmitCode.ADMITTED]
        (answer,) = await admit(two, item(first.request_id))
        assert (answer.code, answer.twin) == (AdmitCode.PENDING, first.admission)
        assert await two.is_pending(GROUP, first.request_id)
        await settled(one, first, SettleCode.GRANTED)
        (answer,) = await admit(two, item(first.request_id))
        assert answer.code is AdmitCode.GRANTED_BEFORE


async def test_open_admissions_of_all_buckets_are_seen_also_while_one_is_away(
    broken: Broken, ledger: MemoryLedger
) -> None:
    gate = Gate(broken, ledger, settings=SETTINGS)
    items = [of(b) for b in range(BUCKETS)]
    await admit(gate, *items)
    found = await gate.open_admissions(GROUP, limit=10)
    assert {a.admission for a in found.oldest} == {one.admission for one in items}
    assert found.total == 3
    await gate.aclose()


async def test_a_caller_that_leaves_owns_nothing_in_any_bucket(gate: Gate, store: RedisGate) -> None:
    await admit(gate, of(0))

    async def open_now() -> int:
        return sum(state.open_admissions for state in await states(store))

    for ticks in range(12):
        call = asyncio.ensure_future(gate.admit(GROUP, [of(b) for b in range(BUCKETS)]))
        for _ in range(ticks * 3):
            await asyncio.sleep(0)
        call.cancel()
        done: Sequence[Any] = await asyncio.gather(call, return_exceptions=True)
        if not isinstance(done[0], BaseException):
            break

    async def only_the_first() -> bool:
        await gate.settled()
        return await open_now() <= 1 + (0 if isinstance(done[0], BaseException) else 3)

    await eventually(only_the_first)


async def test_a_closed_bucket_that_nobody_asks_for_is_opened_by_the_reconciler(
    gate: Gate, ledger: MemoryLedger, store: RedisGate, redis_client: Client
) -> None:
    """Else what dead workers left in the others stayed open for as long."""
    await admit(gate, of(1))
    await redis_client.unlink(*keys(GROUP))

    async def mended() -> bool:
        return await gate.reconcile(GROUP) is Reconciled.EQUAL

    await eventually(mended)
    assert sum(await free(store)) == 10


class Watched(RedisGate):
    """Something happens when the first bucket has been asked for units, and the last one not yet."""

    happens: Callable[[], Awaitable[None]] | None = None

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._asked = asyncio.Event()

    async def give(self, group: Tag, **rest: Any) -> Mapping[int, Share] | None:
        if group == tags(GROUP, BUCKETS)[2] and self.happens:
            await self._asked.wait()
            happens, self.happens = self.happens, None
            await happens()
        shares = await super().give(group, **rest)
        if group == GROUP:
            self._asked.set()
        return shares


async def test_that_each_bucket_was_empty_when_it_was_asked_is_not_sold_out(
    redis_client: Client, ledger: MemoryLedger
) -> None:
    store = Watched(redis_client)
    gate = Gate(store, ledger, settings=SETTINGS)
    taken = [of(0) for _ in range(9)]
    await admit(gate, *taken)
    epoch = ledger.epochs[GROUP][-1]
    rest: dict[str, Any] = {"epoch": epoch.value, "run_id": epoch.run_ids[0]}
    first, _, last = tags(GROUP, BUCKETS)
    await store.give(first, **rest, buckets=3, target=2, wanted={STOCK: 1})
    await store.receive(last, **rest, deliveries=[(STOCK, 0, 1)])
    assert await free(store) == [0, 0, 1]

    async def a_unit_is_free_elsewhere() -> None:
        back = Settlement(taken[0].admission, taken[0].request_id, SettleCode.GIVEN_BACK)
        assert await store.settle(first, **rest, settlements=[back]) == 1
        assert await store.admit(last, **rest, items=[of(2)])
        assert await free(store) == [1, 0, 0]

    store.happens = a_unit_is_free_elsewhere
    assert await codes(gate, of(1)) == [AdmitCode.ADMITTED]
    assert store.happens is None
    await gate.aclose()

"""What the gate lets in, refuses and takes back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guerdon_server.core.stock.model import (
    EXACT_MAX,
    AdmitCode,
    AdmitItem,
    Admitted,
    Answer,
    ResourceState,
    SettleCode,
    Settlement,
    Status,
)
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.core.stock.service import Gate
from guerdon_server.platform.redis import Client
from tests.stock.conftest import BUDGET, GROUP, SETTINGS, STOCK, GateFactory, item
from tests.stock.ledger import MemoryLedger
from tests.stock.waiting import eventually, settled, used


async def admit(gate: Gate, *items: AdmitItem) -> list[Answer]:
    return list((await gate.admit(GROUP, items)).answers)


def codes(answers: list[Answer]) -> list[AdmitCode]:
    return [answer.code for answer in answers]


async def test_admits_until_the_stock_is_gone_and_says_what_is_left(gate: Gate) -> None:
    answers = await admit(gate, item("a", (STOCK, 7)), item("b", (STOCK, 4)), item("c", (STOCK, 3)), item("d"))
    assert codes(answers) == [AdmitCode.ADMITTED, AdmitCode.REFUSED, AdmitCode.ADMITTED, AdmitCode.REFUSED]
    assert (answers[1].resource, answers[1].remaining) == (STOCK, 3)
    assert answers[3].remaining == 0
    assert all(answer.sure for answer in answers)
    assert await used(gate, STOCK) == 10


async def test_a_request_takes_all_its_claims_or_none(gate: Gate) -> None:
    answers = await admit(gate, item("a", (STOCK, 1), (BUDGET, 1001)), item("b", (BUDGET, 1000), (STOCK, 10)))
    assert codes(answers) == [AdmitCode.REFUSED, AdmitCode.ADMITTED]
    assert (answers[0].resource, answers[0].remaining) == (BUDGET, 1000)


async def test_without_claims_and_limit_it_is_only_marked(gate: Gate) -> None:
    admitted = AdmitItem(5, "a")
    assert codes(await admit(gate, admitted)) == [AdmitCode.ADMITTED]
    assert codes(await admit(gate, item("a"))) == [AdmitCode.PENDING]


async def test_repeating_an_admission_has_no_second_effect(gate: Gate) -> None:
    one = item("a", (STOCK, 6), limit=("k", 1))
    assert codes(await admit(gate, one, one)) == [AdmitCode.ADMITTED] * 2
    assert codes(await admit(gate, one)) == [AdmitCode.ADMITTED]
    assert await used(gate, STOCK) == 6


async def test_a_twin_is_pending_and_takes_nothing(gate: Gate) -> None:
    first, twin, later = item("a"), item("a"), item("a")
    answers = await admit(gate, first, twin)
    answers += await admit(gate, later)
    assert codes(answers) == [AdmitCode.ADMITTED, AdmitCode.PENDING, AdmitCode.PENDING]
    assert [answer.twin for answer in answers[1:]] == [first.admission] * 2
    assert await used(gate, STOCK) == 1


async def test_a_granted_request_is_known_even_when_all_is_sold_out(gate: Gate) -> None:
    first = item("a", (STOCK, 10), limit=("k", 1))
    await admit(gate, first)
    await settled(gate, first, SettleCode.GRANTED)
    assert codes(await admit(gate, item("a", (STOCK, 10), limit=("k", 1)))) == [AdmitCode.GRANTED_BEFORE]
    assert await used(gate, STOCK) == 10


async def test_limits_count_what_was_admitted(gate: Gate) -> None:
    answers = await admit(gate, *(item(f"r{i}", limit=("prize:user", 2)) for i in range(4)), item("x", limit=("k", 2)))
    assert codes(answers) == [AdmitCode.ADMITTED] * 2 + [AdmitCode.LIMIT_REACHED] * 2 + [AdmitCode.ADMITTED]
    assert answers[2].observed == 2
    assert await used(gate, STOCK) == 3


async def test_what_is_given_back_can_be_admitted_again(gate: Gate) -> None:
    first = item("a", (STOCK, 10), (BUDGET, 900), limit=("k", 1))
    await admit(gate, first)
    await settled(gate, first, SettleCode.GIVEN_BACK)
    assert await used(gate, STOCK) == 0
    assert await used(gate, BUDGET) == 0
    again = item("a", (STOCK, 10), (BUDGET, 1000), limit=("k", 1))
    assert codes(await admit(gate, again)) == [AdmitCode.ADMITTED]


async def test_settling_twice_or_what_was_never_admitted_changes_nothing(gate: Gate) -> None:
    first, other = item("a", (STOCK, 2), limit=("k", 5)), item("b", (STOCK, 3), limit=("k", 5))
    await admit(gate, first, other)
    await settled(gate, first, SettleCode.GIVEN_BACK)
    gate.settle(
        GROUP,
        [
            Settlement(first.admission, first.request_id, SettleCode.GIVEN_BACK),
            Settlement(77, "77", SettleCode.GIVEN_BACK),
        ]
        * 2,
    )
    await settled(gate, other, SettleCode.GRANTED)
    gate.settle(GROUP, [Settlement(other.admission, other.request_id, SettleCode.GIVEN_BACK)])
    await eventually(lambda: not gate.settling.queued_items)
    assert await used(gate, STOCK) == 3
    assert codes(await admit(gate, item("b"))) == [AdmitCode.GRANTED_BEFORE]


async def test_one_settlement_call_may_name_an_admission_twice(
    store: RedisGate, gate: Gate, ledger: MemoryLedger
) -> None:
    first = item("a", (STOCK, 2))
    await admit(gate, first)
    epoch = ledger.epochs[GROUP][-1]
    back = Settlement(first.admission, first.request_id, SettleCode.GIVEN_BACK)
    assert await store.settle(GROUP, epoch=epoch.value, run_id=epoch.run_id, settlements=[back, back]) == 1
    assert await used(gate, STOCK) == 0


async def test_a_replay_that_the_commit_found_is_marked_and_takes_nothing(gate: Gate) -> None:
    first = item("a", (STOCK, 10))
    await admit(gate, first)
    await settled(gate, first, SettleCode.REPLAYED)
    assert await used(gate, STOCK) == 0
    assert codes(await admit(gate, item("a"), item("b", (STOCK, 10)))) == [
        AdmitCode.GRANTED_BEFORE,
        AdmitCode.ADMITTED,
    ]


async def test_the_ledger_s_count_raises_the_limit_s(gate: Gate) -> None:
    first = item("a", limit=("k", 3))
    await admit(gate, first)
    gate.settle(GROUP, [Settlement(first.admission, first.request_id, SettleCode.GIVEN_BACK, observed=3)])
    await eventually(lambda: gate.counts.settled == 1)
    (answer,) = await admit(gate, item("b", limit=("k", 3)))
    assert (answer.code, answer.observed) == (AdmitCode.LIMIT_REACHED, 3)


@pytest.mark.parametrize("capacity", [10**8, 10**14, 2**52 + 1, EXACT_MAX])
async def test_counts_exactly_up_to_its_bound(gate: Gate, ledger: MemoryLedger, capacity: int) -> None:
    ledger.add(21, capacity, used=1)
    answers = await admit(
        gate, item("a", (21, capacity - 2)), item("b", (21, 2)), item("c", (21, 1)), item("d", (21, 1))
    )
    assert codes(answers) == [AdmitCode.ADMITTED, AdmitCode.REFUSED, AdmitCode.ADMITTED, AdmitCode.REFUSED]
    assert answers[1].remaining == 1
    assert await used(gate, 21) == capacity


def test_what_it_can_not_count_exactly_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity 9007199254740992"):
        ResourceState(1, EXACT_MAX + 1, 1, 0)
    with pytest.raises(ValueError, match="used"):
        ResourceState(1, 1, 1, EXACT_MAX + 1)


@pytest.mark.parametrize("capacity", [EXACT_MAX + 2, -1, "1e3", "x", "01"])
async def test_the_script_refuses_it_too(store: RedisGate, ledger: MemoryLedger, capacity: object) -> None:
    run_id = (await store.inspect(GROUP, resources=False)).run_id
    assert await store.prepare(GROUP, epoch=5, run_id=run_id) is Status.OPEN
    state = cast(ResourceState, SimpleNamespace(resource=1, capacity=capacity, version=1, used=0))
    assert await store.load(GROUP, epoch=5, run_id=run_id, complete=True, resources=[state]) is Status.INEXACT
    assert (await store.inspect(GROUP, resources=False)).open_epoch is None


@pytest.mark.parametrize(
    "bad",
    [
        {"request_id": "a b"},
        {"request_id": "@"},
        {"request_id": ""},
        {"limit_key": "k k", "limit_max": 1},
        {"limit_key": "k"},
        {"admission": 0},
        {"admission": 2**63},
        {"claims": ((STOCK, 0),)},
        {"claims": ((STOCK, EXACT_MAX + 1),)},
        {"claims": ((STOCK, 1), (STOCK, 1))},
        {"claims": ((1, 1), (2, 1), (3, 1), (4, 1))},
    ],
)
async def test_a_malformed_item_is_our_defect_and_never_reaches_a_batch(gate: Gate, bad: dict[str, Any]) -> None:
    good = AdmitItem(1, "a", claims=((STOCK, 1),))
    with pytest.raises(AssertionError):
        await gate.admit(GROUP, [good, AdmitItem(**{"admission": 1, "request_id": "a", **bad})])
    assert codes(await admit(gate, good)) == [AdmitCode.ADMITTED]


async def test_a_new_prize_appears_while_running(gate: Gate, ledger: MemoryLedger) -> None:
    await admit(gate, item("a"))
    ledger.add(31, 5)
    assert codes(await admit(gate, item("b", (31, 5)), item("c", (31, 1)))) == [AdmitCode.ADMITTED, AdmitCode.REFUSED]
    (answer,) = await admit(gate, item("d", (32, 1)))
    assert (answer.code, answer.resource) == (AdmitCode.UNKNOWN_RESOURCE, 32)
    assert len(ledger.epochs[GROUP]) == 1


async def test_a_newer_capacity_overwrites_and_an_older_one_does_not(gate: Gate, ledger: MemoryLedger) -> None:
    await admit(gate, item("a", (STOCK, 10)))
    newer = ledger.set_capacity(STOCK, 15)
    await gate.set_capacity(GROUP, resource=STOCK, capacity=15, version=newer.version)
    await gate.set_capacity(GROUP, resource=STOCK, capacity=99, version=newer.version)
    await gate.set_capacity(GROUP, resource=STOCK, capacity=99, version=newer.version - 1)
    await gate.set_capacity(GROUP, resource=999, capacity=99, version=7)
    answers = await admit(gate, item("b", (STOCK, 6)), item("c", (STOCK, 5)), item("d", (999, 1)))
    assert codes(answers) == [AdmitCode.REFUSED, AdmitCode.ADMITTED, AdmitCode.UNKNOWN_RESOURCE]
    lower = ledger.set_capacity(STOCK, 12)
    await gate.set_capacity(GROUP, resource=STOCK, capacity=12, version=lower.version)
    assert (await admit(gate, item("e")))[0].remaining == 0


async def test_callers_at_once_never_get_more_than_there_is(new_gate: GateFactory, ledger: MemoryLedger) -> None:
    workers = [new_gate() for _ in range(3)]
    ledger.set_capacity(STOCK, 500)
    answers = await asyncio.gather(*(workers[i % 3].admit(GROUP, [item(f"r{i}")]) for i in range(1500)))
    admitted = [answer for reply in answers for answer in reply.answers if answer.code is AdmitCode.ADMITTED]
    assert len(admitted) == 500
    assert len(ledger.epochs[GROUP]) == 1
    assert {reply.epoch for reply in answers} == {ledger.epochs[GROUP][0].value}


async def test_the_largest_batch_on_as_many_resources_as_it_can_name(gate: Gate, ledger: MemoryLedger) -> None:
    for resource in range(100, 3100):
        ledger.add(resource, 2)
    items = [
        item(f"r{i}", (100 + 3 * i, 1), (101 + 3 * i, 2), (102 + 3 * i, 1), limit=(f"k{i}", 1)) for i in range(1000)
    ]
    assert {answer.code for answer in await admit(gate, *items)} == {AdmitCode.ADMITTED}
    state = await gate.inspect(GROUP)
    assert sum(held.used for held in state.resources) == 4000
    gate.settle(GROUP, [Settlement(one.admission, one.request_id, SettleCode.GIVEN_BACK) for one in items])
    await eventually(lambda: gate.counts.settled == 1000)
    assert sum(held.used for held in (await gate.inspect(GROUP)).resources) == 0


async def test_groups_are_apart(gate: Gate, ledger: MemoryLedger) -> None:
    replies = await asyncio.gather(*(gate.admit(group, [item("same", (STOCK, 10))]) for group in range(1, 6)))
    assert [reply.answers[0].code for reply in replies] == [AdmitCode.ADMITTED] * 5
    assert sorted(gate.groups()) == [1, 2, 3, 4, 5]


async def test_a_caller_who_left_owns_nothing(gate: Gate) -> None:
    await admit(gate, item("first"))
    caller = asyncio.ensure_future(gate.admit(GROUP, [item("gone", (STOCK, 9))]))
    await eventually(lambda: gate.in_flight_batches() == 1, poll_seconds=0)
    caller.cancel()
    await eventually(lambda: gate.counts.dropped_answers == 1 and gate.counts.settled == 1)
    assert await used(gate, STOCK) == 1


async def test_open_admissions_are_listed_the_oldest_first(gate: Gate) -> None:
    items = [item(f"r{i}", (STOCK, 1), (BUDGET, 2), limit=("k", 99)) for i in range(5)]
    for one in items:
        await admit(gate, one)
        await asyncio.sleep(0.002)  # not a wait for a state: it makes the ages differ
    await settled(gate, items[0], SettleCode.GRANTED)
    listed = await gate.open_admissions(GROUP, limit=3)
    assert listed.total == 4
    assert [open_one.admission for open_one in listed.oldest] == [one.admission for one in items[1:4]]
    oldest = listed.oldest[0]
    assert (oldest.request_id, oldest.limit_key, oldest.claims) == ("r1", "k", ((STOCK, 1), (BUDGET, 2)))
    assert oldest.age_ms >= 6


async def test_many_open_admissions_are_read_page_by_page(gate: Gate, ledger: MemoryLedger) -> None:
    ledger.set_capacity(STOCK, 3000)
    items = [item(f"r{i}") for i in range(2500)]
    for at in range(0, 2500, 500):
        await admit(gate, *items[at : at + 500])
    listed = await gate.open_admissions(GROUP, limit=5000)
    assert {open_one.admission for open_one in listed.oldest} == {one.admission for one in items}
    assert listed.total == 2500


async def test_a_forgotten_group_leaves_nothing_behind_and_can_come_back(
    gate: Gate, redis_client: Client, ledger: MemoryLedger
) -> None:
    await admit(gate, item("a"))
    await gate.forget(GROUP)
    assert await redis_client.dbsize() == 0
    assert gate.groups() == []
    assert codes(await admit(gate, item("a"))) == [AdmitCode.ADMITTED]
    assert len(ledger.epochs[GROUP]) == 2


async def test_whoever_is_cancelled_between_the_answer_and_waking_up_takes_nothing(
    store: RedisGate, ledger: MemoryLedger
) -> None:
    """The answer has been handed out, so nobody but the cancelled caller can know that it must be given back."""
    calls: list[asyncio.Task[Admitted]] = []

    def cancel(_items: int, _seconds: float) -> None:
        calls[0].cancel()

    gate = Gate(store, ledger, settings=SETTINGS, on_batch=cancel)
    calls.append(asyncio.create_task(gate.admit(GROUP, [item("a", (STOCK, 4))])))
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    await eventually(lambda: gate.counts.settled == 1)
    assert await used(gate, STOCK) == 0
    await gate.aclose()

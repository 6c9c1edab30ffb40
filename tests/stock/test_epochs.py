"""Opening, losing and rebuilding a group: whatever happens to Redis, missing means closed and never zero."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from guerdon_server.core.stock.model import AdmitCode, AdmitItem, Answer, Reconciled, ResourceState, SettleCode, Status
from guerdon_server.core.stock.redis.store import RedisGate, keys
from guerdon_server.core.stock.service import Gate
from guerdon_server.platform.redis import Client
from tests.stock.conftest import BUDGET, GROUP, SETTINGS, STOCK, GateFactory, item
from tests.stock.ledger import MemoryLedger
from tests.stock.waiting import eventually, settled, used


async def admit(gate: Gate, *items: AdmitItem) -> list[Answer]:
    return list((await gate.admit(GROUP, items)).answers)


async def grant(gate: Gate, ledger: MemoryLedger, one: AdmitItem) -> None:
    admitted = await gate.admit(GROUP, [one])
    assert admitted.answers[0].code is AdmitCode.ADMITTED
    assert ledger.commit(GROUP, admitted.epoch, one) == "granted"
    await settled(gate, one, SettleCode.GRANTED)


async def marked(gate: Gate) -> bool:
    return (await gate.inspect(GROUP)).complete


async def test_a_flushed_redis_is_rebuilt_from_the_ledger(
    gate: Gate, ledger: MemoryLedger, redis_client: Client
) -> None:
    await grant(gate, ledger, item("a", (STOCK, 4)))
    lost = item("lost", (STOCK, 5))
    await admit(gate, lost)
    await redis_client.flushdb()
    answers = await admit(gate, item("b", (STOCK, 7)), item("c", (STOCK, 6)))
    assert [answer.code for answer in answers] == [AdmitCode.REFUSED, AdmitCode.ADMITTED]
    assert len(ledger.epochs[GROUP]) == 2
    assert ledger.commit(GROUP, ledger.epochs[GROUP][0].value, lost) == "stale"


@pytest.mark.parametrize("index", range(4))
async def test_any_one_key_deleted_closes_the_group(
    gate: Gate, ledger: MemoryLedger, redis_client: Client, index: int
) -> None:
    await grant(gate, ledger, item("a", (STOCK, 4)))
    await redis_client.delete(keys(GROUP)[index])
    state = await gate.inspect(GROUP)
    assert state.open_epoch is None
    answers = await admit(gate, item("b", (STOCK, 7)), item("c", (STOCK, 6)))
    assert [answer.code for answer in answers] == [AdmitCode.REFUSED, AdmitCode.ADMITTED]
    assert len(ledger.epochs[GROUP]) == 2


@pytest.mark.parametrize("index", range(4))
async def test_a_key_of_another_epoch_closes_the_group(
    gate: Gate, ledger: MemoryLedger, redis_client: Client, index: int
) -> None:
    await admit(gate, item("a"))
    await redis_client.hset(keys(GROUP)[index], "@", str(ledger.epochs[GROUP][0].value + 1))
    await admit(gate, item("b"))
    assert len(ledger.epochs[GROUP]) == 2


@pytest.mark.parametrize("index", range(4))
async def test_a_key_of_another_type_closes_the_group(
    gate: Gate, ledger: MemoryLedger, redis_client: Client, index: int
) -> None:
    await admit(gate, item("a"))
    await redis_client.set(keys(GROUP)[index], "not a hash")
    assert (await gate.inspect(GROUP)).open_epoch is None
    assert (await admit(gate, item("b", (STOCK, 10))))[0].code is AdmitCode.ADMITTED
    assert len(ledger.epochs[GROUP]) == 2


async def test_a_closed_group_refuses_every_script(gate: Gate, store: RedisGate, redis_client: Client) -> None:
    first = await gate.admit(GROUP, [item("a")])
    run_id = (await gate.inspect(GROUP)).run_id
    await redis_client.delete(keys(GROUP)[3])
    dump = await redis_client.hgetall(keys(GROUP)[0])
    assert await store.admit(GROUP, items=[item("b")], epoch=first.epoch, run_id=run_id) is None
    assert await store.settle(GROUP, settlements=[], epoch=first.epoch, run_id=run_id) is None
    state = ResourceState(STOCK, 99, 99, 0)
    assert await store.set_capacity(GROUP, resources=[state], add=True, epoch=first.epoch, run_id=run_id) is None
    assert not await store.mark_granted(GROUP, request_ids=["x"], complete=True, epoch=first.epoch, run_id=run_id)
    assert await store.open_admissions(GROUP, cursor="0", page_items=10, epoch=first.epoch, run_id=run_id) is None
    assert await redis_client.hgetall(keys(GROUP)[0]) == dump


async def test_a_lost_script_cache_is_no_reason_for_a_new_epoch(
    gate: Gate, ledger: MemoryLedger, redis_client: Client
) -> None:
    await admit(gate, item("a"))
    await redis_client.script_flush()
    await admit(gate, item("b"))
    assert await used(gate, STOCK) == 2
    assert len(ledger.epochs[GROUP]) == 1


async def test_many_groups_at_once_survive_a_lost_script_cache(
    gate: Gate, ledger: MemoryLedger, redis_client: Client
) -> None:
    for expected in (1, 2):
        await redis_client.script_flush()
        await asyncio.gather(*(gate.admit(group, [item(f"{expected}", (STOCK, 1))]) for group in range(1, 40)))
        assert [len(ledger.epochs[group]) for group in range(1, 40)] == [1] * 39
        assert await used(gate, STOCK) == expected


async def test_load_needs_a_reservation_and_uses_it_up(store: RedisGate, redis_client: Client) -> None:
    run_id = (await store.inspect(GROUP, resources=False)).run_id
    fresh = [ResourceState(STOCK, 10, 1, 0)]

    async def load(epoch: int) -> Status:
        return await store.load(GROUP, epoch=epoch, run_id=run_id, complete=True, resources=fresh)

    async def prepare(epoch: int) -> Status:
        return await store.prepare(GROUP, epoch=epoch, run_id=run_id)

    assert await load(5) is Status.NOT_PREPARED
    assert await prepare(5) is Status.OPEN
    assert await prepare(5) is Status.OPEN, "a repetition"
    assert await load(4) is Status.NOT_PREPARED
    assert await load(5) is Status.OPEN
    await store.admit(GROUP, epoch=5, run_id=run_id, items=[item("a", (STOCK, 3))])
    assert await load(5) is Status.OPEN, "a repetition"
    assert (await store.inspect(GROUP, resources=True)).resources[0].used == 3, "and it changes nothing"
    assert await prepare(5) is Status.SUPERSEDED, "an epoch is opened once"
    assert await prepare(4) is Status.SUPERSEDED
    await redis_client.flushdb()
    assert await load(5) is Status.NOT_PREPARED, "repeated after all was lost, it would open with old numbers"
    assert await prepare(2**62 + 1) is Status.OPEN
    assert await prepare(2**62) is Status.SUPERSEDED, "63-bit numbers are not rounded"
    assert await load(2**62 + 1) is Status.OPEN


async def test_another_run_id_than_expected_changes_nothing(store: RedisGate) -> None:
    assert await store.prepare(GROUP, epoch=5, run_id="0" * 40) is Status.CLOSED
    assert await store.load(GROUP, epoch=5, run_id="0" * 40, complete=True, resources=[]) is Status.CLOSED


async def test_workers_that_start_together_share_one_epoch(new_gate: GateFactory, ledger: MemoryLedger) -> None:
    workers = [new_gate() for _ in range(8)]
    replies = await asyncio.gather(*(worker.admit(GROUP, [item(f"r{i}")]) for i, worker in enumerate(workers)))
    assert len({reply.epoch for reply in replies}) == 1
    assert len(ledger.epochs[GROUP]) == 1


async def test_who_did_not_open_an_epoch_never_loads_it(
    new_gate: GateFactory, ledger: MemoryLedger, redis_client: Client
) -> None:
    ledger.losers_return.clear()
    lost = item("lost")
    starts = {asyncio.ensure_future(new_gate().admit(GROUP, [one])) for one in (lost, item("other"))}
    done, slow = await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
    (first,) = [task.result() for task in done]
    await redis_client.flushdb()  # a slow loser sees an empty Redis, as if the epoch had not been loaded yet
    ledger.losers_return.set()
    (second,) = [await task for task in slow]
    assert second.epoch > first.epoch
    assert ledger.commit(GROUP, first.epoch, lost) == "stale", "the gate has forgotten it, so it may not be granted"


async def test_a_stale_epoch_is_replaced_by_the_one_that_the_others_use(
    new_gate: GateFactory, ledger: MemoryLedger, redis_client: Client
) -> None:
    one, other = new_gate(), new_gate()
    first = await one.admit(GROUP, [item("a")])
    await other.admit(GROUP, [item("b")])
    await redis_client.flushdb()
    second = await other.admit(GROUP, [item("c")])
    one.epoch_refused(GROUP, first.epoch)
    assert (await one.admit(GROUP, [item("d")])).epoch == second.epoch
    one.epoch_refused(GROUP, first.epoch)  # late news: nothing is dropped
    assert (one.counts.opened, one.counts.adopted, one.counts.closed) == (1, 1, 1)


async def test_a_worker_that_died_while_it_loaded_is_replaced(
    gate: Gate, ledger: MemoryLedger, store: RedisGate
) -> None:
    run_id = (await store.inspect(GROUP, resources=False)).run_id
    dead = await ledger.open_epoch(GROUP, replacing=None, run_id=run_id)
    await store.prepare(GROUP, epoch=dead.epoch.value, run_id=run_id)
    admitted = await gate.admit(GROUP, [item("a")])
    assert admitted.epoch > dead.epoch.value
    status = await store.load(GROUP, epoch=dead.epoch.value, run_id=run_id, complete=True, resources=[])
    assert status is Status.NOT_PREPARED, "should it wake up again"


async def test_after_a_rebuild_refusals_are_unsure_until_every_grant_is_marked(
    new_gate: GateFactory, ledger: MemoryLedger
) -> None:
    ledger.grants[GROUP] = {f"old{i}" for i in range(2500)}
    ledger.grants_readable.clear()
    gate = new_gate()
    (first,) = await admit(gate, item("new", (STOCK, 11)))
    assert first.code is AdmitCode.REFUSED
    assert not first.sure
    ledger.grants_readable.set()
    await eventually(lambda: marked(gate))
    answers = await admit(gate, item("old0"), item("old2499"), item("new", (STOCK, 11)))
    assert [answer.code for answer in answers[:2]] == [AdmitCode.GRANTED_BEFORE] * 2
    assert answers[2].sure
    assert gate.counts.backfilled == 2500


async def test_a_grant_found_while_its_replay_is_open_stays_marked(
    gate: Gate, ledger: MemoryLedger, store: RedisGate
) -> None:
    replay = item("old")
    admitted = await gate.admit(GROUP, [replay])
    run_id = ledger.epochs[GROUP][-1].run_id
    assert await store.mark_granted(GROUP, epoch=admitted.epoch, run_id=run_id, request_ids=["old"], complete=False)
    await settled(gate, replay, SettleCode.GIVEN_BACK)
    assert (await admit(gate, item("old")))[0].code is AdmitCode.GRANTED_BEFORE


async def test_a_backfill_that_stands_still_is_taken_over(ledger: MemoryLedger, store: RedisGate) -> None:
    gate = Gate(store, ledger, settings=replace(SETTINGS, backfill_takeover_seconds=0.0))
    ledger.grants[GROUP] = {"old1", "old2"}
    run_id = (await store.inspect(GROUP, resources=False)).run_id
    epoch = (await ledger.open_epoch(GROUP, replacing=None, run_id=run_id)).epoch
    await store.prepare(GROUP, epoch=epoch.value, run_id=run_id)
    states = await ledger.resources(GROUP)
    await store.load(GROUP, epoch=epoch.value, run_id=run_id, complete=False, resources=states)
    await gate.admit(GROUP, [item("a")])
    assert await gate.reconcile(GROUP) is Reconciled.EQUAL
    await eventually(lambda: marked(gate))
    assert (await admit(gate, item("old2")))[0].code is AdmitCode.GRANTED_BEFORE
    await gate.aclose()


async def test_reconciling_pushes_newer_capacities(gate: Gate, ledger: MemoryLedger) -> None:
    await admit(gate, item("a", (STOCK, 10)))
    assert await gate.reconcile(GROUP) is Reconciled.EQUAL, "what is open is not drift"
    ledger.set_capacity(STOCK, 12)
    assert await gate.reconcile(GROUP) is Reconciled.PUSHED
    assert (await admit(gate, item("b", (STOCK, 2))))[0].code is AdmitCode.ADMITTED


@pytest.mark.parametrize("ledger_used", [1, 3])
async def test_reconciling_an_idle_gate_that_is_wrong_opens_a_new_epoch(
    gate: Gate, ledger: MemoryLedger, ledger_used: int
) -> None:
    await grant(gate, ledger, item("a", (STOCK, 2)))
    ledger.accounts[STOCK] = ResourceState(STOCK, 10, 1, ledger_used)
    assert await gate.reconcile(GROUP) is Reconciled.DRIFTED
    assert gate.counts.drifts == 1
    assert await used(gate, STOCK) == ledger_used
    assert await gate.reconcile(GROUP) is Reconciled.EQUAL
    assert len(ledger.epochs[GROUP]) == 2


async def test_reconciling_mends_a_use_below_nothing_that_somebody_wrote(
    gate: Gate, ledger: MemoryLedger, redis_client: Client
) -> None:
    await grant(gate, ledger, item("a", (STOCK, 2)))
    await redis_client.hset(keys(GROUP)[0], f"u:{STOCK}", "-7")
    assert await gate.reconcile(GROUP) is Reconciled.DRIFTED
    assert gate.counts.drift_units == 9
    assert await used(gate, STOCK) == 2


async def test_reconciling_a_busy_gate_sees_only_what_can_not_be(gate: Gate, ledger: MemoryLedger) -> None:
    await admit(gate, item("a", (BUDGET, 5)))
    ledger.accounts[BUDGET] = ResourceState(BUDGET, 1000, 1, 4)
    assert await gate.reconcile(GROUP) is Reconciled.EQUAL
    ledger.accounts[BUDGET] = ResourceState(BUDGET, 1000, 1, 6)
    assert await gate.reconcile(GROUP) is Reconciled.DRIFTED


async def test_reconciling_an_overtaken_epoch_looks_again(gate: Gate, ledger: MemoryLedger) -> None:
    await admit(gate, item("a"))
    held = ledger.epochs[GROUP][-1]
    await ledger.open_epoch(GROUP, replacing=held.value, run_id=held.run_id)
    assert await gate.reconcile(GROUP) is Reconciled.CLOSED
    assert (await gate.admit(GROUP, [item("b")])).epoch > held.value


async def test_background_jobs_pass_by_a_closed_group_without_opening_it(
    new_gate: GateFactory, store: RedisGate, redis_client: Client
) -> None:
    # They go over all groups in turn: opening each after a flush would keep the last ones waiting for minutes.
    await new_gate().admit(GROUP, [item("r1")])
    await redis_client.flushdb()
    newcomer = new_gate()

    assert (await newcomer.open_admissions(GROUP, limit=10)).total == 0
    assert await newcomer.reconcile(GROUP) is Reconciled.CLOSED
    assert (await store.inspect(GROUP, resources=False)).open_epoch is None
    assert (await newcomer.admit(GROUP, [item("r2")])).answers[0].code is AdmitCode.ADMITTED


async def test_a_marker_that_another_process_holds_is_not_believed(
    gate: Gate, ledger: MemoryLedger, redis_client: Client
) -> None:
    # A replica that was promoted: the epoch is there, what was written last is not.
    one = item("a")
    await admit(gate, one)
    assert await gate.is_pending(GROUP, "a")
    meta, markers, _, _ = keys(GROUP)
    await redis_client.hset(meta, "run", "0" * 40)
    await redis_client.hdel(markers, "a")
    assert not await gate.is_pending(GROUP, "a")
    assert len(ledger.epochs[GROUP]) == 2, "it was opened anew, so that what it said is true: no commit can follow"


async def test_an_epoch_that_another_worker_opened_is_noticed_without_a_commit(
    new_gate: GateFactory, ledger: MemoryLedger
) -> None:
    gate = new_gate()
    await admit(gate, item("a", (STOCK, 10)))
    await ledger.open_epoch(GROUP, replacing=ledger.epochs[GROUP][0].value, run_id="0" * 40)  # at another process
    ledger.set_capacity(STOCK, 20)
    assert (await admit(gate, item("b")))[0].code is AdmitCode.REFUSED
    await gate.look_at_epochs()
    assert (await admit(gate, item("b")))[0].code is AdmitCode.ADMITTED


async def test_a_capacity_that_meets_a_closed_group_opens_it(
    gate: Gate, ledger: MemoryLedger, redis_client: Client
) -> None:
    await admit(gate, item("a"))
    await redis_client.flushdb()
    newer = ledger.set_capacity(STOCK, 20)
    await gate.set_capacity(GROUP, resource=STOCK, capacity=newer.capacity, version=newer.version)
    await eventually(lambda: len(ledger.epochs[GROUP]) == 2)

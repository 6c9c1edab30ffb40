"""Redis that restarts, comes back with yesterday's data, is full, loses replies, or is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server.core.stock.model import AdmitCode, GateUnavailable, SettleCode, Settlement
from guerdon_server.core.stock.redis.store import RedisGate, keys
from guerdon_server.core.stock.service import Gate
from guerdon_server.core.stock.settings import GateSettings
from guerdon_server.platform import redis
from guerdon_server.platform.engines import ValkeyEngine
from guerdon_server.platform.errors import ServiceError
from tests.stock.conftest import GROUP, SETTINGS, STOCK, item
from tests.stock.ledger import MemoryLedger
from tests.stock.proxy import Proxy
from tests.stock.waiting import eventually, settled, used


@pytest_asyncio.fixture(loop_scope="session")
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest_asyncio.fixture(loop_scope="session")
async def far_gate(proxy: Proxy, ledger: MemoryLedger) -> AsyncIterator[Gate]:
    """A gate that talks through the proxy, on the production client."""
    client = redis.connect(proxy.url, answer_seconds_max=0.3)
    gate = Gate(RedisGate(client), ledger, settings=SETTINGS)
    yield gate
    proxy.mute = proxy.away = False
    await gate.aclose()
    await client.aclose()


async def test_a_lost_reply_does_not_take_twice(far_gate: Gate, proxy: Proxy) -> None:
    await far_gate.admit(GROUP, [item("warm", (STOCK, 1))])
    proxy.lose_replies = 1
    admitted = await far_gate.admit(GROUP, [item("a", (STOCK, 4)), item("b", (STOCK, 5)), item("c", (STOCK, 1))])
    assert [answer.code for answer in admitted.answers] == [
        AdmitCode.ADMITTED,
        AdmitCode.ADMITTED,
        AdmitCode.REFUSED,
    ], "the driver repeated the call"
    assert proxy.lose_replies == 0
    assert await used(far_gate, STOCK) == 10
    proxy.lose_replies = 1
    far_gate.settle(
        GROUP, [Settlement(admitted_one, str(admitted_one), SettleCode.GIVEN_BACK) for admitted_one in (7, 8)]
    )
    await eventually(lambda: proxy.lose_replies == 0)


async def test_without_any_reply_it_is_unavailable_and_all_is_given_back(far_gate: Gate, proxy: Proxy) -> None:
    await far_gate.admit(GROUP, [item("warm", (STOCK, 1))])
    proxy.mute = True
    with pytest.raises(GateUnavailable):
        await far_gate.admit(GROUP, [item("a", (STOCK, 4))])
    proxy.mute = False
    proxy.cut()
    await eventually(lambda: far_gate.counts.settled == 1)
    assert await used(far_gate, STOCK) == 1


async def test_a_ledger_that_is_away_leaves_nothing_taken_and_the_open_group_admits_on(
    gate: Gate, ledger: MemoryLedger
) -> None:
    ledger.away = True
    with pytest.raises(ServiceError, match="ledger is away"):
        await gate.admit(GROUP, [item("closed-yet")])
    ledger.away = False
    await gate.admit(GROUP, [item("a")])
    ledger.away = True
    ledger.add(31, 5)
    with pytest.raises(ServiceError, match="ledger is away"):
        await gate.admit(GROUP, [item("taken"), item("new-prize", (31, 1))])
    await eventually(lambda: gate.counts.settled == 1)
    await gate.admit(GROUP, [item("b")])
    assert await used(gate, STOCK) == 2


async def test_settlements_outlive_an_absence(far_gate: Gate, proxy: Proxy) -> None:
    first = item("a", (STOCK, 4))
    await far_gate.admit(GROUP, [first])
    proxy.go_away()
    far_gate.settle(GROUP, [Settlement(first.admission, first.request_id, SettleCode.GIVEN_BACK)])
    await eventually(lambda: far_gate.settling.retries_total >= 2)
    with pytest.raises(GateUnavailable):
        await far_gate.admit(GROUP, [item("b")])
    proxy.away = False
    await eventually(lambda: far_gate.counts.settled == 1)
    assert await used(far_gate, STOCK) == 0
    assert far_gate.settling.dropped_total == 0


async def test_a_full_settle_queue_drops_the_oldest_and_counts_them(proxy: Proxy, ledger: MemoryLedger) -> None:
    client = redis.connect(proxy.url)
    settings = GateSettings(settle_queue_items_max=3, settle_items_max=2, settle_pause_seconds_min=0.01)
    gate = Gate(RedisGate(client), ledger, settings=settings)
    items = [item(f"r{i}") for i in range(6)]
    await gate.admit(GROUP, items)
    proxy.go_away()
    gate.settle(GROUP, [Settlement(one.admission, one.request_id, SettleCode.GIVEN_BACK) for one in items])
    await eventually(lambda: gate.settling.retries_total >= 1)
    proxy.away = False
    await eventually(lambda: gate.counts.settled == 3)
    assert gate.settling.dropped_total == 3
    left = await gate.open_admissions(GROUP, limit=10)
    assert {one.admission for one in left.oldest} == {one.admission for one in items[:3]}
    await gate.aclose()
    await client.aclose()


# --- engines of their own -----------------------------------------------------------------------------------------


class Restartable:
    """A Valkey of this test's own, with a gate on it."""

    def __init__(self, engine: ValkeyEngine, ledger: MemoryLedger) -> None:
        self.engine = engine
        self.client = redis.connect(engine.url)
        self.gate = Gate(RedisGate(self.client), ledger, settings=SETTINGS)

    async def restart(self) -> None:
        await self.engine.kill()
        await self.engine.start()


@pytest_asyncio.fixture(loop_scope="session")
async def restartable(tmp_path: Path, ledger: MemoryLedger) -> AsyncIterator[Restartable]:
    async with ValkeyEngine(tmp_path / "own") as engine:
        own = Restartable(engine, ledger)
        yield own
        await own.gate.aclose()
        await own.client.aclose()


async def test_a_restart_without_data_opens_a_new_epoch(restartable: Restartable, ledger: MemoryLedger) -> None:
    gate = restartable.gate
    granted, lost = item("a", (STOCK, 4)), item("lost", (STOCK, 6))
    first = await gate.admit(GROUP, [granted, lost])
    assert ledger.commit(GROUP, first.epoch, granted) == "granted"
    await restartable.restart()
    second = await gate.admit(GROUP, [item("b", (STOCK, 6)), item("c", (STOCK, 1))])
    assert [answer.code for answer in second.answers] == [AdmitCode.ADMITTED, AdmitCode.REFUSED]
    assert second.epoch > first.epoch
    assert ledger.commit(GROUP, first.epoch, lost) == "stale"


async def test_yesterday_s_data_under_the_same_epoch_stay_closed(
    restartable: Restartable, ledger: MemoryLedger
) -> None:
    gate = restartable.gate
    early = await gate.admit(GROUP, [item("a", (STOCK, 1))])
    await redis.call(restartable.client, "SAVE")
    late = item("b", (STOCK, 9))
    assert (await gate.admit(GROUP, [late])).epoch == early.epoch
    assert ledger.commit(GROUP, early.epoch, late) == "granted"
    await restartable.restart()
    held = await redis.call(restartable.client, "HGET", keys(GROUP)[0], "@")
    assert int(held) == early.epoch, "the old data are back"
    assert (await gate.inspect(GROUP)).open_epoch is None
    after = await gate.admit(GROUP, [item("c", (STOCK, 2)), item("d", (STOCK, 1))])
    assert [answer.code for answer in after.answers] == [AdmitCode.REFUSED, AdmitCode.ADMITTED]
    assert after.epoch > early.epoch


async def test_a_redis_that_is_away_is_unavailable_and_recovers_by_itself(
    restartable: Restartable, ledger: MemoryLedger
) -> None:
    gate = restartable.gate
    await gate.admit(GROUP, [item("a")])
    await restartable.engine.kill()
    for attempt in range(3):
        with pytest.raises(GateUnavailable):
            await gate.admit(GROUP, [item(f"b{attempt}")])
    await restartable.engine.start()
    assert (await gate.admit(GROUP, [item("c", (STOCK, 10))])).answers[0].code is AdmitCode.ADMITTED


async def test_out_of_memory_changes_nothing_and_settling_still_works(
    restartable: Restartable, ledger: MemoryLedger
) -> None:
    gate, client = restartable.gate, restartable.client
    ledger.set_capacity(STOCK, 10**6)
    ledger.add(31, 10**6)
    first = item("first", (STOCK, 1))
    await gate.admit(GROUP, [first])
    admitted = refused = 0
    # The limit lies before, inside and after what the script needs, and it grows in small steps.
    for step in range(60):
        memory = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory", memory + 4096 * (step - 5))
        items = [item(f"{step}-{i}", (STOCK, 1), (31, 2), limit=(f"k{step}-{i}", 9)) for i in range(300)]
        before = await _all(client)
        try:
            answers = (await gate.admit(GROUP, items)).answers
        except GateUnavailable:
            refused += 1
            assert await _all(client) == before
        else:
            admitted += 1
            assert all(answer.code is AdmitCode.ADMITTED for answer in answers)
    assert refused > 0
    assert admitted > 0
    await client.config_set("maxmemory", 1)
    await settled(gate, first, SettleCode.GRANTED)
    state = await gate.inspect(GROUP)
    assert {held.resource: held.used for held in state.resources} == {11: 1 + 300 * admitted, 12: 0, 31: 600 * admitted}
    assert state.open_admissions == 300 * admitted
    assert await client.hlen(keys(GROUP)[1]) == 2 + 300 * admitted
    assert await client.hlen(keys(GROUP)[3]) == 1 + 300 * admitted
    await client.config_set("maxmemory", 0)


async def _all(client: redis.Client) -> Sequence[object]:
    return [await client.hgetall(key) for key in keys(GROUP)]


async def test_two_processes_that_both_look_alive_give_one_epoch_at_a_time(
    restartable: Restartable, gate: Gate, ledger: MemoryLedger
) -> None:
    """A split: one worker still reaches the old primary, the other the new one. The commit tells them apart."""
    workers = [restartable.gate, gate]
    granted = 0
    for round_ in range(6):
        for number, worker in enumerate(workers):
            one = item(f"r{round_}-{number}", (STOCK, 1))
            admitted = await worker.admit(GROUP, [one])
            outcome = ledger.commit(GROUP, admitted.epoch, one) if _admits(admitted.answers[0].code) else "refused"
            if outcome == "stale":
                worker.epoch_refused(GROUP, admitted.epoch)
            granted += outcome == "granted"
            await asyncio.sleep(0)
    assert 0 < granted <= 10
    assert ledger.accounts[STOCK].used == granted
    values = [epoch.value for epoch in ledger.epochs[GROUP]]
    assert values == sorted(set(values))


def _admits(code: AdmitCode) -> bool:
    return code is AdmitCode.ADMITTED

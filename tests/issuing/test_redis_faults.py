"""Whatever happens to Redis: correct answers or UNAVAILABLE, never one unit too many, and it mends itself."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import redis
from guerdon_server.platform.engines import ValkeyEngine
from guerdon_server.settings import Settings
from tests.issuing.crowd import crowd
from tests.issuing.desk import Desk, Refusal, ask, eventually, fresh, opened, outcome
from tests.issuing.proof import at_rest, proven


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def valkey(short_tmp: Path) -> AsyncIterator[ValkeyEngine]:
    """One to be ill-treated."""
    engine = ValkeyEngine(short_tmp / fresh("valkey"), debug_command=True)
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def frail(settings: Settings, valkey: ValkeyEngine) -> Settings:
    """Settings of servers on it."""
    client = redis.connect(valkey.url)
    await client.flushall()
    await client.aclose()
    return dataclasses.replace(settings, redis_url=valkey.url, admission_age_ms_max=1000)


@pytest_asyncio.fixture(loop_scope="session")
async def desks(frail: Settings) -> AsyncIterator[tuple[Desk, Desk]]:
    """Two servers on it."""
    async with (
        bootstrap.running(frail) as one,
        bootstrap.running(frail) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        await first.opens()
        await first.coupon(stock=100_000)
        yield first, second


Fault = Callable[[ValkeyEngine, redis.Client], Awaitable[None]]


async def _flush(_: ValkeyEngine, client: redis.Client) -> None:
    await client.flushall()


async def _forget_scripts(_: ValkeyEngine, client: redis.Client) -> None:
    await client.script_flush()


def _delete(part: str) -> Fault:
    async def delete(_: ValkeyEngine, client: redis.Client) -> None:
        (key,) = await client.keys(f"guerdon:*:{part}")
        await client.delete(key)

    return delete


def _replace(part: str) -> Fault:
    async def replace(_: ValkeyEngine, client: redis.Client) -> None:
        (key,) = await client.keys(f"guerdon:*:{part}")
        await client.set(key, "a text")

    return replace


async def _restart(engine: ValkeyEngine, _: redis.Client) -> None:
    await engine.kill()
    await engine.start()


async def _cut(_: ValkeyEngine, client: redis.Client) -> None:
    await redis.call(client, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


FAULTS: dict[str, Fault] = {
    "FLUSHALL": _flush,
    "SCRIPT FLUSH": _forget_scripts,
    **{f"{part} deleted": _delete(part) for part in ("meta", "markers", "admissions", "limits")},
    "markers replaced": _replace("markers"),
    "meta replaced": _replace("meta"),
    "restarted empty": _restart,
    "connections cut": _cut,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_under_load_nothing_is_lost_and_nothing_given_twice(
    frail: Settings, valkey: ValkeyEngine, desks: tuple[Desk, Desk], fault: str
) -> None:
    async with crowd(desks) as people:
        await people.more(30)
        for _ in range(2):
            client = redis.connect(valkey.url)
            await FAULTS[fault](valkey, client)
            await client.aclose()
            await people.more(30)

    assert not people.rejected
    assert (await desks[0].stock()).issued_units == len(people.granted)
    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)


async def test_stock_that_runs_out_while_redis_loses_everything_is_given_to_the_last_unit(
    frail: Settings, desks: tuple[Desk, Desk], valkey: ValkeyEngine
) -> None:
    await desks[0].coupon("scarce", stock=300, limit=60)
    async with crowd(desks, prize_id="scarce") as people:
        for _ in range(5):
            await people.more(40)
            client = redis.connect(valkey.url)
            await client.flushall()
            await client.aclose()

        async def sold_out() -> bool:
            return (await desks[0].stock("scarce")).remaining_units == 0

        await eventually(sold_out)
        await eventually(lambda: people.rejected["SOLD_OUT"] > 20)

    assert people.rejected.keys() <= {"SOLD_OUT", "LIMIT_REACHED"}
    assert len(people.granted) == 300
    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)


async def test_without_redis_it_is_unavailable_with_a_time_to_retry_and_afterwards_serves(
    frail: Settings, desks: tuple[Desk, Desk], valkey: ValkeyEngine
) -> None:
    granted = await desks[0].grant(ask("r-before"))
    async with crowd(desks) as people:
        await people.more(20)
        await valkey.kill()
        try:
            await people.noticed("GATE_UNAVAILABLE")
            refused = await outcome(desks[1].issue(ask()))
            assert isinstance(refused, Refusal)
            assert (refused.code, refused.reason, refused.domain) == ("UNAVAILABLE", "GATE_UNAVAILABLE", "guerdon.dev")
            assert refused.retry_after_ms
            assert (await desks[0].became("r-before")).granted == granted
        finally:
            await valkey.start()
        await people.more(50)

    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)


async def test_a_frozen_redis_is_waited_for_only_so_long(
    frail: Settings, desks: tuple[Desk, Desk], valkey: ValkeyEngine
) -> None:
    async with crowd(desks) as people:
        await people.more(20)
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            await people.noticed("GATE_UNAVAILABLE")
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        await people.more(50)

    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)


async def test_a_full_redis_is_unavailable_and_serves_again_when_there_is_room(
    frail: Settings, desks: tuple[Desk, Desk], valkey: ValkeyEngine
) -> None:
    client = redis.connect(valkey.url)
    async with crowd(desks) as people:
        await people.more(20)
        await client.config_set("maxmemory", "100kb")
        try:
            await people.noticed("GATE_UNAVAILABLE")
        finally:
            await client.config_set("maxmemory", "0")
            await client.aclose()
        await people.more(50)

    await people.replays_are_the_originals()
    await at_rest(frail)
    await proven(frail)

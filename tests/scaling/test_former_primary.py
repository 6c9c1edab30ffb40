"""A former primary that one server still reaches: what it says is not believed for long."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.platform import redis
from guerdon_server.settings import Settings
from tests.cluster.proxy import Proxy
from tests.cluster.valkey import ValkeyGroup
from tests.issuing.desk import ask, eventually, opened, reason
from tests.issuing.proof import proven


@pytest_asyncio.fixture(loop_scope="session")
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyGroup]:
    async with ValkeyGroup(tmp_path) as group:
        yield group


async def test_a_top_up_is_heard_by_a_server_that_only_a_former_primary_answers(
    settings: Settings, valkey: ValkeyGroup
) -> None:
    """Sold out is said without asking anybody else, so nothing but the epoch can tell that it is not true any more."""
    async with Proxy(*valkey.address) as left, Proxy(*valkey.address) as right:
        valkey.followers.extend((left, right))
        of_left, of_right = (
            dataclasses.replace(settings, redis_url=valkey.url_through(proxy), reconcile_interval_ms=60_000)
            for proxy in (left, right)
        )
        async with (
            bootstrap.running(of_left) as one,
            bootstrap.running(of_right) as two,
            opened(one.grpc) as first,
            opened(two.grpc) as second,
        ):
            await first.opens()
            await first.coupon(stock=1)
            await second.grant(ask())
            assert reason(await first.rejection(ask())) == "SOLD_OUT"
            await valkey.fail_over(keep_old_for=[left])
            assert reason(await first.rejection(ask())) == "SOLD_OUT"  # which is true still
            await second.adjusts_stock(1)

            async def granted() -> bool:
                return (await first.issue(ask("wanted"))).HasField("granted")

            await eventually(granted)
        await valkey.heal()
        valkey.followers.clear()
    await proven(dataclasses.replace(settings, redis_url=valkey.url))


async def test_who_follows_another_is_not_asked_what_the_group_holds(valkey: ValkeyGroup) -> None:
    """A primary that was made a replica keeps its run id, and with it what would pass for the group's own state."""
    await valkey.fail_over()
    await valkey.heal()
    async with redis.connect(valkey.replica_url) as client:
        gate = RedisGate(client)
        with pytest.raises(redis.RedisUnavailable, match="ReadOnly"):
            await gate.inspect(1, resources=True)
        with pytest.raises(redis.RedisUnavailable, match="ReadOnly"):
            await gate.open_admissions(1, epoch=1, run_id="x", cursor="0", page_items=1)
        with pytest.raises(redis.RedisUnavailable, match="ReadOnly"):
            await gate.is_marked_open(1, epoch=1, run_id="x", request_id="r")

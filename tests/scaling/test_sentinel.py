"""Servers that find Redis through sentinels."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import redis, redis_deployment
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.settings import Settings
from tests.cluster.valkey_sentinel import SERVICE, SentinelGroup
from tests.issuing.crowd import crowd
from tests.issuing.desk import ask, eventually, fresh, opened, refusal
from tests.issuing.proof import proven
from tests.scaling.conftest import granted_at_last

_TILT_SECONDS = 2.5  # a sentinel whose clock jumps by more than 2 s

# The shebang makes it one that may write, as the gate's scripts are.
RUN_ID = redis.Script("run id", "#!lua\nreturn string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')")


@pytest_asyncio.fixture(loop_scope="session")
async def group(tmp_path: Path) -> AsyncIterator[SentinelGroup]:
    async with SentinelGroup(tmp_path) as group:
        yield group


@pytest.fixture
def watched(settings: Settings, group: SentinelGroup) -> Settings:
    """Settings of servers that ask the sentinels."""
    return dataclasses.replace(settings, redis_url=group.url, admission_age_ms_max=1000)


async def test_a_primary_that_stands_still_is_replaced_under_load_and_comes_back_as_a_replica(
    watched: Settings, group: SentinelGroup
) -> None:
    old, new = group.nodes
    async with (
        bootstrap.running(watched) as one,
        bootstrap.running(watched) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        await first.opens()
        await first.coupon(stock=100_000)
        async with crowd([first, second]) as people:
            await people.more(30)
            await group.freeze(old)
            await group.failed_over(new)
            await people.more(30)
            await group.thaw(old)
            await people.more(60)
            await group.follows(old, new)
        assert not people.rejected
        assert (await first.stock()).issued_units == len(people.granted)
        await people.replays_are_the_originals()
        # While both were primaries the group may have been opened last at the old one: a call opens it at the new one.
        await granted_at_last(first, fresh("afterwards"))

        async def nothing_open() -> bool:
            (key,) = await new.call("KEYS", "guerdon:*:admissions")
            return bool(await new.call("HLEN", key) == 1)

        await eventually(nothing_open)
    await proven(watched)


async def test_a_primary_that_has_lost_its_replicas_is_not_believed_to_be_the_primary(group: SentinelGroup) -> None:
    """A connection that lives on leads to a former primary, which no sentinel reaches any more."""
    old, new = group.nodes
    client = redis_deployment.connect(group.url)
    before = await RUN_ID(client, [], [])
    await old.call("CONFIG SET", "min-replicas-to-write", 1)
    await new.detach()
    await group.tell(new)

    async def led_to_the_new_one() -> bool:
        try:
            return bool(await RUN_ID(client, [], []) != before)
        except redis.RedisUnavailable:
            return False

    await eventually(led_to_the_new_one)
    await client.aclose()


async def test_a_primary_that_is_up_is_found_although_its_sentinel_still_holds_it_for_down(
    group: SentinelGroup,
) -> None:
    """After a pause of its machine a sentinel keeps its last opinion for a while, whatever has become of it (TILT)."""
    primary = group.nodes[0]
    asked, *others = group.sentinels
    await asked.call("SENTINEL DEBUG", "tilt-period", 600_000)
    for sentinel in others:  # alone it starts no fail-over
        await group.freeze(sentinel)
    await group.freeze(primary)

    async def down() -> bool:
        return bool((await asked.call("SENTINEL MASTER", SERVICE))["is_sdown"])

    await eventually(down)
    await group.freeze(asked)
    await group.thaw(primary)
    await asyncio.sleep(_TILT_SECONDS)
    await group.thaw(asked)

    async def tilted() -> bool:
        return bool((await asked.call("INFO", "sentinel"))["sentinel_tilt"] == 1)

    await eventually(tilted)
    assert await down()
    client = redis_deployment.connect(group.url_by(asked))
    assert await RUN_ID(client, [], []) == (await primary.info("server"))["run_id"].encode()
    await client.aclose()
    for sentinel in others:
        await group.thaw(sentinel)


async def test_a_name_that_no_sentinel_knows_is_said(watched: Settings) -> None:
    wrong = dataclasses.replace(watched, redis_url=watched.redis_url.replace(f"/{SERVICE}", "/other"))
    async with bootstrap.running(wrong) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=1)
        refused = await refusal(desk.issue(ask()))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "GATE_UNAVAILABLE")
    assert "No master found for 'other'" in refused.message


async def test_the_io_to_sentinels_and_primary_has_points(watched: Settings) -> None:
    points = Failpoints("redis.sentinel_masters.before=error@1-6")
    async with bootstrap.running(watched, failpoints=points) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=100)
        await granted_at_last(desk, "first")  # background jobs may have met the errors before it
    assert points.fired["redis.sentinel_masters.before"] == 6
    assert {"redis.connect.before", "redis.gate.admit.after", "redis.sentinel_masters.after"} <= points.seen.keys()

"""One promotion in three stock buckets on the three primaries of a Redis Cluster, through two servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest_asyncio
from redis.crc import key_slot

from guerdon_server import bootstrap
from guerdon_server.core.stock.buckets import bucket_of, tags
from guerdon_server.core.stock.model import Tag
from guerdon_server.core.stock.redis.store import RedisGate
from guerdon_server.platform import postgres, redis, redis_deployment
from guerdon_server.settings import Settings
from tests.cluster.valkey_cluster import ClusterNode, ValkeyCluster
from tests.issuing.crowd import crowd
from tests.issuing.desk import Desk, Refusal, ask, eventually, fresh, item, kinds, opened, outcome, reason
from tests.scaling.conftest import comes_to_rest

BUCKETS = 3
PROMOTION = "hot"


@pytest_asyncio.fixture(loop_scope="session")
async def hot(spread: Settings, pool: postgres.Pool) -> AsyncIterator[Sequence[Desk]]:
    """Two servers; a promotion that was set to three buckets before anybody asked for anything."""
    async with (
        bootstrap.running(spread) as one,
        bootstrap.running(spread) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        await first.opens(PROMOTION)
        await pool.fetchval("SELECT guerdon.set_gate_buckets($1, $2)", PROMOTION, BUCKETS)
        yield first, second


async def sid(pool: postgres.Pool) -> int:
    number: int = await pool.fetchval("SELECT sid FROM guerdon.promotion WHERE promotion_id = $1", PROMOTION)
    return number


async def node_of(bucket: int, cluster: ValkeyCluster, pool: postgres.Pool) -> ClusterNode:
    return await cluster.owner(key_slot(str(tags(await sid(pool), BUCKETS)[bucket]).encode()))


def of(bucket: int) -> str:
    """A request id that belongs to this bucket."""
    while bucket_of(request_id := fresh("order"), BUCKETS) != bucket:
        pass
    return request_id


@asynccontextmanager
async def shares_watched(cluster: ValkeyCluster, pool: postgres.Pool, ceiling: int) -> AsyncIterator[None]:
    """Looks while the block runs whether the buckets together ever have more than there is.

    Read from the first to the last and back: what moves meanwhile can be counted twice in one direction only.
    """
    seen: list[int] = []
    going = True
    groups = tags(await sid(pool), BUCKETS)
    async with contextlib.aclosing(redis_deployment.connect(cluster.url)) as client:
        store = RedisGate(client)

        async def shares(order: Sequence[Tag]) -> int:
            states = [await store.inspect(tag, resources=True) for tag in order]
            return sum(resource.capacity for state in states for resource in state.resources)

        async def watch() -> None:
            while going:
                with contextlib.suppress(redis.RedisUnavailable):  # of a primary that is away
                    seen.append(min(await shares(groups), await shares(groups[::-1])))
                await asyncio.sleep(0.02)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            going = False
            await task
    assert seen
    assert max(seen) <= ceiling, "more at the gate than there is"


async def test_each_bucket_is_at_a_primary_of_its_own_and_the_last_unit_is_given(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster, pool: postgres.Pool
) -> None:
    assert len({await node_of(bucket, cluster, pool) for bucket in range(BUCKETS)}) == BUCKETS
    await hot[0].coupon(promotion_id=PROMOTION, stock=600)
    found: Counter[str] = Counter()

    async def importer(desk: Desk, bucket: int) -> None:  # uneven: each has its whole demand in one bucket
        for _ in range(8):
            items = [item(of(bucket), user_id=fresh("user")) for _ in range(50)]
            found.update(kinds(await desk.batch(items, promotion_id=PROMOTION)))

    async with shares_watched(cluster, pool, 600):
        await asyncio.gather(importer(hot[0], 0), importer(hot[1], 2), importer(hot[0], 2))
    assert found == {"granted": 600, "SOLD_OUT": 600}
    stock = await hot[0].stock()
    assert (stock.issued_units, stock.remaining_units) == (600, 0)
    await comes_to_rest(spread, cluster)


async def test_a_crowd_at_both_servers_is_granted_exactly_what_there_is(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster
) -> None:
    await hot[0].coupon(promotion_id=PROMOTION, stock=400)
    async with crowd(hot, clerks=12, promotion_id=PROMOTION) as people:
        await eventually(lambda: people.rejected["SOLD_OUT"] > 20)
    assert people.rejected.keys() == {"SOLD_OUT"}
    assert len(people.granted) == 400
    await people.replays_are_the_originals()
    await comes_to_rest(spread, cluster)


async def test_what_is_left_in_another_bucket_is_no_sold_out(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster
) -> None:
    await hot[0].coupon(promotion_id=PROMOTION, stock=9)
    for bucket in range(BUCKETS):
        await hot[0].grant(ask(of(bucket), promotion_id=PROMOTION))  # each has a share now
    for number in range(6):
        await hot[number % 2].grant(ask(of(1), promotion_id=PROMOTION))
    for bucket in range(BUCKETS):
        assert reason(await hot[1].rejection(ask(of(bucket), promotion_id=PROMOTION))) == "SOLD_OUT"
    await comes_to_rest(spread, cluster)


async def test_duplicates_at_two_servers_are_granted_once_and_replayed(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster
) -> None:
    await hot[0].coupon(promotion_id=PROMOTION, stock=60, limit=40)
    ids = [of(number % BUCKETS) for number in range(40)]
    asks = [ask(request_id, promotion_id=PROMOTION) for request_id in ids]
    answers = await asyncio.gather(*(desk.issue(one) for one in asks for desk in (*hot, *hot)))
    assert all(answer.HasField("granted") for answer in answers)
    assert len({answer.granted.issuance_id for answer in answers}) == 40
    assert sum(not answer.replayed for answer in answers) == 40
    for bucket in range(BUCKETS):  # the limit is exact, whatever each bucket has counted
        assert reason(await hot[1].rejection(ask(of(bucket), promotion_id=PROMOTION))) == "LIMIT_REACHED"
    assert (await hot[0].stock()).remaining_units == 20
    await comes_to_rest(spread, cluster)


async def test_top_ups_and_recalls_reach_all_buckets(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster
) -> None:
    await hot[0].coupon(promotion_id=PROMOTION, stock=90)
    for bucket in range(BUCKETS):
        await hot[0].grant(ask(of(bucket), promotion_id=PROMOTION))
    await hot[0].adjusts_stock(-80)
    found = Counter(kinds(await hot[1].batch([item(of(2)) for _ in range(12)], promotion_id=PROMOTION)))
    assert found == {"granted": 7, "SOLD_OUT": 5}
    await hot[0].adjusts_stock(5)
    found = Counter(kinds(await hot[1].batch([item(of(1)) for _ in range(12)], promotion_id=PROMOTION)))
    assert found == {"granted": 5, "SOLD_OUT": 7}
    await comes_to_rest(spread, cluster)


async def test_all_or_nothing_over_buckets_takes_all_or_gives_all_back(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster
) -> None:
    await hot[0].coupon(promotion_id=PROMOTION, stock=10)
    first = [item(of(number % BUCKETS)) for number in range(6)]
    assert kinds(await hot[0].batch(first, promotion_id=PROMOTION, together=True)) == ["granted"] * 6
    second = [item(of(number % BUCKETS)) for number in range(5)]
    refused = kinds(await hot[1].batch(second, promotion_id=PROMOTION, together=True))
    assert set(refused) == {"SOLD_OUT", "BATCH_NOT_GRANTED"}
    assert kinds(await hot[1].batch(second[:4], promotion_id=PROMOTION, together=True)) == ["granted"] * 4
    assert kinds(await hot[0].batch(first, promotion_id=PROMOTION, together=True)) == ["replayed"] * 6
    await comes_to_rest(spread, cluster)


async def test_a_primary_dies_and_the_other_buckets_go_on_until_the_last_unit(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster, pool: postgres.Pool
) -> None:
    await hot[0].coupon(promotion_id=PROMOTION, stock=900)
    node = await node_of(1, cluster, pool)
    replica = await cluster.replica_of(node)
    async with shares_watched(cluster, pool, 900), crowd(hot, clerks=6, promotion_id=PROMOTION) as people:
        await people.more(50)
        for both in (replica, node):
            await cluster.freeze(both)
        await people.noticed("GATE_UNAVAILABLE")
        asked = asyncio.gather(
            *(outcome(hot[n % 2].issue(ask(of(n % BUCKETS), promotion_id=PROMOTION))) for n in range(60))
        )
        answers = await asked
        others = [answer for n, answer in enumerate(answers) if n % BUCKETS != 1]
        assert all(not isinstance(a, Refusal) and a.HasField("granted") for a in others), others
        await cluster.kill(node)
        await cluster.thaw(replica)
        await cluster.promoted(replica)
        await eventually(lambda: people.rejected["SOLD_OUT"] > 10)
    assert people.rejected.keys() == {"SOLD_OUT"}
    stock = await hot[0].stock()
    assert (stock.issued_units, stock.remaining_units) == (900, 0)
    await people.replays_are_the_originals()
    await comes_to_rest(spread, cluster)
    run_ids = await pool.fetchval("SELECT gate_run_id FROM guerdon.promotion")
    assert run_ids.split(",")[1] == await replica.run_id()


async def test_the_number_of_buckets_is_set_while_callers_come(
    hot: Sequence[Desk], spread: Settings, cluster: ValkeyCluster, pool: postgres.Pool
) -> None:
    await hot[0].coupon(promotion_id=PROMOTION, stock=10_000)
    async with crowd(hot, clerks=6, promotion_id=PROMOTION) as people:
        for buckets in (1, 3, 2, 3):
            await people.more(30)
            await pool.fetchval("SELECT guerdon.set_gate_buckets($1, $2)", PROMOTION, buckets)
        await people.more(60)
    assert not people.rejected
    assert (await hot[0].stock()).issued_units == len(people.granted)
    await people.replays_are_the_originals()
    await comes_to_rest(spread, cluster)

"""The way to the node that owns a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import redis, redis_deployment
from guerdon_server.platform.engines import Engines
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.platform.redis_cluster import Cluster
from guerdon_server.platform.redis_url import parse
from guerdon_server.settings import Settings
from tests.cluster.valkey_cluster import ClusterNode, ValkeyCluster, slot_of
from tests.issuing.desk import Desk, ask, eventually, opened, refusal
from tests.scaling.conftest import Groups, comes_to_rest, granted_at_last
from tests.scaling.crowds import crowds, more, settled_to_what_was_said

COUNT = redis.Script("count", "#!lua\nreturn redis.call('INCR', KEYS[1])")


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: ValkeyCluster) -> AsyncIterator[Cluster]:
    client = redis_deployment.connect(cluster.url)
    assert isinstance(client, Cluster)
    yield client
    await client.aclose()


async def test_scripts_and_commands_run_at_the_owner(client: Cluster, cluster: ValkeyCluster) -> None:
    for number in range(20):
        assert await COUNT(client, [f"{{{number}}}k"]) == 1
        assert await redis.call(client, "GET", f"{{{number}}}k") == b"1"
    held = [len(await node.call("KEYS", "*")) for node in await cluster.primaries()]
    assert sum(held) == 20
    assert all(held)


async def test_a_slot_that_moved_is_followed_and_the_map_is_read_again(client: Cluster, cluster: ValkeyCluster) -> None:
    await COUNT(client, ["{1}k"])
    source = await cluster.owner(slot_of(1))
    target = await cluster.other_than(source)
    others = [n for n in range(2, 200) if await cluster.owner(slot_of(n)) is source][:2]
    for number in (1, *others):
        await cluster.move(slot_of(number), target)
    assert await COUNT(client, ["{1}k"]) == 2  # sent on by MOVED

    async def knows_the_others() -> bool:
        return all([await client.owner(f"{{{number}}}k") == target.address for number in others])

    await eventually(knows_the_others)  # without having asked for them
    for number in (1, *others):
        await cluster.move(slot_of(number), source)


async def test_connections_to_a_node_that_has_no_part_any_more_are_closed(cluster: ValkeyCluster) -> None:
    primaries = await cluster.primaries()
    replica = next(node for node in cluster.nodes if node not in primaries)
    url = parse(cluster.url)
    hasty = Cluster(url.addresses[:1], lambda address: redis.connect(url.at(*address)), unused_seconds_max=0)
    assert await redis.call(hasty.client(replica.address), "PING")  # as one that was asked once

    async def connections() -> int:
        listed: bytes = await replica.call("CLIENT", "LIST", "TYPE", "normal")
        return len(listed.splitlines())

    before = await connections()
    await COUNT(hasty, ["{1}k"])  # reads the map

    async def one_less() -> bool:
        return await connections() == before - 1

    await eventually(one_less)
    await hasty.aclose()


async def test_a_node_that_knows_of_no_slot_is_not_believed(cluster: ValkeyCluster, tmp_path: Path) -> None:
    stranger = ClusterNode(tmp_path / "stranger", password_of=cluster.nodes[0])
    await stranger.begin()
    try:
        url = parse(cluster.url)
        for _ in range(5):  # in any order
            client = Cluster([stranger.address, url.addresses[0]], lambda address: redis.connect(url.at(*address)))
            assert await COUNT(client, ["{1}k"])
            await client.aclose()
    finally:
        await stranger.stop()


async def test_one_server_taken_for_a_cluster_is_said_and_a_cluster_for_one_server(
    cluster: ValkeyCluster, engines: Engines
) -> None:
    client = redis_deployment.connect(engines.redis_url.replace("redis://", "redis+cluster://"))
    with pytest.raises(redis.RedisUnavailable, match=r"redis_url has to begin with redis:// "):
        await COUNT(client, ["{1}k"])
    await client.aclose()
    other = await cluster.other_than(await cluster.owner(slot_of(1)))
    client = redis_deployment.connect(other.url)
    with pytest.raises(redis.RedisUnavailable, match=r"redis_url has to begin with redis\+cluster://"):
        await COUNT(client, ["{1}k"])
    with pytest.raises(redis.RedisUnavailable, match=r"redis_url has to begin with redis\+cluster://"):
        await redis.call(client, "GET", "{1}k")
    await client.aclose()


async def test_a_minority_does_not_serve_and_with_the_majority_all_is_served_again(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    primaries = await cluster.primaries()
    alone = primaries[0]
    replicas = [node for node in cluster.nodes if node not in primaries]
    own = await groups.at(alone)
    async with crowds(desks, own) as people:
        await more(people, 10)
        for node in (*replicas, *primaries[1:]):
            await cluster.freeze(node)

        async def is_down() -> bool:
            return b"cluster_state:fail" in await alone.call("CLUSTER", "INFO")

        await eventually(is_down)
        await people[own[0]].noticed("GATE_UNAVAILABLE")
        for node in (*replicas, *primaries[1:]):
            await cluster.thaw(node)
        await more(people, 10)
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)


async def test_the_io_to_nodes_has_points(spread: Settings, cluster: ValkeyCluster) -> None:
    points = Failpoints("redis.cluster_slots.before=error@1-2")
    async with bootstrap.running(spread, failpoints=points) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=100)
        await granted_at_last(desk, "first")  # a background job may have met the errors of both seeds before it
        assert points.fired["redis.cluster_slots.before"] == 2
        with points.armed("redis.gate.admit.after=error"):
            assert (await refusal(desk.issue(ask("second")))).reason == "GATE_UNAVAILABLE"
        await desk.grant(ask("second"))
        slot = slot_of(1)
        target = await cluster.other_than(await cluster.owner(slot))
        source = await cluster.begin_move(slot, target)
        await cluster.move_keys(slot, source, target)
        with points.armed("redis.asking.before=error"):
            assert (await refusal(desk.issue(ask("third")))).reason == "GATE_UNAVAILABLE"
        await desk.grant(ask("third"))
        await cluster.end_move(slot, target)
        await cluster.move(slot, source)
        await desk.grant(ask("third"), replayed=True)
    assert {"redis.connect.before", "redis.gate.load.after", "redis.asking.after"} <= points.seen.keys()
    await comes_to_rest(spread, cluster)

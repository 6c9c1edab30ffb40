"""Servers on a Redis Cluster: every group at its node, whatever happens to the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.cluster.valkey_cluster import ClusterNode, ValkeyCluster
from tests.issuing.desk import Desk, ask, eventually, item, kinds
from tests.scaling.conftest import Groups, comes_to_rest
from tests.scaling.crowds import crowds, more, settled_to_what_was_said

_WAITS_MAX = 10  # of two callers; a grant each in the same pipelines would be twice as many


async def victim(groups: Groups) -> ClusterNode:
    """The primary that serves most."""
    by_node = await groups.by_node()
    return max(by_node, key=lambda node: len(by_node[node]))


async def test_a_batch_for_each_promotion_and_each_group_is_at_its_node(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    by_node = await groups.by_node()
    assert len(by_node) == 3
    assert all(by_node.values()), "no promotion at one of the primaries"

    async def batch(promotion: str) -> list[str]:
        prize = f"welcome-{promotion.split('-')[1]}"
        items = [item(f"{promotion}-{number}", prize_id=prize) for number in range(50)]
        return kinds(await desks[0].batch(items, promotion_id=promotion))

    answers = await asyncio.gather(*(batch(promotion) for promotion in groups.sids))
    assert answers == [["granted"] * 50] * len(groups.sids)
    for node, promotions in by_node.items():
        held = {key.decode() for key in await node.call("KEYS", "guerdon:*:meta")}
        assert held == {f"guerdon:{{{groups.sids[promotion]}}}:meta" for promotion in promotions}
    await comes_to_rest(spread, cluster)


async def test_a_primary_dies_under_load_and_its_groups_are_opened_anew_at_its_replica(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster, pool: postgres.Pool
) -> None:
    node = await victim(groups)
    replica, lost = await cluster.replica_of(node), await groups.at(node)
    others = groups.sids.keys() - lost
    async with crowds(desks, groups.sids) as people:
        await more(people, 10)
        await cluster.kill(node)
        await more(people, 10, others)  # before anybody is promoted, and after
        await cluster.promoted(replica)
        await more(people, 10)
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)
    loaded_at = await pool.fetch("SELECT gate_run_id FROM guerdon.promotion WHERE promotion_id = ANY($1)", lost)
    assert {row["gate_run_id"] for row in loaded_at} == {await replica.run_id()}


async def test_a_node_that_stands_still_holds_up_only_its_own_groups_and_is_replaced(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    node = await victim(groups)
    replica, lost = await cluster.replica_of(node), await groups.at(node)
    others = groups.sids.keys() - lost
    async with crowds(desks, groups.sids) as people:
        await more(people, 10)
        for both in (replica, node):
            await cluster.freeze(both)
        await more(people, 20, others)
        # Each caller of a group at the frozen node waits for two seconds, again and again. The others don't.
        assert max(people[promotion].refused.total() for promotion in lost) <= _WAITS_MAX
        assert not any(people[promotion].refused["GATE_UNAVAILABLE"] for promotion in others)
        await cluster.thaw(replica)
        await cluster.promoted(replica)
        await more(people, 10)
        await cluster.thaw(node)  # it answers as a primary until it hears of the other
        await more(people, 20)
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)


async def test_slots_move_under_load_key_by_key_and_back(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    source = await victim(groups)
    target = await cluster.other_than(source)
    moving = (await groups.at(source))[:3]
    async with crowds(desks, groups.sids) as people:
        await more(people, 10)
        for promotion in moving:
            await cluster.move(groups.slot(promotion), target)
            await more(people, 2, [promotion])
        assert not set(moving) & set(await groups.at(source))
        for promotion in moving:
            await cluster.move(groups.slot(promotion), source)
        await more(people, 10)
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)


async def test_slots_move_under_load_in_one_piece_and_back(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    source = await victim(groups)
    target = await cluster.other_than(source)
    moving = await groups.at(source)
    async with crowds(desks, groups.sids) as people:
        for goal in (target, source):
            await more(people, 10)
            await cluster.move_in_one_piece(sorted(groups.slot(promotion) for promotion in moving), goal)
        await more(people, 10)
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)


async def test_a_slot_that_is_left_half_way_serves_what_can_be_served(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    source = await victim(groups)
    target = await cluster.other_than(source)
    (promotion, *_) = await groups.at(source)
    slot = groups.slot(promotion)
    async with crowds(desks, [promotion]) as people:
        await more(people, 10)
        await cluster.begin_move(slot, target)
        await more(people, 10)  # all keys at the source
        await cluster.move_one_key(slot, source, target)
        await people[promotion].noticed("GATE_UNAVAILABLE")  # on both sides
        await cluster.move_keys(slot, source, target)
        await more(people, 10)  # all keys at the target, the slot is not: by ASK
        await cluster.end_move(slot, target)
        await more(people, 10)
        await cluster.move(slot, source)
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)


async def test_a_group_that_was_moved_away_and_back_while_nobody_asked_is_as_it_was(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster, pool: postgres.Pool
) -> None:
    # Nobody can have admitted elsewhere meanwhile: elsewhere it is closed, and whoever opens it replaces the epoch.
    source = await victim(groups)
    target = await cluster.other_than(source)
    (promotion, *_) = await groups.at(source)
    number, slot = promotion.split("-")[1], groups.slot(promotion)
    await desks[0].grant(ask(prize_id=f"welcome-{number}", promotion_id=promotion))
    await comes_to_rest(spread, cluster)
    before = await pool.fetchval("SELECT gate_epoch FROM guerdon.promotion WHERE promotion_id = $1", promotion)
    for goal in (target, source):
        await cluster.move(slot, goal)
    await desks[1].grant(ask(prize_id=f"welcome-{number}", promotion_id=promotion))
    after = await pool.fetchval("SELECT gate_epoch FROM guerdon.promotion WHERE promotion_id = $1", promotion)
    assert after == before
    await comes_to_rest(spread, cluster)


async def test_a_replica_takes_over_in_order_and_hands_back(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    node = await victim(groups)
    replica = await cluster.replica_of(node)
    async with crowds(desks, groups.sids) as people:
        await more(people, 10)
        for successor in (replica, node):
            await successor.call("CLUSTER", "FAILOVER")
            await cluster.promoted(successor)
            await more(people, 10)
            await cluster.settled()
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)


async def test_stock_that_runs_out_while_a_primary_is_lost_is_given_to_the_last_unit(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    node = await victim(groups)
    replica, lost = await cluster.replica_of(node), await groups.at(node)
    for promotion in lost:
        number = promotion.split("-")[1]
        await desks[0].coupon(f"scarce-{number}", promotion_id=promotion, stock=60)
    async with crowds(desks, lost, prize="scarce") as people:
        await more(people, 20)
        await cluster.kill(node)
        await cluster.promoted(replica)
        for crowd in people.values():
            await eventually(lambda crowd=crowd: crowd.rejected["SOLD_OUT"] > 5)  # type: ignore[misc]
    for crowd in people.values():
        assert crowd.rejected.keys() == {"SOLD_OUT"}
        assert len(crowd.granted) == 60
        assert (await desks[0].stock(crowd.prize_id)).remaining_units == 0
    await comes_to_rest(spread, cluster)


async def test_forgotten_scripts_are_brought_to_each_node_again(
    desks: Sequence[Desk], groups: Groups, spread: Settings, cluster: ValkeyCluster
) -> None:
    async with crowds(desks, groups.sids) as people:
        await more(people, 5)
        for node in cluster.nodes:
            await node.call("SCRIPT FLUSH")
        await more(people, 5)
    assert not any(crowd.refused["GATE_UNAVAILABLE"] for crowd in people.values())
    await settled_to_what_was_said(people, desks[0])
    await comes_to_rest(spread, cluster)

"""The whole: servers that keep their addresses while they, and what is behind them, come and go."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import redis
from tests.cluster.cluster import Cluster
from tests.cluster.servers import ServerSlot
from tests.cluster.waiting import NotInForce, until
from tests.issuing.crowd import crowd
from tests.issuing.desk import Desk, Refusal, ask, eventually, opened, outcome

_DISK_BYTES = 768 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Two servers; an active promotion with an unlimited coupon."""
    async with Cluster(folder, servers=2, disk_bytes=_DISK_BYTES) as cluster:
        async with opened(cluster.servers[0].target) as desk:
            await desk.opens()
            await desk.coupon()
        yield cluster


@pytest_asyncio.fixture
async def desks(cluster: Cluster) -> AsyncIterator[list[Desk]]:
    """One to each server."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened(server.target)) for server in cluster.servers]


@pytest_asyncio.fixture
async def server(cluster: Cluster) -> AsyncIterator[ServerSlot]:
    """The first; running again afterwards."""
    server = cluster.servers[0]
    yield server
    await server.thaw()
    if not server.is_running:
        await server.start()


async def proven(cluster: Cluster) -> None:
    """The books are right now; the gate when it has settled."""

    async def holds() -> bool:
        return all(check.ok for check in await bootstrap.verify(cluster.settings))

    await eventually(holds)


async def test_a_grant_is_its_requests_answer_through_every_fail_over(cluster: Cluster, desks: list[Desk]) -> None:
    async with crowd(desks, clerks=6) as people:
        await people.more(30)
        await cluster.postgres.fail_over()
        await people.more(30)
        await cluster.postgres.rebuild_standby()
        await cluster.valkey.fail_over(keep_old_for=[cluster.servers[0].to_redis])
        await people.more(30)
        await cluster.valkey.heal()
        await people.more(30)
    await people.replays_are_the_originals()
    await proven(cluster)


async def test_in_a_split_two_servers_see_two_valkeys(cluster: Cluster) -> None:
    async def seen() -> list[str]:
        found = []
        for server in cluster.servers:
            async with redis.connect(cluster.valkey.url_through(server.to_redis)) as client:
                found.append((await client.info("server"))["run_id"])
        return found

    left, right = await seen()
    assert left == right
    await cluster.valkey.fail_over(keep_old_for=[cluster.servers[1].to_redis])
    left, right = await seen()
    assert left != right
    await cluster.valkey.heal()
    left, right = await seen()
    assert left == right


async def test_a_killed_server_keeps_its_address(server: ServerSlot, desks: list[Desk]) -> None:
    await desks[0].grant(ask("before-the-kill"))
    target, starts = server.target, server.starts
    await server.kill()
    assert (server.is_running, server.exit_status) == (False, -signal.SIGKILL)
    assert isinstance(refused := await outcome(desks[0].issue(ask())), Refusal)
    assert refused.code == "UNAVAILABLE"
    await server.start()
    assert (server.is_running, server.exit_status, server.target, server.starts) == (True, None, target, starts + 1)

    async def replayed() -> bool:
        answer = await outcome(desks[0].issue(ask("before-the-kill")))
        return not isinstance(answer, Refusal) and answer.replayed

    await eventually(replayed)


async def test_a_stopped_server_ends_in_order_and_tells_of_it(server: ServerSlot) -> None:
    assert await server.stop() == 0
    assert "stopped" in server.log_tail()
    with pytest.raises(OSError, match="refused"):
        await server.metrics()


async def test_a_frozen_server_answers_when_it_is_thawed(server: ServerSlot, desks: list[Desk]) -> None:
    await desks[0].grant(ask())
    await server.freeze()
    request = ask()
    assert isinstance(refused := await outcome(desks[0].issue(request, timeout=0.2)), Refusal)
    assert refused.code == "DEADLINE_EXCEEDED"
    assert server.is_running
    await server.thaw()

    async def answered() -> bool:
        return not isinstance(await outcome(desks[0].issue(request, timeout=2.0)), Refusal)

    await eventually(answered)


async def test_a_server_dies_at_its_failpoint(server: ServerSlot, desks: list[Desk]) -> None:
    await server.stop()
    await server.start(failpoints="postgres.commit_issuances.after=kill@1")
    request = ask()

    async def dead() -> bool:
        await outcome(desks[0].issue(request, timeout=1.0))
        return not server.is_running

    await until(dead, "the server to die")
    assert await server.ended() == -signal.SIGKILL
    assert "postgres.commit_issuances.after" in server.log_tail()
    assert (await desks[1].issue(request)).replayed  # the commit had been durable


async def test_a_server_that_does_not_start_says_why(server: ServerSlot) -> None:
    await server.stop()
    with pytest.raises(NotInForce, match="lease_seconds"):
        await server.start(GUERDON_LEASE_SECONDS="nonsense")
    assert server.exit_status == 2


async def test_metrics_can_be_read(server: ServerSlot, desks: list[Desk]) -> None:
    granted = 'guerdon_outcomes_total{outcome="granted"}'
    before = await server.metrics()
    await desks[0].grant(ask())
    after = await server.metrics()
    changed = {
        name for name in after if name.startswith("guerdon_outcomes_total") and after[name] > before.get(name, 0)
    }
    assert changed == {granted}


async def test_a_lost_reply_of_the_server_is_a_durable_grant(
    cluster: Cluster, server: ServerSlot, desks: list[Desk]
) -> None:
    await desks[0].grant(ask())
    server.callers.lose_replies = 1
    request = ask()
    assert isinstance(refused := await outcome(desks[0].issue(request)), Refusal)
    assert refused.code == "UNAVAILABLE"
    assert server.callers.lose_replies == 0
    assert (await desks[1].issue(request)).replayed
    cluster.calm()


async def test_whatever_was_done_can_be_mended(cluster: Cluster, desks: list[Desk]) -> None:
    postgres, valkey = cluster.postgres, cluster.valkey
    left, right = cluster.servers
    await postgres.poison("mended")
    await postgres.raise_in_commits("40001", 1.0)
    await postgres.hold_account_locks(60)
    await postgres.fail_over(keep_old_for=[left.to_postgres])
    await postgres.freeze()
    await valkey.fail_over(keep_old_for=[right.to_redis])
    await valkey.limit_memory()
    await valkey.kill()
    await left.freeze()
    await right.kill()
    left.callers.stall = right.callers.away = True
    await cluster.mend()
    assert postgres.synchronous
    for desk in desks:

        async def granted(desk: Desk = desk) -> bool:
            answer = await outcome(desk.issue(ask("mended"), timeout=2.0))
            return not isinstance(answer, Refusal) and answer.HasField("granted")

        await eventually(granted)
    await proven(cluster)


async def test_everything_is_ended_although_the_block_was_cancelled_while_it_ended(tmp_path: Path) -> None:
    inside, pids = asyncio.Event(), set[int]()

    async def block() -> None:
        async with Cluster(tmp_path / "cluster", servers=1, standby=False, replica=False, disk_bytes=_DISK_BYTES) as c:
            pids.update(c.pids().values())
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    waiting = asyncio.create_task(inside.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert len(pids) == 3
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not any(str(tmp_path) in partition.mountpoint for partition in psutil.disk_partitions(all=True))

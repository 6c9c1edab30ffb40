"""Servers on a Redis Cluster of six processes, with promotions on all three primaries."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.cluster.valkey_cluster import ClusterNode, ValkeyCluster, slot_of
from tests.issuing.desk import Desk, Refusal, ask, eventually, opened, outcome
from tests.issuing.proof import proven

PROMOTIONS = 12


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Removed at the end of the module."""
    path = Path(tempfile.mkdtemp(prefix="guerdon-scaling-"))
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_cluster(folder: Path) -> AsyncIterator[ValkeyCluster]:
    async with ValkeyCluster(folder) as cluster:
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(shared_cluster: ValkeyCluster) -> AsyncIterator[ValkeyCluster]:
    """Empty, all in step; mended afterwards."""
    await shared_cluster.flush_all()
    yield shared_cluster
    await shared_cluster.mend()


@pytest_asyncio.fixture(loop_scope="session")
async def spread(settings: Settings, cluster: ValkeyCluster) -> Settings:
    """Settings of servers on the cluster."""
    return dataclasses.replace(
        settings,
        redis_url=cluster.url,
        admission_age_ms_max=1000,
        reconcile_interval_ms=300,  # it goes over all promotions
    )


@dataclass
class Groups:
    """The promotions by who serves their gate group. sids: the group's number by the promotion's id."""

    cluster: ValkeyCluster
    sids: dict[str, int]

    def slot(self, promotion_id: str) -> int:
        return slot_of(self.sids[promotion_id])

    async def at(self, node: ClusterNode) -> list[str]:
        """The promotions whose groups this node serves."""
        return [p for p in self.sids if await self.cluster.owner(self.slot(p)) is node]

    async def by_node(self) -> dict[ClusterNode, list[str]]:
        return {node: await self.at(node) for node in await self.cluster.primaries()}


@pytest_asyncio.fixture(loop_scope="session")
async def desks(spread: Settings) -> AsyncIterator[Sequence[Desk]]:
    """Two servers, `PROMOTIONS` promotions promo-0 .. with a coupon welcome-0 .. each."""
    async with (
        bootstrap.running(spread) as one,
        bootstrap.running(spread) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        for number in range(PROMOTIONS):
            await first.opens(f"promo-{number}")
            await first.coupon(f"welcome-{number}", promotion_id=f"promo-{number}", stock=100_000)
        yield first, second


@pytest_asyncio.fixture(loop_scope="session")
async def groups(desks: Sequence[Desk], cluster: ValkeyCluster, database: str) -> Groups:
    connection = await postgres.connect(database)
    rows = await connection.fetch("SELECT promotion_id, sid FROM guerdon.promotion")
    await connection.close()
    return Groups(cluster, {row["promotion_id"]: row["sid"] for row in rows})


async def comes_to_rest(settings: Settings, cluster: ValkeyCluster) -> None:
    """No admission is open at any primary; then the books are proven, gate equal to ledger."""

    async def nothing_open() -> bool:
        total = 0
        for node in await cluster.primaries():
            keys = await node.call("KEYS", "guerdon:*:admissions")
            total += sum([await node.call("HLEN", key) - 1 for key in keys])
        return total == 0

    await eventually(nothing_open)
    await proven(settings)


async def granted_at_last(desk: Desk, request_id: str) -> None:
    """Repeats until it is."""

    async def granted() -> bool:
        answer = await outcome(desk.issue(ask(request_id)))
        return not isinstance(answer, Refusal) and answer.HasField("granted")

    await eventually(granted)

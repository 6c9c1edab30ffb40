"""What nobody settles any more: fenced in the ledger first, and only then given back to the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from guerdon_server.core.issuance.pipeline import AdmissionIds
from guerdon_server.core.issuance.postgres.gate_source import PostgresGateSource
from guerdon_server.core.issuance.sweeper import Sweeper
from guerdon_server.core.ledger.model import CommitCode, CommitItem
from guerdon_server.core.ledger.postgres.workers import Workers
from guerdon_server.core.stock.model import AdmitCode, AdmitItem, SettleCode, Settlement
from guerdon_server.core.stock.redis.store import RedisGate, keys
from guerdon_server.core.stock.service import Gate
from guerdon_server.platform.redis import Client
from tests.stock.waiting import eventually

from .conftest import Books

_DEAD = AdmissionIds(999_999)
_HOUR_MS = 3_600_000


class Shop:
    """One prize behind a real gate and a real ledger, with the sweeper of a living worker."""

    def __init__(self, books: Books, gate: Gate, prize: int, stock: int, living: int) -> None:
        self.books = books
        self.gate = gate
        self.prize = prize
        self.stock = stock
        self.mine = AdmissionIds(living)
        self._living = living

    def sweeper(self, *, age_ms_max: int = _HOUR_MS, workers: Workers | None = None) -> Sweeper:
        return Sweeper(
            gate=self.gate,
            ledger=self.books.ledger,
            workers=workers or Workers(self.books.pool, lease_seconds=3600),
            incarnation=self._living,
            age_ms_max=age_ms_max,
        )

    async def admits(self, ids: AdmissionIds, request: str) -> CommitItem:
        """Lets a request in; what its worker would commit."""
        admission = ids.next()
        admitted = await self.gate.admit(
            self.books.promotion, [AdmitItem(admission, request, claims=((self.stock, 1),))]
        )
        assert admitted.answers[0].code is AdmitCode.ADMITTED
        return self.books.item(self.prize, "ada", request, admission=admission, epoch=admitted.epoch)

    async def commits(self, item: CommitItem) -> CommitCode:
        (result,) = await self.books.ledger.commit([item])
        return CommitCode(result.code)

    async def used(self) -> int:
        (resource,) = (r for r in (await self.gate.inspect(self.books.promotion)).resources if r.resource == self.stock)
        return resource.used

    async def until_open(self, count: int) -> None:
        async def reached() -> bool:
            return (await self.gate.inspect(self.books.promotion)).open_admissions == count

        await eventually(reached)


@pytest_asyncio.fixture(loop_scope="session")
async def shop(books: Books, redis_client: Client) -> AsyncIterator[Shop]:
    prize = await books.prize("coupon", stock=9)
    stock = await books.pool.fetchval("SELECT stock_account FROM guerdon.prize WHERE sid = $1", prize)
    living = await Workers(books.pool, lease_seconds=3600).register()
    gate = Gate(RedisGate(redis_client), PostgresGateSource(books.pool))
    yield Shop(books, gate, prize, stock, living)
    await gate.aclose()


async def test_what_a_dead_worker_left_can_not_be_granted_once_it_is_given_back(shop: Shop) -> None:
    """Its commit may still be on the way: a connection may deliver late."""
    left = await shop.admits(_DEAD, "r1")
    await shop.sweeper().run_once()
    await shop.until_open(0)
    assert await shop.used() == 0
    assert await shop.commits(left) is CommitCode.FENCED
    assert await shop.commits(await shop.admits(shop.mine, "r1")) is CommitCode.GRANTED


async def test_what_is_too_old_of_a_living_worker_is_fenced_too(shop: Shop) -> None:
    slow = await shop.admits(shop.mine, "r1")
    sweeper = shop.sweeper(age_ms_max=-1)
    await sweeper.run_once()
    await shop.until_open(0)
    assert sweeper.counts.fenced_total == 1
    assert await shop.commits(slow) is CommitCode.FENCED
    assert await shop.used() == 0


async def test_what_a_living_worker_has_in_flight_is_left_alone(shop: Shop) -> None:
    young = await shop.admits(shop.mine, "r1")
    sweeper = shop.sweeper()
    await sweeper.run_once()
    assert (sweeper.counts.open_admissions, sweeper.counts.fenced_total) == (1, 0)
    await shop.until_open(1)
    assert await shop.commits(young) is CommitCode.GRANTED


async def test_what_was_granted_before_its_worker_died_stays_used_and_known(shop: Shop) -> None:
    granted = await shop.admits(_DEAD, "r1")
    assert await shop.commits(granted) is CommitCode.GRANTED
    sweeper = shop.sweeper()
    await sweeper.run_once()
    await shop.until_open(0)
    assert sweeper.counts.found_granted_total == 1
    assert await shop.used() == 1
    again = AdmitItem(shop.mine.next(), "r1", claims=((shop.stock, 1),))
    assert (await shop.gate.admit(shop.books.promotion, [again])).answers[0].code is AdmitCode.GRANTED_BEFORE
    await sweeper.run_once()
    assert "drifted" not in sweeper.counts.reconciled, "gate and ledger agree"


async def test_a_replay_that_a_dead_worker_had_admitted_is_given_back_and_known(
    shop: Shop, redis_client: Client
) -> None:
    """The gate had forgotten the grant, and let its request in again."""
    granted = await shop.admits(shop.mine, "r1")
    assert await shop.commits(granted) is CommitCode.GRANTED
    shop.gate.settle(shop.books.promotion, [Settlement(granted.admission, granted.request_id, SettleCode.GRANTED)])
    await shop.until_open(0)
    await redis_client.hdel(keys(shop.books.promotion)[1], "r1")
    await shop.admits(_DEAD, "r1")
    assert await shop.used() == 2
    await shop.sweeper().run_once()
    await shop.until_open(0)
    assert await shop.used() == 1
    again = AdmitItem(shop.mine.next(), "r1", claims=((shop.stock, 1),))
    assert (await shop.gate.admit(shop.books.promotion, [again])).answers[0].code is AdmitCode.GRANTED_BEFORE


async def test_what_was_admitted_under_an_epoch_that_is_over_is_not_granted(shop: Shop, redis_client: Client) -> None:
    """The gate has forgotten it, and lets others in for what it took."""
    lost = await shop.admits(shop.mine, "r1")
    await redis_client.flushdb()
    again = [await shop.admits(shop.mine, f"again-{number}") for number in range(9)]
    assert await shop.commits(lost) is CommitCode.STALE_EPOCH
    assert [await shop.commits(item) for item in again] == [CommitCode.GRANTED] * 9


async def test_who_starts_while_it_sweeps_is_not_taken_for_dead(shop: Shop) -> None:
    """Whoever made an admission had registered before, so the living are read after the admissions."""
    late: list[CommitItem] = []

    class OneMoreStarts(Workers):
        async def living(self) -> set[int]:
            known = await super().living()
            late.append(await shop.admits(AdmissionIds(await self.register()), "late"))
            return known

    await shop.admits(_DEAD, "dead")
    sweeper = shop.sweeper(workers=OneMoreStarts(shop.books.pool, lease_seconds=3600))
    await sweeper.run_once()
    assert sweeper.counts.fenced_total == 1
    await shop.until_open(1)
    assert await shop.commits(late[0]) is CommitCode.GRANTED

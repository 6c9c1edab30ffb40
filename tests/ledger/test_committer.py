"""The group committer on the real ledger: what each item is told, and what the gate is told of each admission."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from guerdon_server.core.issuance.committer import Committed, Committer
from guerdon_server.core.ledger.model import CommitCode, CommitItem, CommitResult, RequestState
from guerdon_server.core.ledger.ports import LedgerAway
from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.core.stock.model import SettleCode, Settlement
from guerdon_server.platform import postgres
from guerdon_server.platform.errors import ServiceError
from tests.stock.proxy import Proxy
from tests.stock.waiting import eventually

from .conftest import Books

GRANTED, BACK, REPLAYED = SettleCode.GRANTED, SettleCode.GIVEN_BACK, SettleCode.REPLAYED


class Settled:
    """The gate's side, written down: what became of each admission."""

    def __init__(self) -> None:
        self.codes: dict[int, SettleCode] = {}

    def settle(self, group: int, settlements: Iterable[Settlement]) -> None:
        for settlement in settlements:
            assert settlement.admission not in self.codes, "settled twice"
            self.codes[settlement.admission] = settlement.code

    def of(self, items: Iterable[CommitItem]) -> list[SettleCode | None]:
        return [self.codes.get(item.admission) for item in items]


def committer_on(ledger: PostgresLedger, settled: Settled) -> Committer:
    return Committer(ledger, settled, items_max=1000, in_flight_max=2, queue_items_max=5000)


@asynccontextmanager
async def through(proxy: Proxy, *, commit_seconds_max: float = 60) -> AsyncIterator[PostgresLedger]:
    """A ledger behind the proxy."""
    pool = await postgres.create_pool(proxy.url, size_min=1, size_max=4)
    yield PostgresLedger(pool, pool, worker=1, commit_seconds_max=commit_seconds_max)
    pool.terminate()


def codes(results: Iterable[Committed]) -> list[str]:
    return [r.reason if isinstance(r, ServiceError) else CommitCode(r.code).name for r in results]


async def test_a_poison_item_is_found_and_everybody_else_is_served(books: Books) -> None:
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    items = [books.item(prize, f"u{i}", f"r{i}", group=7 if 10 <= i < 14 else 0) for i in range(40)]
    items[3] = items[3]._replace(prize=999)
    items[11] = items[11]._replace(prize=999)
    results = await committer_on(books.ledger, settled).submit(items)
    expected = ["LEDGER_REFUSED" if i == 3 or 10 <= i < 14 else "GRANTED" for i in range(40)]
    assert codes(results) == expected
    assert settled.of(items) == [GRANTED if code == "GRANTED" else BACK for code in expected]
    assert await books.balance(2, books.promotion, prize) == 100 - 35


async def test_a_reply_lost_after_the_commit_is_found_by_its_fence(books: Books, database: str) -> None:
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    async with Proxy(database) as proxy, through(proxy) as ledger:
        committer = committer_on(ledger, settled)
        await committer.submit([books.item(prize, "warm", "warm")])
        items = [books.item(prize, f"u{i}", f"r{i}") for i in range(20)]
        proxy.lose_replies = 1
        results = await committer.submit(items)
    assert codes(results) == ["EXISTS"] * 20
    assert settled.of(items) == [GRANTED] * 20, "the admissions are those that were granted"
    assert committer.unknown_total == 1
    assert await books.balance(2, books.promotion, prize) == 100 - 21


async def test_what_was_granted_to_an_earlier_admission_is_given_back(books: Books) -> None:
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    committer = committer_on(books.ledger, settled)
    first = books.item(prize, "ada", "r1")
    twin = books.item(prize, "ada", "r1")
    results = await committer.submit([first, books.item(prize, "bob", "r2"), twin])
    assert codes(results) == ["GRANTED", "GRANTED", "EXISTS"]
    assert settled.of([first, twin]) == [GRANTED, REPLAYED]


async def test_without_postgresql_nothing_was_sent_and_all_is_given_back(books: Books, database: str) -> None:
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    before = await books.dump()
    async with Proxy(database) as proxy, through(proxy) as ledger:
        committer = committer_on(ledger, settled)
        proxy.go_away()
        items = [books.item(prize, f"u{i}", f"r{i}") for i in range(3)]
        (error, *_) = await committer.submit(items)
    assert isinstance(error, ServiceError)
    assert settled.of(items) in ([BACK] * 3, [None] * 3)
    assert (settled.of(items) == [BACK] * 3) == isinstance(error, LedgerAway), "an unknown outcome stays with its fence"
    assert await books.dump() == before


async def test_no_answer_in_time_is_unknown_until_a_fence_has_said(books: Books, database: str) -> None:
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    async with Proxy(database) as proxy, through(proxy, commit_seconds_max=0.3) as ledger:
        committer = committer_on(ledger, settled)
        await committer.submit([books.item(prize, "warm", "warm")])
        items = [books.item(prize, f"u{i}", f"r{i}") for i in range(3)]
        proxy.mute = True
        waiting = committer.submit(items)
        await eventually(lambda: committer.unknown_total == 1)
        proxy.mute = False
        results = await waiting
    assert set(codes(results)) <= {"EXISTS", "FENCED"}
    granted = 99 - await books.balance(2, books.promotion, prize)
    assert settled.of(items).count(GRANTED) == granted
    assert settled.of(items).count(BACK) == 3 - granted


async def test_a_caller_who_leaves_while_queued_gives_back_and_one_in_flight_is_committed(books: Books) -> None:
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    committer = committer_on(books.ledger, settled)
    gone = books.item(prize, "ada", "gone")
    committer.submit([gone]).cancel()
    stays = books.item(prize, "ada", "stays")
    assert codes(await committer.submit([stays])) == ["GRANTED"]
    await committer.aclose()
    assert settled.of([gone, stays]) == [BACK, GRANTED]
    assert await books.balance(2, books.promotion, prize) == 99


async def test_a_session_that_ends_right_after_its_answer_takes_no_grant_back(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    items = [books.item(prize, f"u{i}", f"r{i}") for i in range(3)]
    give_back = asyncpg.pool.PoolConnectionHolder.release

    async def lost_before(holder: Any, timeout: float | None) -> None:
        holder._con.terminate()
        await give_back(holder, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.pool.PoolConnectionHolder, "release", lost_before)
        assert codes(await committer_on(books.ledger, settled).submit(items)) == ["GRANTED"] * 3
    assert settled.of(items) == [GRANTED] * 3


async def test_an_error_that_nobody_foresaw_says_nothing_about_the_commit(books: Books) -> None:
    """What was granted is found by fencing, and what was not is given back."""
    prize = await books.prize("coupon", stock=100)

    class Defective(PostgresLedger):
        async def commit(self, items: Sequence[CommitItem]) -> list[CommitResult]:
            await super().commit(items[:2])
            raise RuntimeError("a defect")

    settled = Settled()
    items = [books.item(prize, f"u{i}", f"r{i}") for i in range(3)]
    committer = committer_on(Defective(books.pool, books.pool, worker=1, commit_seconds_max=60), settled)
    assert codes(await committer.submit(items)) == ["EXISTS", "EXISTS", "FENCED"]
    assert settled.of(items) == [GRANTED, GRANTED, BACK]


async def test_an_error_that_nobody_foresaw_in_the_fence_leaves_it_open(books: Books) -> None:
    prize = await books.prize("coupon", stock=100)

    class Defective(PostgresLedger):
        async def commit(self, items: Sequence[CommitItem]) -> list[CommitResult]:
            await super().commit(items)
            raise RuntimeError("a defect")

        async def fence(self, keys: Sequence[tuple[int, str, int]]) -> list[tuple[RequestState, int]]:
            raise RuntimeError("another defect")

    settled = Settled()
    items = [books.item(prize, "ada", "r1")]
    committer = committer_on(Defective(books.pool, books.pool, worker=1, commit_seconds_max=60), settled)
    assert codes(await committer.submit(items)) == ["OUTCOME_UNKNOWN"]
    assert settled.of(items) == [None]
    await committer.aclose()

"""What the gate is told of an admission, and when: never before the ledger has said what became of it."""

from __future__ import annotations

import pytest

from guerdon_server.core.issuance.committer import Committer
from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.core.stock.model import SettleCode
from guerdon_server.platform import postgres
from guerdon_server.platform.batching import QueueFull
from guerdon_server.platform.errors import ServiceError
from tests.stock.proxy import Proxy
from tests.stock.waiting import eventually

from .conftest import Books
from .sessions import holder, sessions_waiting
from .test_committer import Settled, codes, committer_on


async def test_nothing_is_settled_while_its_commit_is_in_flight(books: Books) -> None:
    """Its marker says "in flight" to twins, and what it holds is held, until the grant is durable."""
    prize = await books.prize("coupon", stock=9)
    settled = Settled()
    items = [books.item(prize, "ada", "r1"), books.item(prize, "bob", "r2")]
    committer = committer_on(books.ledger, settled)
    async with holder(books.pool) as other:
        await other.locks_account(await books.pool.fetchval("SELECT stock_account FROM guerdon.prize"))
        waits = committer.submit(items)

        async def until_it_waits() -> bool:
            return committer.batches.in_flight == 1 and await sessions_waiting(books.pool) > 0

        await eventually(until_it_waits)
        assert settled.codes == {}
        await other.lets_go()
    assert codes(await waits) == ["GRANTED"] * 2
    assert settled.of(items) == [SettleCode.GRANTED] * 2


async def test_what_a_full_queue_refuses_is_given_back_at_once(books: Books) -> None:
    prize = await books.prize("coupon", stock=9)
    settled = Settled()
    items = [books.item(prize, "ada", f"r{number}") for number in range(3)]
    committer = Committer(books.ledger, settled, items_max=1, in_flight_max=1, queue_items_max=1)
    async with holder(books.pool) as other:
        await other.locks_account(await books.pool.fetchval("SELECT stock_account FROM guerdon.prize"))
        in_flight = committer.submit(items[:1])
        await eventually(lambda: committer.batches.in_flight == 1)
        queued = committer.submit(items[1:2])
        with pytest.raises(QueueFull):
            committer.submit(items[2:])
        assert settled.of(items) == [None, None, SettleCode.GIVEN_BACK]
        await other.lets_go()
    assert codes([*await in_flight, *await queued]) == ["GRANTED"] * 2


async def test_while_nobody_can_tell_whether_it_was_granted_nothing_is_given_back(books: Books, database: str) -> None:
    """The commit gets through, its answer and those of all fences are lost: the callers are told so, and it stays open
    until a fence is answered."""
    prize = await books.prize("coupon", stock=100)
    settled = Settled()
    async with Proxy(database) as proxy:
        pool = await postgres.create_pool(proxy.url, size_min=1, size_max=4, connect_timeout_seconds=0.3)
        committer = committer_on(PostgresLedger(pool, pool, worker=1, commit_seconds_max=1), settled)
        assert codes(await committer.submit([books.item(prize, "warm", "warm")])) == ["GRANTED"]
        items = [books.item(prize, f"u{i}", f"r{i}") for i in range(3)]
        proxy.mute = True
        results = await committer.submit(items)
        assert all(isinstance(result, ServiceError) for result in results)
        assert codes(results) == ["OUTCOME_UNKNOWN"] * 3
        assert settled.of(items) == [None] * 3
        assert await books.balance(2, books.promotion, prize) == 96
        proxy.mute = False
        await eventually(lambda: len(settled.codes) == 4)
        assert settled.of(items) == [SettleCode.GRANTED] * 3
        await committer.aclose()
        pool.terminate()

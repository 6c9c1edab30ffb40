"""Commits that meet: each waits where it must, holds what it may, and decides on what is true after it has waited."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from guerdon_server.core.ledger.model import (
    AccountId,
    CommitCode,
    CommitItem,
    CommitResult,
    PromotionSid,
    RequestState,
)
from guerdon_server.core.ledger.ports import BatchRefused, LedgerAway
from guerdon_server.core.ledger.postgres.capacity import AdjustCode, Adjustment, CapacityKind, adjust_capacity
from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
from guerdon_server.platform import postgres

from .conftest import Books
from .sessions import COMMIT, free_accounts, holder


def commit(books: Books, *items: CommitItem) -> asyncio.Task[list[CommitResult]]:
    return asyncio.create_task(books.ledger.commit(items))


def codes(results: Sequence[CommitResult]) -> list[CommitCode]:
    return [CommitCode(result.code) for result in results]


async def stock_account(books: Books, prize: int) -> int:
    return int(await books.pool.fetchval("SELECT stock_account FROM guerdon.prize WHERE sid = $1", prize))


@pytest.mark.parametrize("arriving", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_accounts_are_locked_from_the_lowest_whatever_the_order_of_arrival(
    books: Books, arriving: Sequence[int]
) -> None:
    """So that two batches never wait for each other: who waits holds only what is lower."""
    prizes = [await books.prize(f"p{number}", stock=9) for number in range(3)]
    accounts = [await stock_account(books, prize) for prize in prizes]
    assert accounts == sorted(accounts)
    items = [books.item(prizes[number], "ada", f"r{number}") for number in arriving]
    async with holder(books.pool) as other:
        await other.locks_account(accounts[1])
        waits = commit(books, *items)
        await other.until_waiting(waits)
        assert await free_accounts(books.pool, accounts) == {accounts[2]}
        await other.lets_go()
    assert codes(await waits) == [CommitCode.GRANTED] * 3


@pytest.mark.parametrize("arriving", [("r1", "r2"), ("r2", "r1")])
async def test_request_keys_are_written_from_the_lowest_as_fences_are(books: Books, arriving: Sequence[str]) -> None:
    """A commit and a fence of the same keys would wait for each other if one of them went the other way."""
    prize = await books.prize("coupon", stock=9)
    items = [books.item(prize, "ada", request) for request in arriving]
    async with holder(books.pool) as other:
        await other.execute("SELECT * FROM guerdon.fence_requests($1, $2, $3)", [books.promotion], ["r1"], [0])
        waits = commit(books, *items)
        await other.until_waiting(waits)
        higher = asyncio.create_task(books.ledger.fence([(books.promotion, "r2", 0)]))
        assert not await other.waiting(waits, higher), "nobody who waits for a lower key has taken a higher one"
        await other.lets_go(keep=False)
    assert codes(await waits) == [CommitCode.GRANTED] * 2


async def test_what_was_taken_while_it_waited_for_the_lock_is_gone(books: Books) -> None:
    prize = await books.prize("coupon", stock=1)
    cash = await books.prize("cash", value=1, kind=3)
    async with holder(books.pool) as other:
        last = [books.item(prize, "ada", "r1"), books.item(cash, "ada", "r2", value=700)]
        assert await other.commits(last) == [CommitCode.GRANTED] * 2
        waits = commit(
            books,
            books.item(prize, "bob", "r3"),
            books.item(cash, "bob", "r4", value=400),
            books.item(cash, "bob", "r5", value=300),
        )
        await other.until_waiting(waits)
        await other.lets_go()
    results = await waits
    assert codes(results) == [CommitCode.SOLD_OUT, CommitCode.BUDGET_EXHAUSTED, CommitCode.GRANTED]
    assert (results[1].observed, results[1].threshold) == (300, 400)


async def test_a_limit_counts_what_was_granted_while_it_waited_for_the_lock(books: Books) -> None:
    prize = await books.prize("coupon", limit=2)
    await books.ledger.commit([books.item(prize, "ada", "r0")])
    async with holder(books.pool) as other:
        assert await other.commits([books.item(prize, "ada", "r1")]) == [CommitCode.GRANTED]
        waits = commit(books, books.item(prize, "ada", "r2"))
        await other.until_waiting(waits)
        await other.lets_go()
    (result,) = await waits
    assert (result.code, result.observed) == (CommitCode.LIMIT_REACHED, 2)


async def test_an_account_that_was_opened_while_it_waited_is_found(books: Books) -> None:
    """The first grant of a user and the next of the same prize at the same time: answered as one after the other."""
    last, cash = await books.prize("coupon", stock=1, limit=1), await books.prize("cash", value=1, kind=3)
    await books.ledger.commit([books.item(await books.prize("hello"), "ada", "r0")])
    async with holder(books.pool) as other:
        first = [books.item(last, "ada", "r1"), books.item(cash, "ada", "r2", value=3)]
        assert await other.commits(first) == [CommitCode.GRANTED] * 2
        waits = commit(books, books.item(last, "ada", "r3"), books.item(cash, "ada", "r4", value=4))
        await other.until_waiting(waits)
        await other.lets_go()
    results = await waits
    assert codes(results) == [CommitCode.LIMIT_REACHED, CommitCode.GRANTED]
    assert results[0].observed == 1
    assert books.ledger.retried_total == 1
    ada = await books.pool.fetchval("SELECT sid FROM guerdon.subject WHERE user_id = 'ada'")
    assert [await books.balance(3, ada, prize) for prize in (last, cash)] == [1, 2]
    assert await books.balance(6, ada, books.asset) == 7


async def test_a_refusal_knows_the_account_that_was_opened_while_it_waited(books: Books) -> None:
    """Nothing is granted, so nothing is opened twice that would tell of it: "sold out", where it is the limit."""
    last = await books.prize("coupon", stock=1, limit=1)
    await books.ledger.commit([books.item(await books.prize("hello"), "ada", "r0")])
    async with holder(books.pool) as other:
        assert await other.commits([books.item(last, "ada", "r1")]) == [CommitCode.GRANTED]
        waits = commit(books, books.item(last, "ada", "r2"))
        await other.until_waiting(waits)
        await other.lets_go()
    (result,) = await waits
    assert (result.code, result.observed) == (CommitCode.LIMIT_REACHED, 1)
    assert books.ledger.retried_total == 1


async def test_a_refusal_knows_the_grant_that_its_own_request_got_while_it_waited(books: Books) -> None:
    """The same request twice at once, for the last unit: both are told of the one grant, and nobody "sold out"."""
    last = await books.prize("coupon", stock=2)
    await books.ledger.commit([books.item(last, "ada", "r0")])  # so that every account is there
    first = books.item(last, "ada", "r1")
    async with holder(books.pool) as other:
        assert await other.commits([first]) == [CommitCode.GRANTED]
        waits = commit(books, books.item(last, "ada", "r1"))
        await other.until_waiting(waits)
        await other.lets_go()
    assert codes(await waits) == [CommitCode.EXISTS]
    assert books.ledger.retried_total == 1
    assert await books.balance(2, books.promotion, last) == 0


async def test_what_is_known_for_ever_or_decided_anew_is_answered_at_once(books: Books) -> None:
    """These need no second look: it would find the same, or nobody is told of it."""
    prize = await books.prize("coupon", stock=9)
    await books.ledger.commit([books.item(prize, "ada", "granted")])
    await books.ledger.cancel(books.promotion, "cancelled")
    await books.ledger.fence([(books.promotion, "fenced", 1000)])
    items = [books.item(prize, "ada", request, admission=9) for request in ("granted", "cancelled", "fenced", "new")]
    stale = [books.item(prize, "ada", "epoch", epoch=7), books.item(prize, "ada", "version", version=7)]
    known = [CommitCode.EXISTS, CommitCode.CANCELLED, CommitCode.FENCED, CommitCode.GRANTED]
    results = await books.ledger.commit([*items, *stale])
    assert codes(results) == [*known, CommitCode.STALE_EPOCH, CommitCode.STALE_VERSION]
    assert books.ledger.retried_total == 0


async def test_a_commit_that_looks_again_finds_what_was_opened_while_it_waited(books: Books) -> None:
    """Or a crowd that goes on to open accounts would send a batch round again and again."""
    cash = await books.prize("cash", value=1, kind=3)
    await books.ledger.commit([books.item(await books.prize("hello"), "ada", "r0")])
    async with holder(books.pool) as other:
        assert await other.commits([books.item(cash, "ada", "r1", value=3)]) == [CommitCode.GRANTED]
        item = books.item(cash, "ada", "r2", value=4)
        waits = asyncio.create_task(books.pool.fetchval(COMMIT, *zip(item), 1))
        await other.until_waiting(waits)
        await other.lets_go()
    assert await waits == [CommitCode.GRANTED]


async def test_a_commit_that_met_another_looks_again(books: Books) -> None:
    ledger = Meeting(books.pool, books.pool, worker=1, commit_seconds_max=60)
    ledger.meets = ["GD001"]
    await ledger.commit([books.item(await books.prize("coupon", stock=9), "ada", "r1")])
    assert ledger.looked_again == [False, True]


async def test_a_wallet_that_two_prizes_open_at_once_is_opened_once(books: Books) -> None:
    """Of two budgets, so that they meet only where the wallet is written."""
    first = await books.prize("cash", value=1, kind=3)
    other_promotion = books.promotion + 1
    books.budget = await books.account(5, other_promotion, books.asset, floor=0)
    await books.move(await books.account(4, other_promotion, books.asset), books.budget, 1000, kind=4)
    second = await books.prize("more cash", value=1, kind=3)
    await books.ledger.commit([books.item(await books.prize("hello"), "ada", "r0")])
    async with holder(books.pool) as other:
        assert await other.commits([books.item(first, "ada", "r1", value=3)]) == [CommitCode.GRANTED]
        waits = commit(books, books.item(second, "bob", "r2", value=5), books.item(second, "ada", "r3", value=4))
        await other.until_waiting(waits)
        await other.lets_go()
    assert codes(await waits) == [CommitCode.GRANTED] * 2
    assert books.ledger.retried_total == 1
    ada = await books.pool.fetchval("SELECT sid FROM guerdon.subject WHERE user_id = 'ada'")
    assert await books.balance(6, ada, books.asset) == 7


async def test_what_is_written_twice_for_another_reason_is_not_tried_for_ever(books: Books) -> None:
    """Ids of accounts that are used up again, as after a bad restore: an error, and nothing granted."""
    prize = await books.prize("coupon", stock=9)
    await books.pool.execute("SELECT setval('guerdon.account_id_seq', 1, false)")
    with pytest.raises(BatchRefused, match="account_pkey"):
        async with asyncio.timeout(60):
            await books.ledger.commit([books.item(prize, "ada", "r1")])
    assert await books.balance(2, books.promotion, prize) == 9


async def test_the_time_of_a_commit_is_read_after_its_locks(books: Books) -> None:
    """A promotion that ended while the commit waited grants nothing more."""
    prize = await books.prize("coupon", stock=9, valid_days=1)
    await books.pool.execute("UPDATE guerdon.promotion SET ends_at = guerdon.now() + interval '1 hour'")
    async with holder(books.pool) as other:
        await other.locks_account(await stock_account(books, prize))
        waits = commit(books, books.item(prize, "ada", "r1"))
        await other.until_waiting(waits)
        await books.pool.execute("UPDATE guerdon.clock SET offset_us = 7200000000")
        await other.lets_go()
    (result,) = await waits
    assert result.code == CommitCode.ENDED
    assert result.issued_at is not None
    assert result.issued_at > dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("state = 4", CommitCode.PAUSED),
        ("version = 7", CommitCode.STALE_VERSION),
        ("gate_epoch = 7", CommitCode.STALE_EPOCH),
    ],
)
async def test_a_commit_waits_for_a_change_of_its_promotion_and_sees_it(
    books: Books, change: str, code: CommitCode
) -> None:
    prize = await books.prize("coupon", stock=9)
    async with holder(books.pool) as operator:
        await operator.execute("SELECT pg_advisory_xact_lock($1)", books.promotion)
        await operator.execute(f"UPDATE guerdon.promotion SET {change}")  # noqa: S608
        waits = commit(books, books.item(prize, "ada", "r1"))
        await operator.until_waiting(waits)
        await operator.lets_go()
    assert codes(await waits) == [code]


async def test_a_new_epoch_waits_for_the_commits_under_the_old_one(books: Books) -> None:
    """What is read of the ledger after an epoch was opened is what its gate starts from: all of the old is in it."""
    prize = await books.prize("coupon", stock=9)
    async with holder(books.pool) as other:
        assert await other.commits([books.item(prize, "ada", "r1")]) == [CommitCode.GRANTED]
        opening = asyncio.create_task(open_epoch(books, replacing=0))
        await other.until_waiting(opening)
        late = commit(books, books.item(prize, "bob", "r2"))
        await other.until_waiting(opening, late)
        await other.lets_go()
    assert (await opening)[1]
    assert await books.balance(2, books.promotion, prize) == 8
    assert codes(await late) == [CommitCode.STALE_EPOCH]


async def test_of_two_workers_that_replace_the_same_epoch_one_wins(books: Books) -> None:
    async with holder(books.pool) as operator:
        await operator.execute("SELECT pg_advisory_xact_lock($1)", books.promotion)
        opening = [asyncio.create_task(open_epoch(books, replacing=0)) for _ in range(2)]
        await operator.until_waiting(*opening)
        await operator.lets_go()
    answers = [await one for one in opening]
    assert sorted(won for _, won in answers) == [False, True]
    assert len({epoch for epoch, _ in answers}) == 1, "the loser is told the epoch of the winner"


async def open_epoch(books: Books, *, replacing: int) -> tuple[int, bool]:
    row = await books.pool.fetchrow("SELECT * FROM guerdon.open_epoch($1, $2, 5, 'run')", books.promotion, replacing)
    assert row is not None
    return row["epoch"], row["won"]


async def test_commits_that_share_nothing_but_a_request_key_grant_it_once(books: Books) -> None:
    """Another user and another prize: no account in common, so that they meet only when the key is written."""
    coupon, goods = await books.prize("coupon", stock=9), await books.prize("goods", stock=9)
    first = books.item(coupon, "ada", "r1")
    async with holder(books.pool) as other:
        assert await other.commits([first]) == [CommitCode.GRANTED]
        waits = commit(books, books.item(goods, "bob", "r1"), books.item(goods, "bob", "r2"))
        await other.until_waiting(waits)
        await other.lets_go()
    assert codes(await waits) == [CommitCode.EXISTS, CommitCode.GRANTED]
    assert books.ledger.retried_total == 1
    assert await books.balance(2, books.promotion, goods) == 8
    (known,) = await books.ledger.lookup([(books.promotion, "r1")])
    assert known.issuance is not None
    assert (known.issuance.user_id, known.admission) == ("ada", first.admission)


def failed(sqlstate: str) -> asyncpg.PostgresError:
    error = asyncpg.PostgresError("met")
    error.sqlstate = sqlstate  # type: ignore[misc]  # asyncpg sets it so, too
    return error


class Meeting(PostgresLedger):
    """Fails with these SQLSTATEs before a commit goes through."""

    meets: Sequence[str] = ()

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.looked_again: list[object] = []

    async def _write(self, query: str, *args: object) -> asyncpg.Record:
        self.looked_again.append(args[-1])
        if self.retried_total < len(self.meets):
            raise failed(self.meets[self.retried_total])
        return await super()._write(query, *args)


async def test_neighbours_whose_keys_are_taken_one_after_the_other_cost_nobody_his_grant(books: Books) -> None:
    """A crowd that cancels what is being issued takes one key after the other, each from a later attempt."""
    ledger = Meeting(books.pool, books.pool, worker=1, commit_seconds_max=60)
    ledger.meets = ["GD001"] * 20
    prize = await books.prize("coupon", stock=9)
    items = [books.item(prize, "ada", f"r{number}") for number in range(7)]
    assert codes(await ledger.commit(items)) == [CommitCode.GRANTED] * 7
    assert ledger.retried_total == 20


async def test_a_key_that_is_never_seen_although_it_is_taken_is_refused_as_poison(books: Books) -> None:
    """It would be a defect; its batch must not go round in circles with it."""
    ledger = Meeting(books.pool, books.pool, worker=1, commit_seconds_max=60)
    ledger.meets = ["GD001"] * 20
    with pytest.raises(BatchRefused):
        await ledger.commit([books.item(await books.prize("coupon", stock=9), "ada", "r1")])
    assert ledger.retried_total == 3


async def test_a_commit_gives_up_after_several_deadlocks(books: Books) -> None:
    ledger = Meeting(books.pool, books.pool, worker=1, commit_seconds_max=60)
    ledger.meets = ["40P01"] * 20
    item = books.item(await books.prize("coupon", stock=9), "ada", "r1")
    with pytest.raises(LedgerAway, match="5 times"):
        await ledger.commit([item])


async def test_a_commit_that_waited_for_the_fence_of_its_key_is_refused(books: Books) -> None:
    prize = await books.prize("coupon", stock=9)
    item = books.item(prize, "ada", "r1", admission=5)
    async with holder(books.pool) as other:
        await other.execute("SELECT * FROM guerdon.fence_requests($1, $2, $3)", [books.promotion], ["r1"], [5])
        waits = commit(books, item)
        await other.until_waiting(waits)
        await other.lets_go()
    (result,) = await waits
    assert (result.code, result.observed) == (CommitCode.FENCED, 5)
    assert await books.balance(2, books.promotion, prize) == 9


async def test_a_fence_waits_for_the_commit_of_its_key_and_finds_the_grant(books: Books) -> None:
    """Else a grant would be given back: the fence is what makes an unknown outcome known."""
    prize = await books.prize("coupon", stock=9)
    item = books.item(prize, "ada", "r1")
    async with holder(books.pool) as other:
        assert await other.commits([item]) == [CommitCode.GRANTED]
        fence = asyncio.create_task(books.ledger.fence([(books.promotion, "r1", item.admission)]))
        cancel = asyncio.create_task(books.ledger.cancel(books.promotion, "r1"))
        await other.until_waiting(fence, cancel)
        await other.lets_go()
    assert await fence == [(RequestState.GRANTED, item.admission)]
    assert await cancel is RequestState.GRANTED


async def test_a_commit_that_may_not_wait_any_longer_for_a_lock_is_no_poison(books: Books, database: str) -> None:
    """It gives up before it has written: nothing was granted, and there is nothing to look for in its batch."""
    prize = await books.prize("coupon", stock=9)
    pool = await postgres.create_pool(database, size_min=1, size_max=2, lock_timeout_seconds=0.1)
    ledger = PostgresLedger(pool, pool, worker=1, commit_seconds_max=60)
    item = books.item(prize, "ada", "r1")
    async with holder(books.pool) as other:
        await other.locks_account(await stock_account(books, prize))
        with pytest.raises(LedgerAway):
            await ledger.commit([item])
        await other.lets_go()
    assert codes(await ledger.commit([item])) == [CommitCode.GRANTED]
    pool.terminate()


async def test_a_recall_finds_what_was_issued_while_it_waited_for_the_lock(books: Books) -> None:
    prize = await books.prize("coupon", stock=3)
    async with holder(books.pool) as other:
        assert await other.commits([books.item(prize, f"u{i}", f"r{i}") for i in range(2)]) == [CommitCode.GRANTED] * 2
        recall = asyncio.create_task(adjust(books, prize, -2))
        await other.until_waiting(recall)
        await other.lets_go()
    refused = await recall
    assert refused.code is AdjustCode.INSUFFICIENT
    assert (refused.capacity.units, refused.capacity.issued, refused.capacity.remaining) == (3, 2, 1)


async def test_of_two_top_ups_each_draws_a_version_of_its_own(books: Books) -> None:
    """The gate keeps the newest: two capacities with one version, and it might keep the smaller."""
    prize = await books.prize("coupon", stock=3)
    async with holder(books.pool) as other:
        await other.locks_account(await stock_account(books, prize))
        both = [asyncio.create_task(adjust(books, prize, delta)) for delta in (5, 7)]
        await other.until_waiting(*both)
        await other.lets_go()
    found = [(await one).capacity for one in both]
    assert sorted(capacity.version or 0 for capacity in found) == [2, 3]
    assert max(found, key=lambda capacity: capacity.version or 0).units == 15


async def adjust(books: Books, prize: int, delta: int) -> Adjustment:
    accounts = await books.pool.fetchrow(
        "SELECT stock_source_account, stock_account FROM guerdon.prize WHERE sid = $1", prize
    )
    assert accounts is not None
    async with books.pool.acquire() as session:
        return await adjust_capacity(
            session,
            kind=CapacityKind.STOCK,
            promotion=PromotionSid(books.promotion),
            source=AccountId(accounts["stock_source_account"]),
            account=AccountId(accounts["stock_account"]),
            delta=delta,
        )


@pytest.mark.parametrize("keep", [True, False], ids=["committed", "rolled back"])
async def test_a_user_whom_a_refusal_made_and_took_away_again_is_made_anew_by_who_waited(
    books: Books, keep: bool
) -> None:
    scarce, coupon = await books.prize("scarce", stock=0), await books.prize("coupon", stock=9)
    await books.ledger.commit([books.item(coupon, "known", "r0")])
    async with holder(books.pool) as other:
        refused = [books.item(scarce, "new", "r1"), books.item(coupon, "known", "r2")]
        assert await other.commits(refused) == [CommitCode.SOLD_OUT, CommitCode.GRANTED]
        waits = commit(books, books.item(coupon, "new", "r3"))
        await other.until_waiting(waits)
        await other.lets_go(keep=keep)
    assert codes(await waits) == [CommitCode.GRANTED]
    (known,) = await books.ledger.lookup([(books.promotion, "r3")])
    assert known.issuance is not None
    assert known.issuance.user_id == "new"
    assert await books.balance(2, books.promotion, coupon) == (6 if keep else 7)

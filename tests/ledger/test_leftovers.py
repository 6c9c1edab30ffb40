"""What fences and refusals leave in the tables: as much as they must, and nothing of their neighbours'."""

from __future__ import annotations

from guerdon_server.core.ledger.model import CommitCode, RequestState

from .conftest import Books


async def test_a_fence_of_two_attempts_at_one_request_holds_the_higher(books: Books) -> None:
    prize = await books.prize("coupon", stock=9)
    keys = [(books.promotion, "r1", admission) for admission in (4, 9, 6)]
    assert await books.ledger.fence(keys) == [(RequestState.FENCED, 9)] * 3
    (result,) = await books.ledger.commit([books.item(prize, "ada", "r1", admission=9)])
    assert (result.code, result.observed) == (CommitCode.FENCED, 9)


async def test_a_refusal_leaves_nothing_behind_and_takes_nothing_from_its_neighbours(books: Books) -> None:
    """Subjects and accounts are made before it is known what becomes of them."""
    scarce, coupon = await books.prize("scarce", stock=0), await books.prize("coupon", stock=9)
    items = [
        books.item(scarce, "ada", "r1"),
        books.item(coupon, "ada", "r2"),
        books.item(scarce, "bob", "r3"),
    ]
    results = await books.ledger.commit(items)
    assert [result.code for result in results] == [CommitCode.SOLD_OUT, CommitCode.GRANTED, CommitCode.SOLD_OUT]
    (known,) = await books.ledger.lookup([(books.promotion, "r2")])
    assert known.issuance is not None
    assert known.issuance.user_id == "ada"
    assert await books.pool.fetchval("SELECT array_agg(user_id) FROM guerdon.subject") == ["ada"]
    assert await books.pool.fetchval("SELECT array_agg(item) FROM guerdon.account WHERE kind = 3") == [coupon]

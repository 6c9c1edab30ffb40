"""The same request twice in one batch of commits: decided in rounds."""

from __future__ import annotations

from .conftest import Books
from .test_committer import Settled, codes, committer_on


async def test_a_twin_in_a_batch_costs_one_more_commit_and_no_search(books: Books) -> None:
    prize = await books.prize("coupon", stock=100)
    items = [books.item(prize, f"u{i}", f"r{i}") for i in range(16)]
    group = [books.item(prize, "eve", request, group=4) for request in ("r3", "new")]
    twin, later = books.item(prize, "u5", "r5"), books.item(prize, "zoe", "r16")
    settled = Settled()
    committer = committer_on(books.ledger, settled)

    results = await committer.submit([*items[:8], twin, *group, *items[8:], later])

    expected = ["GRANTED"] * 8 + ["EXISTS", "EXISTS", "GROUP_NOT_GRANTED"] + ["GRANTED"] * 9
    assert codes(results) == expected
    assert await books.pool.fetchval("SELECT count(*) FROM guerdon.batch WHERE kind = 1") == 1, "the second had nothing"
    assert await books.balance(2, books.promotion, prize) == 100 - 17

"""All or nothing: whichever item of a group is refused, and for whatever reason, no other of it is granted."""

from __future__ import annotations

import datetime as dt

import pytest

from guerdon_server.core.ledger.model import CommitCode, CommitItem

from .conftest import Books

PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize(
    "bad",
    [
        CommitCode.EXISTS,
        CommitCode.CANCELLED,
        CommitCode.FENCED,
        CommitCode.STALE_VERSION,
        CommitCode.VALIDITY_PASSED,
        CommitCode.SOLD_OUT,
        CommitCode.BUDGET_EXHAUSTED,
    ],
    ids=lambda code: code.name,
)
async def test_one_that_is_refused_anywhere_in_a_group_keeps_all_of_it_from_being_granted(
    books: Books, bad: CommitCode, place: int
) -> None:
    cash = await books.prize("cash", value=1, kind=3, stock=20)
    refused = await make_bad(books, cash, bad)
    before = await books.dump()
    group = [books.item(cash, f"u{i}", f"r{i}", value=100, group=3) for i in range(2)]
    group.insert(place, refused._replace(group=3))
    results = await books.ledger.commit(group)
    expected = [CommitCode.GROUP_NOT_GRANTED] * 2
    expected.insert(place, bad)
    assert [result.code for result in results] == expected
    assert await books.dump() == before
    neighbours = [books.item(cash, "ada", "n1", value=100), *group, books.item(cash, "bob", "n2", value=790)]
    codes = [result.code for result in await books.ledger.commit(neighbours)]
    assert codes == [CommitCode.GRANTED, *expected, CommitCode.GRANTED], "what the group would have taken is free"


async def make_bad(books: Books, cash: int, bad: CommitCode) -> CommitItem:
    """An item that the commit answers so."""
    item = books.item(cash, "eve", "bad", value=10, admission=50)
    match bad:
        case CommitCode.EXISTS:
            await books.ledger.commit([item])
        case CommitCode.CANCELLED:
            await books.ledger.cancel(books.promotion, "bad")
        case CommitCode.FENCED:
            await books.ledger.fence([(books.promotion, "bad", 50)])
        case CommitCode.STALE_VERSION:
            return item._replace(version=7)
        case CommitCode.VALIDITY_PASSED:
            return item._replace(prize=await books.prize("old", value=10, kind=3, valid_until=PAST))
        case CommitCode.SOLD_OUT:
            return item._replace(prize=await books.prize("none", value=10, kind=3, stock=0))
        case _:
            return item._replace(value=2000)
    return item

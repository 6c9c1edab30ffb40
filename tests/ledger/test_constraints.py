"""The second line: what the tables refuse, whoever writes and whatever it had decided."""

from __future__ import annotations

import asyncpg
import pytest

from .conftest import Books

_REFUSED = {
    "more stock than there is": "UPDATE guerdon.account SET debits = debits + 4 WHERE kind = 2",
    "more budget than there is": "UPDATE guerdon.account SET debits = debits + 1001 WHERE kind = 5",
    "counters that run backwards": "UPDATE guerdon.account SET debits = -1 WHERE kind = 3",
    "a second account of the same": "INSERT INTO guerdon.account (kind, owner, item) SELECT kind, owner, item"
    " FROM guerdon.account WHERE kind = 2",
    "a second outcome of a request": "INSERT INTO guerdon.request (promotion, request_id, outcome, admission)"
    " SELECT promotion, request_id, 2, 9 FROM guerdon.request",
    "a grant without its issuance": "UPDATE guerdon.request SET issuance_id = NULL",
    "an issuance on a tombstone": "UPDATE guerdon.request SET outcome = 3",
    "an issuance id twice": "INSERT INTO guerdon.request (promotion, request_id, outcome, admission, issuance_id)"
    " SELECT promotion, 'r2', 1, 9, issuance_id FROM guerdon.request",
    "a transfer of nothing": "UPDATE guerdon.transfer SET amount = 0",
    "a transfer to itself": "UPDATE guerdon.transfer SET debit = credit",
}


@pytest.mark.parametrize("what", _REFUSED)
async def test_the_tables_refuse(books: Books, what: str) -> None:
    prize = await books.prize("coupon", stock=4)
    await books.ledger.commit([books.item(prize, "ada", "r1")])
    before = await books.dump()
    with pytest.raises((asyncpg.CheckViolationError, asyncpg.UniqueViolationError)):
        await books.pool.execute(_REFUSED[what])
    assert await books.dump() == before

"""Issuances by id, and lists of them, on real books."""

from __future__ import annotations

import datetime as dt

import pytest
import pytest_asyncio

from guerdon.v1 import prize_pb2
from guerdon_server.core.ledger.model import Issuance
from guerdon_server.core.ledger.ports import LedgerAway
from guerdon_server.core.ledger.postgres.statement import PostgresStatement
from guerdon_server.platform.errors import Code, ServiceError
from guerdon_server.rpc.issuance_read import IssuanceReads, issuance_to_wire
from tests.ledger_reads.books import Books


@pytest_asyncio.fixture(loop_scope="session")
async def reads(books: Books) -> IssuanceReads:
    return IssuanceReads(PostgresStatement(books.pool))


async def listed(reads: IssuanceReads, *, page_size: int = 0, **which: str) -> list[str]:
    """The request ids of all pages; each page but the last is full."""
    found: list[str] = []
    token = ""
    while True:
        request = prize_pb2.ListIssuancesRequest(**which, page_size=page_size, page_token=token)
        page = await reads.ListIssuances(request, "tests")
        found += [issuance.request_id for issuance in page.issuances]
        if not page.next_page_token:
            return found
        assert len(page.issuances) == page_size
        token = page.next_page_token


async def test_lists_are_newest_first_and_page(reads: IssuanceReads) -> None:
    spring = ["b2", "c3", "k2", "c2", "b1", "k1", "c1"]
    for page_size in (1, 2, 3, 500):
        assert await listed(reads, promotion_id="spring", page_size=page_size) == spring
        assert await listed(reads, promotion_id="autumn", page_size=page_size) == ["g3", "g2", "g1"]
        assert await listed(reads, user_id="ada", page_size=page_size) == ["g2", "g1", "b1", "k1", "c1"]
        assert await listed(reads, reference="order-1", page_size=page_size) == ["b1", "k1", "c1"]


async def test_what_is_granted_between_two_pages_does_not_shift_them(reads: IssuanceReads, books: Books) -> None:
    first = await reads.ListIssuances(prize_pb2.ListIssuancesRequest(promotion_id="spring", page_size=3), "tests")
    await books.grant("coins", "ada", "later", value=1)
    second = await reads.ListIssuances(
        prize_pb2.ListIssuancesRequest(promotion_id="spring", page_size=10, page_token=first.next_page_token), "tests"
    )
    assert [i.request_id for i in second.issuances] == ["c2", "b1", "k1", "c1"]


async def test_nobody_and_nothing_have_empty_lists_and_an_unknown_promotion_is_not_found(reads: IssuanceReads) -> None:
    assert await listed(reads, user_id="nobody") == []
    assert await listed(reads, reference="order-2") == []
    with pytest.raises(ServiceError) as caught:
        await listed(reads, promotion_id="nothing")
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "PROMOTION_NOT_FOUND")


async def test_bad_requests_say_which_fields(reads: IssuanceReads) -> None:
    with pytest.raises(ServiceError) as caught:
        await listed(reads, page_size=-1)
    assert [violation.field for violation in caught.value.violations] == ["filter", "page_size"]
    with pytest.raises(ServiceError) as caught:
        await listed(reads, user_id="")
    assert [violation.field for violation in caught.value.violations] == ["user_id"]
    page = await reads.ListIssuances(prize_pb2.ListIssuancesRequest(user_id="ada", page_size=1), "tests")
    with pytest.raises(ServiceError) as caught:
        await reads.ListIssuances(
            prize_pb2.ListIssuancesRequest(user_id="bob", page_token=page.next_page_token), "tests"
        )
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


async def test_an_issuance_by_its_id_has_all_its_terms(reads: IssuanceReads, books: Books) -> None:
    row = await books.pool.fetchrow("SELECT issuance_id, issued_at FROM guerdon.request WHERE request_id = 'b1'")
    assert row is not None
    answer = await reads.by_id(str(row["issuance_id"]))
    expected = prize_pb2.Issuance(
        issuance_id=str(row["issuance_id"]),
        promotion_id="spring",
        entrance_id="checkout",
        prize_id="cashback",
        user_id="ada",
        request_id="b1",
        reference="order-1",
        principal="tests",
        kind=prize_pb2.PRIZE_KIND_CASHBACK,
    )
    expected.value.asset, expected.value.units = "USD/2", 25
    expected.issued_at.FromDatetime(row["issued_at"])
    assert answer == prize_pb2.GetIssuanceResponse(granted=expected)


async def test_an_id_that_was_never_given_is_absent(reads: IssuanceReads) -> None:
    for issuance_id in ("0", "007", "4711", "ab", "9" * 19, "9" * 100):
        assert await reads.by_id(issuance_id) == prize_pb2.GetIssuanceResponse(absent=prize_pb2.Absent())


async def test_a_malformed_id_is_invalid(reads: IssuanceReads) -> None:
    for issuance_id in ("", "a b", "9" * 129):
        with pytest.raises(ServiceError) as caught:
            await reads.by_id(issuance_id)
        assert [violation.field for violation in caught.value.violations] == ["issuance_id"]


async def test_a_database_that_is_away_is_told(books: Books, reads: IssuanceReads) -> None:
    await books.pool.close()
    with pytest.raises(LedgerAway):
        await reads.by_id("1")


@pytest.mark.parametrize(
    "at",
    [
        dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
        dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
        dt.datetime(2026, 2, 28, 12, 0, 0, 999_999, tzinfo=dt.UTC),
        dt.datetime(2026, 2, 28, 12, 0, 0, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
    ],
)
def test_instants_are_exact_on_the_wire(at: dt.datetime) -> None:
    issuance = Issuance(1, "p", "e", "z", "u", "r", "", "me", 1, None, None, at, at)
    expected = prize_pb2.Issuance(
        issuance_id="1",
        promotion_id="p",
        entrance_id="e",
        prize_id="z",
        user_id="u",
        request_id="r",
        principal="me",
        kind=prize_pb2.PRIZE_KIND_COUPON,
    )
    expected.issued_at.FromDatetime(at)
    expected.expires_at.FromDatetime(at)
    assert issuance_to_wire(issuance) == expected

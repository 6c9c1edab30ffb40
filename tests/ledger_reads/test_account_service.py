"""AccountService on real books."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import pytest_asyncio

from guerdon.v1 import account_pb2
from guerdon_server.core.ledger.postgres.statement import PostgresStatement
from guerdon_server.platform import postgres
from guerdon_server.platform.errors import Code, ServiceError
from guerdon_server.rpc.account import AccountServicer
from tests.ledger_reads.books import Books

Key = account_pb2.AccountKey
STOCK_SOURCE = account_pb2.ACCOUNT_KIND_STOCK_SOURCE
STOCK = account_pb2.ACCOUNT_KIND_STOCK
HOLDING = account_pb2.ACCOUNT_KIND_HOLDING
BUDGET_SOURCE = account_pb2.ACCOUNT_KIND_BUDGET_SOURCE
BUDGET = account_pb2.ACCOUNT_KIND_BUDGET
WALLET = account_pb2.ACCOUNT_KIND_WALLET
LIABILITY = account_pb2.ACCOUNT_KIND_LIABILITY


@pytest_asyncio.fixture(loop_scope="session")
async def service(books: Books) -> AccountServicer:
    return AccountServicer(PostgresStatement(books.pool))


async def balance(service: AccountServicer, key: Key) -> tuple[int, int, int]:
    answer = await service.GetBalance(account_pb2.GetBalanceRequest(account=key), "tests")
    assert answer.account == key
    return answer.balance_units, answer.debits_units, answer.credits_units


async def statement(
    service: AccountServicer, key: Key, *, page_size: int = 0, token: str = ""
) -> account_pb2.ListEntriesResponse:
    request = account_pb2.ListEntriesRequest(account=key, page_size=page_size, page_token=token)
    return await service.ListEntries(request, "tests")


# --- balances -------------------------------------------------------------------------------------------------------


async def test_every_kind_of_account_has_its_balance(service: AccountServicer) -> None:
    assert await balance(service, Key(kind=STOCK_SOURCE, prize_id="coupon")) == (-12, 15, 3)
    assert await balance(service, Key(kind=STOCK, prize_id="coupon")) == (9, 6, 15)
    assert await balance(service, Key(kind=STOCK, prize_id="coins")) == (-2, 2, 0)
    assert await balance(service, Key(kind=HOLDING, user_id="ada", prize_id="goods")) == (2, 0, 2)
    assert await balance(service, Key(kind=BUDGET_SOURCE, promotion_id="spring", asset="USD/2")) == (-10_000, 10_000, 0)
    assert await balance(service, Key(kind=BUDGET, promotion_id="spring", asset="USD/2")) == (8_400, 1_600, 10_000)
    assert await balance(service, Key(kind=WALLET, user_id="ada", asset="COIN")) == (7, 0, 7)
    assert await balance(service, Key(kind=LIABILITY, promotion_id="spring", asset="USD/2")) == (1_500, 0, 1_500)


NEVER_USED = (
    Key(kind=WALLET, user_id="nobody", asset="COIN"),
    Key(kind=WALLET, user_id="ada", asset="GEMS"),
    Key(kind=WALLET, user_id="eve", asset="COIN"),
    Key(kind=HOLDING, user_id="nobody", prize_id="goods"),
    Key(kind=HOLDING, user_id="eve", prize_id="goods"),
    Key(kind=BUDGET, promotion_id="autumn", asset="COIN"),
    Key(kind=LIABILITY, promotion_id="spring", asset="COIN"),
)


async def test_an_account_never_used_is_zero_and_has_no_entries(service: AccountServicer) -> None:
    for key in NEVER_USED:
        assert await balance(service, key) == (0, 0, 0), key
        assert await statement(service, key) == account_pb2.ListEntriesResponse(), key


NOT_FOUND = (
    (Key(kind=STOCK, prize_id="nothing"), "PRIZE_NOT_FOUND"),
    (Key(kind=HOLDING, user_id="ada", prize_id="nothing"), "PRIZE_NOT_FOUND"),
    (Key(kind=BUDGET, promotion_id="nothing", asset="COIN"), "PROMOTION_NOT_FOUND"),
)


async def test_unknown_promotions_and_prizes_are_not_found(service: AccountServicer) -> None:
    for key, reason in NOT_FOUND:
        for read in (balance, statement):
            with pytest.raises(ServiceError) as caught:
                await read(service, key)
            assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, reason), key


MALFORMED = (
    (Key(), ["account.kind"]),
    (Key(kind=99), ["account.kind"]),  # type: ignore[arg-type]
    (Key(kind=WALLET), ["account.user_id", "account.asset"]),
    (Key(kind=WALLET, user_id="a b", asset="USD/2"), ["account.user_id"]),
    (Key(kind=WALLET, user_id="x" * 129, asset="usd"), ["account.user_id", "account.asset"]),
    (Key(kind=STOCK, prize_id="coupon", promotion_id="spring"), ["account.promotion_id"]),
)


async def test_a_key_that_names_no_account_says_which_fields(service: AccountServicer) -> None:
    for key, fields in MALFORMED:
        for read in (balance, statement):
            with pytest.raises(ServiceError) as caught:
                await read(service, key)
            assert caught.value.code is Code.INVALID_ARGUMENT
            assert [violation.field for violation in caught.value.violations] == fields, key


async def balances(service: AccountServicer, *, page_size: int = 0, **owner: str) -> list[account_pb2.Balance]:
    """All pages; each but the last is full."""
    found: list[account_pb2.Balance] = []
    token = ""
    while True:
        request = account_pb2.ListBalancesRequest(**owner, page_size=page_size, page_token=token)
        page = await service.ListBalances(request, "tests")
        found += page.balances
        if not page.next_page_token:
            return found
        assert len(page.balances) == page_size
        token = page.next_page_token


async def test_a_users_wallets_and_holdings(service: AccountServicer) -> None:
    expected = [
        (Key(kind=WALLET, user_id="ada", asset="USD/2"), 25),
        (Key(kind=WALLET, user_id="ada", asset="COIN"), 7),
        (Key(kind=HOLDING, user_id="ada", prize_id="coupon"), 1),
        (Key(kind=HOLDING, user_id="ada", prize_id="coins"), 1),
        (Key(kind=HOLDING, user_id="ada", prize_id="cashback"), 1),
        (Key(kind=HOLDING, user_id="ada", prize_id="goods"), 2),
    ]
    for page_size in (1, 2, 3, 100):
        found = await balances(service, user_id="ada", page_size=page_size)
        assert [(b.account, b.balance_units) for b in found] == expected


async def test_a_promotions_accounts(service: AccountServicer) -> None:
    expected = [
        (Key(kind=STOCK, prize_id="coupon"), 9),
        (Key(kind=STOCK, prize_id="coins"), -2),
        (Key(kind=STOCK, prize_id="cashback"), 98),
        (Key(kind=STOCK_SOURCE, prize_id="coupon"), -12),
        (Key(kind=STOCK_SOURCE, prize_id="coins"), 0),
        (Key(kind=STOCK_SOURCE, prize_id="cashback"), -100),
        (Key(kind=BUDGET, promotion_id="spring", asset="USD/2"), 8_400),
        (Key(kind=BUDGET, promotion_id="spring", asset="COIN"), -10),
        (Key(kind=BUDGET_SOURCE, promotion_id="spring", asset="USD/2"), -10_000),
        (Key(kind=BUDGET_SOURCE, promotion_id="spring", asset="COIN"), 0),
        (Key(kind=LIABILITY, promotion_id="spring", asset="USD/2"), 1_500),
    ]
    for page_size in (1, 4, 100):
        found = await balances(service, promotion_id="spring", page_size=page_size)
        assert [(b.account, b.balance_units) for b in found] == expected


async def test_an_unknown_user_has_no_accounts_and_an_unknown_promotion_is_not_found(service: AccountServicer) -> None:
    assert await balances(service, user_id="nobody") == []
    with pytest.raises(ServiceError) as caught:
        await balances(service, promotion_id="nothing")
    assert caught.value.reason == "PROMOTION_NOT_FOUND"


async def test_bad_list_requests_say_which_fields(service: AccountServicer) -> None:
    with pytest.raises(ServiceError) as caught:
        await service.ListBalances(account_pb2.ListBalancesRequest(page_size=501), "tests")
    assert [violation.field for violation in caught.value.violations] == ["owner", "page_size"]
    of_ada = await service.ListBalances(account_pb2.ListBalancesRequest(user_id="ada", page_size=1), "tests")
    for owner in ({"user_id": "bob"}, {"promotion_id": "spring"}):
        request = account_pb2.ListBalancesRequest(**owner, page_token=of_ada.next_page_token)  # type: ignore[arg-type]
        with pytest.raises(ServiceError) as caught:
            await service.ListBalances(request, "tests")
        assert [violation.field for violation in caught.value.violations] == ["page_token"]
    with pytest.raises(ServiceError) as caught:
        await statement(service, Key(kind=STOCK, prize_id="coupon"), page_size=-1, token="garbage")  # noqa: S106
    assert [violation.field for violation in caught.value.violations] == ["page_size", "page_token"]


# --- statements -----------------------------------------------------------------------------------------------------


async def test_a_statement_shows_both_sides_and_the_balance_after_each_entry(
    service: AccountServicer, books: Books
) -> None:
    entries = (await statement(service, Key(kind=STOCK, prize_id="coupon"))).entries
    source = Key(kind=STOCK_SOURCE, prize_id="coupon")
    assert [(e.kind, e.amount_units, e.balance_units, e.counterpart) for e in entries] == [
        (7, -1, 9, Key(kind=HOLDING, user_id="eve", prize_id="coupon")),
        (7, -1, 10, Key(kind=HOLDING, user_id="bob", prize_id="coupon")),
        (7, -1, 11, Key(kind=HOLDING, user_id="ada", prize_id="coupon")),
        (3, -3, 12, source),
        (2, 5, 15, source),
        (1, 10, 10, source),
    ]
    (given,) = (await statement(service, Key(kind=WALLET, user_id="ada", asset="COIN"))).entries
    row = await books.pool.fetchrow("SELECT issuance_id, issued_at FROM guerdon.request WHERE request_id = 'k1'")
    assert row is not None
    assert (given.kind, given.amount_units, given.balance_units) == (8, 7, 7)
    assert given.counterpart == Key(kind=BUDGET, promotion_id="spring", asset="COIN")
    assert given.issuance_id == str(row["issuance_id"])
    assert given.booked_at.ToDatetime(row["issued_at"].tzinfo) == row["issued_at"]
    assert [e.issuance_id for e in entries[3:]] == ["", "", ""]


async def test_pages_carry_the_balance_on_while_new_entries_are_booked(service: AccountServicer, books: Books) -> None:
    """Entries that are booked between two pages neither shift the pages nor their balances."""
    key = Key(kind=BUDGET, promotion_id="spring", asset="COIN")
    await books.grant_all([("coins", f"user-{n % 7}", f"first-{n}", n % 5 + 1, "") for n in range(60)])
    before = (await statement(service, key, page_size=500)).entries
    assert len(before) == 62
    done = asyncio.Event()

    async def write(worker: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            await books.grant_all([("coins", f"user-{n}", f"w{worker}-{number}-{n}", 3, "") for n in range(5)])

    writers = [asyncio.create_task(write(worker)) for worker in range(2)]
    try:
        readings = [await _all_pages(service, key)]
        while len(readings) < 5 or len(readings[-1]) == len(readings[-2]):
            assert not any(writer.done() for writer in writers)
            readings.append(await _all_pages(service, key))
    finally:
        done.set()
        await asyncio.gather(*writers)
    for entries in readings:
        assert entries[-62:] == list(before)
        for newer, older in itertools.pairwise(entries):
            assert newer.balance_units - newer.amount_units == older.balance_units
            assert int(newer.transfer_id) > int(older.transfer_id)
        assert entries[-1].balance_units == entries[-1].amount_units
    now = (await balance(service, key))[0]
    newest = (await statement(service, key, page_size=1)).entries[0]
    assert newest.balance_units == now


async def _all_pages(service: AccountServicer, key: Key) -> list[account_pb2.Entry]:
    entries: list[account_pb2.Entry] = []
    token = ""
    while True:
        page = await statement(service, key, page_size=7, token=token)
        entries += page.entries
        token = page.next_page_token
        if not token:
            return entries


async def test_a_full_last_page_has_no_token(service: AccountServicer) -> None:
    key = Key(kind=STOCK, prize_id="coupon")
    page = await statement(service, key, page_size=6)
    assert (len(page.entries), page.next_page_token) == (6, "")


# --- the trial balance ----------------------------------------------------------------------------------------------


async def test_the_trial_balance_sums_by_asset_and_kind(service: AccountServicer) -> None:
    answer = await service.GetTrialBalance(account_pb2.GetTrialBalanceRequest(), "tests")
    assert answer.balanced
    assert {(li.asset, li.kind): (li.account_count, li.debits_units, li.credits_units) for li in answer.lines} == {
        ("prize", STOCK_SOURCE): (5, "140", "3"),
        ("prize", STOCK): (5, "13", "140"),
        ("prize", HOLDING): (9, "0", "10"),
        ("COIN", BUDGET_SOURCE): (1, "0", "0"),
        ("COIN", BUDGET): (1, "10", "0"),
        ("COIN", WALLET): (2, "0", "10"),
        ("USD/2", BUDGET_SOURCE): (2, "10500", "0"),
        ("USD/2", BUDGET): (2, "1600", "10500"),
        ("USD/2", WALLET): (2, "0", "100"),
        ("USD/2", LIABILITY): (2, "0", "1500"),
    }


async def test_the_trial_balance_tells_broken_books_and_sums_beyond_64_bits(
    service: AccountServicer, books: Books
) -> None:
    await books.pool.execute("UPDATE guerdon.account SET credits = $1 WHERE kind = 6", 2**63 - 1)
    answer = await service.GetTrialBalance(account_pb2.GetTrialBalanceRequest(), "tests")
    assert not answer.balanced
    wallets = {li.asset: li.credits_units for li in answer.lines if li.kind == WALLET}
    assert wallets == {"COIN": str(2 * (2**63 - 1)), "USD/2": str(2 * (2**63 - 1))}


async def test_empty_books_are_balanced(pool: postgres.Pool) -> None:
    service = AccountServicer(PostgresStatement(pool))
    answer = await service.GetTrialBalance(account_pb2.GetTrialBalanceRequest(), "tests")
    assert answer == account_pb2.GetTrialBalanceResponse(balanced=True)

"""The books: every grant is a transfer between two accounts, and the sums are equal."""

import pytest

from guerdon import (
    AccountKey,
    AccountKind,
    AsyncClient,
    Balance,
    Entry,
    FixedValue,
    InvalidArgument,
    NotFound,
    PrizeKind,
    TransferKind,
)
from tests.client.suite.conftest import Shop


async def test_an_account_that_was_never_used_is_zero(client: AsyncClient, shop: Shop) -> None:
    wallet = AccountKey(AccountKind.WALLET, user_id=shop.user("ann"), asset="COIN")
    assert await client.get_balance(account=wallet) == Balance(wallet, 0, 0, 0)
    assert (await client.list_entries(account=wallet)).items == ()


async def test_a_grant_moves_a_unit_and_its_value(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 100})
    coins = await shop.prize(kind=PrizeKind.COIN, stock=10, value=FixedValue("COIN", 7))
    coupon = await shop.prize(kind=PrizeKind.COUPON, stock=10, value=FixedValue("COIN", 5))
    granted = await shop.grant(coins)
    await shop.grant(coins)
    await shop.grant(coupon)
    ann, promotion_id = shop.user("ann"), shop.promotion_id
    wallet = AccountKey(AccountKind.WALLET, user_id=ann, asset="COIN")
    expected = {
        AccountKey(AccountKind.STOCK, prize_id=coins.prize_id): 8,
        AccountKey(AccountKind.HOLDING, user_id=ann, prize_id=coins.prize_id): 2,
        AccountKey(AccountKind.HOLDING, user_id=ann, prize_id=coupon.prize_id): 1,
        AccountKey(AccountKind.BUDGET, promotion_id=promotion_id, asset="COIN"): 81,
        AccountKey(AccountKind.LIABILITY, promotion_id=promotion_id, asset="COIN"): 5,
        wallet: 14,
    }
    for key, units in expected.items():
        balance = await client.get_balance(account=key)
        assert (balance.account, balance.balance_units) == (key, units)
        assert balance.credits_units - balance.debits_units == units
    entries = (await client.list_entries(account=wallet)).items
    assert [(each.kind, each.amount_units, each.balance_units) for each in entries] == [
        (TransferKind.ISSUE_VALUE, 7, 14),
        (TransferKind.ISSUE_VALUE, 7, 7),
    ]
    assert entries[1].counterpart == AccountKey(AccountKind.BUDGET, promotion_id=promotion_id, asset="COIN")
    assert entries[1].issuance_id == granted.issuance.issuance_id


async def test_a_statement_tells_top_ups_and_recalls(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 100})
    prize = await shop.prize(stock=10)
    await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=5, request_id=shop.fresh())
    await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=-2, request_id=shop.fresh())
    await shop.grant(prize)
    stock = AccountKey(AccountKind.STOCK, prize_id=prize.prize_id)
    found: list[Entry] = []
    token = ""
    while True:
        page = await client.list_entries(account=stock, page_size=3, page_token=token)
        found += page.items
        token = page.next_page_token
        if not token:
            break
    assert [(each.kind, each.amount_units, each.balance_units) for each in found] == [
        (TransferKind.ISSUE_UNIT, -1, 12),
        (TransferKind.STOCK_RECALL, -2, 13),
        (TransferKind.STOCK_TOP_UP, 5, 15),
        (TransferKind.STOCK_INITIAL, 10, 10),
    ]


async def test_the_accounts_of_a_user_and_of_a_promotion(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 100})
    prize = await shop.prize(kind=PrizeKind.COIN, stock=10, value=FixedValue("COIN", 7))
    await shop.grant(prize)
    mine = await client.list_balances(user_id=shop.user("ann"))
    assert {(each.account.kind, each.balance_units) for each in mine.items} == {
        (AccountKind.HOLDING, 1),
        (AccountKind.WALLET, 7),
    }
    theirs = await client.list_balances(promotion_id=shop.promotion_id)
    assert {(AccountKind.STOCK, 9), (AccountKind.BUDGET, 93)} <= {
        (each.account.kind, each.balance_units) for each in theirs.items
    }


async def test_the_books_balance(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 100})
    prize = await shop.prize(kind=PrizeKind.COIN, stock=10, value=FixedValue("COIN", 7))
    await shop.grant(prize)
    trial = await client.get_trial_balance()
    assert trial.balanced
    for asset in {line.asset for line in trial.lines}:
        lines = [line for line in trial.lines if line.asset == asset]
        assert sum(line.debits_units for line in lines) == sum(line.credits_units for line in lines)
    assert {"COIN", "prize"} <= {line.asset for line in trial.lines}


async def test_an_account_must_be_named_in_full(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await client.get_balance(account=AccountKey(AccountKind.WALLET, user_id="u"))
    assert [each.field for each in raised.value.field_violations] == ["account.asset"]
    with pytest.raises(InvalidArgument) as unknown:
        await client.get_balance(account=AccountKey(AccountKind.UNSPECIFIED))
    assert [each.field for each in unknown.value.field_violations] == ["account.kind"]


async def test_what_does_not_exist_has_no_balance(client: AsyncClient) -> None:
    unknown = (
        AccountKey(kind=AccountKind.STOCK, prize_id="no-such-prize"),
        AccountKey(kind=AccountKind.HOLDING, user_id="ada", prize_id="no-such-prize"),
        AccountKey(kind=AccountKind.BUDGET, promotion_id="no-such-promotion", asset="COIN"),
    )
    for account in unknown:
        with pytest.raises(NotFound):
            await client.get_balance(account=account)
    with pytest.raises(NotFound):
        await client.list_issuances(promotion_id="no-such-promotion")
    assert (await client.list_issuances(user_id="nobody")).items == ()

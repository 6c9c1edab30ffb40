"""Giving many prizes at once: each for itself, or all or nothing."""

import pytest

from guerdon import (
    AsyncClient,
    BatchItem,
    BatchMode,
    FailedPrecondition,
    FixedValue,
    Granted,
    InvalidArgument,
    ItemError,
    ItemOutcome,
    NotFound,
    PrizeKind,
    PrizeStock,
    Rejected,
    RejectionReason,
    RequestIdReused,
)
from tests.client.suite.conftest import Shop

PER_ITEM, ALL_OR_NOTHING = BatchMode.PER_ITEM, BatchMode.ALL_OR_NOTHING


async def batch(shop: Shop, items: list[BatchItem], mode: BatchMode) -> tuple[ItemOutcome, ...]:
    return await shop.client.batch_issue_prizes(
        promotion_id=shop.promotion_id, entrance_id=shop.entrance_id, items=items, mode=mode
    )


def said(outcomes: tuple[ItemOutcome, ...]) -> list[str]:
    """granted, replayed, the reason of a rejection or of an error; item by item."""
    words = []
    for each in outcomes:
        if isinstance(each, Granted):
            words.append("replayed" if each.replayed else "granted")
        elif isinstance(each, ItemError):
            words.append(each.error.reason)
        else:
            assert isinstance(each, Rejected)
            words.append(each.reason.value)
    return words


@pytest.mark.parametrize("mode", BatchMode)
async def test_outcomes_come_in_the_order_of_the_items(shop: Shop, mode: BatchMode) -> None:
    await shop.opens()
    prize = await shop.prize()
    items = [shop.item(prize, user_id=f"u{i}") for i in range(30)]
    outcomes = await batch(shop, items, mode)
    assert said(outcomes) == ["granted"] * 30
    for item, outcome in zip(items, outcomes, strict=True):
        assert isinstance(outcome, Granted)
        assert (outcome.issuance.request_id, outcome.issuance.user_id) == (item.request_id, item.user_id)
    again = await batch(shop, items, mode)
    assert said(again) == ["replayed"] * 30
    assert [each.issuance for each in again if isinstance(each, Granted)] == [
        each.issuance for each in outcomes if isinstance(each, Granted)
    ]


async def test_per_item_takes_what_fits(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=2, limit_per_user=1)
    items = [shop.item(prize), shop.item(prize), shop.item(prize, user_id="bob"), shop.item(prize, user_id="cid")]
    assert said(await batch(shop, items, PER_ITEM)) == ["granted", "LIMIT_REACHED", "granted", "SOLD_OUT"]
    assert await client.get_prize_stock(prize_id=prize.prize_id) == PrizeStock(prize.prize_id, 2, 2, 0)


async def test_a_budget_too_small_for_one_item_serves_a_later_smaller_one(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 10})
    big = await shop.prize(kind=PrizeKind.COIN, value=FixedValue("COIN", 7))
    small = await shop.prize(kind=PrizeKind.COIN, value=FixedValue("COIN", 3))
    items = [shop.item(big), shop.item(big), shop.item(small), shop.item(small)]
    assert said(await batch(shop, items, PER_ITEM)) == ["granted", "BUDGET_EXHAUSTED", "granted", "BUDGET_EXHAUSTED"]
    (budget,) = (await client.get_promotion(promotion_id=shop.promotion_id)).budgets
    assert (budget.spent_units, budget.remaining_units) == (10, 0)


async def test_one_that_cannot_be_granted_keeps_all_from_it(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    plenty, limited = await shop.prize(stock=100), await shop.prize(stock=100, limit_per_user=1)
    await shop.grant(limited)
    items = [shop.item(plenty), shop.item(limited), shop.item(plenty)]
    assert said(await batch(shop, items, ALL_OR_NOTHING)) == [
        "BATCH_NOT_GRANTED",
        "LIMIT_REACHED",
        "BATCH_NOT_GRANTED",
    ]
    assert (await client.get_prize_stock(prize_id=plenty.prize_id)).issued_units == 0
    assert said(await batch(shop, [items[0], items[2]], ALL_OR_NOTHING)) == ["granted", "granted"]


async def test_all_or_nothing_counts_its_own_items(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 10})
    scarce = await shop.prize(stock=2)
    dear = await shop.prize(kind=PrizeKind.COIN, value=FixedValue("COIN", 6))
    once = await shop.prize(limit_per_user=1)
    for prize, reason in ((scarce, "SOLD_OUT"), (dear, "BUDGET_EXHAUSTED"), (once, "LIMIT_REACHED")):
        items = [shop.item(prize) for _ in range(3)]
        words = said(await batch(shop, items, ALL_OR_NOTHING))
        assert words[0] == "BATCH_NOT_GRANTED"
        assert words[2] == reason
        assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 0
    (budget,) = (await client.get_promotion(promotion_id=shop.promotion_id)).budgets
    assert budget.spent_units == 0


async def test_a_retried_all_or_nothing_batch_replays_whole(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=3)
    items = [shop.item(prize) for _ in range(3)]
    assert said(await batch(shop, items, ALL_OR_NOTHING)) == ["granted"] * 3
    assert said(await batch(shop, items, ALL_OR_NOTHING)) == ["replayed"] * 3
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 3


async def test_a_bad_item_is_an_error_of_its_own(client: AsyncClient, shop: Shop) -> None:
    other = Shop(client, f"{shop.name}-2")
    await shop.opens()
    await other.opens()
    prize, stranger = await shop.prize(), await other.prize()
    used = await shop.grant(prize)
    items = [
        shop.item(prize),
        BatchItem("nothing", "u", shop.fresh()),
        BatchItem(stranger.prize_id, "u", shop.fresh()),
        BatchItem(prize.prize_id, "with space", shop.fresh()),
        BatchItem(prize.prize_id, "somebody-else", used.issuance.request_id),
    ]
    errors = ["PRIZE_NOT_FOUND", "PRIZE_NOT_IN_PROMOTION", "INVALID_FIELD", "REQUEST_ID_REUSED"]
    assert said(await batch(shop, items, ALL_OR_NOTHING)) == ["BATCH_NOT_GRANTED", *errors]
    outcomes = await batch(shop, items, PER_ITEM)
    assert said(outcomes) == ["granted", *errors]
    invalid, reused = outcomes[3], outcomes[4]
    assert isinstance(invalid, ItemError)
    assert isinstance(invalid.error, InvalidArgument)
    assert [each.field for each in invalid.error.field_violations] == ["items[3].user_id"]
    assert isinstance(reused, ItemError)
    assert isinstance(reused.error, RequestIdReused)
    assert reused.error.field == "user_id"


async def test_what_is_wrong_with_the_batch_fails_it_whole(client: AsyncClient, shop: Shop) -> None:
    other = Shop(client, f"{shop.name}-2")
    await shop.opens()
    await other.opens()
    prize = await shop.prize()
    one = shop.item(prize)
    cases = {
        "items": [],
        "items[1].request_id": [one, shop.item(prize, user_id="bob", request_id=one.request_id)],
    }
    for field, items in cases.items():
        with pytest.raises(InvalidArgument) as raised:
            await batch(shop, items, PER_ITEM)
        assert [each.field for each in raised.value.field_violations] == [field]
    with pytest.raises(InvalidArgument) as oversized:
        await batch(shop, [shop.item(prize) for _ in range(1001)], PER_ITEM)
    assert [each.field for each in oversized.value.field_violations] == ["items"]
    with pytest.raises(NotFound) as nowhere:
        await client.batch_issue_prizes(promotion_id="nowhere", entrance_id=shop.entrance_id, items=[one])
    with pytest.raises(FailedPrecondition) as unbound:
        await client.batch_issue_prizes(promotion_id=shop.promotion_id, entrance_id=other.entrance_id, items=[one])
    assert (nowhere.value.reason, unbound.value.reason) == ("PROMOTION_NOT_FOUND", "ENTRANCE_NOT_BOUND")
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 0


async def test_a_thousand_in_one_batch(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=999)
    outcomes = await batch(shop, [shop.item(prize, user_id=f"u{i}") for i in range(1000)], PER_ITEM)
    assert sorted(set(said(outcomes))) == [RejectionReason.SOLD_OUT.value, "granted"]
    assert said(outcomes).count("granted") == 999
    assert await client.get_prize_stock(prize_id=prize.prize_id) == PrizeStock(prize.prize_id, 999, 999, 0)


async def test_an_id_that_was_granted_to_somebody_else_keeps_all_from_it(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=10)
    taken = shop.item(prize)
    assert said(await batch(shop, [taken], PER_ITEM)) == ["granted"]
    reused = BatchItem(prize_id=prize.prize_id, user_id="somebody-else", request_id=taken.request_id)
    items = [shop.item(prize), reused, shop.item(prize)]
    assert said(await batch(shop, items, ALL_OR_NOTHING)) == [
        "BATCH_NOT_GRANTED",
        "REQUEST_ID_REUSED",
        "BATCH_NOT_GRANTED",
    ]
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 1

"""Promotions, entrances and prizes: creating, changing, listing, states and capacities."""

from datetime import UTC, datetime, timedelta

import pytest

from guerdon import (
    UNLIMITED,
    AlreadyExists,
    AsyncClient,
    Budget,
    FailedPrecondition,
    FixedValue,
    InvalidArgument,
    NotFound,
    PrizeKind,
    PrizeStock,
    PromotionState,
    RateValue,
    RequestIdReused,
    Rounding,
    ValidDays,
    ValidUntil,
)
from tests.client.suite.conftest import Shop

ALLOWED = {
    (PromotionState.DRAFT, PromotionState.SCHEDULED),
    (PromotionState.DRAFT, PromotionState.ARCHIVED),
    (PromotionState.SCHEDULED, PromotionState.ACTIVE),
    (PromotionState.SCHEDULED, PromotionState.ENDED),
    (PromotionState.ACTIVE, PromotionState.PAUSED),
    (PromotionState.ACTIVE, PromotionState.ENDED),
    (PromotionState.PAUSED, PromotionState.ACTIVE),
    (PromotionState.PAUSED, PromotionState.ENDED),
    (PromotionState.ENDED, PromotionState.ARCHIVED),
}
STATES = [state for state in PromotionState if state is not PromotionState.UNSPECIFIED]
WAY_TO = {
    PromotionState.DRAFT: [],
    PromotionState.SCHEDULED: [PromotionState.SCHEDULED],
    PromotionState.ACTIVE: [PromotionState.SCHEDULED, PromotionState.ACTIVE],
    PromotionState.PAUSED: [PromotionState.SCHEDULED, PromotionState.ACTIVE, PromotionState.PAUSED],
    PromotionState.ENDED: [PromotionState.SCHEDULED, PromotionState.ENDED],
    PromotionState.ARCHIVED: [PromotionState.ARCHIVED],
}


def tomorrow() -> datetime:
    return (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)


async def test_a_promotion_reads_back_as_it_was_created(client: AsyncClient, shop: Shop) -> None:
    starts_at, ends_at = tomorrow(), tomorrow() + timedelta(days=1)
    await client.create_entrance(entrance_id=shop.entrance_id, request_id=shop.fresh())
    created = await client.create_promotion(
        promotion_id=shop.promotion_id,
        display_name="Frühling",
        starts_at=starts_at,
        ends_at=ends_at,
        entrance_ids=[shop.entrance_id],
        budgets={"USD/2": 1000, "COIN": UNLIMITED},
        request_id=shop.fresh(),
    )
    assert created == await client.get_promotion(promotion_id=shop.promotion_id)
    assert created.display_name == "Frühling"
    assert created.state is PromotionState.DRAFT
    assert (created.starts_at, created.ends_at) == (starts_at, ends_at)
    assert created.entrance_ids == (shop.entrance_id,)
    assert sorted(created.budgets, key=lambda budget: budget.asset) == [
        Budget("COIN", UNLIMITED, 0, 0),
        Budget("USD/2", 1000, 0, 1000),
    ]
    assert created.etag


async def test_unknown_resources_are_named_by_reason(client: AsyncClient, shop: Shop) -> None:
    with pytest.raises(NotFound) as promotion:
        await client.get_promotion(promotion_id=shop.promotion_id)
    with pytest.raises(NotFound) as prize:
        await client.get_prize(prize_id=shop.fresh())
    with pytest.raises(NotFound) as stock:
        await client.get_prize_stock(prize_id=shop.fresh())
    with pytest.raises(NotFound) as entrance:
        await client.get_entrance(entrance_id=shop.entrance_id)
    with pytest.raises(NotFound) as bound:
        await client.create_promotion(
            promotion_id=shop.promotion_id, entrance_ids=[shop.entrance_id], request_id=shop.fresh()
        )
    raised = [promotion, prize, stock, entrance, bound]
    reasons = [each.value.reason for each in raised]
    assert reasons == [
        "PROMOTION_NOT_FOUND",
        "PRIZE_NOT_FOUND",
        "PRIZE_NOT_FOUND",
        "ENTRANCE_NOT_FOUND",
        "ENTRANCE_NOT_FOUND",
    ]
    assert {each.value.domain for each in raised} == {"guerdon.dev"}


async def test_an_id_is_taken_once(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize()
    with pytest.raises(AlreadyExists) as promotion:
        await client.create_promotion(promotion_id=shop.promotion_id, request_id=shop.fresh())
    with pytest.raises(AlreadyExists) as entrance:
        await client.create_entrance(entrance_id=shop.entrance_id, request_id=shop.fresh())
    with pytest.raises(AlreadyExists) as again:
        await client.create_prize(
            prize_id=prize.prize_id,
            promotion_id=shop.promotion_id,
            kind=PrizeKind.GOODS,
            stock=1,
            request_id=shop.fresh(),
        )
    reasons = [each.value.reason for each in (promotion, entrance, again)]
    assert reasons == ["PROMOTION_EXISTS", "ENTRANCE_EXISTS", "PRIZE_EXISTS"]


async def test_a_repeated_mutation_is_applied_once_and_answers_with_what_is_now(
    client: AsyncClient, shop: Shop
) -> None:
    await shop.opens(budgets={"COIN": 10})
    prize = await shop.prize(stock=5)
    stock_id, budget_id, update_id = shop.fresh(), shop.fresh(), shop.fresh()
    first = await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=3, request_id=stock_id)
    again = await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=3, request_id=stock_id)
    assert (first.stock, first.replayed) == (PrizeStock(prize.prize_id, 8, 0, 8), False)
    assert (again.stock, again.replayed) == (first.stock, True)
    for _ in range(2):
        adjusted = await client.adjust_promotion_budget(
            promotion_id=shop.promotion_id, asset="COIN", delta_units=-4, request_id=budget_id
        )
        assert adjusted.budget == Budget("COIN", 6, 0, 6)
    assert adjusted.replayed
    for _ in range(2):
        updated = await client.update_prize(prize_id=prize.prize_id, display_name="Cup", request_id=update_id)
    assert updated == await client.get_prize(prize_id=prize.prize_id)


async def test_a_request_id_for_other_content_names_the_field(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=5)
    request_id = shop.fresh()
    await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=3, request_id=request_id)
    with pytest.raises(RequestIdReused) as raised:
        await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=4, request_id=request_id)
    assert raised.value.reason == "REQUEST_ID_REUSED"
    assert raised.value.field == "delta_units"
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).capacity == 8


async def test_an_update_changes_what_is_named_and_no_more(client: AsyncClient, shop: Shop) -> None:
    before = await shop.opens(budgets={"COIN": 1})
    ends_at = tomorrow()
    after = await client.update_promotion(
        promotion_id=shop.promotion_id, display_name="Neu", ends_at=ends_at, etag=before.etag, request_id=shop.fresh()
    )
    assert (after.display_name, after.ends_at) == ("Neu", ends_at)
    assert (after.starts_at, after.entrance_ids, after.budgets) == (
        before.starts_at,
        before.entrance_ids,
        before.budgets,
    )
    assert after.etag != before.etag
    cleared = await client.update_promotion(promotion_id=shop.promotion_id, ends_at=None, request_id=shop.fresh())
    assert (cleared.display_name, cleared.ends_at) == ("Neu", None)


async def test_a_stale_etag_is_refused(client: AsyncClient, shop: Shop) -> None:
    promotion = await shop.opens()
    await client.update_promotion(promotion_id=shop.promotion_id, display_name="a", request_id=shop.fresh())
    entrance = await client.get_entrance(entrance_id=shop.entrance_id)
    await client.update_entrance(
        entrance_id=shop.entrance_id, display_name="a", etag=entrance.etag, request_id=shop.fresh()
    )
    with pytest.raises(FailedPrecondition) as of_promotion:
        await client.update_promotion(
            promotion_id=shop.promotion_id, display_name="b", etag=promotion.etag, request_id=shop.fresh()
        )
    with pytest.raises(FailedPrecondition) as of_transition:
        await client.transition_promotion(
            promotion_id=shop.promotion_id,
            target_state=PromotionState.PAUSED,
            etag=promotion.etag,
            request_id=shop.fresh(),
        )
    with pytest.raises(FailedPrecondition) as of_entrance:
        await client.update_entrance(
            entrance_id=shop.entrance_id, display_name="b", etag=entrance.etag, request_id=shop.fresh()
        )
    raised = (of_promotion, of_transition, of_entrance)
    assert {each.value.reason for each in raised} == {"ETAG_MISMATCH"}
    assert (await client.get_promotion(promotion_id=shop.promotion_id)).display_name == "a"


@pytest.mark.parametrize("start", STATES)
async def test_transitions_follow_the_life_of_a_promotion(
    client: AsyncClient, shop: Shop, start: PromotionState
) -> None:
    for target in STATES:
        promotion_id = shop.fresh("promotion")
        await client.create_promotion(promotion_id=promotion_id, starts_at=tomorrow(), request_id=shop.fresh())
        for step in WAY_TO[start]:
            await client.transition_promotion(promotion_id=promotion_id, target_state=step, request_id=shop.fresh())
        move = client.transition_promotion(promotion_id=promotion_id, target_state=target, request_id=shop.fresh())
        expected = start
        if target is start or (start, target) in ALLOWED:
            expected = target
            assert (await move).state is target
        else:
            with pytest.raises(FailedPrecondition) as raised:
                await move
            assert raised.value.reason == "TRANSITION_NOT_ALLOWED"
            reachable = [state.value for state in PromotionState if (start, state) in ALLOWED]
            assert raised.value.metadata["reachable_states"] == (", ".join(reachable) or "none")
        assert (await client.get_promotion(promotion_id=promotion_id)).state is expected


async def test_times_act_by_themselves(client: AsyncClient, shop: Shop) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    over, running = shop.fresh("promotion"), shop.fresh("promotion")
    await client.create_promotion(
        promotion_id=over, starts_at=past, ends_at=past + timedelta(days=1), request_id=shop.fresh()
    )
    await client.create_promotion(promotion_id=running, starts_at=past, request_id=shop.fresh())
    for promotion_id, state in ((over, PromotionState.ENDED), (running, PromotionState.ACTIVE)):
        await client.transition_promotion(
            promotion_id=promotion_id, target_state=PromotionState.SCHEDULED, request_id=shop.fresh()
        )
        assert (await client.get_promotion(promotion_id=promotion_id)).state is state


async def test_promotions_are_listed_by_id_and_state_in_pages(client: AsyncClient, shop: Shop) -> None:
    created = [shop.fresh("promotion") for _ in range(5)]
    for promotion_id in created:
        await client.create_promotion(promotion_id=promotion_id, request_id=shop.fresh())
    archived = created.pop()
    await client.transition_promotion(
        promotion_id=archived, target_state=PromotionState.ARCHIVED, request_id=shop.fresh()
    )

    async def listed(*states: PromotionState) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            page = await client.list_promotions(states=states, page_size=2, page_token=token)
            assert len(page.items) <= 2
            found += [each.promotion_id for each in page.items]
            token = page.next_page_token
            if not token:
                return [each for each in found if each in {*created, archived}]

    assert await listed() == created
    assert await listed(PromotionState.ARCHIVED) == [archived]
    assert await listed(PromotionState.PAUSED) == []


async def test_a_prize_reads_back_as_it_was_created(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"USD/2": 1000})
    rate = RateValue("USD/2", "order_cents", 500, floor_units=1, cap_units=500, rounding=Rounding.HALF_EVEN)
    until = tomorrow()
    cashback = await shop.prize(kind=PrizeKind.CASHBACK, value=rate, validity=ValidUntil(until))
    coupon = await shop.prize(stock=7, value=FixedValue("USD/2", 300), limit_per_user=2, validity=ValidDays(30))
    assert cashback == await client.get_prize(prize_id=cashback.prize_id)
    assert (cashback.value, cashback.stock, cashback.validity) == (rate, UNLIMITED, ValidUntil(until))
    assert coupon == await client.get_prize(prize_id=coupon.prize_id)
    assert (coupon.value, coupon.stock, coupon.validity) == (FixedValue("USD/2", 300), 7, ValidDays(30))
    assert (coupon.kind, coupon.limit_per_user, coupon.promotion_id) == (PrizeKind.COUPON, 2, shop.promotion_id)
    page = await client.list_prizes(promotion_id=shop.promotion_id)
    assert [each.prize_id for each in page.items] == sorted([cashback.prize_id, coupon.prize_id])


async def test_a_value_needs_a_budget_in_its_asset(shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 5})
    with pytest.raises(FailedPrecondition) as raised:
        await shop.prize(kind=PrizeKind.CASHBACK, value=FixedValue("USD/2", 1))
    assert raised.value.reason == "BUDGET_MISSING"


async def test_no_more_can_be_recalled_than_is_left(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 10, "USD/2": UNLIMITED})
    prize = await shop.prize(kind=PrizeKind.COIN, stock=3, value=FixedValue("COIN", 4))
    await shop.grant(prize)
    with pytest.raises(FailedPrecondition) as stock:
        await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=-3, request_id=shop.fresh())
    with pytest.raises(FailedPrecondition) as budget:
        await client.adjust_promotion_budget(
            promotion_id=shop.promotion_id, asset="COIN", delta_units=-7, request_id=shop.fresh()
        )
    assert (stock.value.reason, budget.value.reason) == ("STOCK_INSUFFICIENT", "BUDGET_INSUFFICIENT")
    left = await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=-2, request_id=shop.fresh())
    assert left.stock == PrizeStock(prize.prize_id, 1, 1, 0)


async def test_what_is_unlimited_is_not_adjusted(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": UNLIMITED})
    prize = await shop.prize(stock=UNLIMITED)
    with pytest.raises(FailedPrecondition) as stock:
        await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=1, request_id=shop.fresh())
    with pytest.raises(FailedPrecondition) as budget:
        await client.adjust_promotion_budget(
            promotion_id=shop.promotion_id, asset="COIN", delta_units=1, request_id=shop.fresh()
        )
    assert {stock.value.reason, budget.value.reason} == {"CAPACITY_UNLIMITED"}


async def test_a_budget_in_a_new_asset_is_created_by_topping_it_up(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    adjusted = await client.adjust_promotion_budget(
        promotion_id=shop.promotion_id, asset="COIN", delta_units=9, request_id=shop.fresh()
    )
    assert adjusted.budget == Budget("COIN", 9, 0, 9)
    assert (await client.get_promotion(promotion_id=shop.promotion_id)).budgets == (Budget("COIN", 9, 0, 9),)


async def test_bad_fields_are_named(client: AsyncClient, shop: Shop) -> None:
    with pytest.raises(InvalidArgument) as promotion:
        await client.create_promotion(promotion_id="with space", display_name="x" * 201, request_id="")
    assert promotion.value.reason == "INVALID_FIELD"
    assert {each.field for each in promotion.value.field_violations} == {
        "promotion.promotion_id",
        "promotion.display_name",
        "request_id",
    }
    await shop.opens(budgets={"COIN": 1})
    with pytest.raises(InvalidArgument) as prize:
        await shop.prize(kind=PrizeKind.COIN, stock=-1, value=FixedValue("COIN", 0), limit_per_user=-1)
    assert {each.field for each in prize.value.field_violations} == {
        "prize.stock.units",
        "prize.value.fixed_units",
        "prize.limit_per_user",
    }
    with pytest.raises(InvalidArgument) as delta:
        await client.adjust_prize_stock(prize_id="x", delta_units=0, request_id=shop.fresh())
    assert [each.field for each in delta.value.field_violations] == ["delta_units"]
    with pytest.raises(InvalidArgument) as size:
        await client.list_prizes(page_size=501)
    assert [each.field for each in size.value.field_violations] == ["page_size"]

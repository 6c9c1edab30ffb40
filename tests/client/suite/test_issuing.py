"""Giving prizes: what is granted, rejected, refused and replayed, one by one."""

import asyncio
import functools
from datetime import UTC, datetime, timedelta

import pytest

from guerdon import (
    UNLIMITED,
    Absent,
    AsyncClient,
    FailedPrecondition,
    FixedValue,
    Granted,
    InvalidArgument,
    Issuance,
    Money,
    NotFound,
    PrizeKind,
    PrizeStock,
    PromotionState,
    RateValue,
    Rejected,
    RejectionReason,
    RequestIdReused,
    Rounding,
    ValidDays,
    ValidUntil,
)
from tests.client.suite.conftest import Shop


def reason(outcome: object) -> RejectionReason:
    assert isinstance(outcome, Rejected), outcome
    return outcome.reason


async def test_a_grant_says_what_was_given(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"USD/2": 1000})
    prize = await shop.prize(stock=3, value=FixedValue("USD/2", 250), validity=ValidDays(30))
    outcome = await shop.issue(prize, request_id="order-1", reference="order-1")
    assert isinstance(outcome, Granted)
    given = outcome.issuance
    assert not outcome.replayed
    assert (given.promotion_id, given.entrance_id, given.prize_id) == (
        shop.promotion_id,
        shop.entrance_id,
        prize.prize_id,
    )
    assert (given.user_id, given.request_id, given.reference) == (shop.user("ann"), "order-1", "order-1")
    assert (given.kind, given.value) == (PrizeKind.COUPON, Money("USD/2", 250))
    assert given.expires_at == given.issued_at + timedelta(days=30)
    assert await client.get_prize_stock(prize_id=prize.prize_id) == PrizeStock(prize.prize_id, 3, 1, 2)
    (budget,) = (await client.get_promotion(promotion_id=shop.promotion_id)).budgets
    assert (budget.spent_units, budget.remaining_units) == (250, 750)


async def test_a_request_id_is_granted_once(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=5)
    first = await shop.issue(prize, request_id="r")
    again = await shop.issue(prize, request_id="r", reference="another", attributes={"device": "phone"})
    assert isinstance(first, Granted)
    assert again == Granted(first.issuance, replayed=True)
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 1


async def test_a_grant_is_replayed_whatever_has_become_of_the_promotion(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=1, limit_per_user=1)
    granted = await shop.grant(prize, request_id="r")
    replay = Granted(granted.issuance, replayed=True)
    assert await shop.issue(prize, request_id="r") == replay
    await client.update_promotion(promotion_id=shop.promotion_id, entrance_ids=[], request_id=shop.fresh())
    assert await shop.issue(prize, request_id="r") == replay
    await shop.goes(PromotionState.PAUSED)
    assert await shop.issue(prize, request_id="r") == replay
    await shop.goes(PromotionState.ENDED)
    assert await shop.issue(prize, request_id="r") == replay


async def test_a_request_id_for_another_reward_names_the_field(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 100})
    rate = RateValue("COIN", "cds", 10_000)
    prize = await shop.prize(kind=PrizeKind.COIN, value=rate)
    other = await shop.prize(kind=PrizeKind.COIN, value=rate)
    await client.create_entrance(entrance_id=shop.fresh("entrance"), request_id=shop.fresh())
    await shop.issue(prize, request_id="r", attributes={"cds": 3})
    cases = {
        "user_id": shop.issue(prize, request_id="r", user_id="bob", attributes={"cds": 3}),
        "prize_id": shop.issue(other, request_id="r", attributes={"cds": 3}),
        "attributes[cds]": shop.issue(prize, request_id="r", attributes={"cds": 4}),
    }
    for field, call in cases.items():
        with pytest.raises(RequestIdReused) as raised:
            await call
        assert raised.value.field == field
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 1


async def test_request_ids_are_unique_in_a_promotion_and_free_in_another(client: AsyncClient, shop: Shop) -> None:
    other = Shop(client, f"{shop.name}-2")
    await shop.opens()
    await other.opens()
    first = await shop.grant(await shop.prize(), request_id="r")
    second = await other.grant(await other.prize(), request_id="r")
    assert not second.replayed
    assert first.issuance.issuance_id != second.issuance.issuance_id


async def test_stock_runs_out_and_comes_back(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=2)
    await shop.grant(prize)
    await shop.grant(prize)
    assert reason(await shop.issue(prize, request_id="late")) is RejectionReason.SOLD_OUT
    await client.adjust_prize_stock(prize_id=prize.prize_id, delta_units=1, request_id=shop.fresh())
    assert not (await shop.grant(prize, request_id="late")).replayed
    assert await client.get_prize_stock(prize_id=prize.prize_id) == PrizeStock(prize.prize_id, 3, 3, 0)


async def test_a_prize_without_stock_is_sold_out_at_once(shop: Shop) -> None:
    await shop.opens()
    assert reason(await shop.issue(await shop.prize(stock=0))) is RejectionReason.SOLD_OUT


async def test_a_crowd_gets_exactly_what_there_is(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=10)
    outcomes = await asyncio.gather(*(shop.issue(prize, user_id=f"u{i}") for i in range(40)))
    granted = [each for each in outcomes if isinstance(each, Granted)]
    assert len({each.issuance.issuance_id for each in granted}) == 10
    assert {reason(each) for each in outcomes if each not in granted} == {RejectionReason.SOLD_OUT}
    assert await client.get_prize_stock(prize_id=prize.prize_id) == PrizeStock(prize.prize_id, 10, 10, 0)


async def test_twins_in_flight_are_one_grant(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=10)
    outcomes = await asyncio.gather(*(shop.issue(prize, request_id="r") for _ in range(8)))
    granted = [each for each in outcomes if isinstance(each, Granted)]
    assert len(granted) == len(outcomes)
    assert len({each.issuance.issuance_id for each in granted}) == 1
    assert sum(not each.replayed for each in granted) == 1
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 1


async def test_a_user_gets_as_many_as_the_limit(shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(limit_per_user=2)
    outcomes = await asyncio.gather(*(shop.issue(prize) for _ in range(5)))
    assert sum(isinstance(each, Granted) for each in outcomes) == 2
    refused = await shop.issue(prize)
    assert isinstance(refused, Rejected)
    assert refused.reason is RejectionReason.LIMIT_REACHED
    assert refused.rule == f"prizes/{prize.prize_id}/limit_per_user"
    assert (refused.observed, refused.threshold) == ("2", "2")
    assert refused.message
    await shop.grant(prize, user_id="bob")


async def test_a_budget_is_spent_to_the_last_grant_that_fits(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"USD/2": 100})
    prize = await shop.prize(kind=PrizeKind.CASHBACK, value=RateValue("USD/2", "cents", 10_000))
    assert isinstance(await shop.issue(prize, attributes={"cents": 70}), Granted)
    assert reason(await shop.issue(prize, attributes={"cents": 31})) is RejectionReason.BUDGET_EXHAUSTED
    assert isinstance(await shop.issue(prize, attributes={"cents": 30}), Granted)
    (budget,) = (await client.get_promotion(promotion_id=shop.promotion_id)).budgets
    assert (budget.capacity, budget.spent_units, budget.remaining_units) == (100, 100, 0)
    await client.adjust_promotion_budget(
        promotion_id=shop.promotion_id, asset="USD/2", delta_units=31, request_id=shop.fresh()
    )
    assert isinstance(await shop.issue(prize, attributes={"cents": 31}), Granted)


@pytest.mark.parametrize(
    ("rounding", "units"),
    [
        (Rounding.HALF_UP, [1, 2, 3, 0]),
        (Rounding.HALF_EVEN, [0, 2, 2, 0]),
        (Rounding.DOWN, [0, 1, 2, 0]),
        (Rounding.UP, [1, 2, 3, 1]),
    ],
)
async def test_a_rate_rounds_as_it_says(shop: Shop, rounding: Rounding, units: list[int]) -> None:
    await shop.opens(budgets={"USD/2": UNLIMITED})
    prize = await shop.prize(kind=PrizeKind.CASHBACK, value=RateValue("USD/2", "cents", 500, rounding=rounding))
    for cents, expected in zip([10, 30, 50, 9], units, strict=True):
        outcome = await shop.issue(prize, attributes={"cents": cents})
        if expected == 0:
            assert reason(outcome) is RejectionReason.VALUE_ZERO
        else:
            assert isinstance(outcome, Granted)
            assert outcome.issuance.value == Money("USD/2", expected)


async def test_a_rate_is_raised_to_its_floor_and_cut_at_its_cap(shop: Shop) -> None:
    await shop.opens(budgets={"USD/2": UNLIMITED})
    value = RateValue("USD/2", "cents", 500, floor_units=10, cap_units=500)
    prize = await shop.prize(kind=PrizeKind.CASHBACK, value=value)
    for cents, expected in {20: 10, 1_000: 50, 100_000: 500}.items():
        outcome = await shop.issue(prize, attributes={"cents": cents})
        assert isinstance(outcome, Granted)
        assert outcome.issuance.value == Money("USD/2", expected)
    assert reason(await shop.issue(prize, attributes={"cents": 0})) is RejectionReason.VALUE_ZERO


async def test_a_rate_needs_its_attribute(shop: Shop) -> None:
    await shop.opens(budgets={"COIN": UNLIMITED})
    prize = await shop.prize(kind=PrizeKind.COIN, value=RateValue("COIN", "cds", 10_000))
    assert reason(await shop.issue(prize, attributes={"other": 3})) is RejectionReason.ATTRIBUTE_MISSING
    for bad in ("three", -1, 2**62):  # no number, below zero, worth more than the ledger can hold
        with pytest.raises(InvalidArgument) as raised:
            await shop.issue(prize, attributes={"cds": bad})
        assert [each.field for each in raised.value.field_violations] == ["attributes[cds]"]


async def test_the_state_of_the_promotion_decides_first(client: AsyncClient, shop: Shop) -> None:
    await client.create_entrance(entrance_id=shop.entrance_id, request_id=shop.fresh())
    await client.create_promotion(
        promotion_id=shop.promotion_id,
        starts_at=datetime.now(UTC) + timedelta(days=1),
        entrance_ids=[shop.entrance_id],
        request_id=shop.fresh(),
    )
    prize = await shop.prize(stock=0)
    assert reason(await shop.issue(prize)) is RejectionReason.PROMOTION_NOT_STARTED
    await shop.goes(PromotionState.SCHEDULED)
    assert reason(await shop.issue(prize)) is RejectionReason.PROMOTION_NOT_STARTED
    await shop.goes(PromotionState.ACTIVE)
    assert reason(await shop.issue(prize)) is RejectionReason.SOLD_OUT
    await shop.goes(PromotionState.PAUSED)
    assert reason(await shop.issue(prize)) is RejectionReason.PROMOTION_PAUSED
    await shop.goes(PromotionState.ENDED)
    assert reason(await shop.issue(prize)) is RejectionReason.PROMOTION_ENDED
    await shop.goes(PromotionState.ARCHIVED)
    assert reason(await shop.issue(prize)) is RejectionReason.PROMOTION_ENDED


async def test_a_paused_promotion_goes_on_when_it_is_resumed(shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=1)
    await shop.goes(PromotionState.PAUSED)
    assert reason(await shop.issue(prize, request_id="r")) is RejectionReason.PROMOTION_PAUSED
    await shop.goes(PromotionState.ACTIVE)
    await shop.grant(prize, request_id="r")


async def test_nothing_is_granted_that_has_expired(shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(validity=ValidUntil(datetime.now(UTC) - timedelta(days=1)))
    assert reason(await shop.issue(prize)) is RejectionReason.VALIDITY_PASSED


async def test_what_was_granted_keeps_its_terms(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"USD/2": 1000})
    prize = await shop.prize(value=FixedValue("USD/2", 100), validity=ValidDays(1))
    before = await shop.grant(prize, request_id="r")
    await client.update_prize(
        prize_id=prize.prize_id, value=FixedValue("USD/2", 200), validity=None, request_id=shop.fresh()
    )
    assert (await shop.grant(prize, request_id="r")).issuance == before.issuance
    after = await shop.grant(prize)
    assert (after.issuance.value, after.issuance.expires_at) == (Money("USD/2", 200), None)


async def test_unknown_and_unbound_places_are_refused(client: AsyncClient, shop: Shop) -> None:
    other = Shop(client, f"{shop.name}-2")
    await shop.opens()
    await other.opens()
    prize = await shop.prize(stock=1)

    async def reason_of(**changed: str) -> str:
        with pytest.raises((NotFound, FailedPrecondition)) as raised:
            await client.issue_prize(
                promotion_id=changed.get("promotion_id", shop.promotion_id),
                entrance_id=changed.get("entrance_id", shop.entrance_id),
                prize_id=changed.get("prize_id", prize.prize_id),
                user_id="u",
                request_id="r",
            )
        assert isinstance(raised.value, NotFound) == raised.value.reason.endswith("_NOT_FOUND")
        return raised.value.reason

    assert await reason_of(promotion_id="nowhere") == "PROMOTION_NOT_FOUND"
    assert await reason_of(prize_id="nothing") == "PRIZE_NOT_FOUND"
    assert await reason_of(entrance_id="nowhere") == "ENTRANCE_NOT_FOUND"
    assert await reason_of(entrance_id=other.entrance_id) == "ENTRANCE_NOT_BOUND"
    stranger = await other.prize()
    assert await reason_of(prize_id=stranger.prize_id) == "PRIZE_NOT_IN_PROMOTION"
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 0


@pytest.mark.parametrize("bad", ["", "x" * 129, "with space", "new\nline", "ä", "a/b"])
async def test_malformed_ids_are_named(client: AsyncClient, bad: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await client.issue_prize(promotion_id=bad, entrance_id=bad, prize_id=bad, user_id=bad, request_id=bad)
    assert raised.value.reason == "INVALID_FIELD"
    assert {each.field for each in raised.value.field_violations} == {
        "promotion_id",
        "entrance_id",
        "prize_id",
        "user_id",
        "request_id",
    }


async def test_attributes_are_bounded(client: AsyncClient) -> None:
    issue = functools.partial(
        client.issue_prize, promotion_id="p", entrance_id="e", prize_id="z", user_id="u", request_id="r"
    )
    with pytest.raises(InvalidArgument) as many:
        await issue(attributes={f"a{i}": i for i in range(51)})
    assert [each.field for each in many.value.field_violations] == ["attributes"]
    with pytest.raises(InvalidArgument) as malformed:
        await issue(attributes={"a b": 1, "long": ["x"] * 101})
    assert {each.field for each in malformed.value.field_violations} == {"attributes[a b]", "attributes[long]"}


async def test_what_became_of_a_request(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=1)
    assert await client.get_issuance(promotion_id=shop.promotion_id, request_id="r") == Absent(cancelled=False)
    granted = await shop.grant(prize, request_id="r")
    found = await client.get_issuance(promotion_id=shop.promotion_id, request_id="r")
    assert found == granted.issuance
    assert await client.get_issuance(issuance_id=granted.issuance.issuance_id) == granted.issuance
    with pytest.raises(NotFound) as raised:
        await client.get_issuance(promotion_id="nowhere", request_id="r")
    assert raised.value.reason == "PROMOTION_NOT_FOUND"


async def test_a_cancelled_request_is_never_granted(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize(stock=1)
    for _ in range(2):
        state = await client.get_issuance(promotion_id=shop.promotion_id, request_id="r", cancel_if_absent=True)
        assert state == Absent(cancelled=True)
    assert reason(await shop.issue(prize, request_id="r")) is RejectionReason.CANCELLED
    assert await client.get_issuance(promotion_id=shop.promotion_id, request_id="r") == Absent(cancelled=True)
    assert (await client.get_prize_stock(prize_id=prize.prize_id)).issued_units == 0


async def test_what_was_granted_is_not_cancelled(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize()
    granted = await shop.grant(prize, request_id="r")
    state = await client.get_issuance(promotion_id=shop.promotion_id, request_id="r", cancel_if_absent=True)
    assert state == granted.issuance
    assert (await shop.grant(prize, request_id="r")).replayed


async def test_issuances_are_listed_newest_first(client: AsyncClient, shop: Shop) -> None:
    await shop.opens()
    prize = await shop.prize()
    for i in range(5):
        await shop.issue(prize, user_id="ann" if i % 2 else "bob", request_id=f"r{i}", reference=shop.user("order"))

    async def listed(**filters: str) -> list[str]:
        found: list[Issuance] = []
        token = ""
        while True:
            page = await client.list_issuances(**filters, page_size=2, page_token=token)
            assert len(page.items) <= 2
            found += page.items
            token = page.next_page_token
            if not token:
                return [each.request_id for each in found]

    assert await listed(promotion_id=shop.promotion_id) == ["r4", "r3", "r2", "r1", "r0"]
    assert await listed(user_id=shop.user("ann")) == ["r3", "r1"]
    assert await listed(reference=shop.user("order")) == ["r4", "r3", "r2", "r1", "r0"]
    assert await listed(user_id=shop.user("nobody")) == []


async def test_what_is_live_at_an_entrance(client: AsyncClient, shop: Shop) -> None:
    await shop.opens(budgets={"COIN": 10})
    limited = await shop.prize(limit_per_user=1)
    empty = await shop.prize(stock=0)
    dear = await shop.prize(kind=PrizeKind.COIN, value=FixedValue("COIN", 11))
    await shop.grant(limited)

    async def seen(user_id: str) -> dict[str, tuple[bool, RejectionReason | None, int]]:
        page = await client.list_entrance_promotions(entrance_id=shop.entrance_id, user_id=user_id)
        (live,) = page.items
        assert live.promotion.promotion_id == shop.promotion_id
        return {
            each.prize.prize_id: (each.available, each.unavailable_reason, each.user_granted_count)
            for each in live.prizes
        }

    gone = {
        empty.prize_id: (False, RejectionReason.SOLD_OUT, 0),
        dear.prize_id: (False, RejectionReason.BUDGET_EXHAUSTED, 0),
    }
    assert await seen(shop.user("ann")) == {limited.prize_id: (False, RejectionReason.LIMIT_REACHED, 1)} | gone
    assert await seen(shop.user("bob")) == {limited.prize_id: (True, None, 0)} | gone
    await shop.goes(PromotionState.PAUSED)
    assert (await client.list_entrance_promotions(entrance_id=shop.entrance_id)).items == ()

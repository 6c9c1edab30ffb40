"""Entrances, and what is live there for a user."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.v1 import entrance_pb2, prize_pb2
from guerdon_server.platform.errors import Code, ServiceError
from guerdon_server.platform.postgres import create_pool
from tests.catalogue.driver import Catalogue, fresh

USD5 = prize_pb2.PrizeValue(asset="USD", fixed_units=5)
RATE = prize_pb2.PrizeValue(
    asset="USD",
    rate=prize_pb2.ValueRate(attribute="cents", basis_points=1, rounding=prize_pb2.ROUNDING_DOWN),
)


async def live(
    catalogue: Catalogue, entrance_id: str = "home", *, user_id: str = "", page_size: int = 0, page_token: str = ""
) -> entrance_pb2.ListEntrancePromotionsResponse:
    request = entrance_pb2.ListEntrancePromotionsRequest(
        entrance_id=entrance_id, user_id=user_id, page_size=page_size, page_token=page_token
    )
    return await catalogue.entrances.ListEntrancePromotions(request, "test")


async def grant(catalogue: Catalogue, prize_id: str, user_id: str, count: int) -> None:
    """What the ledger holds after so many grants (units only)."""
    await catalogue.pool.execute(
        """
        WITH user_row AS (
            INSERT INTO guerdon.subject (user_id) VALUES ($2)
            ON CONFLICT (user_id) DO UPDATE SET user_id = $2 RETURNING sid
        ), holding AS (
            INSERT INTO guerdon.account (kind, owner, item, credits)
            SELECT 3, u.sid, z.sid, $3::bigint FROM user_row u, guerdon.prize z WHERE z.prize_id = $1
        )
        UPDATE guerdon.account a SET debits = a.debits + $3::bigint FROM guerdon.prize z
        WHERE z.prize_id = $1 AND a.id = z.stock_account
        """,
        prize_id,
        user_id,
        count,
    )


async def availability(catalogue: Catalogue, user_id: str = "") -> dict[str, tuple[str, int]]:
    """Of each prize that is live at `home`: why not ('' if it can be had), and how many the user has."""
    response = await live(catalogue, user_id=user_id)
    return {
        each.prize.prize_id: (
            "" if each.available else prize_pb2.RejectionReason.Name(each.unavailable_reason)[17:],
            each.user_granted_count,
        )
        for promotion in response.promotions
        for each in promotion.prizes
    }


async def test_an_entrance_is_created_changed_and_listed(catalogue: Catalogue) -> None:
    created = await catalogue.entrance("home")
    assert created == await catalogue.entrances.GetEntrance(entrance_pb2.GetEntranceRequest(entrance_id="home"), "test")
    request = entrance_pb2.UpdateEntranceRequest(
        entrance=entrance_pb2.Entrance(entrance_id="home", display_name="Home", etag=created.etag),
        update_mask=FieldMask(paths=["display_name"]),
        request_id="u1",
    )
    changed, again = await asyncio.gather(*(catalogue.entrances.UpdateEntrance(request, "test") for _ in range(2)))
    assert changed == again
    assert changed.display_name == "Home"
    assert changed.etag != created.etag
    request.request_id = "u2"
    with pytest.raises(ServiceError) as stale:
        await catalogue.entrances.UpdateEntrance(request, "test")
    assert (stale.value.code, stale.value.reason) == (Code.FAILED_PRECONDITION, "ETAG_MISMATCH")
    with pytest.raises(ServiceError) as taken:
        await catalogue.entrance("home")
    assert (taken.value.code, taken.value.reason) == (Code.ALREADY_EXISTS, "ENTRANCE_EXISTS")
    await catalogue.entrance("checkout")
    found, token = list[str](), ""
    while True:
        page = entrance_pb2.ListEntrancesRequest(page_size=1, page_token=token)
        response = await catalogue.entrances.ListEntrances(page, "test")
        found += [entrance.entrance_id for entrance in response.entrances]
        token = response.next_page_token
        if not token:
            break
    assert found == ["checkout", "home"]


async def test_an_entrance_that_does_not_exist(catalogue: Catalogue) -> None:
    request = entrance_pb2.UpdateEntranceRequest(
        entrance=entrance_pb2.Entrance(entrance_id="nowhere"),
        update_mask=FieldMask(paths=["display_name"]),
        request_id=fresh(),
    )
    for call in (
        catalogue.entrances.GetEntrance(entrance_pb2.GetEntranceRequest(entrance_id="nowhere"), "test"),
        catalogue.entrances.UpdateEntrance(request, "test"),
        live(catalogue, "nowhere"),
    ):
        with pytest.raises(ServiceError) as refused:
            await call
        assert (refused.value.code, refused.value.reason) == (Code.NOT_FOUND, "ENTRANCE_NOT_FOUND")


async def test_only_what_is_active_and_bound_is_live(catalogue: Catalogue) -> None:
    await catalogue.entrance("home")
    await catalogue.entrance("other")
    for promotion_id, entrance_id, state in (
        ("active", "home", "SCHEDULED"),
        ("begun", "home", "SCHEDULED"),
        ("draft", "home", ""),
        ("elsewhere", "other", "SCHEDULED"),
    ):
        await catalogue.promotion(promotion_id, entrance_ids=[entrance_id])
        if state:
            await catalogue.transition(promotion_id, state)
    response = await live(catalogue)
    assert [each.promotion.promotion_id for each in response.promotions] == ["active", "begun"]
    await catalogue.transition("active", "PAUSED")
    await catalogue.coupon("new", promotion_id="begun")
    (begun,) = (await live(catalogue)).promotions
    assert [each.prize.prize_id for each in begun.prizes] == ["new"]
    assert begun.prizes[0].available


async def test_why_a_user_could_not_get_a_prize(catalogue: Catalogue) -> None:
    await catalogue.entrance("home")
    await catalogue.promotion(entrance_ids=["home"], budgets={"USD": 5, "COIN": None})
    await catalogue.transition("spring", "SCHEDULED")
    await catalogue.coupon("free")
    await catalogue.coupon("none-left", stock=0)
    await catalogue.coupon("endless", stock=None)
    await catalogue.coupon("two-each", limit=2)
    await catalogue.coupon("dear", value=prize_pb2.PrizeValue(asset="USD", fixed_units=6))
    await catalogue.coupon("affordable", value=USD5)
    await catalogue.coupon("rate", value=RATE)
    await catalogue.coupon("coins", value=prize_pb2.PrizeValue(asset="COIN", fixed_units=2**50))
    expired = prize_pb2.Prize(
        prize_id="expired",
        promotion_id="spring",
        kind=prize_pb2.PRIZE_KIND_COUPON,
        stock=prize_pb2.Stock(units=1),
        validity=prize_pb2.Validity(until=Timestamp(seconds=1_000_000_000)),
    )
    await catalogue.prizes.CreatePrize(prize_pb2.CreatePrizeRequest(prize=expired, request_id=fresh()), "test")
    await grant(catalogue, "two-each", "ann", 2)
    await grant(catalogue, "two-each", "bob", 1)
    await grant(catalogue, "free", "ann", 4)

    expected = {
        "free": ("", 0),
        "none-left": ("SOLD_OUT", 0),
        "endless": ("", 0),
        "two-each": ("", 0),
        "dear": ("BUDGET_EXHAUSTED", 0),
        "affordable": ("", 0),
        "rate": ("", 0),
        "coins": ("", 0),
        "expired": ("VALIDITY_PASSED", 0),
    }
    assert await availability(catalogue) == expected
    assert await availability(catalogue, "never-seen") == expected
    assert await availability(catalogue, "bob") == expected | {"two-each": ("", 1)}
    assert await availability(catalogue, "ann") == expected | {"two-each": ("LIMIT_REACHED", 2), "free": ("", 4)}
    await catalogue.adjust_budget("spring", "USD", -5)
    await catalogue.adjust_stock("none-left", 1)
    after = await availability(catalogue)
    assert {name for name, (reason, _) in after.items() if reason == "BUDGET_EXHAUSTED"} == {
        "dear",
        "affordable",
        "rate",
    }
    assert after["none-left"] == ("", 0)


async def test_what_is_live_comes_in_pages_of_promotions(catalogue: Catalogue) -> None:
    await catalogue.entrance("home")
    ids = [f"p{n}" for n in range(5)]
    for promotion_id in ids:
        await catalogue.promotion(promotion_id, entrance_ids=["home"])
        await catalogue.transition(promotion_id, "SCHEDULED")
        await catalogue.coupon(f"{promotion_id}-z", promotion_id=promotion_id)
    found, token = list[str](), ""
    while True:
        response = await live(catalogue, page_size=2, page_token=token)
        found += [each.promotion.promotion_id for each in response.promotions]
        assert all(len(each.prizes) == 1 for each in response.promotions)
        token = response.next_page_token
        if not token:
            break
    assert found == ids
    first = await live(catalogue, page_size=2)
    with pytest.raises(ServiceError) as refused:
        await live(catalogue, user_id="ann", page_token=first.next_page_token)
    assert refused.value.violations[0].field == "page_token"
    with pytest.raises(ServiceError) as large:
        await live(catalogue, page_size=101)
    assert large.value.violations[0].field == "page_size"


async def test_the_number_of_queries_does_not_grow_with_the_page(database: str) -> None:
    pool = await create_pool(database, size_min=1, size_max=1)
    catalogue = Catalogue(pool)
    queries: list[object] = []
    async with pool.acquire() as session:
        session.add_query_logger(queries.append)  # stays with the pool's one connection
    await catalogue.entrance("home")
    counts = []
    for n in range(3):
        await catalogue.promotion(f"p{n}", entrance_ids=["home"])
        await catalogue.transition(f"p{n}", "SCHEDULED")
        for m in range(3):
            await catalogue.coupon(f"p{n}-{m}", promotion_id=f"p{n}")
        queries.clear()
        await live(catalogue, user_id="ann")
        counts.append(len(queries))
    pool.terminate()
    assert counts == [5, 5, 5]

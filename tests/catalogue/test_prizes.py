"""Prizes: created, read, changed, listed; and the accounts behind them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.v1 import prize_pb2, promotion_pb2
from guerdon_server.platform.errors import Code, ServiceError
from tests.catalogue.driver import Catalogue, fresh

RATE = prize_pb2.ValueRate(
    attribute="order_cents", basis_points=500, cap_units=500, rounding=prize_pb2.ROUNDING_HALF_UP
)


async def create(catalogue: Catalogue, *, request_id: str = "", **fields: Any) -> prize_pb2.Prize:
    defaults: dict[str, Any] = {
        "prize_id": "cash",
        "promotion_id": "spring",
        "kind": prize_pb2.PRIZE_KIND_CASHBACK,
        "value": prize_pb2.PrizeValue(asset="USD/2", rate=RATE),
        "stock": prize_pb2.Stock(unlimited=True),
    }
    request = prize_pb2.CreatePrizeRequest(prize=prize_pb2.Prize(**defaults | fields), request_id=request_id or fresh())
    return await catalogue.prizes.CreatePrize(request, "test")


async def update(catalogue: Catalogue, prize: prize_pb2.Prize, *paths: str, request_id: str = "") -> prize_pb2.Prize:
    request = prize_pb2.UpdatePrizeRequest(
        prize=prize, update_mask=FieldMask(paths=paths), request_id=request_id or fresh()
    )
    return await catalogue.prizes.UpdatePrize(request, "test")


async def account_kinds(catalogue: Catalogue, prize_id: str) -> tuple[list[int], list[int | None]]:
    """Kinds of the accounts of a prize, and their floors."""
    rows = await catalogue.pool.fetch(
        """SELECT a.kind, a.floor FROM guerdon.prize z JOIN guerdon.account a
        ON a.id IN (z.stock_source_account, z.stock_account, z.budget_account, z.liability_account)
        WHERE z.prize_id = $1 ORDER BY a.kind""",
        prize_id,
    )
    return [row["kind"] for row in rows], [row["floor"] for row in rows]


async def test_all_terms_come_back(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD/2": 1000, "COIN": None})
    rate = prize_pb2.ValueRate(
        attribute="order.cents", basis_points=1, floor_units=1, cap_units=2, rounding=prize_pb2.ROUNDING_HALF_EVEN
    )
    variants: list[dict[str, Any]] = [
        {"value": prize_pb2.PrizeValue(asset="USD/2", rate=rate), "validity": prize_pb2.Validity(days=36500)},
        {
            "kind": prize_pb2.PRIZE_KIND_COIN,
            "value": prize_pb2.PrizeValue(asset="COIN", fixed_units=2**53 - 1),
            "validity": prize_pb2.Validity(until=Timestamp(seconds=253402300798, nanos=999999000)),
        },
        {"kind": prize_pb2.PRIZE_KIND_COUPON, "value": None, "stock": prize_pb2.Stock(units=0), "limit_per_user": 3},
        {"kind": prize_pb2.PRIZE_KIND_GOODS, "value": prize_pb2.PrizeValue(asset="USD/2", fixed_units=1)},
    ]
    for n, fields in enumerate(variants):
        created = await create(catalogue, prize_id=f"z{n}", display_name="Zürich ✓", **fields)
        wanted = prize_pb2.Prize()
        wanted.CopyFrom(created)
        wanted.MergeFrom(prize_pb2.Prize(**fields))
        assert created == wanted
        assert created.display_name == "Zürich ✓"
        assert created.etag
        assert created == await catalogue.prizes.GetPrize(prize_pb2.GetPrizeRequest(prize_id=f"z{n}"), "test")


async def test_each_kind_has_the_accounts_it_moves_value_between(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD/2": 1000, "COIN": None})
    value = prize_pb2.PrizeValue(asset="USD/2", fixed_units=1)
    coin = prize_pb2.PrizeValue(asset="COIN", fixed_units=1)
    await create(catalogue, prize_id="a", kind=prize_pb2.PRIZE_KIND_COUPON, value=None, stock=prize_pb2.Stock(units=5))
    await create(catalogue, prize_id="b", kind=prize_pb2.PRIZE_KIND_COUPON, value=value)
    await create(catalogue, prize_id="c", kind=prize_pb2.PRIZE_KIND_GOODS, value=value)
    await create(catalogue, prize_id="d", kind=prize_pb2.PRIZE_KIND_COIN, value=coin)
    await create(catalogue, prize_id="e", kind=prize_pb2.PRIZE_KIND_CASHBACK, value=value)
    assert await account_kinds(catalogue, "a") == ([1, 2], [None, 0])
    assert await account_kinds(catalogue, "b") == ([1, 2, 5, 7], [None, None, 0, None])
    assert await account_kinds(catalogue, "c") == ([1, 2, 5, 7], [None, None, 0, None])
    assert await account_kinds(catalogue, "d") == ([1, 2, 5], [None, None, None])
    assert await account_kinds(catalogue, "e") == ([1, 2, 5], [None, None, 0])
    assert await catalogue.pool.fetchval("SELECT count(*) FROM guerdon.account WHERE kind = 7") == 1
    assert await catalogue.books_balance()


async def test_what_a_prize_needs_must_be_there(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"COIN": 5})
    with pytest.raises(ServiceError) as budget:
        await create(catalogue)
    assert (budget.value.code, budget.value.reason) == (Code.FAILED_PRECONDITION, "BUDGET_MISSING")
    assert budget.value.metadata["asset"] == "USD/2"
    with pytest.raises(ServiceError) as promotion:
        await create(catalogue, promotion_id="summer")
    assert (promotion.value.code, promotion.value.reason) == (Code.NOT_FOUND, "PROMOTION_NOT_FOUND")
    await catalogue.coupon("one")
    with pytest.raises(ServiceError) as taken:
        await catalogue.coupon("one", stock=99)
    assert (taken.value.code, taken.value.reason) == (Code.ALREADY_EXISTS, "PRIZE_EXISTS")
    assert await catalogue.pool.fetchval("SELECT count(*) FROM guerdon.account WHERE kind = 2") == 1
    await catalogue.transition("spring", "SCHEDULED")
    await catalogue.coupon("two")
    await catalogue.transition("spring", "ENDED")
    with pytest.raises(ServiceError) as ended:
        await catalogue.coupon("three")
    assert (ended.value.code, ended.value.reason) == (Code.FAILED_PRECONDITION, "PROMOTION_ENDED")


async def test_a_new_prize_and_new_terms_draw_the_promotions_version(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    etag = (await catalogue.transition("spring", "SCHEDULED")).etag
    versions = [await catalogue.pool.fetchval("SELECT version FROM guerdon.promotion")]
    prize = await catalogue.coupon()
    versions.append(await catalogue.pool.fetchval("SELECT version FROM guerdon.promotion"))
    await update(catalogue, prize_pb2.Prize(prize_id=prize.prize_id, limit_per_user=1), "limit_per_user")
    versions.append(await catalogue.pool.fetchval("SELECT version FROM guerdon.promotion"))
    assert versions == sorted(set(versions))
    assert len(catalogue.told.promotions) == 3
    promotion = await catalogue.promotions.GetPromotion(
        promotion_pb2.GetPromotionRequest(promotion_id="spring"), "test"
    )
    assert promotion.etag == etag


async def test_new_terms_wait_for_commits_under_way(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    prize = await catalogue.coupon()
    async with catalogue.pool.acquire() as commit, catalogue.pool.acquire() as later:
        transaction = commit.transaction()
        await transaction.start()
        await commit.execute("SELECT pg_advisory_xact_lock_shared(sid) FROM guerdon.promotion")
        terms = prize_pb2.Prize(prize_id=prize.prize_id, limit_per_user=9)
        waiting = [
            asyncio.create_task(update(catalogue, terms, "limit_per_user")),
            asyncio.create_task(catalogue.coupon("another")),
        ]
        await catalogue.until_waiting(2)
        assert await later.fetchval("SELECT limit_per_user FROM guerdon.prize") == 0
        await transaction.commit()
        await asyncio.gather(*waiting)


async def test_creating_is_repeatable_and_a_reused_request_id_names_the_field(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD/2": 1000})
    first, *others = await asyncio.gather(*(create(catalogue, request_id="once") for _ in range(5)))
    assert all(other == first for other in others)
    for field, value in {
        "prize_id": "other",
        "kind": prize_pb2.PRIZE_KIND_COUPON,
        "value": prize_pb2.PrizeValue(asset="USD/2", fixed_units=500),
        "stock": prize_pb2.Stock(units=1),
        "limit_per_user": 2,
        "validity": prize_pb2.Validity(days=1),
        "display_name": "x",
    }.items():
        with pytest.raises(ServiceError) as refused:
            await create(catalogue, request_id="once", **{field: value})
        assert (refused.value.reason, refused.value.metadata["field"]) == ("REQUEST_ID_REUSED", field)


async def test_an_update_changes_what_the_mask_names(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD/2": 1000})
    created = await create(catalogue, limit_per_user=5)
    wanted = prize_pb2.Prize(
        prize_id="cash",
        etag=created.etag,
        display_name="Cash",
        value=prize_pb2.PrizeValue(fixed_units=7),
        validity=prize_pb2.Validity(days=3),
    )
    changed = await update(catalogue, wanted, "value.fixed_units", "validity", request_id="u1")
    assert changed.value == prize_pb2.PrizeValue(asset="USD/2", fixed_units=7)
    assert (changed.display_name, changed.validity.days, changed.limit_per_user) == ("", 3, 5)
    assert await update(catalogue, wanted, "value.fixed_units", "validity", request_id="u1") == changed
    with pytest.raises(ServiceError) as stale:
        await update(catalogue, wanted, "display_name")
    assert (stale.value.code, stale.value.reason) == (Code.FAILED_PRECONDITION, "ETAG_MISMATCH")
    back = prize_pb2.Prize(prize_id="cash", value=prize_pb2.PrizeValue(rate=RATE))
    again = await update(catalogue, back, "value.rate", "validity", "display_name")
    assert again.value == created.value
    assert not again.HasField("validity")


async def test_a_prize_without_a_value_gets_none(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"COIN": 5})
    await catalogue.coupon()
    wanted = prize_pb2.Prize(prize_id="welcome", value=prize_pb2.PrizeValue(asset="COIN", fixed_units=7))
    with pytest.raises(ServiceError) as refused:
        await update(catalogue, wanted, "value.fixed_units")
    assert [violation.field for violation in refused.value.violations] == ["prize.value.fixed_units"]


@pytest.mark.parametrize(("limits", "highest"), [([1, 3, 2], 3), ([2, 0, 1], 0), ([0, 5], 0), ([4, 1], 4)], ids=str)
async def test_the_highest_limit_per_user_is_remembered(catalogue: Catalogue, limits: list[int], highest: int) -> None:
    await catalogue.promotion()
    await catalogue.coupon(limit=limits[0])
    for limit in limits[1:]:
        await update(catalogue, prize_pb2.Prize(prize_id="welcome", limit_per_user=limit), "limit_per_user")
    assert await catalogue.pool.fetchval("SELECT limit_per_user_highest FROM guerdon.prize") == highest


async def test_listing_pages_through_one_promotion_or_all(catalogue: Catalogue) -> None:
    await catalogue.promotion("p1")
    await catalogue.promotion("p2")
    for n in range(5):
        await catalogue.coupon(f"z{n}", promotion_id=f"p{1 + n % 2}")

    async def ids(promotion_id: str, size: int) -> list[str]:
        found, token = list[str](), ""
        while True:
            request = prize_pb2.ListPrizesRequest(promotion_id=promotion_id, page_size=size, page_token=token)
            response = await catalogue.prizes.ListPrizes(request, "test")
            found += [prize.prize_id for prize in response.prizes]
            token = response.next_page_token
            if not token:
                return found

    for size in (1, 2, 5, 0):
        assert await ids("", size) == ["z0", "z1", "z2", "z3", "z4"]
        assert await ids("p1", size) == ["z0", "z2", "z4"]
    first = await catalogue.prizes.ListPrizes(prize_pb2.ListPrizesRequest(page_size=1), "test")
    request = prize_pb2.ListPrizesRequest(promotion_id="p1", page_token=first.next_page_token)
    with pytest.raises(ServiceError) as refused:
        await catalogue.prizes.ListPrizes(request, "test")
    assert refused.value.violations[0].field == "page_token"

"""Stock and budgets: opened, topped up, recalled; never below what was issued."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files

import pytest

from guerdon.v1 import prize_pb2, promotion_pb2
from guerdon_server.core.ledger.postgres.capacity import UNITS_MAX, AdjustCode
from guerdon_server.platform.errors import Code, ServiceError
from tests.catalogue.driver import Catalogue


async def stock_of(catalogue: Catalogue, prize_id: str) -> tuple[int, int, int]:
    """Capacity, issued, remaining."""
    stock = await catalogue.prizes.GetPrizeStock(prize_pb2.GetPrizeStockRequest(prize_id=prize_id), "test")
    return stock.units, stock.issued_units, stock.remaining_units


async def transfers(catalogue: Catalogue, kind: int) -> list[tuple[int, int]]:
    """Kind and amount of the transfers of an account of this kind (2 stock, 5 budget), in order."""
    rows = await catalogue.pool.fetch(
        """SELECT t.kind, t.amount FROM guerdon.transfer t JOIN guerdon.account a ON a.id IN (t.debit, t.credit)
        WHERE a.kind = $1 ORDER BY t.id""",
        kind,
    )
    return [(row["kind"], row["amount"]) for row in rows]


async def issue(catalogue: Catalogue, kind: int, units: int) -> None:
    """Takes units from the one stock (2) or budget (5), as a grant would."""
    await catalogue.pool.execute(
        """
        WITH taken AS (
            UPDATE guerdon.account SET debits = debits + $2 WHERE kind = $1 RETURNING id
        ), given AS (
            INSERT INTO guerdon.account (kind, owner, item, credits) VALUES (3, 1, 1, $2) RETURNING id
        ), booked AS (
            INSERT INTO guerdon.batch (kind, booked_at, issuance_count, transfer_count)
            VALUES (1, guerdon.now(), 1, 1) RETURNING id
        )
        INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount)
        SELECT booked.id, 7, taken.id, given.id, $2 FROM booked, taken, given
        """,
        kind,
        units,
    )


async def test_every_movement_of_stock_is_booked(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.coupon(stock=10)
    assert await stock_of(catalogue, "welcome") == (10, 0, 10)
    answer = await catalogue.adjust_stock("welcome", 5)
    assert (answer.stock.units, answer.stock.remaining_units, answer.replayed) == (15, 15, False)
    await catalogue.adjust_stock("welcome", -12)
    assert await stock_of(catalogue, "welcome") == (3, 0, 3)
    assert await transfers(catalogue, 2) == [(1, 10), (2, 5), (3, 12)]
    assert await catalogue.books_balance()
    prize = await catalogue.prizes.GetPrize(prize_pb2.GetPrizeRequest(prize_id="welcome"), "test")
    assert prize.stock.units == 3


async def test_every_movement_of_a_budget_is_booked(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 100})
    await catalogue.adjust_budget("spring", "USD", 50)
    answer = await catalogue.adjust_budget("spring", "USD", -30)
    assert (answer.budget.units, answer.budget.spent_units, answer.budget.remaining_units) == (120, 0, 120)
    assert await transfers(catalogue, 5) == [(4, 100), (5, 50), (6, 30)]
    assert await catalogue.books_balance()


async def test_a_recall_takes_at_most_what_remains(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 100})
    await catalogue.coupon(stock=10)
    await issue(catalogue, 2, 7)
    with pytest.raises(ServiceError) as refused:
        await catalogue.adjust_stock("welcome", -4)
    assert (refused.value.code, refused.value.reason) == (Code.FAILED_PRECONDITION, "STOCK_INSUFFICIENT")
    assert refused.value.metadata == {"remaining": "3", "prize_id": "welcome"}
    assert await stock_of(catalogue, "welcome") == (10, 7, 3)
    await catalogue.adjust_stock("welcome", -3)
    assert await stock_of(catalogue, "welcome") == (7, 7, 0)
    with pytest.raises(ServiceError) as broke:
        await catalogue.adjust_budget("spring", "USD", -101)
    assert broke.value.reason == "BUDGET_INSUFFICIENT"
    assert broke.value.metadata["remaining"] == "100"
    assert await catalogue.books_balance()


async def test_a_refused_adjustment_can_be_asked_for_again(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.coupon(stock=1)
    with pytest.raises(ServiceError):
        await catalogue.adjust_stock("welcome", -2, request_id="recall")
    await catalogue.adjust_stock("welcome", 1)
    assert not (await catalogue.adjust_stock("welcome", -2, request_id="recall")).replayed


async def test_an_adjustment_happens_once_for_its_request_id(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 0})
    await catalogue.coupon(stock=10)
    stocks = await asyncio.gather(*(catalogue.adjust_stock("welcome", 5, request_id="same") for _ in range(8)))
    assert sorted(answer.replayed for answer in stocks) == [False] + [True] * 7
    assert {answer.stock.units for answer in stocks} == {15}
    budgets = await asyncio.gather(*(catalogue.adjust_budget("spring", "USD", 5, request_id="same") for _ in range(8)))
    assert sorted(answer.replayed for answer in budgets) == [False] + [True] * 7
    assert {answer.budget.units for answer in budgets} == {5}
    with pytest.raises(ServiceError) as refused:
        await catalogue.adjust_stock("welcome", 6, request_id="same")
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert refused.value.metadata["field"] == "delta_units"


async def test_recalls_that_race_never_take_more_than_there_is(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 100})
    await catalogue.coupon(stock=10)
    stocks = await asyncio.gather(*(catalogue.adjust_stock("welcome", -3) for _ in range(9)), return_exceptions=True)
    assert sum(isinstance(each, prize_pb2.AdjustPrizeStockResponse) for each in stocks) == 3
    assert await stock_of(catalogue, "welcome") == (1, 0, 1)
    budgets = await asyncio.gather(
        *(catalogue.adjust_budget("spring", "USD", -30) for _ in range(9)), return_exceptions=True
    )
    assert sum(isinstance(each, promotion_pb2.AdjustPromotionBudgetResponse) for each in budgets) == 3
    assert await catalogue.books_balance()


async def test_top_ups_and_recalls_of_several_prizes_and_budgets_at_once_do_not_deadlock(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 1000})
    for n in range(3):
        await catalogue.coupon(f"c{n}", stock=100)
    await asyncio.gather(
        *(catalogue.adjust_stock(f"c{n % 3}", 1 if n % 2 else -1) for n in range(30)),
        *(catalogue.adjust_budget("spring", "EUR", 1) for _ in range(10)),
        *(catalogue.adjust_budget("spring", "USD", -1) for _ in range(10)),
        *(catalogue.coupon(f"d{n}", stock=1) for n in range(5)),
        catalogue.transition("spring", "SCHEDULED"),
    )
    assert await catalogue.books_balance()
    promotion = await catalogue.promotions.GetPromotion(
        promotion_pb2.GetPromotionRequest(promotion_id="spring"), "test"
    )
    assert {budget.asset: budget.units for budget in promotion.budgets} == {"EUR": 10, "USD": 990}


async def test_what_is_unlimited_can_not_be_adjusted(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": None})
    await catalogue.coupon(stock=None)
    await issue(catalogue, 2, 4)
    for adjustment in (catalogue.adjust_stock("welcome", 5), catalogue.adjust_budget("spring", "USD", -5)):
        with pytest.raises(ServiceError) as refused:
            await adjustment
        assert (refused.value.code, refused.value.reason) == (Code.FAILED_PRECONDITION, "CAPACITY_UNLIMITED")
    stock = await catalogue.prizes.GetPrizeStock(prize_pb2.GetPrizeStockRequest(prize_id="welcome"), "test")
    assert (stock.WhichOneof("capacity"), stock.issued_units, stock.remaining_units) == ("unlimited", 4, 0)


async def test_a_capacity_stays_in_range(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.coupon(stock=1)
    await catalogue.adjust_stock("welcome", UNITS_MAX - 1)
    with pytest.raises(ServiceError) as refused:
        await catalogue.adjust_stock("welcome", 1)
    assert refused.value.reason == "CAPACITY_LIMIT"
    assert await stock_of(catalogue, "welcome") == (UNITS_MAX, 0, UNITS_MAX)


async def test_accounts_that_are_worn_out_are_refused_before_they_overflow(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.coupon(stock=0)
    await catalogue.pool.execute(
        "UPDATE guerdon.account SET debits = (1::bigint << 62) + 1, credits = (1::bigint << 62) + 1"
    )
    with pytest.raises(ServiceError) as refused:
        await catalogue.adjust_stock("welcome", 1)
    assert refused.value.reason == "ACCOUNT_LIMIT"


async def test_a_budget_in_a_new_asset_is_opened(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 1})
    with pytest.raises(ServiceError) as refused:
        await catalogue.adjust_budget("spring", "EUR", -1)
    assert (refused.value.reason, refused.value.metadata["remaining"]) == ("BUDGET_INSUFFICIENT", "0")
    answers = await asyncio.gather(*(catalogue.adjust_budget("spring", "EUR", 5) for _ in range(6)))
    assert max(answer.budget.units for answer in answers) == 30
    assert sorted(await transfers(catalogue, 5)) == [(4, 1), (4, 5)] + [(5, 5)] * 5
    assert await catalogue.books_balance()


async def test_a_promotion_has_at_most_20_budgets(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={f"A{n}": 1 for n in range(19)})
    outcomes = await asyncio.gather(
        *(catalogue.adjust_budget("spring", f"B{n}", 1) for n in range(4)), return_exceptions=True
    )
    refusals = [outcome for outcome in outcomes if isinstance(outcome, ServiceError)]
    assert [refusal.reason for refusal in refusals] == ["BUDGETS_TOO_MANY"] * 3


async def test_an_adjustment_stops_no_traffic_and_makes_no_decision_stale(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 10})
    await catalogue.coupon(stock=10)
    row = await catalogue.pool.fetchrow("SELECT sid, version, own_version FROM guerdon.promotion")
    assert row is not None
    async with catalogue.pool.acquire() as commit, commit.transaction():
        await commit.execute("SELECT pg_advisory_xact_lock_shared($1)", row["sid"])
        await catalogue.adjust_stock("welcome", -1)
        await catalogue.adjust_budget("spring", "USD", 1)
        await catalogue.adjust_budget("spring", "EUR", 1)
    assert row == await catalogue.pool.fetchrow("SELECT sid, version, own_version FROM guerdon.promotion")


async def test_the_gate_is_told_capacities_with_their_versions(catalogue: Catalogue) -> None:
    await catalogue.promotion(budgets={"USD": 10})
    await catalogue.coupon(stock=10)
    for _ in range(2):
        await catalogue.adjust_stock("welcome", 5, request_id="same")
    await catalogue.adjust_stock("welcome", -2)
    await catalogue.adjust_budget("spring", "USD", 1)
    told = [(capacity, version) for _, _, capacity, version in catalogue.told.capacities]
    assert told == [(15, 2), (15, 2), (13, 3), (11, 2)]


async def test_what_does_not_exist_is_not_found(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    with pytest.raises(ServiceError) as prize:
        await catalogue.adjust_stock("nothing", 1)
    assert (prize.value.code, prize.value.reason) == (Code.NOT_FOUND, "PRIZE_NOT_FOUND")
    with pytest.raises(ServiceError) as promotion:
        await catalogue.adjust_budget("nothing", "USD", 1)
    assert (promotion.value.code, promotion.value.reason) == (Code.NOT_FOUND, "PROMOTION_NOT_FOUND")
    assert await catalogue.pool.fetchval("SELECT count(*) FROM guerdon.asset") == 0


def test_the_codes_in_python_and_in_sql_agree() -> None:
    sql = (files("guerdon_server.core.ledger.postgres") / "sql" / "10_adjust_capacity.sql").read_text()
    constants = re.findall(r"(\w+) CONSTANT smallint := (\d+);", sql)
    assert {name: int(value) for name, value in constants} == {code.name: code.value for code in AdjustCode}


async def test_a_lock_is_not_waited_for_for_ever(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.coupon(stock=1)
    async with catalogue.pool.acquire() as commit, commit.transaction():
        await commit.execute("SELECT FROM guerdon.account FOR UPDATE")  # a commit that hangs
        with pytest.raises(ServiceError) as refused:
            await catalogue.adjust_stock("welcome", 1, request_id="once")
    assert (refused.value.code, refused.value.reason) == (Code.ABORTED, "CONTENTION")
    assert refused.value.retry_after_ms
    assert not (await catalogue.adjust_stock("welcome", 1, request_id="once")).replayed

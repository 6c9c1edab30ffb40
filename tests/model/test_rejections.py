"""A rejection changes nothing, byte for byte: no row of the ledger or the catalogue is written, not even to the same
values (ctid, xmin), and the gate's hashes are what they were. Sequences may advance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import pytest_asyncio

from guerdon.v1 import prize_pb2 as prize
from guerdon.v1 import promotion_pb2 as promotion
from guerdon.v1 import types_pb2 as types
from guerdon_server.platform import postgres, redis
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, fresh, kinds, outcome, reason
from tests.issuing.proof import at_rest, proven
from tests.model.conftest import fresh_database, served, staged
from tests.model.model import UNITS_MAX
from tests.model.stage import Stage

Dump: TypeAlias = dict[str, list[tuple[object, ...]]]
_OF_SERVERS = ("worker", "lease")
"""Tables in which servers note that they live."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(engines: Engines, migrated_template: str) -> AsyncIterator[Stage]:
    """A stage of these tests alone: what is dumped again and again is small, and nobody else writes to it."""
    async with fresh_database(engines, migrated_template, "model_dumped") as dsn:
        settings = served(engines, dsn, 14)
        async with staged(settings) as stage:
            yield stage
            await at_rest(settings)
            await proven(settings)


async def ledger_dump(pool: postgres.Pool) -> Dump:
    """Every row of every table with where it lies and the transaction that wrote it, in one snapshot."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'guerdon' AND tablename <> ALL ($1::text[]) ORDER BY 1",
            _OF_SERVERS,
        )
        dump: Dump = {}
        for (table,) in tables:
            rows = await connection.fetch(f"SELECT ctid, xmin, t FROM guerdon.{table} t ORDER BY ctid")  # noqa: S608
            dump[table] = [tuple(row) for row in rows]
    return dump


async def gate_dump(settings: Settings) -> Dump:
    """Every field of every hash of the gate, once no admission is open."""

    await at_rest(settings)
    client = redis.connect(settings.redis_url)
    try:
        return {str(key): sorted((await client.hgetall(key)).items()) for key in sorted(await client.keys("guerdon:*"))}
    finally:
        await client.aclose()


def changed(before: Dump, after: Dump) -> dict[str, set[str]]:
    """What differs, by table or hash."""
    rows = {name: ({*map(str, before.get(name, ()))}, {*map(str, after.get(name, ()))}) for name in {*before, *after}}
    return {name: old ^ new for name, (old, new) in rows.items() if old != new}


@dataclass(frozen=True)
class Scene:
    """A promotion in which things are refused. `reused`: what was granted."""

    promotion_id: str
    desks: Sequence[Desk]
    reused: prize.IssuePrizeRequest

    def asks(
        self, prize_name: str, *, request_id: str = "", user_id: str = "ann", **integers: int
    ) -> prize.IssuePrizeRequest:
        return ask(
            request_id,
            user_id=f"{self.promotion_id}-{user_id}",
            prize_id=f"{self.promotion_id}-{prize_name}",
            promotion_id=self.promotion_id,
            entrance_id="door-0",
            reference="",
            **integers,
        )

    def item(self, prize_name: str, *, request_id: str = "", user_id: str = "ann", **integers: int) -> prize.BatchItem:
        one = self.asks(prize_name, request_id=request_id, user_id=user_id, **integers)
        return prize.BatchItem(
            prize_id=one.prize_id, user_id=one.user_id, request_id=one.request_id, attributes=one.attributes
        )


async def scene(stage: Stage) -> Scene:
    """Prizes of every kind of refusal. Somebody has been granted something, so that the gate is open."""
    name, desk = fresh("scene"), stage.desks[0]
    unlimited = prize.Stock(unlimited=True)
    await desk.promotions.CreatePromotion(
        promotion.CreatePromotionRequest(
            promotion=promotion.Promotion(
                promotion_id=name,
                entrance_ids=["door-0"],
                budgets=[
                    promotion.Budget(asset="COIN", units=5),
                    promotion.Budget(asset="USD/2", unlimited=True),
                ],
            ),
            request_id=fresh("create"),
        )
    )
    coins = prize.PrizeValue(asset="COIN", fixed_units=6)
    rate = prize.ValueRate(attribute="cents", basis_points=500, rounding=prize.ROUNDING_DOWN)
    rich = prize.ValueRate(attribute="cents", basis_points=1_000_000, rounding=prize.ROUNDING_DOWN)
    most = prize.PrizeValue(asset="USD/2", fixed_units=UNITS_MAX)
    past = stage.clock.instant(stage.hours - 1)
    prizes = {
        "free": prize.Prize(kind=prize.PRIZE_KIND_COUPON, stock=unlimited),
        "once": prize.Prize(kind=prize.PRIZE_KIND_COUPON, stock=unlimited, limit_per_user=1),
        "one": prize.Prize(kind=prize.PRIZE_KIND_COUPON, stock=prize.Stock(units=1)),
        "dear": prize.Prize(kind=prize.PRIZE_KIND_COIN, stock=unlimited, value=coins),
        "back": prize.Prize(
            kind=prize.PRIZE_KIND_CASHBACK, stock=unlimited, value=prize.PrizeValue(asset="USD/2", rate=rate)
        ),
        "rich": prize.Prize(
            kind=prize.PRIZE_KIND_CASHBACK, stock=unlimited, value=prize.PrizeValue(asset="USD/2", rate=rich)
        ),
        "past": prize.Prize(
            kind=prize.PRIZE_KIND_COUPON,
            stock=prize.Stock(units=3),
            limit_per_user=1,
            validity=prize.Validity(until=past),
        ),
        "most": prize.Prize(kind=prize.PRIZE_KIND_CASHBACK, stock=prize.Stock(units=600), value=most),
    }
    for prize_name, made in prizes.items():
        made.promotion_id, made.prize_id = name, f"{name}-{prize_name}"
        await desk.prizes.CreatePrize(prize.CreatePrizeRequest(prize=made, request_id=fresh("create")))
    await desk.goes("SCHEDULED", name)
    shown = Scene(name, stage.desks, prize.IssuePrizeRequest())
    reused = shown.asks("back", cents=1000)
    for one in (reused, shown.asks("once"), shown.asks("one")):
        for desk_number in range(2):  # both servers have opened the gate
            await stage.desks[desk_number].grant(one, replayed=desk_number == 1)
    return Scene(name, stage.desks, reused)


Refused: TypeAlias = Callable[[Scene], Awaitable[object]]


def _with(request: prize.IssuePrizeRequest, **fields: str) -> prize.IssuePrizeRequest:
    other = prize.IssuePrizeRequest()
    other.CopyFrom(request)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


async def _says(desk: Desk, request: prize.IssuePrizeRequest) -> str:
    answer = await outcome(desk.issue(request))
    if isinstance(answer, Refusal):
        named = answer.metadata.get("field") or next(iter(answer.fields), "")
        return f"{answer.reason} {named}".strip()
    assert answer.HasField("rejected"), answer
    return reason(answer.rejected)


def _one(make: Callable[[Scene], prize.IssuePrizeRequest]) -> Refused:
    async def call(shown: Scene) -> object:
        return await _says(shown.desks[1], make(shown))

    return call


def _many(make: Callable[[Scene], list[prize.BatchItem]]) -> Refused:
    """All or nothing."""

    async def call(shown: Scene) -> object:
        results = await shown.desks[1].batch(
            make(shown), together=True, promotion_id=shown.promotion_id, entrance_id="door-0"
        )
        return kinds(results)

    return call


def _texted(request: prize.IssuePrizeRequest) -> prize.IssuePrizeRequest:
    request.attributes["cents"].CopyFrom(types.AttributeValue(text="much"))
    return request


_ONE = "BATCH_NOT_GRANTED"
REFUSALS: dict[str, tuple[Refused, object]] = {
    "sold out": (_one(lambda it: it.asks("one", user_id="new")), "SOLD_OUT"),
    "budget exhausted": (_one(lambda it: it.asks("dear", user_id="new")), "BUDGET_EXHAUSTED"),
    "limit reached": (_one(lambda it: it.asks("once")), "LIMIT_REACHED"),
    "value zero": (_one(lambda it: it.asks("back", cents=19, user_id="new")), "VALUE_ZERO"),
    "attribute missing": (_one(lambda it: it.asks("back", user_id="new")), "ATTRIBUTE_MISSING"),
    "validity passed": (_one(lambda it: it.asks("past", user_id="new")), "VALIDITY_PASSED"),
    "attribute negative": (_one(lambda it: it.asks("back", cents=-1)), "INVALID_FIELD attributes[cents]"),
    "attribute a text": (_one(lambda it: _texted(it.asks("back"))), "INVALID_FIELD attributes[cents]"),
    "worth too much": (_one(lambda it: it.asks("rich", cents=2**60)), "INVALID_FIELD attributes[cents]"),
    "malformed user": (_one(lambda it: _with(it.asks("free"), user_id="two words")), "INVALID_FIELD user_id"),
    "unknown prize": (_one(lambda it: it.asks("nothing", user_id="new")), "PRIZE_NOT_FOUND"),
    "prize of another": (
        _one(lambda it: _with(it.asks("free"), prize_id="elsewhere-prize")),
        "PRIZE_NOT_IN_PROMOTION",
    ),
    "entrance not bound": (_one(lambda it: _with(it.asks("free"), entrance_id="door-1")), "ENTRANCE_NOT_BOUND"),
    "unknown entrance": (_one(lambda it: _with(it.asks("free"), entrance_id="door-9")), "ENTRANCE_NOT_FOUND"),
    "unknown promotion": (_one(lambda it: _with(it.asks("free"), promotion_id="none")), "PROMOTION_NOT_FOUND"),
    "reused for a user": (
        _one(lambda it: _with(it.reused, user_id="other")),
        "REQUEST_ID_REUSED user_id",
    ),
    "reused for a prize": (
        _one(lambda it: _with(it.reused, prize_id=f"{it.promotion_id}-free")),
        "REQUEST_ID_REUSED prize_id",
    ),
    "reused for an amount": (
        _one(lambda it: it.asks("back", request_id=it.reused.request_id, cents=1001)),
        "REQUEST_ID_REUSED attributes[cents]",
    ),
    "together, one sold out": (
        _many(lambda it: [it.item("free", user_id="new"), it.item("one"), it.item("back", cents=100, user_id="new2")]),
        [_ONE, "SOLD_OUT", _ONE],
    ),
    "together, the second of one user": (
        _many(lambda it: [it.item("once", user_id="new"), it.item("once", user_id="new")]),
        [_ONE, "LIMIT_REACHED"],
    ),
    "together, the ledger says no": (
        _many(lambda it: [it.item("back", cents=100, user_id="new"), it.item("past", user_id="new"), it.item("free")]),
        [_ONE, "VALIDITY_PASSED", _ONE],
    ),
    "together, one is reused": (
        _many(lambda it: [it.item("free", user_id="new"), it.item("free", request_id=it.reused.request_id)]),
        [_ONE, "REQUEST_ID_REUSED"],
    ),
    "together, one is missing something": (
        _many(lambda it: [it.item("free", user_id="new"), it.item("back")]),
        [_ONE, "ATTRIBUTE_MISSING"],
    ),
}


async def unchanged(stage: Stage, shown: Scene, call: Refused, expected: object) -> None:
    """The call is refused as expected, and nothing has changed; nor when it is made again."""
    for _ in range(2):
        ledger, gate = await ledger_dump(stage.pool), await gate_dump(stage.settings)
        assert await call(shown) == expected
        assert not changed(ledger, await ledger_dump(stage.pool))
        assert not changed(gate, await gate_dump(stage.settings))


async def test_no_refusal_changes_a_byte(stage: Stage) -> None:
    shown = await scene(stage)
    for name, (call, expected) in REFUSALS.items():
        try:
            await unchanged(stage, shown, call, expected)
        except AssertionError as error:
            error.add_note(f"refused: {name}")
            raise


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("PAUSED",), "PROMOTION_PAUSED"),
        (("ENDED",), "PROMOTION_ENDED"),
        (("ENDED", "ARCHIVED"), "PROMOTION_ENDED"),
    ],
)
async def test_no_refusal_of_a_promotion_that_is_not_active_changes_a_byte(
    stage: Stage, states: Sequence[str], expected: str
) -> None:
    shown = await scene(stage)
    for state in states:
        await stage.desks[0].goes(state, shown.promotion_id)

    await unchanged(stage, shown, _one(lambda it: it.asks("free", user_id="new")), expected)
    await unchanged(stage, shown, _many(lambda it: [it.item("free"), it.item("free", user_id="new")]), [expected] * 2)


async def test_no_refusal_before_the_start_changes_a_byte(stage: Stage) -> None:
    name, desk = fresh("draft"), stage.desks[0]
    await desk.opens(name, entrances=(), active=False)
    await desk.updates_promotion(["entrance_ids"], name, entrance_ids=["door-0"])
    await desk.coupon(f"{name}-free", promotion_id=name)
    shown = Scene(name, stage.desks, prize.IssuePrizeRequest())

    await unchanged(stage, shown, _one(lambda it: it.asks("free")), "PROMOTION_NOT_STARTED")


async def test_no_refusal_of_a_cancelled_request_changes_a_byte(stage: Stage) -> None:
    shown = await scene(stage)
    never = fresh("never")
    await stage.desks[0].became(never, promotion_id=shown.promotion_id, cancel=True)

    await unchanged(stage, shown, _one(lambda it: it.asks("free", request_id=never, user_id="new")), "CANCELLED")
    await unchanged(
        stage, shown, _many(lambda it: [it.item("free", request_id=never), it.item("free")]), ["CANCELLED", _ONE]
    )


async def test_no_refusal_for_the_range_of_an_account_changes_a_byte(stage: Stage) -> None:
    shown = await scene(stage)
    items = [shown.item("most", user_id="rich") for _ in range(513)]
    found = kinds(await stage.desks[0].batch(items, promotion_id=shown.promotion_id, entrance_id="door-0"))
    assert found == ["granted"] * 512 + ["ACCOUNT_LIMIT"]  # 2^62 is 512 x 2^53

    await unchanged(stage, shown, _one(lambda it: it.asks("most", user_id="rich")), "ACCOUNT_LIMIT")


async def test_no_refusal_by_a_limit_that_is_new_changes_a_byte_of_the_ledger(stage: Stage) -> None:
    """The gate learns the count that it did not know; after that nothing changes there either."""
    shown = await scene(stage)
    for _ in range(2):
        await stage.desks[0].grant(shown.asks("free"))
    await stage.desks[1].updates_prize(["limit_per_user"], f"{shown.promotion_id}-free", limit_per_user=1)
    ledger = await ledger_dump(stage.pool)

    assert await _says(stage.desks[1], shown.asks("free")) == "LIMIT_REACHED"

    assert not changed(ledger, await ledger_dump(stage.pool))
    await unchanged(stage, shown, _one(lambda it: it.asks("free")), "LIMIT_REACHED")


async def test_no_refused_adjustment_or_change_writes_a_byte(stage: Stage) -> None:
    shown, desk = await scene(stage), stage.desks[0]
    one, free = f"{shown.promotion_id}-one", f"{shown.promotion_id}-free"
    adjusted = fresh("adjust")
    await desk.prizes.AdjustPrizeStock(prize.AdjustPrizeStockRequest(prize_id=one, delta_units=2, request_id=adjusted))

    def stock(prize_id: str, delta: int, request_id: str = "") -> Refused:
        async def call(shown: Scene) -> object:
            request = prize.AdjustPrizeStockRequest(
                prize_id=prize_id, delta_units=delta, request_id=request_id or fresh("adjust")
            )
            refused = await outcome(desk.prizes.AdjustPrizeStock(request))
            assert isinstance(refused, Refusal), refused
            return refused.reason

        return call

    def budget(asset: str, delta: int) -> Refused:
        async def call(shown: Scene) -> object:
            request = promotion.AdjustPromotionBudgetRequest(
                promotion_id=shown.promotion_id, asset=asset, delta_units=delta, request_id=fresh("adjust")
            )
            refused = await outcome(desk.promotions.AdjustPromotionBudget(request))
            assert isinstance(refused, Refusal), refused
            return refused.reason

        return call

    async def to_draft(shown: Scene) -> object:
        refused = await outcome(desk.goes("SCHEDULED", shown.promotion_id))
        assert isinstance(refused, Refusal), refused
        return refused.reason

    refusals: list[tuple[Refused, str]] = [
        (stock(one, -3), "STOCK_INSUFFICIENT"),
        (stock(one, UNITS_MAX), "CAPACITY_LIMIT"),
        (stock(one, 3, adjusted), "REQUEST_ID_REUSED"),
        (stock(one, 0), "INVALID_FIELD"),
        (stock(free, 1), "CAPACITY_UNLIMITED"),
        (budget("COIN", -6), "BUDGET_INSUFFICIENT"),
        (budget("GEM", -1), "BUDGET_INSUFFICIENT"),
        (budget("USD/2", 1), "CAPACITY_UNLIMITED"),
        (to_draft, "TRANSITION_NOT_ALLOWED"),
    ]
    for call, expected in refusals:
        await unchanged(stage, shown, call, expected)


async def test_not_even_an_update_to_the_same_values_goes_unseen(stage: Stage) -> None:
    """The dumps can fail."""
    shown = await scene(stage)
    ledger, gate = await ledger_dump(stage.pool), await gate_dump(stage.settings)

    await stage.pool.execute("UPDATE guerdon.account SET floor = floor WHERE kind = 2")
    await stage.desks[0].grant(shown.asks("once", user_id="new"))

    assert set(changed(ledger, await ledger_dump(stage.pool))) >= {"account", "request", "subject", "transfer", "batch"}
    assert {key.rsplit(":", 1)[-1].strip("'") for key in changed(gate, await gate_dump(stage.settings))} == {
        "markers",
        "limits",
    }

"""Bad input through raw stubs: the right code, reason and field, and not a byte of difference anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.v1 import account_pb2 as account
from guerdon.v1 import entrance_pb2 as entrance
from guerdon.v1 import prize_pb2 as prize
from guerdon.v1 import promotion_pb2 as promotion
from guerdon.v1 import types_pb2 as types
from tests.issuing.desk import ask, item, refusal
from tests.wire.conftest import House

AMOUNT_MAX = 2**53 - 1
TRAILER_BYTES_MAX = 8192  # what HTTP/2 stacks accept by default
BAD_IDS = {
    "empty": "",
    "too long": "x" * 129,
    "space": "a b",
    "newline at the end": "abc\n",
    "nul": "a\x00b",
    "control": "a\x1bb",
    "slash": "a/b",
    "at": "a@b",
    "braces": "{1}",
    "umlaut": "ä",
    "astral": "\U0001f600",
    "full-width digit": "１",
    "right-to-left": "a\u202eb",
}


def changed(request: Message, **fields: Any) -> Any:
    """A copy with some fields set; `a__b` is field b of field a."""
    copy = type(request)()
    copy.CopyFrom(request)
    for path, value in fields.items():
        *outer, last = path.split("__")
        target: Any = copy
        for name in outer:
            target = getattr(target, name)
        if isinstance(value, Message):
            getattr(target, last).CopyFrom(value)
        elif isinstance(value, dict):
            for key, entry in value.items():
                getattr(target, last)[key].CopyFrom(entry)
        elif isinstance(value, list):
            del getattr(target, last)[:]
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)
    return copy


ISSUE = ask("r-new", order_cents=1000)
BATCH = prize.BatchIssuePrizesRequest(
    promotion_id="spring", entrance_id="checkout", items=[item("r-new")], mode=prize.BATCH_MODE_PER_ITEM
)
PRIZE = prize.CreatePrizeRequest(
    prize=prize.Prize(
        prize_id="p-new",
        promotion_id="spring",
        kind=prize.PRIZE_KIND_CASHBACK,
        stock=prize.Stock(units=1),
        value=prize.PrizeValue(
            asset="USD/2",
            rate=prize.ValueRate(attribute="order_cents", basis_points=500, rounding=prize.ROUNDING_DOWN),
        ),
    ),
    request_id="o-prize",
)
FIXED = changed(PRIZE, prize__value__fixed_units=5)
PROMOTION = promotion.CreatePromotionRequest(
    promotion=promotion.Promotion(
        promotion_id="m-new", entrance_ids=["checkout"], budgets=[promotion.Budget(asset="USD/2", units=1)]
    ),
    request_id="o-promotion",
)
UPDATE = promotion.UpdatePromotionRequest(
    promotion=promotion.Promotion(promotion_id="spring", display_name="x"),
    update_mask=FieldMask(paths=["display_name"]),
    request_id="o-update",
)
TRANSITION = promotion.TransitionPromotionRequest(
    promotion_id="spring", target_state=promotion.PROMOTION_STATE_PAUSED, request_id="o-transition"
)
BUDGET = promotion.AdjustPromotionBudgetRequest(
    promotion_id="spring", asset="USD/2", delta_units=1, request_id="o-budget"
)
STOCK = prize.AdjustPrizeStockRequest(prize_id="welcome", delta_units=1, request_id="o-stock")
ENTRANCE = entrance.CreateEntranceRequest(entrance=entrance.Entrance(entrance_id="e-new"), request_id="o-entrance")
KEY = prize.RequestKey(promotion_id="spring", request_id="r-new")

Case = tuple[str, Message, str, str, set[str]]


def _ids() -> Iterator[Case]:
    """Every id of every call, malformed in every way."""
    places: list[tuple[str, Message, str]] = [
        ("prizes.IssuePrize", ISSUE, "promotion_id"),
        ("prizes.IssuePrize", ISSUE, "entrance_id"),
        ("prizes.IssuePrize", ISSUE, "prize_id"),
        ("prizes.IssuePrize", ISSUE, "user_id"),
        ("prizes.IssuePrize", ISSUE, "request_id"),
        ("prizes.BatchIssuePrizes", BATCH, "promotion_id"),
        ("prizes.BatchIssuePrizes", BATCH, "entrance_id"),
        ("prizes.GetIssuance", prize.GetIssuanceRequest(request=KEY, cancel_if_absent=True), "request__promotion_id"),
        ("prizes.GetIssuance", prize.GetIssuanceRequest(request=KEY, cancel_if_absent=True), "request__request_id"),
        ("prizes.GetIssuance", prize.GetIssuanceRequest(issuance_id="1"), "issuance_id"),
        ("prizes.CreatePrize", PRIZE, "prize__prize_id"),
        ("prizes.CreatePrize", PRIZE, "prize__promotion_id"),
        ("prizes.CreatePrize", PRIZE, "request_id"),
        ("prizes.AdjustPrizeStock", STOCK, "prize_id"),
        ("prizes.AdjustPrizeStock", STOCK, "request_id"),
        ("promotions.CreatePromotion", PROMOTION, "promotion__promotion_id"),
        ("promotions.CreatePromotion", PROMOTION, "request_id"),
        ("promotions.UpdatePromotion", UPDATE, "promotion__promotion_id"),
        ("promotions.TransitionPromotion", TRANSITION, "promotion_id"),
        ("promotions.TransitionPromotion", TRANSITION, "request_id"),
        ("promotions.AdjustPromotionBudget", BUDGET, "promotion_id"),
        ("promotions.AdjustPromotionBudget", BUDGET, "request_id"),
        ("entrances.CreateEntrance", ENTRANCE, "entrance__entrance_id"),
        ("entrances.CreateEntrance", ENTRANCE, "request_id"),
    ]
    for method, request, path in places:
        for bad in BAD_IDS.values():
            yield (
                method,
                changed(request, **{path: bad}),
                "INVALID_ARGUMENT",
                "INVALID_FIELD",
                {path.replace("__", ".")},
            )
    for bad in BAD_IDS.values():
        if bad:
            yield (
                "prizes.IssuePrize",
                changed(ISSUE, reference=bad),
                "INVALID_ARGUMENT",
                "INVALID_FIELD",
                {"reference"},
            )


def _amounts() -> Iterator[Case]:
    for delta in (0, AMOUNT_MAX + 1, -AMOUNT_MAX - 1, 2**63 - 1, -(2**63)):
        yield (
            "prizes.AdjustPrizeStock",
            changed(STOCK, delta_units=delta),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"delta_units"},
        )
        yield (
            "promotions.AdjustPromotionBudget",
            changed(BUDGET, delta_units=delta),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"delta_units"},
        )
    for units in (-1, AMOUNT_MAX + 1, 2**63 - 1, -(2**63)):
        yield (
            "prizes.CreatePrize",
            changed(PRIZE, prize__stock__units=units),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"prize.stock.units"},
        )
        bad = promotion.Budget(asset="USD/2", units=units)
        yield (
            "promotions.CreatePromotion",
            changed(PROMOTION, promotion__budgets=[bad]),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"promotion.budgets[0].units"},
        )
    for units in (0, -1, AMOUNT_MAX + 1):
        yield (
            "prizes.CreatePrize",
            changed(FIXED, prize__value__fixed_units=units),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"prize.value.fixed_units"},
        )
        yield (
            "prizes.CreatePrize",
            changed(PRIZE, prize__value__rate__cap_units=units),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"prize.value.rate.cap_units"},
        )
    for points in (0, -1, 1_000_001, 2**31 - 1):
        yield (
            "prizes.CreatePrize",
            changed(PRIZE, prize__value__rate__basis_points=points),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"prize.value.rate.basis_points"},
        )
    yield (
        "prizes.CreatePrize",
        changed(PRIZE, prize__limit_per_user=-1),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"prize.limit_per_user"},
    )
    for days in (0, -1, 36_501):
        yield (
            "prizes.CreatePrize",
            changed(PRIZE, prize__validity=prize.Validity(days=days)),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"prize.validity.days"},
        )
    for cents in (-1, -(2**63)):
        yield (
            "prizes.IssuePrize",
            changed(ISSUE, prize_id="cashback", attributes={"order_cents": types.AttributeValue(integer=cents)}),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"attributes[order_cents]"},
        )
    yield (
        "prizes.IssuePrize",
        changed(ISSUE, prize_id="cashback", attributes={"order_cents": types.AttributeValue(integer=2**63 - 1)}),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"attributes[order_cents]"},
    )
    yield "prizes.AdjustPrizeStock", changed(STOCK, delta_units=-10), "FAILED_PRECONDITION", "STOCK_INSUFFICIENT", set()
    yield (
        "promotions.AdjustPromotionBudget",
        changed(BUDGET, delta_units=-10_001),
        "FAILED_PRECONDITION",
        "BUDGET_INSUFFICIENT",
        set(),
    )


def _enums() -> Iterator[Case]:
    for number in (0, 3, 99, -1):
        yield "prizes.BatchIssuePrizes", changed(BATCH, mode=number), "INVALID_ARGUMENT", "INVALID_FIELD", {"mode"}
    for number in (0, 5, 99, -1):
        yield (
            "prizes.CreatePrize",
            changed(PRIZE, prize__kind=number),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"prize.kind"},
        )
        yield (
            "prizes.CreatePrize",
            changed(PRIZE, prize__value__rate__rounding=number),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"prize.value.rate.rounding"},
        )
    for number in (0, 7, -1):
        yield (
            "promotions.TransitionPromotion",
            changed(TRANSITION, target_state=number),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"target_state"},
        )
    yield (
        "promotions.ListPromotions",
        changed(promotion.ListPromotionsRequest(), states=[99]),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"states[0]"},
    )


def _unknown() -> Iterator[Case]:
    yield "prizes.IssuePrize", changed(ISSUE, promotion_id="winter"), "NOT_FOUND", "PROMOTION_NOT_FOUND", set()
    yield "prizes.IssuePrize", changed(ISSUE, prize_id="unheard"), "NOT_FOUND", "PRIZE_NOT_FOUND", set()
    yield "prizes.IssuePrize", changed(ISSUE, prize_id="leaf"), "FAILED_PRECONDITION", "PRIZE_NOT_IN_PROMOTION", set()
    yield "prizes.IssuePrize", changed(ISSUE, entrance_id="moon"), "NOT_FOUND", "ENTRANCE_NOT_FOUND", set()
    yield "prizes.IssuePrize", changed(ISSUE, entrance_id="door"), "FAILED_PRECONDITION", "ENTRANCE_NOT_BOUND", set()
    yield (
        "prizes.IssuePrize",
        changed(ISSUE, request_id="r-given", user_id="bob"),
        ("ALREADY_EXISTS"),
        "REQUEST_ID_REUSED",
        set(),
    )
    yield "prizes.BatchIssuePrizes", changed(BATCH, promotion_id="winter"), "NOT_FOUND", "PROMOTION_NOT_FOUND", set()
    yield "prizes.BatchIssuePrizes", changed(BATCH, entrance_id="moon"), "NOT_FOUND", "ENTRANCE_NOT_FOUND", set()
    yield "prizes.CreatePrize", changed(PRIZE, prize__promotion_id="winter"), "NOT_FOUND", "PROMOTION_NOT_FOUND", set()
    yield (
        "prizes.CreatePrize",
        changed(PRIZE, prize__value__asset="EUR/2"),
        ("FAILED_PRECONDITION"),
        "BUDGET_MISSING",
        set(),
    )
    yield "prizes.CreatePrize", changed(PRIZE, prize__prize_id="leaf"), "ALREADY_EXISTS", "PRIZE_EXISTS", set()
    yield "prizes.GetPrizeStock", prize.GetPrizeStockRequest(prize_id="unheard"), "NOT_FOUND", "PRIZE_NOT_FOUND", set()
    yield "prizes.AdjustPrizeStock", changed(STOCK, prize_id="unheard"), "NOT_FOUND", "PRIZE_NOT_FOUND", set()
    yield (
        "promotions.TransitionPromotion",
        changed(TRANSITION, promotion_id="winter"),
        ("NOT_FOUND"),
        "PROMOTION_NOT_FOUND",
        set(),
    )
    yield (
        "promotions.CreatePromotion",
        changed(PROMOTION, promotion__entrance_ids=["moon"]),
        ("NOT_FOUND"),
        "ENTRANCE_NOT_FOUND",
        set(),
    )
    yield (
        "promotions.UpdatePromotion",
        changed(UPDATE, promotion__etag="stale"),
        ("FAILED_PRECONDITION"),
        "ETAG_MISMATCH",
        set(),
    )
    unknown_key = prize.RequestKey(promotion_id="winter", request_id="r-new")
    yield (
        "prizes.GetIssuance",
        prize.GetIssuanceRequest(request=unknown_key, cancel_if_absent=True),
        ("NOT_FOUND"),
        "PROMOTION_NOT_FOUND",
        set(),
    )


def _attributes() -> Iterator[Case]:
    values: dict[str, types.AttributeValue] = {
        "a text": types.AttributeValue(text="1000"),
        "a boolean": types.AttributeValue(boolean=True),
        "a time": types.AttributeValue(time=Timestamp(seconds=1_800_000_000)),
        "a list": types.AttributeValue(list=types.AttributeList(values=["1000"])),
        "nothing": types.AttributeValue(),
        "no time": types.AttributeValue(time=Timestamp(nanos=-1)),
        "a time before history": types.AttributeValue(time=Timestamp(seconds=-(2**62))),
    }
    for value in values.values():
        wrong = changed(ask("r-new", prize_id="cashback"), attributes={"order_cents": value})
        field = "attributes[order_cents]" + (".nanos" if value.time.nanos else "")
        yield "prizes.IssuePrize", wrong, "INVALID_ARGUMENT", "INVALID_FIELD", {field}
    one = types.AttributeValue(integer=1)
    many = {f"a{i}": one for i in range(51)}
    yield "prizes.IssuePrize", changed(ISSUE, attributes=many), "INVALID_ARGUMENT", "INVALID_FIELD", {"attributes"}
    for name in ("", "a b", "x" * 65, "a\x00"):
        shown = ascii(name[:64])[1:-1]
        yield (
            "prizes.IssuePrize",
            changed(ISSUE, attributes={name: one}),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {f"attributes[{shown}]"},
        )
    long = types.AttributeValue(text="x" * 1025)
    yield (
        "prizes.IssuePrize",
        changed(ISSUE, attributes={"a": long}),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"attributes[a]"},
    )
    full = types.AttributeValue(list=types.AttributeList(values=["x"] * 101))
    yield (
        "prizes.IssuePrize",
        changed(ISSUE, attributes={"a": full}),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"attributes[a]"},
    )


def _shapes() -> Iterator[Case]:
    yield "prizes.BatchIssuePrizes", changed(BATCH, items=[]), "INVALID_ARGUMENT", "INVALID_FIELD", {"items"}
    over = [item(f"r-{i}") for i in range(1001)]
    yield "prizes.BatchIssuePrizes", changed(BATCH, items=over), "INVALID_ARGUMENT", "INVALID_FIELD", {"items"}
    twice = [item("r-1"), item("r-2"), item("r-1", user_id="bob")]
    for mode in (prize.BATCH_MODE_PER_ITEM, prize.BATCH_MODE_ALL_OR_NOTHING):
        yield (
            "prizes.BatchIssuePrizes",
            changed(BATCH, items=twice, mode=mode),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"items[2].request_id"},
        )
    yield "prizes.GetIssuance", prize.GetIssuanceRequest(), "INVALID_ARGUMENT", "INVALID_FIELD", {"key"}
    by_id = prize.GetIssuanceRequest(issuance_id="1", cancel_if_absent=True)
    yield "prizes.GetIssuance", by_id, "INVALID_ARGUMENT", "INVALID_FIELD", {"cancel_if_absent"}
    yield "prizes.ListIssuances", prize.ListIssuancesRequest(), "INVALID_ARGUMENT", "INVALID_FIELD", {"filter"}
    for size in (-1, 501):
        sized = prize.ListIssuancesRequest(user_id="ann", page_size=size)
        yield "prizes.ListIssuances", sized, "INVALID_ARGUMENT", "INVALID_FIELD", {"page_size"}
    for token in ("x", "\x00", "0" * 5000):
        paged = prize.ListIssuancesRequest(user_id="ann", page_token=token)
        yield "prizes.ListIssuances", paged, "INVALID_ARGUMENT", "INVALID_FIELD", {"page_token"}
    yield (
        "prizes.CreatePrize",
        prize.CreatePrizeRequest(request_id="o"),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {*("prize.prize_id", "prize.promotion_id", "prize.kind", "prize.stock")},
    )
    false = prize.Stock(unlimited=False)
    yield (
        "prizes.CreatePrize",
        changed(PRIZE, prize__stock=false),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"prize.stock.unlimited"},
    )
    long = "x" * 201
    yield (
        "promotions.UpdatePromotion",
        changed(UPDATE, promotion__display_name=long),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"promotion.display_name"},
    )
    for text in ("a\nb", "a\x00b", "a\x7fb", "a\u2028b"):
        yield (
            "promotions.UpdatePromotion",
            changed(UPDATE, promotion__display_name=text),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            {"promotion.display_name"},
        )
    yield (
        "promotions.UpdatePromotion",
        changed(UPDATE, update_mask=FieldMask(paths=["state"])),
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"update_mask"},
    )
    yield "accounts.GetBalance", account.GetBalanceRequest(), "INVALID_ARGUMENT", "INVALID_FIELD", set()


GROUPS = {
    "ids": _ids,
    "amounts": _amounts,
    "enums": _enums,
    "unknown": _unknown,
    "attributes": _attributes,
    "shapes": _shapes,
}


@pytest.mark.parametrize("group", GROUPS)
async def test_it_is_refused_with_its_reason_and_changes_nothing(house: House, group: str) -> None:
    before = await house.everything()
    for method, request, code, reason, fields in GROUPS[group]():
        service, name = method.split(".")
        call = getattr(getattr(house.desk, service), name)
        refused = await refusal(call(request, timeout=20))
        told = (method, request, refused)
        assert (refused.code, refused.reason, refused.domain) == (code, reason, "guerdon.dev"), told
        assert fields <= refused.fields.keys(), told
        assert len(refused.fields) == len(fields) or not fields, told
        assert all(refused.fields.values()), told
    assert await house.everything() == before


async def test_all_that_is_wrong_is_told_at_once(house: House) -> None:
    refused = await refusal(house.desk.prizes.IssuePrize(prize.IssuePrizeRequest(reference=" ")))

    assert set(refused.fields) == {"promotion_id", "entrance_id", "prize_id", "user_id", "request_id", "reference"}


@pytest.mark.parametrize("name", ["two words", "x" * 129, "a/b", ""])
async def test_a_principal_that_is_no_id_is_refused(house: House, name: str) -> None:
    before = await house.everything()

    refused = await refusal(house.desk.prizes.IssuePrize(ISSUE, metadata=(("guerdon-principal", name),)))

    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert refused.fields.keys() == {"guerdon-principal"}
    assert await house.everything() == before


def _wordy() -> Iterator[tuple[str, Message]]:
    one = types.AttributeValue(integer=1)
    astral = {chr(0x1F600 + i) * 64: one for i in range(30)}
    yield "prizes.IssuePrize", changed(ISSUE, attributes=astral)
    yield (
        "promotions.UpdatePromotion",
        changed(UPDATE, update_mask=FieldMask(paths=[chr(0x1F600 + i) * 100 for i in range(30)])),
    )
    yield (
        "promotions.CreatePromotion",
        changed(PROMOTION, promotion__entrance_ids=[chr(0x1F600 + i) * 100 for i in range(100)]),
    )
    yield (
        "promotions.CreatePromotion",
        changed(
            PROMOTION, promotion__budgets=[promotion.Budget(asset=chr(0x1F600 + i) * 100, units=-1) for i in range(20)]
        ),
    )


@pytest.mark.parametrize("case", range(4))
async def test_many_long_and_foreign_problems_still_fit_the_trailer(house: House, case: int) -> None:
    method, request = list(_wordy())[case]
    service, name = method.split(".")

    call = getattr(getattr(house.desk, service), name)(request)
    refused = await refusal(call)

    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD"), refused
    trailer = sum(len(key) + len(value) * 4 / 3 + 32 for key, value in await call.trailing_metadata())
    assert trailer + len(quote(await call.details())) < TRAILER_BYTES_MAX
    assert refused.fields

"""Nonsense in requests: every problem named at once, and nothing changed."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from guerdon.v1 import entrance_pb2, prize_pb2, promotion_pb2, types_pb2
from guerdon_server.platform.errors import Code, ServiceError, Violation
from guerdon_server.rpc.errors import to_status
from guerdon_server.rpc.paging import decode_id, decode_numbers, encode_token
from guerdon_server.rpc.validation import (
    VIOLATIONS_MAX,
    check_asset,
    check_attributes,
    check_display_name,
    check_id,
    check_instant,
    check_mask,
    is_id,
    refuse,
    to_timestamp,
)
from tests.catalogue.driver import Catalogue

PB = promotion_pb2
PZ = prize_pb2
LONG = "x" * 129
INT64_MAX = 2**63 - 1


# --- fields ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "empty"),
        (LONG, "129 characters"),
        ("a b", "U+0020 at position 2"),
        ("a\x00", "U+0000 at position 2"),
        ("a\n", "U+000A at position 2"),
        ("\x7f", "U+007F at position 1"),
        ("ä", "U+00E4"),
        ("١", "U+0661"),  # a digit, but not one of ours
        ("a/b", "U+002F"),
        ("💥", "U+1F4A5"),
        ("a\u202e", "U+202E"),
    ],
)
def test_a_malformed_id_is_described(value: str, problem: str) -> None:
    violations: list[Violation] = []
    check_id(violations, "user_id", value)
    assert [violation.field for violation in violations] == ["user_id"]
    assert problem in violations[0].description


@given(st.text(max_size=140))
def test_the_fast_check_of_ids_and_the_describing_one_agree(value: str) -> None:
    violations: list[Violation] = []
    check_id(violations, "id", value)
    assert bool(violations) is not bool(is_id(value))


@pytest.mark.parametrize("value", ["a", "x" * 128, "A-Z_0:9.", "-", "..", "order:2024-01-01_7"])
def test_a_well_formed_id(value: str) -> None:
    violations: list[Violation] = []
    check_id(violations, "id", value)
    assert not violations


@pytest.mark.parametrize("value", ["COIN", "USD/2", "BTC/8", "A1", "ABCDEFGHIJKL", "ETH/18"])
def test_an_asset(value: str) -> None:
    violations: list[Violation] = []
    check_asset(violations, "asset", value)
    assert not violations


@pytest.mark.parametrize(
    "value", ["", "A", "usd", "1A", "USD/", "USD/123", "USD/x", "US D", "ABCDEFGHIJKLM", "USD/2\n", "ÜSD", "A_B", "X-Y"]
)
def test_no_asset(value: str) -> None:
    violations: list[Violation] = []
    check_asset(violations, "asset", value)
    assert violations


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("", True),
        ("Frühling 🎉 – 50 % off", True),
        ("👩‍👩‍👧", True),
        ("x" * 200, True),
        ("x" * 201, False),
        ("a\tb", False),
        ("a\x00", False),
        ("a\x85b", False),
        ("a\u2028b", False),
    ],
)
def test_display_names(value: str, good: bool) -> None:
    violations: list[Violation] = []
    check_display_name(violations, "display_name", value)
    assert (violations == []) is good


@pytest.mark.parametrize(
    "value",
    [
        Timestamp(seconds=0),
        Timestamp(seconds=-1),
        Timestamp(seconds=946684799),
        Timestamp(seconds=253402300800),
        Timestamp(seconds=INT64_MAX),
        Timestamp(seconds=-(2**63)),
        Timestamp(seconds=1_800_000_000, nanos=-1),
        Timestamp(seconds=1_800_000_000, nanos=1_000_000_000),
    ],
)
def test_no_instant(value: Timestamp) -> None:
    violations: list[Violation] = []
    check_instant(violations, "at", value)
    assert len(violations) == 1


@given(st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 58), timezones=st.just(dt.UTC)))
def test_instants_survive_to_the_microsecond(at: dt.datetime) -> None:
    violations: list[Violation] = []
    wire = to_timestamp(at)
    assert wire is not None
    assert check_instant(violations, "at", wire) == at
    assert not violations


def test_masks() -> None:
    violations: list[Violation] = []
    assert check_mask(violations, FieldMask(paths=["b", "a", "b"]), ("a", "b")) == ("a", "b")
    assert not violations
    check_mask(violations, FieldMask(), ("a", "b"))
    check_mask(violations, FieldMask(paths=["a", "a.b", "*", ""]), ("a", "b"))
    assert len(violations) == 4
    assert all("a, b" in violation.description for violation in violations)
    assert any("a.b can't" in violation.description for violation in violations)


def test_attributes_become_values() -> None:
    at = Timestamp(seconds=1_700_000_000, nanos=5000)
    wire = {
        "i": types_pb2.AttributeValue(integer=-(2**63)),
        "t": types_pb2.AttributeValue(text="x" * 1024),
        "b": types_pb2.AttributeValue(boolean=False),
        "at": types_pb2.AttributeValue(time=at),
        "l": types_pb2.AttributeValue(list=types_pb2.AttributeList(values=["", "x" * 256])),
    }
    violations: list[Violation] = []
    assert check_attributes(violations, "attributes", wire) == {
        "i": -(2**63),
        "t": "x" * 1024,
        "b": False,
        "at": dt.datetime(2023, 11, 14, 22, 13, 20, 5, tzinfo=dt.UTC),
        "l": ("", "x" * 256),
    }
    assert not violations


@pytest.mark.parametrize(
    "wire",
    [
        {"a": types_pb2.AttributeValue()},
        {"": types_pb2.AttributeValue(integer=1)},
        {"x" * 65: types_pb2.AttributeValue(integer=1)},
        {"a b": types_pb2.AttributeValue(integer=1)},
        {"a": types_pb2.AttributeValue(text="x" * 1025)},
        {"a": types_pb2.AttributeValue(time=Timestamp(seconds=-1))},
        {"a": types_pb2.AttributeValue(list=types_pb2.AttributeList(values=["x" * 257]))},
        {"a": types_pb2.AttributeValue(list=types_pb2.AttributeList(values=["x"] * 101))},
        {f"a{n}": types_pb2.AttributeValue(integer=1) for n in range(51)},
    ],
    ids=lambda wire: str(next(iter(wire)))[:8],
)
def test_no_attributes(wire: dict[str, types_pb2.AttributeValue]) -> None:
    violations: list[Violation] = []
    check_attributes(violations, "attributes", wire)
    assert len(violations) == 1
    assert violations[0].field.startswith("attributes")


def test_an_error_fits_into_its_trailer() -> None:
    """8 KB, the limit of header lists, in base64 and beside the message in plain."""
    violations: list[Violation] = []
    names = [f"{n:02}" + "\U0001f4a5" * 1000 for n in range(50)]
    check_attributes(violations, "items[999].attributes", dict.fromkeys(names, types_pb2.AttributeValue()))
    check_mask(violations, FieldMask(paths=names), ("value.fixed_units", "value.rate", "limit_per_user", "validity"))
    assert len(violations) > VIOLATIONS_MAX
    for noted in (violations, violations[::-1]):
        with pytest.raises(ServiceError) as refused:
            refuse(noted)
        assert len(refused.value.violations) == VIOLATIONS_MAX + 1
        status = to_status(refused.value)
        assert status.ByteSize() * 4 / 3 + len(quote(status.message, safe=" ")) < 8000


# --- page tokens ----------------------------------------------------------------------------------------------------


@given(st.text("abcXYZ019._:-", min_size=1, max_size=128), st.lists(st.integers(-INT64_MAX, INT64_MAX), min_size=1))
def test_tokens_come_back(key: str, numbers: list[int]) -> None:
    violations: list[Violation] = []
    assert decode_id(violations, encode_token(["L", "f"], [key]), ["L", "f"]) == key
    if len(numbers) <= 5:
        assert decode_numbers(violations, encode_token(["L"], numbers), ["L"], len(numbers)) == numbers
    assert decode_id(violations, "", ["L"]) == ""
    assert decode_numbers(violations, "", ["L"], 2) is None
    assert not violations


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: encode_token(["L"], [raw.hex()])[:-2]))
def test_a_token_of_nobody_is_refused(token: str) -> None:
    for decode in (
        lambda violations: decode_id(violations, token, ["L"]),
        lambda violations: decode_numbers(violations, token, ["L"], 2),
    ):
        violations: list[Violation] = []
        assert not decode(violations)
        assert [violation.field for violation in violations] == (["page_token"] if token else [])


def test_tokens_of_other_kinds_and_ranges_are_refused() -> None:
    for token in (
        encode_token(["L"], [1]),
        encode_token(["L"], ["a", "b"]),
        encode_token(["L"], ["a b"]),
        encode_token(["L"], []),
        encode_token(["M"], ["a"]),
        encode_token(["L", ""], ["a"]),
    ):
        violations: list[Violation] = []
        assert decode_id(violations, token, ["L"]) == ""
        assert violations
    for token in (
        encode_token(["L"], [1]),
        encode_token(["L"], [1, "2"]),
        encode_token(["L"], [1, True]),
        encode_token(["L"], [1, 2**63]),
        encode_token(["L"], [1, 2, 3]),
    ):
        violations = []
        assert decode_numbers(violations, token, ["L"], 2) is None
        assert violations


# --- requests -------------------------------------------------------------------------------------------------------


def promotion(**fields: Any) -> PB.CreatePromotionRequest:
    return PB.CreatePromotionRequest(promotion=PB.Promotion(**{"promotion_id": "p", **fields}), request_id="r")


def prize(**fields: Any) -> PZ.CreatePrizeRequest:
    defaults = {
        "prize_id": "z",
        "promotion_id": "p",
        "kind": PZ.PRIZE_KIND_COUPON,
        "stock": PZ.Stock(units=1),
    }
    return PZ.CreatePrizeRequest(prize=PZ.Prize(**{**defaults, **fields}), request_id="r")


def rated(**fields: Any) -> PZ.CreatePrizeRequest:
    defaults = {"attribute": "cents", "basis_points": 1, "rounding": PZ.ROUNDING_UP}
    return prize(value=PZ.PrizeValue(asset="USD", rate=PZ.ValueRate(**{**defaults, **fields})))


def updated(prize: PZ.Prize, *paths: str) -> PZ.UpdatePrizeRequest:
    return PZ.UpdatePrizeRequest(prize=prize, update_mask=FieldMask(paths=paths), request_id="r")


Z = PZ.Prize(prize_id="z")
NONSENSE: list[tuple[str, Any, list[str]]] = [
    ("CreatePromotion", PB.CreatePromotionRequest(), ["request_id", "promotion.promotion_id"]),
    ("CreatePromotion", promotion(promotion_id=LONG, display_name="\x01"), ["promotion_id", "display_name"]),
    ("CreatePromotion", promotion(starts_at=Timestamp(), ends_at=Timestamp(seconds=-5)), ["starts_at", "ends_at"]),
    (
        "CreatePromotion",
        promotion(starts_at=Timestamp(seconds=1_700_000_000), ends_at=Timestamp(seconds=1_700_000_000, nanos=999)),
        ["ends_at"],
    ),
    ("CreatePromotion", promotion(entrance_ids=["a", "b c", "a"]), ["entrance_ids[1]", "entrance_ids[2]"]),
    ("CreatePromotion", promotion(entrance_ids=["a"] * 101), ["entrance_ids"]),
    ("CreatePromotion", promotion(budgets=[PB.Budget(asset="USD")]), ["budgets[0]"]),
    ("CreatePromotion", promotion(budgets=[PB.Budget(asset="USD", unlimited=False)]), ["budgets[0].unlimited"]),
    ("CreatePromotion", promotion(budgets=[PB.Budget(asset="USD", units=-1)]), ["budgets[0].units"]),
    ("CreatePromotion", promotion(budgets=[PB.Budget(asset="USD", units=2**53)]), ["budgets[0].units"]),
    ("CreatePromotion", promotion(budgets=[PB.Budget(asset="US", units=1)] * 2), ["budgets[1].asset"]),
    ("CreatePromotion", promotion(budgets=[PB.Budget(asset=f"A{n}", units=1) for n in range(21)]), ["budgets"]),
    ("GetPromotion", PB.GetPromotionRequest(), ["promotion_id"]),
    ("UpdatePromotion", PB.UpdatePromotionRequest(), ["request_id", "promotion_id", "update_mask"]),
    (
        "UpdatePromotion",
        PB.UpdatePromotionRequest(
            promotion=PB.Promotion(promotion_id="p", etag="\x00"),
            update_mask=FieldMask(paths=["state", "budgets"]),
            request_id="r",
        ),
        ["etag", "update_mask", "update_mask"],
    ),
    ("ListPromotions", PB.ListPromotionsRequest(page_size=-1), ["page_size"]),
    ("ListPromotions", PB.ListPromotionsRequest(page_size=501, page_token="x" * 3), ["page_size", "page_token"]),
    ("ListPromotions", PB.ListPromotionsRequest(states=[0, 77]), ["states[0]", "states[1]"]),  # type: ignore[list-item]
    ("ListPromotions", PB.ListPromotionsRequest(states=[1] * 7), ["states"]),  # type: ignore[list-item]
    ("TransitionPromotion", PB.TransitionPromotionRequest(), ["request_id", "promotion_id", "target_state"]),
    (
        "TransitionPromotion",
        PB.TransitionPromotionRequest(promotion_id="p", request_id="r", target_state=99),  # type: ignore[arg-type]
        ["target_state"],
    ),
    (
        "AdjustPromotionBudget",
        PB.AdjustPromotionBudgetRequest(),
        ["request_id", "promotion_id", "asset", "delta_units"],
    ),
    (
        "AdjustPromotionBudget",
        PB.AdjustPromotionBudgetRequest(promotion_id="p", asset="USD", delta_units=-(2**63), request_id="r"),
        ["delta_units"],
    ),
    ("CreatePrize", PZ.CreatePrizeRequest(), ["request_id", "prize_id", "promotion_id", "kind", "stock"]),
    ("CreatePrize", prize(kind=9), ["kind"]),
    ("CreatePrize", prize(kind=PZ.PRIZE_KIND_COIN), ["value"]),
    ("CreatePrize", prize(kind=PZ.PRIZE_KIND_CASHBACK), ["value"]),
    ("CreatePrize", prize(limit_per_user=-1), ["limit_per_user"]),
    ("CreatePrize", prize(limit_per_user=2**53), ["limit_per_user"]),
    ("CreatePrize", prize(stock=PZ.Stock(units=-1)), ["stock.units"]),
    ("CreatePrize", prize(stock=PZ.Stock(unlimited=False)), ["stock.unlimited"]),
    ("CreatePrize", prize(value=PZ.PrizeValue()), ["value.asset", "prize.value"]),
    ("CreatePrize", prize(value=PZ.PrizeValue(asset="usd", fixed_units=0)), ["value.asset", "value.fixed_units"]),
    ("CreatePrize", prize(value=PZ.PrizeValue(asset="USD", fixed_units=2**53)), ["value.fixed_units"]),
    ("CreatePrize", rated(attribute="", basis_points=0, rounding=0), ["attribute", "basis_points", "rounding"]),
    ("CreatePrize", rated(attribute="x" * 65, basis_points=1_000_001, rounding=5), ["attribute", "points", "rounding"]),
    ("CreatePrize", rated(floor_units=0, cap_units=0), ["floor_units", "cap_units"]),
    ("CreatePrize", rated(floor_units=3, cap_units=2), ["floor_units"]),
    ("CreatePrize", prize(validity=PZ.Validity()), ["validity"]),
    ("CreatePrize", prize(validity=PZ.Validity(days=0)), ["validity.days"]),
    ("CreatePrize", prize(validity=PZ.Validity(days=36_501)), ["validity.days"]),
    ("CreatePrize", prize(validity=PZ.Validity(until=Timestamp())), ["validity.until"]),
    ("GetPrize", PZ.GetPrizeRequest(prize_id="\n"), ["prize_id"]),
    ("UpdatePrize", PZ.UpdatePrizeRequest(), ["request_id", "prize_id", "update_mask"]),
    ("UpdatePrize", updated(Z, "kind", "stock", "value", "value.asset"), ["update_mask"] * 4),
    ("UpdatePrize", updated(Z, "value.fixed_units", "value.rate"), ["update_mask", "fixed_units"]),
    ("UpdatePrize", updated(Z, "value.rate"), ["attribute", "basis_points", "rounding"]),
    ("UpdatePrize", updated(PZ.Prize(prize_id="z", limit_per_user=-1), "limit_per_user"), ["limit_per_user"]),
    ("ListPrizes", PZ.ListPrizesRequest(promotion_id=" ", page_size=1000), ["page_size", "promotion_id"]),
    ("AdjustPrizeStock", PZ.AdjustPrizeStockRequest(), ["request_id", "prize_id", "delta_units"]),
    ("AdjustPrizeStock", PZ.AdjustPrizeStockRequest(prize_id="z", request_id="r", delta_units=2**53), ["delta_units"]),
    ("GetPrizeStock", PZ.GetPrizeStockRequest(), ["prize_id"]),
    ("CreateEntrance", entrance_pb2.CreateEntranceRequest(), ["request_id", "entrance_id"]),
    ("GetEntrance", entrance_pb2.GetEntranceRequest(), ["entrance_id"]),
    ("UpdateEntrance", entrance_pb2.UpdateEntranceRequest(), ["request_id", "entrance_id", "update_mask"]),
    ("ListEntrances", entrance_pb2.ListEntrancesRequest(page_size=501), ["page_size"]),
    (
        "ListEntrancePromotions",
        entrance_pb2.ListEntrancePromotionsRequest(user_id="\t", page_token="!" * 3),
        ["entrance_id", "user_id", "page_token"],
    ),
]


async def test_nonsense_is_refused_whole_and_changes_nothing(catalogue: Catalogue) -> None:
    for method, request, fields in NONSENSE:
        servicer = next(
            servicer
            for servicer in (catalogue.promotions, catalogue.prizes, catalogue.entrances)
            if hasattr(servicer, method)
        )
        with pytest.raises(ServiceError) as refused:
            await getattr(servicer, method)(request, "test")
        assert (refused.value.code, refused.value.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD"), method
        named = [violation.field for violation in refused.value.violations]
        assert len(named) == len(fields), (method, str(request), refused.value.violations)
        for name, field in zip(named, fields, strict=True):
            assert name.endswith(field), (method, str(request), named)
    assert (
        await catalogue.pool.fetchval(
            "SELECT (SELECT count(*) FROM guerdon.operation) + (SELECT count(*) FROM guerdon.account)"
        )
        == 0
    )

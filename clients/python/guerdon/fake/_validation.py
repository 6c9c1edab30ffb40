"""Which field of a request is malformed, and why: every check says its path, and all are reported together."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

import grpc

from guerdon.fake._refusal import refusal
from guerdon.v1 import account_pb2, prize_pb2, promotion_pb2, types_pb2

UNITS_MAX: Final = 2**53 - 1
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ATTRIBUTE_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_ASSET: Final = re.compile(r"[A-Z][A-Z0-9]{1,11}(/[0-9]{1,2})?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_VIOLATIONS_MAX: Final = 20
_ACCOUNT_FIELDS: Final[Mapping[int, tuple[str, ...]]] = {
    account_pb2.ACCOUNT_KIND_STOCK_SOURCE: ("prize_id",),
    account_pb2.ACCOUNT_KIND_STOCK: ("prize_id",),
    account_pb2.ACCOUNT_KIND_HOLDING: ("user_id", "prize_id"),
    account_pb2.ACCOUNT_KIND_BUDGET_SOURCE: ("promotion_id", "asset"),
    account_pb2.ACCOUNT_KIND_BUDGET: ("promotion_id", "asset"),
    account_pb2.ACCOUNT_KIND_WALLET: ("user_id", "asset"),
    account_pb2.ACCOUNT_KIND_LIABILITY: ("promotion_id", "asset"),
}


class Fields:
    """Collects violations; `raise_if_any` ends the call with all of them."""

    def __init__(self) -> None:
        self._violations: list[tuple[str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._violations)

    def check(self, ok: bool, field: str, text: str) -> None:
        if not ok:
            self._violations.append((field, text))

    def id(self, value: str, field: str) -> None:
        self.check(bool(_ID.fullmatch(value)), field, "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")

    def optional_id(self, value: str, field: str) -> None:
        if value:
            self.id(value, field)

    def asset(self, value: str, field: str) -> None:
        self.check(bool(_ASSET.fullmatch(value)), field, 'must be like "COIN" or "USD/2"')

    def display_name(self, value: str, field: str) -> None:
        fits = len(value) <= 200 and not _CONTROL.search(value)
        self.check(fits, field, "must be at most 200 characters, none of them a control character")

    def between(self, value: int, low: int, high: int, field: str) -> None:
        self.check(low <= value <= high, field, f"must be {low} to {high}")

    def delta(self, value: int) -> None:
        self.check(value != 0 and abs(value) <= UNITS_MAX, "delta_units", f"must be 1 to {UNITS_MAX} or minus that")

    def mask(self, paths: Iterable[str], allowed: Iterable[str]) -> None:
        named = list(paths)
        self.check(bool(named), "update_mask", "must name at least one field")
        for path in named:
            self.check(path in allowed, "update_mask", f"can't update {path!r}")

    def raise_if_any(self) -> None:
        if self._violations:
            raise refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "INVALID_FIELD",
                "the request has invalid fields",
                violations=self._violations[:_VIOLATIONS_MAX],
            )


def promotion(fields: Fields, message: promotion_pb2.Promotion) -> None:
    fields.id(message.promotion_id, "promotion.promotion_id")
    fields.display_name(message.display_name, "promotion.display_name")
    window(fields, message)
    fields.check(len(message.budgets) <= 20, "promotion.budgets", "must be at most 20")
    seen: set[str] = set()
    for i, budget in enumerate(message.budgets):
        fields.asset(budget.asset, f"promotion.budgets[{i}].asset")
        fields.check(budget.asset not in seen, f"promotion.budgets[{i}].asset", "occurs twice")
        capacity(fields, budget, f"promotion.budgets[{i}]")
        seen.add(budget.asset)


def window(fields: Fields, message: promotion_pb2.Promotion) -> None:
    if message.HasField("starts_at") and message.HasField("ends_at"):
        ordered = message.starts_at.ToNanoseconds() < message.ends_at.ToNanoseconds()
        fields.check(ordered, "promotion.ends_at", "must be after starts_at")
    fields.check(len(message.entrance_ids) <= 100, "promotion.entrance_ids", "must be at most 100")
    for i, entrance_id in enumerate(message.entrance_ids):
        fields.id(entrance_id, f"promotion.entrance_ids[{i}]")


def capacity(fields: Fields, message: promotion_pb2.Budget | prize_pb2.Stock, field: str) -> None:
    which = message.WhichOneof("capacity")
    fields.check(which is not None, field, "must have units or unlimited")
    if which == "units":
        fields.between(message.units, 0, UNITS_MAX, f"{field}.units")
    if which == "unlimited":
        fields.check(message.unlimited, f"{field}.unlimited", "must be true where set")


def prize(fields: Fields, message: prize_pb2.Prize) -> None:
    fields.id(message.prize_id, "prize.prize_id")
    fields.id(message.promotion_id, "prize.promotion_id")
    fields.check(message.kind in prize_pb2.PrizeKind.values() and message.kind != 0, "prize.kind", "must be known")
    capacity(fields, message.stock, "prize.stock")
    pays = message.kind in (prize_pb2.PRIZE_KIND_COIN, prize_pb2.PRIZE_KIND_CASHBACK)
    fields.check(message.HasField("value") or not pays, "prize.value", "is required for coin and cashback")
    terms(fields, message)


def terms(fields: Fields, message: prize_pb2.Prize) -> None:
    """What can also be updated."""
    fields.display_name(message.display_name, "prize.display_name")
    fields.check(message.limit_per_user >= 0, "prize.limit_per_user", "must not be negative")
    if message.validity.WhichOneof("rule") == "days":
        fields.between(message.validity.days, 1, 36500, "prize.validity.days")
    if not message.HasField("value"):
        return
    fields.asset(message.value.asset, "prize.value.asset")
    rule = message.value.WhichOneof("rule")
    fields.check(rule is not None, "prize.value", "must have a rule")
    if rule == "fixed_units":
        fields.between(message.value.fixed_units, 1, UNITS_MAX, "prize.value.fixed_units")
    if rule == "rate":
        _rate(fields, message.value.rate)


def _rate(fields: Fields, rate: prize_pb2.ValueRate) -> None:
    named = bool(_ATTRIBUTE_NAME.fullmatch(rate.attribute))
    fields.check(named, "prize.value.rate.attribute", "must be 1 to 64 characters of the id alphabet")
    fields.between(rate.basis_points, 1, 1_000_000, "prize.value.rate.basis_points")
    known = rate.rounding in prize_pb2.Rounding.values() and rate.rounding != 0
    fields.check(known, "prize.value.rate.rounding", "must be known")
    if rate.HasField("floor_units"):
        fields.between(rate.floor_units, 1, UNITS_MAX, "prize.value.rate.floor_units")
    if rate.HasField("cap_units"):
        least = rate.floor_units if rate.HasField("floor_units") else 1
        fields.between(rate.cap_units, least, UNITS_MAX, "prize.value.rate.cap_units")


def item(fields: Fields, message: prize_pb2.IssuePrizeRequest | prize_pb2.BatchItem, prefix: str = "") -> None:
    fields.id(message.prize_id, f"{prefix}prize_id")
    fields.id(message.user_id, f"{prefix}user_id")
    fields.id(message.request_id, f"{prefix}request_id")
    fields.optional_id(message.reference, f"{prefix}reference")
    fields.check(len(message.attributes) <= 50, f"{prefix}attributes", "must be at most 50")
    for name, value in message.attributes.items():
        _attribute(fields, name, value, f"{prefix}attributes[{name}]")


def _attribute(fields: Fields, name: str, value: types_pb2.AttributeValue, field: str) -> None:
    named = bool(_ATTRIBUTE_NAME.fullmatch(name))
    fields.check(named, field, "the name must be 1 to 64 characters of the id alphabet")
    fields.check(value.WhichOneof("kind") is not None, field, "must have a value")
    fields.check(len(value.text) <= 1024, field, "must be at most 1024 characters")
    fields.check(len(value.list.values) <= 100, field, "must be at most 100 texts")
    for i, text in enumerate(value.list.values[:100]):
        fields.check(len(text) <= 256, f"{field}[{i}]", "must be at most 256 characters")


def account(fields: Fields, key: account_pb2.AccountKey) -> None:
    needed = _ACCOUNT_FIELDS.get(key.kind)
    if needed is None:
        fields.check(False, "account.kind", "must be known")
        return
    for name in ("user_id", "promotion_id", "prize_id", "asset"):
        value = getattr(key, name)
        if name not in needed:
            fields.check(not value, f"account.{name}", "does not belong to this kind of account")
        elif name == "asset":
            fields.asset(value, "account.asset")
        else:
            fields.id(value, f"account.{name}")


def page_size(fields: Fields, value: int, most: int = 500) -> None:
    fields.between(value, 0, most, "page_size")

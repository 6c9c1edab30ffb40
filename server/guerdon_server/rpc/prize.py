"""The part of PrizeService that configures prizes, on the wire."""

from __future__ import annotations

from typing import Final

from guerdon.v1 import prize_pb2
from guerdon_server.core.ledger.postgres.operations import Caller
from guerdon_server.core.prize.model import (
    FixedValue,
    NewPrize,
    Prize,
    PrizeKind,
    PrizeStock,
    PrizeUpdate,
    PrizeValue,
    RateValue,
    Rounding,
    StockDelta,
    ValidDays,
    Validity,
    ValidUntil,
    ValueRule,
)
from guerdon_server.core.prize.service import PrizeService
from guerdon_server.platform.errors import Violation
from guerdon_server.rpc.paging import cut, decode_id, encode_token
from guerdon_server.rpc.validation import (
    ATTRIBUTE_NAME_CHARACTERS_MAX,
    check_asset,
    check_capacity,
    check_delta,
    check_display_name,
    check_enum,
    check_etag,
    check_id,
    check_instant,
    check_mask,
    check_optional_id,
    check_page_size,
    check_units,
    refuse,
    to_timestamp,
)

_PATHS: Final = ("display_name", "value.fixed_units", "value.rate", "limit_per_user", "validity")
_BASIS_POINTS_MAX: Final = 1_000_000
_DAYS_MAX: Final = 36_500


class PrizeCatalogueServicer:
    """Methods of PrizeService about prizes themselves: request and principal to response; refusals are ServiceError."""

    def __init__(self, prizes: PrizeService) -> None:
        self._prizes = prizes

    async def CreatePrize(self, request: prize_pb2.CreatePrizeRequest, principal: str) -> prize_pb2.Prize:
        """A prize that can be asked for at once."""
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        new = _new_prize(violations, request.prize)
        refuse(violations)
        return prize_to_wire(await self._prizes.create(new, Caller(request.request_id, principal)))

    async def GetPrize(self, request: prize_pb2.GetPrizeRequest, principal: str) -> prize_pb2.Prize:
        """One prize."""
        violations: list[Violation] = []
        check_id(violations, "prize_id", request.prize_id)
        refuse(violations)
        return prize_to_wire(await self._prizes.get(request.prize_id))

    async def UpdatePrize(self, request: prize_pb2.UpdatePrizeRequest, principal: str) -> prize_pb2.Prize:
        """Changes what the mask names."""
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        update = _update(violations, request)
        refuse(violations)
        return prize_to_wire(await self._prizes.update(update, Caller(request.request_id, principal)))

    async def ListPrizes(self, request: prize_pb2.ListPrizesRequest, principal: str) -> prize_pb2.ListPrizesResponse:
        """By id, of one promotion or of all."""
        violations: list[Violation] = []
        size = check_page_size(violations, request.page_size)
        check_optional_id(violations, "promotion_id", request.promotion_id)
        scope = ("ListPrizes", request.promotion_id)
        after = decode_id(violations, request.page_token, scope)
        refuse(violations)
        page, last = cut(await self._prizes.page(request.promotion_id, after=after, limit=size + 1), size)
        return prize_pb2.ListPrizesResponse(
            prizes=map(prize_to_wire, page), next_page_token=encode_token(scope, [last.prize_id]) if last else ""
        )

    async def AdjustPrizeStock(
        self, request: prize_pb2.AdjustPrizeStockRequest, principal: str
    ) -> prize_pb2.AdjustPrizeStockResponse:
        """Tops up or recalls."""
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        check_id(violations, "prize_id", request.prize_id)
        check_delta(violations, "delta_units", request.delta_units)
        refuse(violations)
        delta = StockDelta(request.prize_id, request.delta_units)
        stock, replayed = await self._prizes.adjust_stock(delta, Caller(request.request_id, principal))
        return prize_pb2.AdjustPrizeStockResponse(stock=_stock_to_wire(stock), replayed=replayed)

    async def GetPrizeStock(self, request: prize_pb2.GetPrizeStockRequest, principal: str) -> prize_pb2.PrizeStock:
        """What there is, was issued and remains, as the ledger has it."""
        violations: list[Violation] = []
        check_id(violations, "prize_id", request.prize_id)
        refuse(violations)
        return _stock_to_wire(await self._prizes.stock(request.prize_id))


def _new_prize(violations: list[Violation], wire: prize_pb2.Prize) -> NewPrize:
    check_id(violations, "prize.prize_id", wire.prize_id)
    check_id(violations, "prize.promotion_id", wire.promotion_id)
    check_display_name(violations, "prize.display_name", wire.display_name)
    check_units(violations, "prize.limit_per_user", wire.limit_per_user, least=0)
    kind = check_enum(violations, "prize.kind", wire.kind, PrizeKind)
    value = None
    if wire.HasField("value"):
        check_asset(violations, "prize.value.asset", wire.value.asset)
        rule = _rule(violations, wire.value, wire.value.WhichOneof("rule"))
        value = PrizeValue(wire.value.asset, rule)
    elif kind in (PrizeKind.COIN, PrizeKind.CASHBACK):
        violations.append(Violation("prize.value", f"is required for {kind.name}"))
    return NewPrize(
        prize_id=wire.prize_id,
        promotion_id=wire.promotion_id,
        display_name=wire.display_name,
        kind=kind,
        value=value,
        stock=check_capacity(violations, "prize.stock", wire.stock),
        limit_per_user=wire.limit_per_user,
        validity=_validity(violations, wire),
    )


def _update(violations: list[Violation], request: prize_pb2.UpdatePrizeRequest) -> PrizeUpdate:
    wire = request.prize
    check_id(violations, "prize.prize_id", wire.prize_id)
    check_etag(violations, "prize.etag", wire.etag)
    mask = check_mask(violations, request.update_mask, _PATHS)
    if "display_name" in mask:
        check_display_name(violations, "prize.display_name", wire.display_name)
    if "limit_per_user" in mask:
        check_units(violations, "prize.limit_per_user", wire.limit_per_user, least=0)
    rules = [rule for rule in ("fixed_units", "rate") if f"value.{rule}" in mask]
    if len(rules) > 1:
        violations.append(Violation("update_mask", "names value.fixed_units and value.rate; a prize has one of them"))
    return PrizeUpdate(
        prize_id=wire.prize_id,
        etag=wire.etag,
        update_mask=mask,
        display_name=wire.display_name if "display_name" in mask else "",
        rule=_rule(violations, wire.value, rules[0]) if rules else None,
        limit_per_user=wire.limit_per_user if "limit_per_user" in mask else 0,
        validity=_validity(violations, wire) if "validity" in mask else None,
    )


def _rule(violations: list[Violation], wire: prize_pb2.PrizeValue, which: str | None) -> ValueRule:
    if which == "rate":
        return _rate(violations, wire.rate)
    if which is None:
        violations.append(Violation("prize.value", "must say how much: set fixed_units, or rate"))
    else:
        check_units(violations, "prize.value.fixed_units", wire.fixed_units)
    return FixedValue(wire.fixed_units)


def _rate(violations: list[Violation], wire: prize_pb2.ValueRate) -> RateValue:
    field = "prize.value.rate"
    check_id(violations, f"{field}.attribute", wire.attribute, characters_max=ATTRIBUTE_NAME_CHARACTERS_MAX)
    check_units(violations, f"{field}.basis_points", wire.basis_points, most=_BASIS_POINTS_MAX)
    floor_units = wire.floor_units if wire.HasField("floor_units") else None
    cap_units = wire.cap_units if wire.HasField("cap_units") else None
    if floor_units is not None:
        check_units(violations, f"{field}.floor_units", floor_units)
    if cap_units is not None:
        check_units(violations, f"{field}.cap_units", cap_units)
    if floor_units is not None and cap_units is not None and floor_units > cap_units:
        violations.append(Violation(f"{field}.floor_units", f"is {floor_units}, above cap_units of {cap_units}"))
    return RateValue(
        attribute=wire.attribute,
        basis_points=wire.basis_points,
        floor_units=floor_units,
        cap_units=cap_units,
        rounding=check_enum(violations, f"{field}.rounding", wire.rounding, Rounding),
    )


def _validity(violations: list[Violation], wire: prize_pb2.Prize) -> Validity | None:
    if not wire.HasField("validity"):
        return None
    match wire.validity.WhichOneof("rule"):
        case "until":
            return ValidUntil(check_instant(violations, "prize.validity.until", wire.validity.until))
        case "days":
            check_units(violations, "prize.validity.days", wire.validity.days, most=_DAYS_MAX)
            return ValidDays(wire.validity.days)
    violations.append(Violation("prize.validity", "must say how long: set until, or days; leave it out for ever"))
    return None


def prize_to_wire(prize: Prize) -> prize_pb2.Prize:
    """The domain's prize as a message."""
    return prize_pb2.Prize(
        prize_id=prize.prize_id,
        promotion_id=prize.promotion_id,
        display_name=prize.display_name,
        kind=prize_pb2.PrizeKind.ValueType(prize.kind),
        value=_value_to_wire(prize.value),
        stock=prize_pb2.Stock(unlimited=True) if prize.stock is None else prize_pb2.Stock(units=prize.stock),
        limit_per_user=prize.limit_per_user,
        validity=_validity_to_wire(prize.validity),
        etag=prize.etag,
        created_at=to_timestamp(prize.created_at),
        updated_at=to_timestamp(prize.updated_at),
    )


def _value_to_wire(value: PrizeValue | None) -> prize_pb2.PrizeValue | None:
    match value:
        case None:
            return None
        case PrizeValue(asset, FixedValue(units)):
            return prize_pb2.PrizeValue(asset=asset, fixed_units=units)
        case PrizeValue(asset, RateValue() as rate):
            wire = prize_pb2.ValueRate(
                attribute=rate.attribute,
                basis_points=rate.basis_points,
                rounding=prize_pb2.Rounding.ValueType(rate.rounding),
                floor_units=rate.floor_units,
                cap_units=rate.cap_units,
            )
            return prize_pb2.PrizeValue(asset=asset, rate=wire)
    raise AssertionError(value)


def _validity_to_wire(validity: Validity | None) -> prize_pb2.Validity | None:
    match validity:
        case None:
            return None
        case ValidUntil(until):
            return prize_pb2.Validity(until=to_timestamp(until))
        case ValidDays(days):
            return prize_pb2.Validity(days=days)


def _stock_to_wire(stock: PrizeStock) -> prize_pb2.PrizeStock:
    wire = prize_pb2.PrizeStock(prize_id=stock.prize_id, issued_units=stock.issued_units)
    if stock.capacity_units is None:
        wire.unlimited = True
    else:
        wire.units = stock.capacity_units
        wire.remaining_units = stock.remaining_units or 0
    return wire

"""Concrete calls: sent to a server over the wire, or made of the model; and whether the two answers agree."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.v1 import prize_pb2 as prize
from guerdon.v1 import promotion_pb2 as promotion
from guerdon.v1 import types_pb2 as types
from tests.issuing.desk import Desk, Refusal
from tests.model.model import Answer, Attribute, CallRefused, Fixed, Item, Level, Model, No, Rule, Validity, Yes

# --- calls ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IssueCall:
    promotion: str
    entrance: str
    item: Item


@dataclass(frozen=True)
class BatchCall:
    promotion: str
    entrance: str
    items: tuple[Item, ...]
    together: bool


@dataclass(frozen=True)
class ResolveCall:
    promotion: str
    request: str
    cancel: bool


@dataclass(frozen=True)
class StockCall:
    prize: str
    delta: int
    request: str


@dataclass(frozen=True)
class BudgetCall:
    promotion: str
    asset: str
    delta: int
    request: str


@dataclass(frozen=True)
class GoCall:
    promotion: str
    target: str


@dataclass(frozen=True)
class LimitCall:
    prize: str
    limit: int


@dataclass(frozen=True)
class RuleCall:
    prize: str
    rule: Rule


@dataclass(frozen=True)
class ValidityCall:
    prize: str
    validity: Validity | None


@dataclass(frozen=True)
class BindCall:
    promotion: str
    entrances: tuple[str, ...]


@dataclass(frozen=True)
class WindowCall:
    promotion: str
    starts: float | None
    ends: float | None


Change: TypeAlias = GoCall | LimitCall | RuleCall | ValidityCall | BindCall | WindowCall
Call: TypeAlias = IssueCall | BatchCall | ResolveCall | StockCall | BudgetCall | Change

# --- what a server tells ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A grant, as it came over the wire."""

    issuance: prize.Issuance
    replayed: bool

    def __repr__(self) -> str:
        it = self.issuance
        value = f" worth {it.value.units} {it.value.asset}" if it.HasField("value") else ""
        return f"{'replayed' if self.replayed else 'granted'}: {it.prize_id} to {it.user_id}{value} #{it.issuance_id}"


@dataclass(frozen=True)
class Done:
    """A change of the catalogue was made. `at`: microseconds since 1970, by the database's clock, under its lock."""

    at: int
    state: str = ""


Told: TypeAlias = Given | No | CallRefused | str | Done | tuple[Level, bool] | list[Given | No | str]
"""str: pending, absent, cancelled."""


@dataclass(frozen=True)
class Clock:
    """The model's hours as instants; `base`: seconds since 1970 of hour 0."""

    base: float

    def instant(self, hours: float | None) -> Timestamp | None:
        """As a message, to the second."""
        return None if hours is None else Timestamp(seconds=round(self.base + hours * 3600))


async def send(desk: Desk, call: Call, clock: Clock) -> Told:  # noqa: PLR0911
    """Make the call. An error that is not an answer (UNAVAILABLE, INTERNAL, ...) is a failure of the test."""
    request_id = f"c{time.monotonic_ns()}"  # of changes of the catalogue, which no step repeats
    match call:
        case IssueCall():
            response = await _tried(
                desk.issue(
                    prize.IssuePrizeRequest(promotion_id=call.promotion, entrance_id=call.entrance, **_item(call.item))
                )
            )
            if isinstance(response, No):
                return CallRefused(response)
            return _outcome(response)
        case BatchCall():
            items = [prize.BatchItem(**_item(item)) for item in call.items]
            results = await _tried(
                desk.batch(items, together=call.together, promotion_id=call.promotion, entrance_id=call.entrance)
            )
            return CallRefused(results) if isinstance(results, No) else [_outcome(result) for result in results]
        case ResolveCall():
            found = await _tried(desk.became(call.request, promotion_id=call.promotion, cancel=call.cancel))
            if isinstance(found, No):
                return found
            which = found.WhichOneof("state")
            if which == "granted":
                return Given(found.granted, True)
            return "cancelled" if which == "absent" and found.absent.cancelled else str(which)
        case StockCall():
            adjust = prize.AdjustPrizeStockRequest(prize_id=call.prize, delta_units=call.delta, request_id=call.request)
            adjusted = await _tried(desk.prizes.AdjustPrizeStock(adjust))
            return adjusted if isinstance(adjusted, No) else (stock_level(adjusted.stock), adjusted.replayed)
        case BudgetCall():
            adjust_budget = promotion.AdjustPromotionBudgetRequest(
                promotion_id=call.promotion, asset=call.asset, delta_units=call.delta, request_id=call.request
            )
            spent = await _tried(desk.promotions.AdjustPromotionBudget(adjust_budget))
            return spent if isinstance(spent, No) else (budget_level(spent.budget), spent.replayed)
        case _:
            return await _change(desk, call, clock, request_id)


async def _change(desk: Desk, call: Change, clock: Clock, request_id: str) -> Told:
    made: Any
    if isinstance(call, GoCall):
        target = promotion.PromotionState.Value(f"PROMOTION_STATE_{call.target}")
        go = promotion.TransitionPromotionRequest(
            promotion_id=call.promotion, target_state=target, request_id=request_id
        )
        made = await _tried(desk.promotions.TransitionPromotion(go))
    elif isinstance(call, BindCall | WindowCall):
        if isinstance(call, BindCall):
            paths, body = ["entrance_ids"], promotion.Promotion(entrance_ids=call.entrances)
        else:
            paths = ["starts_at", "ends_at"]
            body = promotion.Promotion(starts_at=clock.instant(call.starts), ends_at=clock.instant(call.ends))
        body.promotion_id = call.promotion
        made = await _tried(
            desk.promotions.UpdatePromotion(
                promotion.UpdatePromotionRequest(
                    promotion=body, update_mask=FieldMask(paths=paths), request_id=request_id
                )
            )
        )
    else:
        if isinstance(call, LimitCall):
            path, new = "limit_per_user", prize.Prize(limit_per_user=call.limit)
        elif isinstance(call, ValidityCall):
            path, new = "validity", prize.Prize(validity=wire_validity(call.validity, clock))
        else:
            path = f"value.{'fixed_units' if isinstance(call.rule, Fixed) else 'rate'}"
            new = prize.Prize(value=wire_value("", call.rule))
        new.prize_id = call.prize
        update = prize.UpdatePrizeRequest(prize=new, update_mask=FieldMask(paths=[path]), request_id=request_id)
        made = await _tried(desk.prizes.UpdatePrize(update))
    if isinstance(made, No):
        return made
    state = promotion.PromotionState.Name(made.state)[len("PROMOTION_STATE_") :] if hasattr(made, "state") else ""
    return Done(made.updated_at.ToMicroseconds(), state)


async def _tried(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return _no(Refusal.caught(error))


def _no(refusal: Refusal) -> No:
    return No(refusal.reason or refusal.code, field=_field(refusal), error=True)


def _field(refusal: Refusal) -> str:
    if refusal.reason == "REQUEST_ID_REUSED":
        return refusal.metadata["field"]
    return next(iter(refusal.fields), "")


def _outcome(answer: prize.IssuePrizeResponse | prize.BatchItemResult) -> Given | No | str:
    which = answer.WhichOneof("outcome")
    if which == "granted":
        return Given(answer.granted, answer.replayed)
    if which == "rejected":
        it = answer.rejected
        assert it.message, f"a rejection without a word for people: {it}"
        reason = prize.RejectionReason.Name(it.reason).removeprefix("REJECTION_REASON_")
        return No(reason, it.rule, it.observed, it.threshold)
    if which == "error":
        assert isinstance(answer, prize.BatchItemResult)
        return _no(Refusal.of(answer.error))
    assert which == "pending", answer
    return "pending"


# --- messages ---------------------------------------------------------------------------------------------------------


def _item(item: Item) -> dict[str, Any]:
    return {
        "prize_id": item.prize,
        "user_id": "two words" if item.flawed == "user_id" else item.user,
        "request_id": item.request,
        "reference": "two words" if item.flawed == "reference" else item.reference,
        "attributes": {name: _attribute(value) for name, value in item.attributes.items()},
    }


def _attribute(value: Attribute) -> types.AttributeValue:
    if isinstance(value, bool):
        return types.AttributeValue(boolean=value)
    return types.AttributeValue(text=value) if isinstance(value, str) else types.AttributeValue(integer=value)


def wire_value(asset: str, rule: Rule) -> prize.PrizeValue:
    """A value rule as a message."""
    if isinstance(rule, Fixed):
        return prize.PrizeValue(asset=asset, fixed_units=rule.units)
    rate = prize.ValueRate(
        attribute=rule.attribute,
        basis_points=rule.basis_points,
        floor_units=rule.floor,
        cap_units=rule.cap,
        rounding=prize.Rounding.Value(f"ROUNDING_{rule.rounding}"),
    )
    return prize.PrizeValue(asset=asset, rate=rate)


def wire_validity(validity: Validity | None, clock: Clock) -> prize.Validity | None:
    """A validity as a message."""
    if validity is None:
        return None
    if validity.days is not None:
        return prize.Validity(days=validity.days)
    return prize.Validity(until=clock.instant(validity.until))


def stock_level(stock: prize.PrizeStock) -> Level:
    """Of a prize."""
    if stock.unlimited:
        return Level(None, stock.issued_units, None)
    return Level(stock.units, stock.issued_units, stock.remaining_units)


def budget_level(budget: promotion.Budget) -> Level:
    """Of a promotion in one asset."""
    if budget.unlimited:
        return Level(None, budget.spent_units, None)
    return Level(budget.units, budget.spent_units, budget.remaining_units)


# --- the same of the model --------------------------------------------------------------------------------------------

Expected: TypeAlias = Answer | list[Answer] | CallRefused | Yes | str | No | tuple[Level, bool] | None


def make(model: Model, call: Call) -> Expected:  # noqa: PLR0911
    """What the model answers; it has changed accordingly."""
    match call:
        case IssueCall(promotion_id, entrance, item):
            return model.issue(promotion_id, entrance, item)
        case BatchCall(promotion_id, entrance, items, together):
            return model.issue_batch(promotion_id, entrance, items, together=together)
        case ResolveCall(promotion_id, request, cancel):
            return model.get_issuance(promotion_id, request, cancel_if_absent=cancel)
        case StockCall(prize_id, delta, request):
            return model.adjust_stock(prize_id, delta, request)
        case BudgetCall(promotion_id, asset, delta, request):
            return model.adjust_budget(promotion_id, asset, delta, request)
        case GoCall(promotion_id, target):
            return model.transition(promotion_id, target)
        case LimitCall(prize_id, limit):
            return model.set_limit(prize_id, limit)
        case RuleCall(prize_id, rule):
            return model.set_rule(prize_id, rule)
        case ValidityCall(prize_id, validity):
            return model.set_validity(prize_id, validity)
        case BindCall(promotion_id, entrances):
            return model.bind(promotion_id, entrances)
        case WindowCall(promotion_id, starts, ends):
            return model.set_window(promotion_id, starts, ends)


class Memory:
    """What was granted under each request id, as it was first told: for ever the answer."""

    def __init__(self, clock: Clock) -> None:
        self.issuances: dict[tuple[str, str], prize.Issuance] = {}
        self._clock = clock

    def disagreement(self, call: Call, expected: Expected, told: Told) -> str:  # noqa: PLR0911
        """In what the answers differ; empty: they agree."""
        match call, expected, told:
            case BatchCall(), list(), list():
                if len(expected) != len(told):
                    return "not as many answers as items"
                found = [self._answer(*pair) for pair in zip(expected, told, strict=True)]
                if call.together and not any(found):
                    found = [_wholeness(told)]
                return "; ".join(f"item {index}: {why}" for index, why in enumerate(found) if why)
            case IssueCall(), tuple(), CallRefused(no):
                return self._answer(expected, no)  # type: ignore[arg-type]
            case BatchCall(), list(), CallRefused(no):
                # An entrance that is not bound refuses the whole call, which is right where nobody would be granted.
                granted = any(isinstance(answer, Yes) and not answer.replayed for answer in expected)
                holds = any(no in answer for answer in expected if isinstance(answer, tuple))
                return "" if holds and not granted else "the call is refused as a whole"
            case IssueCall() | ResolveCall(), _, _ if isinstance(expected, Yes | tuple) and isinstance(
                told, Given | No | str
            ):
                return self._answer(expected, told)  # type: ignore[arg-type]
            case _, None, Done():
                return ""
            case _, _, _:
                return "" if expected == told else "they differ"
        return "they differ"

    def _answer(self, expected: Answer, told: Given | No | str) -> str:
        if isinstance(expected, Yes):
            return self._grant(expected, told) if isinstance(told, Given) else "the model grants it"
        if not isinstance(told, No):
            return "the model refuses it"
        return "" if told in expected else f"that reason does not hold, but: {list(expected)}"

    def _grant(self, yes: Yes, told: Given) -> str:
        it = told.issuance
        first = self.issuances.setdefault((yes.promotion, yes.request), it)
        if it != first:
            return f"not the issuance that was told first: {first}"
        seen = Yes(
            it.promotion_id,
            it.entrance_id,
            it.prize_id,
            it.user_id,
            it.request_id,
            it.reference,
            prize.PrizeKind.Name(it.kind).removeprefix("PRIZE_KIND_"),
            it.value.asset,
            it.value.units if it.HasField("value") else None,
            yes.validity,
            told.replayed,
        )
        if seen != yes:
            return f"the grant is another: {seen}, {yes}"
        expiry = self._expiry(yes.validity, it.issued_at)
        at = it.expires_at if it.HasField("expires_at") else None
        return "" if at == expiry else f"expires at {at}, not at {expiry}"

    def _expiry(self, validity: Validity | None, issued_at: Timestamp) -> Timestamp | None:
        if validity is None:
            return None
        if validity.days is None:
            return self._clock.instant(validity.until)
        expiry = Timestamp()
        expiry.FromDatetime(issued_at.ToDatetime() + dt.timedelta(days=validity.days))
        return expiry


def _wholeness(told: list[Given | No | str]) -> str:
    """All together or not at all: where something was refused nothing is new, and somebody says why."""
    refused = [answer for answer in told if isinstance(answer, No)]
    if refused and any(isinstance(answer, Given) and not answer.replayed for answer in told):
        return "some are granted and some are not"
    if refused and all(no.reason == "BATCH_NOT_GRANTED" for no in refused):
        return "every item blames another one"
    return ""


def renamed(item: Item, prefix: str) -> Item:
    """The same for another user at another prize under another id, each with the prefix."""
    return replace(item, prize=prefix + item.prize, user=prefix + item.user, request=prefix + item.request)

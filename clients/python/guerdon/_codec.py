"""Messages of the wire to the types of `guerdon.model` and back; the only place that knows both."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from guerdon import model
from guerdon.errors import from_status
from guerdon.v1 import account_pb2, entrance_pb2, prize_pb2, promotion_pb2, types_pb2

E = TypeVar("E", bound=StrEnum)
_INT64: Final = 2**63


class _EnumCodec(Generic[E]):
    """Pairs a string enum with the wire's; a number that this version does not know reads as UNSPECIFIED."""

    def __init__(self, enum: type[E], wire: Any, prefix: str) -> None:
        numbers: dict[str, int] = {name.removeprefix(prefix): number for name, number in wire.items()}
        self._enum = enum
        self._numbers = {member: numbers[member.value] for member in enum}
        self._members = {number: member for member, number in self._numbers.items()}

    def number(self, member: E | str) -> Any:
        return self._numbers[self._enum(member)]

    def member(self, number: int) -> E:
        return self._members.get(number) or self._enum("UNSPECIFIED")


PROMOTION_STATE: Final = _EnumCodec(model.PromotionState, promotion_pb2.PromotionState, "PROMOTION_STATE_")
PRIZE_KIND: Final = _EnumCodec(model.PrizeKind, prize_pb2.PrizeKind, "PRIZE_KIND_")
ROUNDING: Final = _EnumCodec(model.Rounding, prize_pb2.Rounding, "ROUNDING_")
REJECTION_REASON: Final = _EnumCodec(model.RejectionReason, prize_pb2.RejectionReason, "REJECTION_REASON_")
BATCH_MODE: Final = _EnumCodec(model.BatchMode, prize_pb2.BatchMode, "BATCH_MODE_")
ACCOUNT_KIND: Final = _EnumCodec(model.AccountKind, account_pb2.AccountKind, "ACCOUNT_KIND_")
TRANSFER_KIND: Final = _EnumCodec(model.TransferKind, account_pb2.TransferKind, "TRANSFER_KIND_")


# Towards the wire


def timestamp(value: datetime | None, name: str) -> Timestamp | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise TypeError(f"{name}: expected a datetime, got {type(value).__name__}")
    if value.tzinfo is None:
        raise TypeError(f"{name}: the datetime has no time zone; say which with tzinfo")
    stamp = Timestamp()
    stamp.FromDatetime(value.astimezone(UTC))
    return stamp


def attributes(values: Mapping[str, model.AttributeInput] | None) -> dict[str, types_pb2.AttributeValue] | None:
    if not values:
        return None
    return {name: _attribute(name, value) for name, value in values.items()}


def _attribute(name: str, value: model.AttributeInput) -> types_pb2.AttributeValue:
    if isinstance(value, bool):  # before int, of which bool is a subclass
        return types_pb2.AttributeValue(boolean=value)
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise ValueError(f"attributes[{name}]: {value} does not fit into 64 bits")
        return types_pb2.AttributeValue(integer=value)
    if isinstance(value, str):
        return types_pb2.AttributeValue(text=value)
    if isinstance(value, datetime):
        return types_pb2.AttributeValue(time=timestamp(value, f"attributes[{name}]"))
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return types_pb2.AttributeValue(list=types_pb2.AttributeList(values=value))
    raise TypeError(
        f"attributes[{name}]: expected int, str, bool, an aware datetime or a list of str, got {type(value).__name__}"
        + (" (money goes as an int in minor units)" if isinstance(value, float) else "")
    )


def budgets(values: Mapping[str, model.Capacity] | None) -> Iterable[promotion_pb2.Budget]:
    for asset, capacity in (values or {}).items():
        if capacity is model.UNLIMITED:
            yield promotion_pb2.Budget(asset=asset, unlimited=True)
        else:
            yield promotion_pb2.Budget(asset=asset, units=_units(capacity, f"budgets[{asset}]"))


def stock(capacity: model.Capacity) -> prize_pb2.Stock:
    if capacity is model.UNLIMITED:
        return prize_pb2.Stock(unlimited=True)
    return prize_pb2.Stock(units=_units(capacity, "stock"))


def _units(capacity: model.Capacity, name: str) -> int:
    if not isinstance(capacity, int) or isinstance(capacity, bool):
        raise TypeError(f"{name}: expected an int or UNLIMITED, got {capacity!r}")
    return capacity


def prize_value(value: model.PrizeValue | None) -> prize_pb2.PrizeValue | None:
    if value is None:
        return None
    if isinstance(value, model.FixedValue):
        return prize_pb2.PrizeValue(asset=value.asset, fixed_units=value.units)
    rate = prize_pb2.ValueRate(
        attribute=value.attribute,
        basis_points=value.basis_points,
        floor_units=value.floor_units,
        cap_units=value.cap_units,
        rounding=ROUNDING.number(value.rounding),
    )
    return prize_pb2.PrizeValue(asset=value.asset, rate=rate)


def validity(value: model.Validity | None) -> prize_pb2.Validity | None:
    if value is None:
        return None
    if isinstance(value, model.ValidDays):
        return prize_pb2.Validity(days=value.days)
    return prize_pb2.Validity(until=timestamp(value.at, "validity.until"))


def account_key(key: model.AccountKey) -> account_pb2.AccountKey:
    return account_pb2.AccountKey(
        kind=ACCOUNT_KIND.number(key.kind),
        user_id=key.user_id,
        promotion_id=key.promotion_id,
        prize_id=key.prize_id,
        asset=key.asset,
    )


def batch_item(item: model.BatchItem) -> prize_pb2.BatchItem:
    return prize_pb2.BatchItem(
        prize_id=item.prize_id,
        user_id=item.user_id,
        request_id=item.request_id,
        reference=item.reference,
        attributes=attributes(item.attributes),
    )


# From the wire


def instant(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def promotion(message: promotion_pb2.Promotion) -> model.Promotion:
    return model.Promotion(
        promotion_id=message.promotion_id,
        display_name=message.display_name,
        state=PROMOTION_STATE.member(message.state),
        starts_at=instant(message.starts_at) if message.HasField("starts_at") else None,
        ends_at=instant(message.ends_at) if message.HasField("ends_at") else None,
        entrance_ids=tuple(message.entrance_ids),
        budgets=tuple(budget(each) for each in message.budgets),
        etag=message.etag,
        created_at=instant(message.created_at),
        updated_at=instant(message.updated_at),
    )


def budget(message: promotion_pb2.Budget) -> model.Budget:
    return model.Budget(
        asset=message.asset,
        capacity=model.UNLIMITED if message.unlimited else message.units,
        spent_units=message.spent_units,
        remaining_units=message.remaining_units,
    )


def entrance(message: entrance_pb2.Entrance) -> model.Entrance:
    return model.Entrance(
        entrance_id=message.entrance_id,
        display_name=message.display_name,
        etag=message.etag,
        created_at=instant(message.created_at),
        updated_at=instant(message.updated_at),
    )


def entrance_promotion(message: entrance_pb2.EntrancePromotion) -> model.EntrancePromotion:
    return model.EntrancePromotion(
        promotion=promotion(message.promotion), prizes=tuple(_entrance_prize(each) for each in message.prizes)
    )


def _entrance_prize(message: entrance_pb2.EntrancePrize) -> model.EntrancePrize:
    return model.EntrancePrize(
        prize=prize(message.prize),
        available=message.available,
        unavailable_reason=None if message.available else REJECTION_REASON.member(message.unavailable_reason),
        user_granted_count=message.user_granted_count,
    )


def prize(message: prize_pb2.Prize) -> model.Prize:
    return model.Prize(
        prize_id=message.prize_id,
        promotion_id=message.promotion_id,
        display_name=message.display_name,
        kind=PRIZE_KIND.member(message.kind),
        value=_prize_value(message.value) if message.HasField("value") else None,
        stock=model.UNLIMITED if message.stock.unlimited else message.stock.units,
        limit_per_user=message.limit_per_user,
        validity=_validity(message.validity),
        etag=message.etag,
        created_at=instant(message.created_at),
        updated_at=instant(message.updated_at),
    )


def _prize_value(message: prize_pb2.PrizeValue) -> model.PrizeValue:
    if message.WhichOneof("rule") != "rate":
        return model.FixedValue(asset=message.asset, units=message.fixed_units)
    rate = message.rate
    return model.RateValue(
        asset=message.asset,
        attribute=rate.attribute,
        basis_points=rate.basis_points,
        floor_units=rate.floor_units if rate.HasField("floor_units") else None,
        cap_units=rate.cap_units if rate.HasField("cap_units") else None,
        rounding=ROUNDING.member(rate.rounding),
    )


def _validity(message: prize_pb2.Validity) -> model.Validity | None:
    rule = message.WhichOneof("rule")
    if rule is None:
        return None
    return model.ValidDays(message.days) if rule == "days" else model.ValidUntil(instant(message.until))


def prize_stock(message: prize_pb2.PrizeStock) -> model.PrizeStock:
    return model.PrizeStock(
        prize_id=message.prize_id,
        capacity=model.UNLIMITED if message.unlimited else message.units,
        issued_units=message.issued_units,
        remaining_units=message.remaining_units,
    )


def issuance(message: prize_pb2.Issuance) -> model.Issuance:
    return model.Issuance(
        issuance_id=message.issuance_id,
        promotion_id=message.promotion_id,
        entrance_id=message.entrance_id,
        prize_id=message.prize_id,
        user_id=message.user_id,
        request_id=message.request_id,
        reference=message.reference,
        principal=message.principal,
        kind=PRIZE_KIND.member(message.kind),
        value=model.Money(message.value.asset, message.value.units) if message.HasField("value") else None,
        issued_at=instant(message.issued_at),
        expires_at=instant(message.expires_at) if message.HasField("expires_at") else None,
    )


def issue_outcome(message: prize_pb2.IssuePrizeResponse | prize_pb2.BatchItemResult) -> model.IssueOutcome:
    outcome = message.WhichOneof("outcome")
    if outcome == "granted":
        return model.Granted(issuance(message.granted), message.replayed)
    if outcome == "rejected":
        return _rejected(message.rejected)
    # An outcome that this version does not know leaves the question open, which is what pending says.
    return model.PendingOutcome(message.pending.retry_after_ms)


def item_outcome(message: prize_pb2.BatchItemResult, *, outcome_open: bool = False) -> model.ItemOutcome:
    if message.WhichOneof("outcome") == "error":
        return model.ItemError(from_status(message.error, mutation=True, outcome_open=outcome_open))
    return issue_outcome(message)


def _rejected(message: prize_pb2.Rejection) -> model.Rejected:
    return model.Rejected(
        reason=REJECTION_REASON.member(message.reason),
        rule=message.rule,
        observed=message.observed,
        threshold=message.threshold,
        message=message.message,
    )


def issuance_state(message: prize_pb2.GetIssuanceResponse) -> model.IssuanceState:
    state = message.WhichOneof("state")
    if state == "granted":
        return issuance(message.granted)
    if state == "absent":
        return model.Absent(message.absent.cancelled)
    return model.PendingOutcome(message.pending.retry_after_ms)


def balance(message: account_pb2.Balance) -> model.Balance:
    return model.Balance(
        account=account_key_of(message.account),
        balance_units=message.balance_units,
        debits_units=message.debits_units,
        credits_units=message.credits_units,
    )


def account_key_of(message: account_pb2.AccountKey) -> model.AccountKey:
    return model.AccountKey(
        kind=ACCOUNT_KIND.member(message.kind),
        user_id=message.user_id,
        promotion_id=message.promotion_id,
        prize_id=message.prize_id,
        asset=message.asset,
    )


def entry(message: account_pb2.Entry) -> model.Entry:
    return model.Entry(
        transfer_id=message.transfer_id,
        kind=TRANSFER_KIND.member(message.kind),
        amount_units=message.amount_units,
        balance_units=message.balance_units,
        counterpart=account_key_of(message.counterpart),
        issuance_id=message.issuance_id,
        booked_at=instant(message.booked_at),
    )


def trial_balance(message: account_pb2.GetTrialBalanceResponse) -> model.TrialBalance:
    return model.TrialBalance(tuple(_trial_balance_line(line) for line in message.lines), message.balanced)


def _trial_balance_line(message: account_pb2.TrialBalanceLine) -> model.TrialBalanceLine:
    return model.TrialBalanceLine(
        asset=message.asset,
        kind=ACCOUNT_KIND.member(message.kind),
        account_count=message.account_count,
        debits_units=int(message.debits_units),
        credits_units=int(message.credits_units),
    )

"""Giving prizes: what is decided in which order, one by one and in batches, and what is booked."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from google.protobuf.message import Message

from guerdon import _rpcs as rpcs
from guerdon.fake import _catalog as catalog
from guerdon.fake import _validation as validation
from guerdon.fake._refusal import Refused, precondition, reused
from guerdon.fake._store import Grant, Store, page, sorted_by_id
from guerdon.fake._validation import UNITS_MAX, Fields
from guerdon.model import AccountKey, AccountKind, TransferKind
from guerdon.v1 import entrance_pb2, prize_pb2, promotion_pb2, types_pb2

Reason = prize_pb2.RejectionReason
_BATCH_ITEMS_MAX: Final = 1000
_PAYS_WALLET: Final = (prize_pb2.PRIZE_KIND_COIN, prize_pb2.PRIZE_KIND_CASHBACK)


@dataclass(frozen=True, slots=True)
class _Item:
    """One reward that is asked for, from a single request or from a batch; `path` leads the names of its fields."""

    promotion: promotion_pb2.Promotion
    entrance_id: str
    message: prize_pb2.IssuePrizeRequest | prize_pb2.BatchItem
    path: str

    @property
    def key(self) -> tuple[str, str]:
        return self.promotion.promotion_id, self.message.request_id


@dataclass(frozen=True, slots=True)
class _Intent:
    """What will be granted unless another item of the batch prevents it."""

    item: _Item
    prize: prize_pb2.Prize
    units: int
    basis: tuple[str, int] | None


@dataclass(slots=True)
class _Reserved:
    """What the earlier items of an all-or-nothing batch would take, and nobody has taken yet."""

    stock: Counter[str] = field(default_factory=Counter)
    budget: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, intent: _Intent) -> None:
        self.stock[intent.prize.prize_id] += 1
        self.budget[intent.prize.value.asset] += intent.units
        self.counts[intent.prize.prize_id, intent.item.message.user_id] += 1


_Decision: TypeAlias = prize_pb2.Rejection | Grant | _Intent


# Deciding


def _decide(store: Store, item: _Item, reserved: _Reserved) -> _Decision:
    """A grant of before is the answer for ever; then the prize, its state, its value, the limit, stock and budget."""
    request = item.message
    if item.key in store.grants:
        return _replay(store.grants[item.key], item)
    if item.key in store.cancelled:
        return _rejection(Reason.REJECTION_REASON_CANCELLED, "request", "the request was cancelled")
    _check_bound(store, item.promotion, item.entrance_id)
    prize = store.prize(request.prize_id)
    if prize.promotion_id != item.promotion.promotion_id:
        raise precondition("PRIZE_NOT_IN_PROMOTION", f"prize {prize.prize_id!r} belongs to another promotion")
    closed = _closed(item.promotion, store.now()) or _expired(prize, store.now())
    if closed is not None:
        return closed
    valued = _value(prize, item)
    if isinstance(valued, prize_pb2.Rejection):
        return valued
    intent = _Intent(item, prize, *valued)
    return _exhausted(store, intent, reserved) or intent


def _replay(grant: Grant, item: _Item) -> Grant:
    before, request = grant.issuance, item.message
    for name, value in (
        ("user_id", request.user_id),
        ("prize_id", request.prize_id),
        ("entrance_id", item.entrance_id),
    ):
        if getattr(before, name) != value:
            raise reused(request.request_id, name)
    if grant.basis is not None:
        attribute, integer = grant.basis
        if request.attributes.get(attribute) != types_pb2.AttributeValue(integer=integer):
            raise reused(request.request_id, f"attributes[{attribute}]")
    return grant


def _check_bound(store: Store, promotion: promotion_pb2.Promotion, entrance_id: str) -> None:
    if entrance_id not in promotion.entrance_ids:
        store.entrance(entrance_id)
        raise precondition("ENTRANCE_NOT_BOUND", f"the promotion is not bound to entrance {entrance_id!r}")


def _closed(promotion: promotion_pb2.Promotion, now: datetime) -> prize_pb2.Rejection | None:
    state = catalog.state_now(promotion, now)
    if state == catalog.ACTIVE:
        return None
    reason = {
        catalog.DRAFT: Reason.REJECTION_REASON_PROMOTION_NOT_STARTED,
        catalog.SCHEDULED: Reason.REJECTION_REASON_PROMOTION_NOT_STARTED,
        catalog.PAUSED: Reason.REJECTION_REASON_PROMOTION_PAUSED,
    }.get(state, Reason.REJECTION_REASON_PROMOTION_ENDED)
    name = promotion_pb2.PromotionState.Name(state).removeprefix("PROMOTION_STATE_")
    return _rejection(reason, f"promotions/{promotion.promotion_id}/state", f"the promotion is {name}", name, "ACTIVE")


def _expired(prize: prize_pb2.Prize, now: datetime) -> prize_pb2.Rejection | None:
    if prize.validity.WhichOneof("rule") != "until" or now < prize.validity.until.ToDatetime(UTC):
        return None
    return _rejection(
        Reason.REJECTION_REASON_VALIDITY_PASSED,
        f"prizes/{prize.prize_id}/validity",
        "a grant would be expired from the start",
        now.isoformat(),
        prize.validity.until.ToJsonString(),
    )


def _value(prize: prize_pb2.Prize, item: _Item) -> prize_pb2.Rejection | tuple[int, tuple[str, int] | None]:
    rule = prize.value.WhichOneof("rule")
    if rule != "rate":
        return prize.value.fixed_units, None
    rate = prize.value.rate
    path = f"prizes/{prize.prize_id}/value/rate"
    if rate.attribute not in item.message.attributes:
        text = f"the request lacks the attribute {rate.attribute}"
        return _rejection(Reason.REJECTION_REASON_ATTRIBUTE_MISSING, path, text, "", rate.attribute)
    attribute = item.message.attributes[rate.attribute]
    fields = Fields()
    integer = attribute.WhichOneof("kind") == "integer" and attribute.integer >= 0
    fields.check(integer, f"{item.path}attributes[{rate.attribute}]", "must be an integer of at least 0")
    fields.raise_if_any()
    units = _rated(rate, attribute.integer)
    if units == 0:
        text = f"the value of {attribute.integer} comes to zero"
        return _rejection(Reason.REJECTION_REASON_VALUE_ZERO, path, text, str(attribute.integer), "1")
    fields.check(units <= UNITS_MAX, f"{item.path}attributes[{rate.attribute}]", f"comes to more than {UNITS_MAX}")
    fields.raise_if_any()
    return units, (rate.attribute, attribute.integer)


def _rated(rate: prize_pb2.ValueRate, attribute: int) -> int:
    units, rest = divmod(attribute * rate.basis_points, 10_000)
    match rate.rounding:
        case prize_pb2.ROUNDING_HALF_UP:
            units += rest >= 5_000
        case prize_pb2.ROUNDING_HALF_EVEN:
            units += rest > 5_000 or (rest == 5_000 and units % 2 == 1)
        case prize_pb2.ROUNDING_UP:
            units += rest > 0
    if units and rate.HasField("floor_units"):
        units = max(units, rate.floor_units)
    return min(units, rate.cap_units) if rate.HasField("cap_units") else units


def _exhausted(store: Store, intent: _Intent, reserved: _Reserved) -> prize_pb2.Rejection | None:
    prize, user_id = intent.prize, intent.item.message.user_id
    count = store.granted_counts.get((prize.prize_id, user_id), 0) + reserved.counts[prize.prize_id, user_id]
    if prize.limit_per_user and count >= prize.limit_per_user:
        return _rejection(
            Reason.REJECTION_REASON_LIMIT_REACHED,
            f"prizes/{prize.prize_id}/limit_per_user",
            "the user has had as many as one may have",
            str(count),
            str(prize.limit_per_user),
        )
    stock = store.stocks[prize.prize_id]
    if not stock.can_give(reserved.stock[prize.prize_id] + 1):
        left = str(stock.remaining - reserved.stock[prize.prize_id])
        return _rejection(
            Reason.REJECTION_REASON_SOLD_OUT, f"prizes/{prize.prize_id}/stock", "no stock is left", left, "1"
        )
    if not intent.units:
        return None
    asset = prize.value.asset
    budget = store.budgets[prize.promotion_id, asset]
    if budget.can_give(reserved.budget[asset] + intent.units):
        return None
    return _rejection(
        Reason.REJECTION_REASON_BUDGET_EXHAUSTED,
        f"promotions/{prize.promotion_id}/budgets/{asset}",
        "the budget has less left than this grant is worth",
        str(budget.remaining - reserved.budget[asset]),
        str(intent.units),
    )


def _rejection(
    reason: Reason.ValueType, rule: str, message: str, observed: str = "", threshold: str = ""
) -> prize_pb2.Rejection:
    return prize_pb2.Rejection(reason=reason, rule=rule, observed=observed, threshold=threshold, message=message)


# Booking


def _grant(store: Store, intent: _Intent) -> Grant:
    request, prize = intent.item.message, intent.prize
    issuance = prize_pb2.Issuance(
        issuance_id=f"i-{len(store.issuances) + 1:09}",
        promotion_id=prize.promotion_id,
        entrance_id=intent.item.entrance_id,
        prize_id=prize.prize_id,
        user_id=request.user_id,
        request_id=request.request_id,
        reference=request.reference,
        principal=store.principal,
        kind=prize.kind,
        issued_at=store.stamp(),
    )
    if prize.HasField("validity"):
        issuance.expires_at.CopyFrom(prize.validity.until)
        if prize.validity.WhichOneof("rule") == "days":
            issuance.expires_at.FromDatetime(issuance.issued_at.ToDatetime(UTC) + timedelta(days=prize.validity.days))
    if intent.units:
        issuance.value.CopyFrom(types_pb2.Money(asset=prize.value.asset, units=intent.units))
    grant = Grant(issuance, intent.basis)
    store.grants[intent.item.key] = grant
    store.issuances[issuance.issuance_id] = issuance
    _book(store, issuance)
    return grant


def _book(store: Store, issuance: prize_pb2.Issuance) -> None:
    prize_id, user_id = issuance.prize_id, issuance.user_id
    store.stocks[prize_id].used += 1
    store.granted_counts[prize_id, user_id] = store.granted_counts.get((prize_id, user_id), 0) + 1
    store.transfer(
        TransferKind.ISSUE_UNIT,
        debit=AccountKey(AccountKind.STOCK, prize_id=prize_id),
        credit=AccountKey(AccountKind.HOLDING, user_id=user_id, prize_id=prize_id),
        units=1,
        issuance_id=issuance.issuance_id,
    )
    if not issuance.HasField("value"):
        return
    promotion_id, asset = issuance.promotion_id, issuance.value.asset
    store.budgets[promotion_id, asset].used += issuance.value.units
    to = AccountKey(AccountKind.LIABILITY, promotion_id=promotion_id, asset=asset)
    if issuance.kind in _PAYS_WALLET:
        to = AccountKey(AccountKind.WALLET, user_id=user_id, asset=asset)
    store.transfer(
        TransferKind.ISSUE_VALUE,
        debit=AccountKey(AccountKind.BUDGET, promotion_id=promotion_id, asset=asset),
        credit=to,
        units=issuance.value.units,
        issuance_id=issuance.issuance_id,
    )


# The calls


def _issue_prize(store: Store, request: prize_pb2.IssuePrizeRequest) -> Message:
    fields = Fields()
    fields.id(request.promotion_id, "promotion_id")
    fields.id(request.entrance_id, "entrance_id")
    validation.item(fields, request)
    fields.raise_if_any()
    item = _Item(store.promotion(request.promotion_id), request.entrance_id, request, "")
    decision = _decide(store, item, _Reserved())
    match decision:
        case prize_pb2.Rejection():
            return prize_pb2.IssuePrizeResponse(rejected=decision)
        case Grant():
            return prize_pb2.IssuePrizeResponse(granted=decision.issuance, replayed=True)
        case _:
            return prize_pb2.IssuePrizeResponse(granted=_grant(store, decision).issuance)


def _batch_issue_prizes(store: Store, request: prize_pb2.BatchIssuePrizesRequest) -> Message:
    _check_batch(request)
    promotion = store.promotion(request.promotion_id)
    if any((request.promotion_id, item.request_id) not in store.grants for item in request.items):
        _check_bound(store, promotion, request.entrance_id)  # what was granted is replayed all the same
    if request.mode == prize_pb2.BATCH_MODE_ALL_OR_NOTHING:
        results = _all_or_nothing(store, promotion, request)
    else:
        results = [_per_item(store, promotion, request, i) for i in range(len(request.items))]
    return prize_pb2.BatchIssuePrizesResponse(results=results)


def _check_batch(request: prize_pb2.BatchIssuePrizesRequest) -> None:
    fields = Fields()
    fields.id(request.promotion_id, "promotion_id")
    fields.id(request.entrance_id, "entrance_id")
    known = request.mode in prize_pb2.BatchMode.values() and request.mode != 0
    fields.check(known, "mode", "must be known")
    fields.between(len(request.items), 1, _BATCH_ITEMS_MAX, "items")
    seen: set[str] = set()
    for i, item in enumerate(request.items):
        fields.check(not item.request_id or item.request_id not in seen, f"items[{i}].request_id", "occurs twice")
        seen.add(item.request_id)
    fields.raise_if_any()


def _decide_item(
    store: Store,
    promotion: promotion_pb2.Promotion,
    request: prize_pb2.BatchIssuePrizesRequest,
    index: int,
    reserved: _Reserved,
) -> _Decision:
    item = _Item(promotion, request.entrance_id, request.items[index], f"items[{index}].")
    fields = Fields()
    validation.item(fields, item.message, item.path)
    fields.raise_if_any()
    return _decide(store, item, reserved)


def _per_item(
    store: Store, promotion: promotion_pb2.Promotion, request: prize_pb2.BatchIssuePrizesRequest, index: int
) -> prize_pb2.BatchItemResult:
    try:
        decision = _decide_item(store, promotion, request, index, _Reserved())
    except Refused as refused:
        return _item_refused(refused)
    return _item_result(_grant(store, decision) if isinstance(decision, _Intent) else decision, decision)


def _all_or_nothing(
    store: Store, promotion: promotion_pb2.Promotion, request: prize_pb2.BatchIssuePrizesRequest
) -> list[prize_pb2.BatchItemResult]:
    reserved = _Reserved()
    decisions: list[_Decision | Refused] = []
    for index in range(len(request.items)):
        try:
            decision: _Decision | Refused = _decide_item(store, promotion, request, index, reserved)
        except Refused as refused:
            decision = refused
        if isinstance(decision, _Intent):
            reserved.add(decision)
        decisions.append(decision)
    failed = any(isinstance(each, Refused | prize_pb2.Rejection) for each in decisions)
    not_granted = _rejection(
        Reason.REJECTION_REASON_BATCH_NOT_GRANTED, "batch", "another item of the batch was not granted"
    )
    results = []
    for each in decisions:
        if isinstance(each, Refused):
            results.append(_item_refused(each))
        elif isinstance(each, _Intent):
            results.append(_item_result(not_granted if failed else _grant(store, each), each))
        else:
            results.append(_item_result(each, each))
    return results


def _item_refused(refused: Refused) -> prize_pb2.BatchItemResult:
    return prize_pb2.BatchItemResult(error=refused.status)


def _item_result(outcome: prize_pb2.Rejection | Grant, decision: _Decision) -> prize_pb2.BatchItemResult:
    if isinstance(outcome, Grant):
        return prize_pb2.BatchItemResult(granted=outcome.issuance, replayed=isinstance(decision, Grant))
    return prize_pb2.BatchItemResult(rejected=outcome)


def _get_issuance(store: Store, request: prize_pb2.GetIssuanceRequest) -> Message:
    key = request.WhichOneof("key")
    fields = Fields()
    fields.check(key is not None, "key", "must have issuance_id or request")
    if key == "issuance_id":
        fields.id(request.issuance_id, "issuance_id")
        fields.check(not request.cancel_if_absent, "cancel_if_absent", "needs a request key")
    if key == "request":
        fields.id(request.request.promotion_id, "request.promotion_id")
        fields.id(request.request.request_id, "request.request_id")
    fields.raise_if_any()
    if key == "issuance_id":
        found = store.issuances.get(request.issuance_id)
        return _state(found, cancelled=False)
    store.promotion(request.request.promotion_id)
    pair = (request.request.promotion_id, request.request.request_id)
    grant = store.grants.get(pair)
    if grant is None and request.cancel_if_absent:
        store.cancelled.add(pair)
    return _state(grant.issuance if grant else None, cancelled=pair in store.cancelled)


def _state(found: prize_pb2.Issuance | None, *, cancelled: bool) -> prize_pb2.GetIssuanceResponse:
    if found is not None:
        return prize_pb2.GetIssuanceResponse(granted=found)
    return prize_pb2.GetIssuanceResponse(absent=prize_pb2.Absent(cancelled=cancelled))


def _list_issuances(store: Store, request: prize_pb2.ListIssuancesRequest) -> Message:
    name = request.WhichOneof("filter")
    fields = Fields()
    validation.page_size(fields, request.page_size)
    fields.check(name is not None, "filter", "must be one of user_id, promotion_id, reference")
    if name is not None:
        fields.id(getattr(request, name), name)
    fields.raise_if_any()
    assert name is not None
    wanted = getattr(request, name)
    if name == "promotion_id":
        store.promotion(wanted)
    newest_first = [each for each in reversed(store.issuances.values()) if getattr(each, name) == wanted]
    items, token = page(newest_first, request.page_size, request.page_token)
    return prize_pb2.ListIssuancesResponse(issuances=items, next_page_token=token)


def _list_entrance_promotions(store: Store, request: entrance_pb2.ListEntrancePromotionsRequest) -> Message:
    fields = Fields()
    fields.id(request.entrance_id, "entrance_id")
    fields.optional_id(request.user_id, "user_id")
    validation.page_size(fields, request.page_size, 100)
    fields.raise_if_any()
    store.entrance(request.entrance_id)
    live = [
        _live_promotion(store, promotion, request)
        for promotion in sorted_by_id(store.promotions)
        if request.entrance_id in promotion.entrance_ids and _closed(promotion, store.now()) is None
    ]
    items, token = page(live, request.page_size, request.page_token, default=50)
    return entrance_pb2.ListEntrancePromotionsResponse(promotions=items, next_page_token=token)


def _live_promotion(
    store: Store, promotion: promotion_pb2.Promotion, request: entrance_pb2.ListEntrancePromotionsRequest
) -> entrance_pb2.EntrancePromotion:
    prizes = [each for each in sorted_by_id(store.prizes) if each.promotion_id == promotion.promotion_id]
    return entrance_pb2.EntrancePromotion(
        promotion=catalog.shown_promotion(store, promotion),
        prizes=[_live_prize(store, promotion, prize, request) for prize in prizes],
    )


def _live_prize(
    store: Store,
    promotion: promotion_pb2.Promotion,
    prize: prize_pb2.Prize,
    request: entrance_pb2.ListEntrancePromotionsRequest,
) -> entrance_pb2.EntrancePrize:
    # What a rate is worth depends on the request to come: the least that it can be is what the budget must have.
    units = prize.value.fixed_units or int(prize.HasField("value"))
    message = prize_pb2.BatchItem(prize_id=prize.prize_id, user_id=request.user_id)
    intent = _Intent(_Item(promotion, request.entrance_id, message, ""), prize, units, None)
    against = _expired(prize, store.now()) or _exhausted(store, intent, _Reserved())
    shown = entrance_pb2.EntrancePrize(prize=prize, available=against is None)
    if against is not None:
        shown.unavailable_reason = against.reason
    shown.user_granted_count = store.granted_counts.get((prize.prize_id, request.user_id), 0)
    return shown


HANDLERS: Final[Mapping[str, Callable[[Store, Any], Message]]] = {
    rpcs.ISSUE_PRIZE.path: _issue_prize,
    rpcs.BATCH_ISSUE_PRIZES.path: _batch_issue_prizes,
    rpcs.GET_ISSUANCE.path: _get_issuance,
    rpcs.LIST_ISSUANCES.path: _list_issuances,
    rpcs.LIST_ENTRANCE_PROMOTIONS.path: _list_entrance_promotions,
}

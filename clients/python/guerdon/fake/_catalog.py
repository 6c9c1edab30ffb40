"""Promotions, entrances and prizes: what an operator sets up, and the state that they are in now."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.message import Message

from guerdon import _rpcs as rpcs
from guerdon.fake import _validation as validation
from guerdon.fake._refusal import exists, precondition
from guerdon.fake._store import Pool, Store, check_etag, page, sorted_by_id, touch
from guerdon.fake._validation import UNITS_MAX, Fields
from guerdon.model import AccountKey, AccountKind, TransferKind
from guerdon.v1 import entrance_pb2, prize_pb2, promotion_pb2

State = promotion_pb2.PromotionState
DRAFT: Final = promotion_pb2.PROMOTION_STATE_DRAFT
SCHEDULED: Final = promotion_pb2.PROMOTION_STATE_SCHEDULED
ACTIVE: Final = promotion_pb2.PROMOTION_STATE_ACTIVE
PAUSED: Final = promotion_pb2.PROMOTION_STATE_PAUSED
ENDED: Final = promotion_pb2.PROMOTION_STATE_ENDED
ARCHIVED: Final = promotion_pb2.PROMOTION_STATE_ARCHIVED

_REACHABLE: Final[Mapping[State.ValueType, frozenset[State.ValueType]]] = {
    DRAFT: frozenset({SCHEDULED, ARCHIVED}),
    SCHEDULED: frozenset({ACTIVE, ENDED}),
    ACTIVE: frozenset({PAUSED, ENDED}),
    PAUSED: frozenset({ACTIVE, ENDED}),
    ENDED: frozenset({ARCHIVED}),
    ARCHIVED: frozenset(),
}


def state_now(promotion: promotion_pb2.Promotion, now: datetime) -> State.ValueType:
    """The stored state after starts_at and ends_at have acted."""
    if promotion.state not in (SCHEDULED, ACTIVE, PAUSED):
        return promotion.state
    if promotion.HasField("ends_at") and now >= promotion.ends_at.ToDatetime(UTC):
        return ENDED
    if promotion.state == SCHEDULED and not (
        promotion.HasField("starts_at") and now < promotion.starts_at.ToDatetime(UTC)
    ):
        return ACTIVE
    return promotion.state


# Promotions


def shown_promotion(store: Store, promotion: promotion_pb2.Promotion) -> promotion_pb2.Promotion:
    shown = promotion_pb2.Promotion()
    shown.CopyFrom(promotion)
    shown.state = state_now(promotion, store.now())
    shown.budgets.extend(
        _shown_budget(store, promotion_id, asset)
        for promotion_id, asset in sorted(store.budgets)
        if promotion_id == promotion.promotion_id
    )
    return shown


def _shown_budget(store: Store, promotion_id: str, asset: str) -> promotion_pb2.Budget:
    pool = store.budgets[promotion_id, asset]
    shown = promotion_pb2.Budget(asset=asset, spent_units=pool.used, remaining_units=pool.remaining)
    if pool.capacity is None:
        shown.unlimited = True
    else:
        shown.units = pool.capacity
    return shown


def _create_promotion(store: Store, request: promotion_pb2.CreatePromotionRequest) -> Message:
    given = request.promotion
    fields = Fields()
    fields.id(request.request_id, "request_id")
    validation.promotion(fields, given)
    fields.raise_if_any()
    if not store.replayed(request):
        if given.promotion_id in store.promotions:
            raise exists("PROMOTION", given.promotion_id)
        for entrance_id in given.entrance_ids:
            store.entrance(entrance_id)
        kept = promotion_pb2.Promotion()
        kept.CopyFrom(given)
        kept.state = DRAFT
        for field in ("budgets", "etag", "created_at", "updated_at"):
            kept.ClearField(field)
        touch(store, kept)
        store.promotions[kept.promotion_id] = kept
        for budget in given.budgets:
            limited = budget.WhichOneof("capacity") == "units"
            store.budgets[kept.promotion_id, budget.asset] = Pool(0 if limited else None)
            _fund(store, kept.promotion_id, budget.asset, budget.units, TransferKind.BUDGET_INITIAL)
        store.applied(request)
    return shown_promotion(store, store.promotion(given.promotion_id))


def _fund(store: Store, promotion_id: str, asset: str, units: int, kind: TransferKind) -> None:
    pool = store.budgets[promotion_id, asset]
    if pool.capacity is None:
        return
    pool.capacity += units
    store.transfer(
        kind,
        debit=AccountKey(AccountKind.BUDGET_SOURCE, promotion_id=promotion_id, asset=asset),
        credit=AccountKey(AccountKind.BUDGET, promotion_id=promotion_id, asset=asset),
        units=units,
    )


def _get_promotion(store: Store, request: promotion_pb2.GetPromotionRequest) -> Message:
    _require_id(request.promotion_id, "promotion_id")
    return shown_promotion(store, store.promotion(request.promotion_id))


def _update_promotion(store: Store, request: promotion_pb2.UpdatePromotionRequest) -> Message:
    given = request.promotion
    fields = Fields()
    fields.id(request.request_id, "request_id")
    fields.id(given.promotion_id, "promotion.promotion_id")
    fields.mask(request.update_mask.paths, ("display_name", "starts_at", "ends_at", "entrance_ids"))
    fields.display_name(given.display_name, "promotion.display_name")
    fields.raise_if_any()
    kept = store.promotion(given.promotion_id)
    if not store.replayed(request):
        check_etag(given.etag, kept.etag)
        changed = promotion_pb2.Promotion()
        changed.CopyFrom(kept)
        _merge(changed, given, request.update_mask.paths)
        validation.window(fields, changed)
        fields.raise_if_any()
        for entrance_id in changed.entrance_ids:
            store.entrance(entrance_id)
        touch(store, changed)
        store.promotions[changed.promotion_id] = changed
        store.applied(request)
    return shown_promotion(store, store.promotion(given.promotion_id))


def _merge(kept: Any, given: Any, paths: Any) -> None:
    for path in paths:
        *parents, last = path.split(".")
        target, source = kept, given
        for parent in parents:
            target, source = getattr(target, parent), getattr(source, parent)
        target.ClearField(last)
        partial = type(source)()
        partial.CopyFrom(source)
        for descriptor, _ in source.ListFields():
            if descriptor.name != last:
                partial.ClearField(descriptor.name)
        target.MergeFrom(partial)


def _list_promotions(store: Store, request: promotion_pb2.ListPromotionsRequest) -> Message:
    _require_page(request.page_size)
    shown = [shown_promotion(store, each) for each in sorted_by_id(store.promotions)]
    wanted = [each for each in shown if (each.state in request.states if request.states else each.state != ARCHIVED)]
    items, token = page(wanted, request.page_size, request.page_token)
    return promotion_pb2.ListPromotionsResponse(promotions=items, next_page_token=token)


def _transition_promotion(store: Store, request: promotion_pb2.TransitionPromotionRequest) -> Message:
    fields = Fields()
    fields.id(request.promotion_id, "promotion_id")
    fields.id(request.request_id, "request_id")
    fields.check(request.target_state in _REACHABLE, "target_state", "must be known")
    fields.raise_if_any()
    kept = store.promotion(request.promotion_id)
    if not store.replayed(request):
        check_etag(request.etag, kept.etag)
        now = state_now(kept, store.now())
        if request.target_state != now:
            _move(store, kept, now, request.target_state)
        store.applied(request)
    return shown_promotion(store, kept)


def _move(store: Store, kept: promotion_pb2.Promotion, now: State.ValueType, target: State.ValueType) -> None:
    if target not in _REACHABLE[now]:
        names = [State.Name(each).removeprefix("PROMOTION_STATE_") for each in sorted(_REACHABLE[now])]
        raise precondition(
            "TRANSITION_NOT_ALLOWED",
            f"from {State.Name(now)} the promotion can go to: {', '.join(names) or 'no other state'}",
            reachable_states=", ".join(names) or "none",
        )
    if now == SCHEDULED and target == ACTIVE:
        kept.starts_at.CopyFrom(store.stamp())
    kept.state = target
    touch(store, kept)


def _adjust_promotion_budget(store: Store, request: promotion_pb2.AdjustPromotionBudgetRequest) -> Message:
    fields = Fields()
    fields.id(request.promotion_id, "promotion_id")
    fields.asset(request.asset, "asset")
    fields.delta(request.delta_units)
    fields.id(request.request_id, "request_id")
    fields.raise_if_any()
    store.promotion(request.promotion_id)
    replayed = store.replayed(request)
    if not replayed:
        key = (request.promotion_id, request.asset)
        pool = store.budgets.get(key) or Pool(0)
        _check_adjustment(pool, request.delta_units, "BUDGET_INSUFFICIENT")
        store.budgets[key] = pool
        kind = TransferKind.BUDGET_TOP_UP if request.delta_units > 0 else TransferKind.BUDGET_RECALL
        _fund(store, *key, request.delta_units, kind)
        store.applied(request)
    budget = _shown_budget(store, request.promotion_id, request.asset)
    return promotion_pb2.AdjustPromotionBudgetResponse(budget=budget, replayed=replayed)


def _check_adjustment(pool: Pool, delta_units: int, insufficient: str) -> None:
    if pool.capacity is None:
        raise precondition("CAPACITY_UNLIMITED", "what is unlimited can't be adjusted")
    if pool.remaining + delta_units < 0:
        raise precondition(insufficient, f"{pool.remaining} units are left", remaining_units=str(pool.remaining))
    fields = Fields()
    fields.check(pool.capacity + delta_units <= UNITS_MAX, "delta_units", f"the capacity would pass {UNITS_MAX}")
    fields.raise_if_any()


# Entrances


def _create_entrance(store: Store, request: entrance_pb2.CreateEntranceRequest) -> Message:
    given = request.entrance
    fields = Fields()
    fields.id(request.request_id, "request_id")
    fields.id(given.entrance_id, "entrance.entrance_id")
    fields.display_name(given.display_name, "entrance.display_name")
    fields.raise_if_any()
    if not store.replayed(request):
        if given.entrance_id in store.entrances:
            raise exists("ENTRANCE", given.entrance_id)
        kept = entrance_pb2.Entrance(entrance_id=given.entrance_id, display_name=given.display_name)
        touch(store, kept)
        store.entrances[kept.entrance_id] = kept
        store.applied(request)
    return store.entrance(given.entrance_id)


def _get_entrance(store: Store, request: entrance_pb2.GetEntranceRequest) -> Message:
    _require_id(request.entrance_id, "entrance_id")
    return store.entrance(request.entrance_id)


def _update_entrance(store: Store, request: entrance_pb2.UpdateEntranceRequest) -> Message:
    given = request.entrance
    fields = Fields()
    fields.id(request.request_id, "request_id")
    fields.id(given.entrance_id, "entrance.entrance_id")
    fields.mask(request.update_mask.paths, ("display_name",))
    fields.display_name(given.display_name, "entrance.display_name")
    fields.raise_if_any()
    kept = store.entrance(given.entrance_id)
    if not store.replayed(request):
        check_etag(given.etag, kept.etag)
        _merge(kept, given, request.update_mask.paths)
        touch(store, kept)
        store.applied(request)
    return kept


def _list_entrances(store: Store, request: entrance_pb2.ListEntrancesRequest) -> Message:
    _require_page(request.page_size)
    items, token = page(sorted_by_id(store.entrances), request.page_size, request.page_token)
    return entrance_pb2.ListEntrancesResponse(entrances=items, next_page_token=token)


# Prizes


def _create_prize(store: Store, request: prize_pb2.CreatePrizeRequest) -> Message:
    given = request.prize
    fields = Fields()
    fields.id(request.request_id, "request_id")
    validation.prize(fields, given)
    fields.raise_if_any()
    if not store.replayed(request):
        store.promotion(given.promotion_id)
        if given.prize_id in store.prizes:
            raise exists("PRIZE", given.prize_id)
        if given.HasField("value") and (given.promotion_id, given.value.asset) not in store.budgets:
            raise precondition("BUDGET_MISSING", f"the promotion has no budget in {given.value.asset}")
        kept = prize_pb2.Prize()
        kept.CopyFrom(given)
        for field in ("etag", "created_at", "updated_at"):
            kept.ClearField(field)
        touch(store, kept)
        store.prizes[kept.prize_id] = kept
        store.stocks[kept.prize_id] = Pool(0 if kept.stock.WhichOneof("capacity") == "units" else None)
        _stock_up(store, kept.prize_id, kept.stock.units, TransferKind.STOCK_INITIAL)
        store.applied(request)
    return store.prize(given.prize_id)


def _stock_up(store: Store, prize_id: str, units: int, kind: TransferKind) -> None:
    pool = store.stocks[prize_id]
    if pool.capacity is None:
        return
    pool.capacity += units
    store.transfer(
        kind,
        debit=AccountKey(AccountKind.STOCK_SOURCE, prize_id=prize_id),
        credit=AccountKey(AccountKind.STOCK, prize_id=prize_id),
        units=units,
    )


def _get_prize(store: Store, request: prize_pb2.GetPrizeRequest) -> Message:
    _require_id(request.prize_id, "prize_id")
    return store.prize(request.prize_id)


def _update_prize(store: Store, request: prize_pb2.UpdatePrizeRequest) -> Message:
    given = request.prize
    allowed = ("display_name", "value.fixed_units", "value.rate", "limit_per_user", "validity")
    fields = Fields()
    fields.id(request.request_id, "request_id")
    fields.id(given.prize_id, "prize.prize_id")
    fields.mask(request.update_mask.paths, allowed)
    fields.raise_if_any()
    kept = store.prize(given.prize_id)
    if not store.replayed(request):
        check_etag(given.etag, kept.etag)
        changed = prize_pb2.Prize()
        changed.CopyFrom(kept)
        _merge(changed, given, request.update_mask.paths)
        if given.value.asset and given.value.asset != kept.value.asset:
            fields.check(False, "prize.value.asset", "can't be changed")
        validation.terms(fields, changed)
        fields.raise_if_any()
        touch(store, changed)
        store.prizes[changed.prize_id] = changed
        store.applied(request)
    return store.prize(given.prize_id)


def _list_prizes(store: Store, request: prize_pb2.ListPrizesRequest) -> Message:
    _require_page(request.page_size)
    wanted = sorted_by_id(store.prizes)
    if request.promotion_id:
        _require_id(request.promotion_id, "promotion_id")
        store.promotion(request.promotion_id)
        wanted = [each for each in wanted if each.promotion_id == request.promotion_id]
    items, token = page(wanted, request.page_size, request.page_token)
    return prize_pb2.ListPrizesResponse(prizes=items, next_page_token=token)


def _adjust_prize_stock(store: Store, request: prize_pb2.AdjustPrizeStockRequest) -> Message:
    fields = Fields()
    fields.id(request.prize_id, "prize_id")
    fields.delta(request.delta_units)
    fields.id(request.request_id, "request_id")
    fields.raise_if_any()
    store.prize(request.prize_id)
    replayed = store.replayed(request)
    if not replayed:
        _check_adjustment(store.stocks[request.prize_id], request.delta_units, "STOCK_INSUFFICIENT")
        kind = TransferKind.STOCK_TOP_UP if request.delta_units > 0 else TransferKind.STOCK_RECALL
        _stock_up(store, request.prize_id, request.delta_units, kind)
        store.applied(request)
    return prize_pb2.AdjustPrizeStockResponse(stock=_shown_stock(store, request.prize_id), replayed=replayed)


def _get_prize_stock(store: Store, request: prize_pb2.GetPrizeStockRequest) -> Message:
    _require_id(request.prize_id, "prize_id")
    store.prize(request.prize_id)
    return _shown_stock(store, request.prize_id)


def _shown_stock(store: Store, prize_id: str) -> prize_pb2.PrizeStock:
    pool = store.stocks[prize_id]
    shown = prize_pb2.PrizeStock(prize_id=prize_id, issued_units=pool.used, remaining_units=pool.remaining)
    if pool.capacity is None:
        shown.unlimited = True
    else:
        shown.units = pool.capacity
    return shown


def _require_id(value: str, field: str) -> None:
    fields = Fields()
    fields.id(value, field)
    fields.raise_if_any()


def _require_page(size: int) -> None:
    fields = Fields()
    validation.page_size(fields, size)
    fields.raise_if_any()


HANDLERS: Final[Mapping[str, Callable[[Store, Any], Message]]] = {
    rpcs.CREATE_PROMOTION.path: _create_promotion,
    rpcs.GET_PROMOTION.path: _get_promotion,
    rpcs.UPDATE_PROMOTION.path: _update_promotion,
    rpcs.LIST_PROMOTIONS.path: _list_promotions,
    rpcs.TRANSITION_PROMOTION.path: _transition_promotion,
    rpcs.ADJUST_PROMOTION_BUDGET.path: _adjust_promotion_budget,
    rpcs.CREATE_ENTRANCE.path: _create_entrance,
    rpcs.GET_ENTRANCE.path: _get_entrance,
    rpcs.UPDATE_ENTRANCE.path: _update_entrance,
    rpcs.LIST_ENTRANCES.path: _list_entrances,
    rpcs.CREATE_PRIZE.path: _create_prize,
    rpcs.GET_PRIZE.path: _get_prize,
    rpcs.UPDATE_PRIZE.path: _update_prize,
    rpcs.LIST_PRIZES.path: _list_prizes,
    rpcs.ADJUST_PRIZE_STOCK.path: _adjust_prize_stock,
    rpcs.GET_PRIZE_STOCK.path: _get_prize_stock,
}

"""PromotionService on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from guerdon.v1 import promotion_pb2
from guerdon_server.core.ledger.postgres.operations import Caller
from guerdon_server.core.promotion.model import (
    Budget,
    BudgetDelta,
    NewBudget,
    NewPromotion,
    Promotion,
    PromotionState,
    PromotionUpdate,
    Transition,
)
from guerdon_server.core.promotion.rules import BUDGETS_MAX
from guerdon_server.core.promotion.service import PromotionService
from guerdon_server.platform.errors import Violation
from guerdon_server.rpc.paging import cut, decode_id, encode_token
from guerdon_server.rpc.validation import (
    check_asset,
    check_capacity,
    check_delta,
    check_display_name,
    check_enum,
    check_etag,
    check_id,
    check_mask,
    check_optional_instant,
    check_page_size,
    refuse,
    to_timestamp,
)

_PATHS: Final = ("display_name", "starts_at", "ends_at", "entrance_ids")
_ENTRANCES_MAX: Final = 100


class PromotionServicer:
    """Methods of PromotionService: request and principal to response; refusals are ServiceError."""

    def __init__(self, promotions: PromotionService) -> None:
        self._promotions = promotions

    async def CreatePromotion(
        self, request: promotion_pb2.CreatePromotionRequest, principal: str
    ) -> promotion_pb2.Promotion:
        """A draft with its budgets."""
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        new = _new_promotion(violations, request.promotion)
        refuse(violations)
        return promotion_to_wire(await self._promotions.create(new, Caller(request.request_id, principal)))

    async def GetPromotion(self, request: promotion_pb2.GetPromotionRequest, principal: str) -> promotion_pb2.Promotion:
        """One promotion as it is now."""
        violations: list[Violation] = []
        check_id(violations, "promotion_id", request.promotion_id)
        refuse(violations)
        return promotion_to_wire(await self._promotions.get(request.promotion_id))

    async def UpdatePromotion(
        self, request: promotion_pb2.UpdatePromotionRequest, principal: str
    ) -> promotion_pb2.Promotion:
        """Changes what the mask names."""
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        update = _update(violations, request)
        refuse(violations)
        return promotion_to_wire(await self._promotions.update(update, Caller(request.request_id, principal)))

    async def ListPromotions(
        self, request: promotion_pb2.ListPromotionsRequest, principal: str
    ) -> promotion_pb2.ListPromotionsResponse:
        """By id, of the states that are asked for."""
        violations: list[Violation] = []
        size = check_page_size(violations, request.page_size)
        states = _states(violations, request.states)
        scope = ("ListPromotions", *(state.name for state in states))
        after = decode_id(violations, request.page_token, scope)
        refuse(violations)
        page, last = cut(await self._promotions.page(states, after=after, limit=size + 1), size)
        return promotion_pb2.ListPromotionsResponse(
            promotions=map(promotion_to_wire, page),
            next_page_token=encode_token(scope, [last.promotion_id]) if last else "",
        )

    async def TransitionPromotion(
        self, request: promotion_pb2.TransitionPromotionRequest, principal: str
    ) -> promotion_pb2.Promotion:
        """Moves it to another state."""
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        check_id(violations, "promotion_id", request.promotion_id)
        check_etag(violations, "etag", request.etag)
        target = check_enum(violations, "target_state", request.target_state, PromotionState)
        refuse(violations)
        transition = Transition(request.promotion_id, target, request.etag)
        return promotion_to_wire(await self._promotions.transition(transition, Caller(request.request_id, principal)))

    async def AdjustPromotionBudget(
        self, request: promotion_pb2.AdjustPromotionBudgetRequest, principal: str
    ) -> promotion_pb2.AdjustPromotionBudgetResponse:
        """Tops up or recalls."""
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        check_id(violations, "promotion_id", request.promotion_id)
        check_asset(violations, "asset", request.asset)
        check_delta(violations, "delta_units", request.delta_units)
        refuse(violations)
        delta = BudgetDelta(request.promotion_id, request.asset, request.delta_units)
        budget, replayed = await self._promotions.adjust_budget(delta, Caller(request.request_id, principal))
        return promotion_pb2.AdjustPromotionBudgetResponse(budget=_budget_to_wire(budget), replayed=replayed)


def _new_promotion(violations: list[Violation], wire: promotion_pb2.Promotion) -> NewPromotion:
    check_id(violations, "promotion.promotion_id", wire.promotion_id)
    check_display_name(violations, "promotion.display_name", wire.display_name)
    start = wire.starts_at if wire.HasField("starts_at") else None
    end = wire.ends_at if wire.HasField("ends_at") else None
    starts_at = check_optional_instant(violations, "promotion.starts_at", start)
    ends_at = check_optional_instant(violations, "promotion.ends_at", end)
    if starts_at is not None and ends_at is not None and starts_at >= ends_at:
        violations.append(Violation("promotion.ends_at", "must be after starts_at"))
    return NewPromotion(
        promotion_id=wire.promotion_id,
        display_name=wire.display_name,
        starts_at=starts_at,
        ends_at=ends_at,
        entrance_ids=_entrance_ids(violations, wire.entrance_ids),
        budgets=_budgets(violations, wire.budgets),
    )


def _update(violations: list[Violation], request: promotion_pb2.UpdatePromotionRequest) -> PromotionUpdate:
    wire = request.promotion
    check_id(violations, "promotion.promotion_id", wire.promotion_id)
    check_etag(violations, "promotion.etag", wire.etag)
    mask = check_mask(violations, request.update_mask, _PATHS)
    if "display_name" in mask:
        check_display_name(violations, "promotion.display_name", wire.display_name)
    starts_at = wire.starts_at if "starts_at" in mask and wire.HasField("starts_at") else None
    ends_at = wire.ends_at if "ends_at" in mask and wire.HasField("ends_at") else None
    return PromotionUpdate(
        promotion_id=wire.promotion_id,
        etag=wire.etag,
        update_mask=mask,
        display_name=wire.display_name if "display_name" in mask else "",
        starts_at=check_optional_instant(violations, "promotion.starts_at", starts_at),
        ends_at=check_optional_instant(violations, "promotion.ends_at", ends_at),
        entrance_ids=_entrance_ids(violations, wire.entrance_ids) if "entrance_ids" in mask else (),
    )


def _entrance_ids(violations: list[Violation], ids: Sequence[str]) -> tuple[str, ...]:
    field = "promotion.entrance_ids"
    if len(ids) > _ENTRANCES_MAX:
        violations.append(Violation(field, f"has {len(ids)} entries; at most {_ENTRANCES_MAX} are allowed"))
        return ()
    for index, entrance_id in enumerate(ids):
        check_id(violations, f"{field}[{index}]", entrance_id)
        if entrance_id in ids[:index]:
            violations.append(Violation(f"{field}[{index}]", "is named twice"))
    return tuple(sorted(ids))


def _budgets(violations: list[Violation], budgets: Sequence[promotion_pb2.Budget]) -> tuple[NewBudget, ...]:
    field = "promotion.budgets"
    if len(budgets) > BUDGETS_MAX:
        violations.append(Violation(field, f"has {len(budgets)} entries; at most {BUDGETS_MAX} are allowed"))
        return ()
    found: dict[str, NewBudget] = {}
    for index, budget in enumerate(budgets):
        check_asset(violations, f"{field}[{index}].asset", budget.asset)
        if budget.asset in found:
            violations.append(Violation(f"{field}[{index}].asset", "has a budget already; one for each asset"))
        found[budget.asset] = NewBudget(budget.asset, check_capacity(violations, f"{field}[{index}]", budget))
    return tuple(found[asset] for asset in sorted(found))


def _states(violations: list[Violation], states: Sequence[int]) -> tuple[PromotionState, ...]:
    if len(states) > len(PromotionState):
        violations.append(Violation("states", f"has {len(states)} entries; there are {len(PromotionState)} states"))
        return ()
    return tuple(
        sorted({check_enum(violations, f"states[{i}]", state, PromotionState) for i, state in enumerate(states)})
    )


def promotion_to_wire(promotion: Promotion) -> promotion_pb2.Promotion:
    """The domain's promotion as a message."""
    return promotion_pb2.Promotion(
        promotion_id=promotion.promotion_id,
        display_name=promotion.display_name,
        state=promotion_pb2.PromotionState.ValueType(promotion.state_now),
        starts_at=to_timestamp(promotion.starts_at),
        ends_at=to_timestamp(promotion.ends_at),
        entrance_ids=promotion.entrance_ids,
        budgets=map(_budget_to_wire, promotion.budgets),
        etag=promotion.etag,
        created_at=to_timestamp(promotion.created_at),
        updated_at=to_timestamp(promotion.updated_at),
    )


def _budget_to_wire(budget: Budget) -> promotion_pb2.Budget:
    wire = promotion_pb2.Budget(asset=budget.asset, spent_units=budget.spent_units)
    if budget.capacity_units is None:
        wire.unlimited = True
    else:
        wire.units = budget.capacity_units
        wire.remaining_units = budget.remaining_units or 0
    return wire

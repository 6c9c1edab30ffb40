"""What may become of a promotion, and what it is at an instant. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from guerdon_server.core.promotion.model import Promotion, PromotionState, PromotionUpdate
from guerdon_server.platform.errors import ServiceError, Violation, failed_precondition, invalid

BUDGETS_MAX: Final = 20
"""Of one promotion."""

_NEXT: Final[Mapping[PromotionState, tuple[PromotionState, ...]]] = {
    PromotionState.DRAFT: (PromotionState.SCHEDULED, PromotionState.ARCHIVED),
    PromotionState.SCHEDULED: (PromotionState.ACTIVE, PromotionState.ENDED),
    PromotionState.ACTIVE: (PromotionState.PAUSED, PromotionState.ENDED),
    PromotionState.PAUSED: (PromotionState.ACTIVE, PromotionState.ENDED),
    PromotionState.ENDED: (PromotionState.ARCHIVED,),
    PromotionState.ARCHIVED: (),
}
_BEGUN: Final = (PromotionState.ACTIVE, PromotionState.PAUSED)
_OVER: Final = (PromotionState.ENDED, PromotionState.ARCHIVED)


def effective_state(
    state: PromotionState, starts_at: dt.datetime | None, ends_at: dt.datetime | None, at: dt.datetime
) -> PromotionState:
    """What a promotion is at an instant. Mirrors guerdon.effective_state (by test)."""
    running = (PromotionState.SCHEDULED, PromotionState.ACTIVE, PromotionState.PAUSED)
    if state in running and ends_at is not None and ends_at <= at:
        return PromotionState.ENDED
    if state is PromotionState.SCHEDULED and (starts_at is None or starts_at <= at):
        return PromotionState.ACTIVE
    return state


def transitioned(promotion: Promotion, target: PromotionState) -> Promotion:
    """The promotion in the state `target`; itself if it is in that state now.

    Made active before starts_at, it starts at once: starts_at becomes the time it was read at. Raises
    FAILED_PRECONDITION / TRANSITION_NOT_ALLOWED with the states that can be reached.
    """
    now = promotion.state_now
    if target is now:
        return promotion
    if target not in _NEXT[now]:
        names = ", ".join(state.name for state in _NEXT[now]) or "none"
        raise failed_precondition(
            "TRANSITION_NOT_ALLOWED",
            f"{promotion.promotion_id} is {now.name}; it can't become {target.name}, but: {names}.",
            promotion_id=promotion.promotion_id,
            state=now.name,
            target_state=target.name,
            reachable_states=names,
        )
    starts_at = promotion.starts_at
    if target is PromotionState.ACTIVE and starts_at is not None:
        starts_at = min(starts_at, promotion.read_at)
    return replace(promotion, state=target, starts_at=starts_at)


def updated(promotion: Promotion, update: PromotionUpdate) -> Promotion:
    """The promotion with the fields of the mask replaced, if that makes sense.

    Raises INVALID_FIELD for a window that ends before it starts, FAILED_PRECONDITION / PROMOTION_ENDED where only the
    name can still be changed, PROMOTION_STARTED where the start of what has begun would be put off.
    """
    if promotion.state_now in _OVER and set(update.update_mask) - {"display_name"}:
        raise failed_precondition(
            "PROMOTION_ENDED",
            f"{promotion.promotion_id} is {promotion.state_now.name}: only its display_name can be changed.",
            promotion_id=promotion.promotion_id,
        )
    changed = replace(
        promotion,
        display_name=update.display_name if "display_name" in update.update_mask else promotion.display_name,
        starts_at=update.starts_at if "starts_at" in update.update_mask else promotion.starts_at,
        ends_at=update.ends_at if "ends_at" in update.update_mask else promotion.ends_at,
        entrance_ids=update.entrance_ids if "entrance_ids" in update.update_mask else promotion.entrance_ids,
    )
    if changed.starts_at is not None and changed.ends_at is not None and changed.starts_at >= changed.ends_at:
        raise _empty_window(update)
    put_off = changed.starts_at is not None and changed.starts_at > promotion.read_at
    if "starts_at" in update.update_mask and put_off and promotion.state_now in _BEGUN:
        raise failed_precondition(
            "PROMOTION_STARTED",
            f"{promotion.promotion_id} has started: its starts_at can't be put off. Pause it instead.",
            promotion_id=promotion.promotion_id,
        )
    return changed


def _empty_window(update: PromotionUpdate) -> ServiceError:
    field = "ends_at" if "ends_at" in update.update_mask else "starts_at"
    description = "must be after starts_at" if field == "ends_at" else "must be before ends_at"
    return invalid([Violation(f"promotion.{field}", description)])

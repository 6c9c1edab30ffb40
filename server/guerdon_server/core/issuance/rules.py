"""The decision of one item: from the terms, the clock and the request, with no I/O. Pure."""

from __future__ import annotations

import datetime as dt

from guerdon_server.core.issuance.model import (
    Decision,
    IssueItem,
    PrizeTerms,
    PromotionTerms,
    Reason,
    Rejection,
)
from guerdon_server.core.ledger.model import CommitCode, CommitResult, Issuance, KnownRequest
from guerdon_server.core.prize.model import FixedValue, RateValue
from guerdon_server.core.prize.rules import value_of
from guerdon_server.core.promotion.model import PromotionState
from guerdon_server.core.promotion.rules import effective_state
from guerdon_server.platform.errors import Code, ServiceError, Violation, failed_precondition, invalid, not_found

UNITS_MAX = 2**53 - 1
"""The largest amount anywhere: exact in Redis (doubles), in JavaScript and in JSON."""

ENTRANCE_NOT_BOUND = "ENTRANCE_NOT_BOUND"

_STATE_REASONS = {
    PromotionState.DRAFT: (Reason.PROMOTION_NOT_STARTED, "the promotion is a draft"),
    PromotionState.SCHEDULED: (Reason.PROMOTION_NOT_STARTED, "the promotion has not started"),
    PromotionState.PAUSED: (Reason.PROMOTION_PAUSED, "the promotion is paused"),
    PromotionState.ENDED: (Reason.PROMOTION_ENDED, "the promotion is over"),
    PromotionState.ARCHIVED: (Reason.PROMOTION_ENDED, "the promotion is over"),
}


def decide(
    terms: PromotionTerms, entrance_id: str, item: IssueItem, now: dt.datetime
) -> Decision | Rejection | ServiceError:
    """Whether to ask the gate, and for what; a refusal is an answer only if the request was not granted before."""
    prize = terms.prizes.get(item.prize_id)
    if prize is None:
        return not_found(
            "PRIZE_NOT_FOUND", f"promotion {terms.promotion_id} has no prize {item.prize_id}", prize_id=item.prize_id
        )
    entrance = terms.entrances.get(entrance_id)
    if entrance is None:
        return failed_precondition(
            ENTRANCE_NOT_BOUND,
            f"promotion {terms.promotion_id} is not offered at entrance {entrance_id}; bind it with UpdatePromotion",
            promotion_id=terms.promotion_id,
            entrance_id=entrance_id,
        )
    state = effective_state(terms.state, terms.starts_at, terms.ends_at, now)
    if state is not PromotionState.ACTIVE:
        reason, message = _STATE_REASONS[state]
        return Rejection(reason, f"promotions/{terms.promotion_id}/state", message, state.name, "ACTIVE")
    value = basis = None
    if prize.rule is not None:
        priced = _price(prize, item)
        if isinstance(priced, Rejection | ServiceError):
            return priced
        value, basis = priced
    return Decision(terms, prize, entrance, value, basis, _claims(prize, value))


def _claims(prize: PrizeTerms, value: int | None) -> tuple[tuple[int, int], ...]:
    stock = () if prize.stock_resource is None else ((prize.stock_resource, 1),)
    if prize.budget_resource is None or value is None:
        return stock
    return (*stock, (prize.budget_resource, value))


def _price(prize: PrizeTerms, item: IssueItem) -> tuple[int, int | None] | Rejection | ServiceError:
    rule = prize.rule
    assert rule is not None
    if isinstance(rule, FixedValue):
        return rule.fixed_units, None
    basis = basis_of(rule, item)
    if not isinstance(basis, int):
        return basis or Rejection(
            Reason.ATTRIBUTE_MISSING,
            f"prizes/{prize.prize_id}/value/rate",
            f"the value needs the attribute {rule.attribute}, which the request lacks",
            "",
            rule.attribute,
        )
    value = value_of(rule, basis)
    if value == 0:
        return Rejection(
            Reason.VALUE_ZERO,
            f"prizes/{prize.prize_id}/value/rate",
            f"{rule.attribute} = {basis} comes to a value of zero",
            str(basis),
            "1",
        )
    if value > UNITS_MAX:
        return invalid([Violation(f"attributes[{rule.attribute}]", f"comes to a value of {value}, above {UNITS_MAX}")])
    return value, basis


def basis_of(rule: RateValue, item: IssueItem) -> int | ServiceError | None:
    """The attribute that a rate takes; None where the request lacks it."""
    basis = item.attributes.get(rule.attribute)
    if basis is None:
        return None
    if type(basis) is not int:  # bool is a subclass of int
        return invalid([Violation(f"attributes[{rule.attribute}]", f"must be an integer, is {_type_name(basis)}")])
    if basis < 0:
        return invalid([Violation(f"attributes[{rule.attribute}]", f"must not be negative, is {basis}")])
    return basis


def _type_name(value: object) -> str:
    names = {bool: "a boolean", str: "a text", tuple: "a list", dt.datetime: "a time"}
    return names.get(type(value), type(value).__name__)


def identity_difference(known: KnownRequest, entrance_id: str, item: IssueItem) -> str | None:
    """The first identity field in which a request differs from the grant under its id; None: it is the same request.

    The identity is who, what, where and what the value was computed from then: the prize's rule may be another now.
    Reference, device and time are not.
    """
    issuance = known.issuance
    assert issuance is not None
    if issuance.user_id != item.user_id:
        return "user_id"
    if issuance.prize_id != item.prize_id:
        return "prize_id"
    if issuance.entrance_id != entrance_id:
        return "entrance_id"
    if known.attribute is not None:
        value = item.attributes.get(known.attribute)
        if type(value) is not int or value != known.basis:  # True equals 1
            return f"attributes[{known.attribute}]"
    return None


def replay(known: KnownRequest, entrance_id: str, item: IssueItem) -> Issuance | ServiceError:
    """The grant that a request id has, for the same request; REQUEST_ID_REUSED for another one."""
    issuance = known.issuance
    assert issuance is not None
    field = identity_difference(known, entrance_id, item)
    if field is None:
        return issuance
    return ServiceError(
        Code.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        f"request id {item.request_id} was granted for another {field}; use a new id for a new reward",
        metadata={"field": field, "request_id": item.request_id, "issuance_id": str(issuance.issuance_id)},
    )


def cancelled(item: IssueItem) -> Rejection:
    """The request was ruled out for ever."""
    return Rejection(Reason.CANCELLED, f"requests/{item.request_id}", "the request was cancelled; it is never granted")


def sold_out(prize: PrizeTerms, remaining: int) -> Rejection:
    """No stock."""
    rule = f"prizes/{prize.prize_id}/stock"
    return Rejection(Reason.SOLD_OUT, rule, "no stock is left", str(remaining), "1")


def budget_exhausted(terms: PromotionTerms, prize: PrizeTerms, remaining: int, value: int | None) -> Rejection:
    """The budget has less left than the grant is worth."""
    rule = f"promotions/{terms.promotion_id}/budgets/{prize.asset}"
    return Rejection(Reason.BUDGET_EXHAUSTED, rule, "the budget has less left", str(remaining), str(value))


def limit_reached(prize: PrizeTerms, count: int) -> Rejection:
    """The user has had as many as one may have."""
    rule = f"prizes/{prize.prize_id}/limit_per_user"
    message = f"the user has had {count} of at most {prize.limit_per_user}"
    return Rejection(Reason.LIMIT_REACHED, rule, message, str(count), str(prize.limit_per_user))


def batch_not_granted() -> Rejection:
    """It could have been granted, but another item of the all-or-nothing batch could not."""
    return Rejection(Reason.BATCH_NOT_GRANTED, "batch/all_or_nothing", "another item of the batch was not granted")


def commit_rejection(decision: Decision, item: IssueItem, result: CommitResult) -> Rejection:  # noqa: PLR0911
    """The rejection that a refusing commit code stands for."""
    terms, prize = decision.terms, decision.prize
    observed = result.observed or 0
    match CommitCode(result.code):
        case CommitCode.SOLD_OUT:
            return sold_out(prize, observed)
        case CommitCode.BUDGET_EXHAUSTED:
            return budget_exhausted(terms, prize, observed, decision.value)
        case CommitCode.LIMIT_REACHED:
            return limit_reached(prize, observed)
        case CommitCode.CANCELLED:
            return cancelled(item)
        case CommitCode.GROUP_NOT_GRANTED:
            return batch_not_granted()
        case CommitCode.VALIDITY_PASSED:
            rule = f"prizes/{prize.prize_id}/validity"
            return Rejection(Reason.VALIDITY_PASSED, rule, "the grant would be expired from the start")
        case CommitCode.ACCOUNT_LIMIT:
            rule = f"prizes/{prize.prize_id}/accounts"
            return Rejection(Reason.ACCOUNT_LIMIT, rule, "an account would leave the range of the ledger")
        case CommitCode.NOT_STARTED | CommitCode.PAUSED | CommitCode.ENDED as code:
            states = {
                CommitCode.NOT_STARTED: PromotionState.SCHEDULED,
                CommitCode.PAUSED: PromotionState.PAUSED,
                CommitCode.ENDED: PromotionState.ENDED,
            }
            reason, message = _STATE_REASONS[states[code]]
            return Rejection(reason, f"promotions/{terms.promotion_id}/state", message, states[code].name, "ACTIVE")
        case code:
            raise AssertionError(f"{code!r} is no rejection")

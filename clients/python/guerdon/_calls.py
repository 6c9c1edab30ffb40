"""Every RPC as one function: its arguments, its result, what it raises. Both clients are made from these."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.wrappers_pb2 import StringValue

from guerdon import _codec as codec
from guerdon import _rpcs as rpcs
from guerdon import model
from guerdon._flow import Flow, Terms, attempted, delays_before_retry, unary
from guerdon.errors import GuerdonError
from guerdon.model import KEEP, Keep
from guerdon.v1 import account_pb2, entrance_pb2, prize_pb2, promotion_pb2

T = TypeVar("T")

_PENDING_WAIT_SECONDS_MIN: Final = 0.01
"""Bounds how often a pending outcome is asked for, whatever the server suggests."""


# Promotions


def create_promotion(
    terms: Terms,
    /,
    *,
    promotion_id: str,
    request_id: str,
    display_name: str = "",
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    entrance_ids: Iterable[str] = (),
    budgets: Mapping[str, model.Capacity] | None = None,
) -> Flow[model.Promotion]:
    """Creates a promotion in state DRAFT. Budgets: units (or UNLIMITED) by asset.

    Raises AlreadyExists (PROMOTION_EXISTS) and NotFound (ENTRANCE_NOT_FOUND).
    """
    promotion = promotion_pb2.Promotion(
        promotion_id=promotion_id,
        display_name=display_name,
        starts_at=codec.timestamp(starts_at, "starts_at"),
        ends_at=codec.timestamp(ends_at, "ends_at"),
        entrance_ids=entrance_ids,
        budgets=codec.budgets(budgets),
    )
    request = promotion_pb2.CreatePromotionRequest(promotion=promotion, request_id=request_id)
    return codec.promotion((yield from unary(terms, rpcs.CREATE_PROMOTION, request, terms.deadline())))


def get_promotion(terms: Terms, /, *, promotion_id: str) -> Flow[model.Promotion]:
    """The promotion with its budgets. Raises NotFound (PROMOTION_NOT_FOUND)."""
    request = promotion_pb2.GetPromotionRequest(promotion_id=promotion_id)
    return codec.promotion((yield from unary(terms, rpcs.GET_PROMOTION, request, terms.deadline())))


def update_promotion(
    terms: Terms,
    /,
    *,
    promotion_id: str,
    request_id: str,
    etag: str = "",
    display_name: str | Keep = KEEP,
    starts_at: datetime | Keep | None = KEEP,
    ends_at: datetime | Keep | None = KEEP,
    entrance_ids: Iterable[str] | Keep = KEEP,
) -> Flow[model.Promotion]:
    """Changes the fields that are given; None clears. With an etag, only if it is still the current one.

    Raises FailedPrecondition (ETAG_MISMATCH) and NotFound (PROMOTION_NOT_FOUND, ENTRANCE_NOT_FOUND).
    """
    promotion = promotion_pb2.Promotion(
        promotion_id=promotion_id,
        etag=etag,
        display_name=_given(display_name, ""),
        starts_at=codec.timestamp(_given(starts_at, None), "starts_at"),
        ends_at=codec.timestamp(_given(ends_at, None), "ends_at"),
        entrance_ids=_given(entrance_ids, ()),
    )
    mask = _mask(display_name=display_name, starts_at=starts_at, ends_at=ends_at, entrance_ids=entrance_ids)
    request = promotion_pb2.UpdatePromotionRequest(promotion=promotion, update_mask=mask, request_id=request_id)
    return codec.promotion((yield from unary(terms, rpcs.UPDATE_PROMOTION, request, terms.deadline())))


def list_promotions(
    terms: Terms, /, *, states: Iterable[model.PromotionState] = (), page_size: int = 0, page_token: str = ""
) -> Flow[model.Page[model.Promotion]]:
    """Promotions by id, of the given states; without states all but archived ones. page_size: 1 to 500, 0 means 100."""
    request = promotion_pb2.ListPromotionsRequest(
        states=[codec.PROMOTION_STATE.number(state) for state in states], page_size=page_size, page_token=page_token
    )
    response = yield from unary(terms, rpcs.LIST_PROMOTIONS, request, terms.deadline())
    return model.Page(tuple(codec.promotion(each) for each in response.promotions), response.next_page_token)


def transition_promotion(
    terms: Terms, /, *, promotion_id: str, target_state: model.PromotionState, request_id: str, etag: str = ""
) -> Flow[model.Promotion]:
    """Moves a promotion along draft, scheduled, active or paused, ended, archived.

    Once PAUSED is answered not one more prize is granted. Raises FailedPrecondition (TRANSITION_NOT_ALLOWED,
    ETAG_MISMATCH).
    """
    request = promotion_pb2.TransitionPromotionRequest(
        promotion_id=promotion_id,
        target_state=codec.PROMOTION_STATE.number(target_state),
        etag=etag,
        request_id=request_id,
    )
    return codec.promotion((yield from unary(terms, rpcs.TRANSITION_PROMOTION, request, terms.deadline())))


def adjust_promotion_budget(
    terms: Terms, /, *, promotion_id: str, asset: str, delta_units: int, request_id: str
) -> Flow[model.BudgetAdjustment]:
    """Tops a budget up (delta > 0) or recalls what is not spent (delta < 0), once for a request id.

    Raises FailedPrecondition (BUDGET_INSUFFICIENT, CAPACITY_UNLIMITED).
    """
    request = promotion_pb2.AdjustPromotionBudgetRequest(
        promotion_id=promotion_id, asset=asset, delta_units=delta_units, request_id=request_id
    )
    response = yield from unary(terms, rpcs.ADJUST_PROMOTION_BUDGET, request, terms.deadline())
    return model.BudgetAdjustment(codec.budget(response.budget), response.replayed)


# Entrances


def create_entrance(
    terms: Terms, /, *, entrance_id: str, request_id: str, display_name: str = ""
) -> Flow[model.Entrance]:
    """Creates an entrance. Raises AlreadyExists (ENTRANCE_EXISTS)."""
    entrance = entrance_pb2.Entrance(entrance_id=entrance_id, display_name=display_name)
    request = entrance_pb2.CreateEntranceRequest(entrance=entrance, request_id=request_id)
    return codec.entrance((yield from unary(terms, rpcs.CREATE_ENTRANCE, request, terms.deadline())))


def get_entrance(terms: Terms, /, *, entrance_id: str) -> Flow[model.Entrance]:
    """The entrance. Raises NotFound (ENTRANCE_NOT_FOUND)."""
    request = entrance_pb2.GetEntranceRequest(entrance_id=entrance_id)
    return codec.entrance((yield from unary(terms, rpcs.GET_ENTRANCE, request, terms.deadline())))


def update_entrance(
    terms: Terms, /, *, entrance_id: str, request_id: str, etag: str = "", display_name: str | Keep = KEEP
) -> Flow[model.Entrance]:
    """Changes the fields that are given. Raises FailedPrecondition (ETAG_MISMATCH)."""
    entrance = entrance_pb2.Entrance(entrance_id=entrance_id, etag=etag, display_name=_given(display_name, ""))
    request = entrance_pb2.UpdateEntranceRequest(
        entrance=entrance, update_mask=_mask(display_name=display_name), request_id=request_id
    )
    return codec.entrance((yield from unary(terms, rpcs.UPDATE_ENTRANCE, request, terms.deadline())))


def list_entrances(terms: Terms, /, *, page_size: int = 0, page_token: str = "") -> Flow[model.Page[model.Entrance]]:
    """Entrances by id. page_size: 1 to 500, 0 means 100."""
    request = entrance_pb2.ListEntrancesRequest(page_size=page_size, page_token=page_token)
    response = yield from unary(terms, rpcs.LIST_ENTRANCES, request, terms.deadline())
    return model.Page(tuple(codec.entrance(each) for each in response.entrances), response.next_page_token)


def list_entrance_promotions(
    terms: Terms, /, *, entrance_id: str, user_id: str = "", page_size: int = 0, page_token: str = ""
) -> Flow[model.Page[model.EntrancePromotion]]:
    """What is live at this entrance for this user now: an answer of its moment, not a promise.

    page_size: 1 to 100, 0 means 50. Without a user, limits per user are not looked at.
    """
    request = entrance_pb2.ListEntrancePromotionsRequest(
        entrance_id=entrance_id, user_id=user_id, page_size=page_size, page_token=page_token
    )
    response = yield from unary(terms, rpcs.LIST_ENTRANCE_PROMOTIONS, request, terms.deadline())
    return model.Page(tuple(codec.entrance_promotion(each) for each in response.promotions), response.next_page_token)


# Prizes


def create_prize(
    terms: Terms,
    /,
    *,
    prize_id: str,
    promotion_id: str,
    kind: model.PrizeKind,
    stock: model.Capacity,
    request_id: str,
    display_name: str = "",
    value: model.PrizeValue | None = None,
    limit_per_user: int = 0,
    validity: model.Validity | None = None,
) -> Flow[model.Prize]:
    """Creates a prize of a promotion with its stock. A limit_per_user of 0 means no limit.

    Raises AlreadyExists (PRIZE_EXISTS) and FailedPrecondition (BUDGET_MISSING: none in the asset of the value).
    """
    prize = prize_pb2.Prize(
        prize_id=prize_id,
        promotion_id=promotion_id,
        display_name=display_name,
        kind=codec.PRIZE_KIND.number(kind),
        value=codec.prize_value(value),
        stock=codec.stock(stock),
        limit_per_user=limit_per_user,
        validity=codec.validity(validity),
    )
    request = prize_pb2.CreatePrizeRequest(prize=prize, request_id=request_id)
    return codec.prize((yield from unary(terms, rpcs.CREATE_PRIZE, request, terms.deadline())))


def get_prize(terms: Terms, /, *, prize_id: str) -> Flow[model.Prize]:
    """The prize. Raises NotFound (PRIZE_NOT_FOUND)."""
    request = prize_pb2.GetPrizeRequest(prize_id=prize_id)
    return codec.prize((yield from unary(terms, rpcs.GET_PRIZE, request, terms.deadline())))


def update_prize(
    terms: Terms,
    /,
    *,
    prize_id: str,
    request_id: str,
    etag: str = "",
    display_name: str | Keep = KEEP,
    value: model.PrizeValue | Keep = KEEP,
    limit_per_user: int | Keep = KEEP,
    validity: model.Validity | Keep | None = KEEP,
) -> Flow[model.Prize]:
    """Changes the fields that are given; what was granted keeps its terms. The asset of the value can't be changed.

    Raises FailedPrecondition (ETAG_MISMATCH).
    """
    prize = prize_pb2.Prize(
        prize_id=prize_id,
        etag=etag,
        display_name=_given(display_name, ""),
        value=codec.prize_value(_given(value, None)),
        limit_per_user=_given(limit_per_user, 0),
        validity=codec.validity(_given(validity, None)),
    )
    mask = _mask(display_name=display_name, limit_per_user=limit_per_user, validity=validity)
    if value is not KEEP:
        mask.paths.append("value.rate" if isinstance(value, model.RateValue) else "value.fixed_units")
    request = prize_pb2.UpdatePrizeRequest(prize=prize, update_mask=mask, request_id=request_id)
    return codec.prize((yield from unary(terms, rpcs.UPDATE_PRIZE, request, terms.deadline())))


def list_prizes(
    terms: Terms, /, *, promotion_id: str = "", page_size: int = 0, page_token: str = ""
) -> Flow[model.Page[model.Prize]]:
    """Prizes by id, of one promotion or of all. page_size: 1 to 500, 0 means 100."""
    request = prize_pb2.ListPrizesRequest(promotion_id=promotion_id, page_size=page_size, page_token=page_token)
    response = yield from unary(terms, rpcs.LIST_PRIZES, request, terms.deadline())
    return model.Page(tuple(codec.prize(each) for each in response.prizes), response.next_page_token)


def adjust_prize_stock(
    terms: Terms, /, *, prize_id: str, delta_units: int, request_id: str
) -> Flow[model.StockAdjustment]:
    """Tops the stock up (delta > 0) or recalls what is left (delta < 0), once for a request id.

    Raises FailedPrecondition (STOCK_INSUFFICIENT, CAPACITY_UNLIMITED).
    """
    request = prize_pb2.AdjustPrizeStockRequest(prize_id=prize_id, delta_units=delta_units, request_id=request_id)
    response = yield from unary(terms, rpcs.ADJUST_PRIZE_STOCK, request, terms.deadline())
    return model.StockAdjustment(codec.prize_stock(response.stock), response.replayed)


def get_prize_stock(terms: Terms, /, *, prize_id: str) -> Flow[model.PrizeStock]:
    """Capacity, issued and remaining units, as the ledger has them. Raises NotFound (PRIZE_NOT_FOUND)."""
    request = prize_pb2.GetPrizeStockRequest(prize_id=prize_id)
    return codec.prize_stock((yield from unary(terms, rpcs.GET_PRIZE_STOCK, request, terms.deadline())))


# Issuing


def issue_prize(
    terms: Terms,
    /,
    *,
    promotion_id: str,
    entrance_id: str,
    prize_id: str,
    user_id: str,
    request_id: str,
    reference: str = "",
    attributes: Mapping[str, model.AttributeInput] | None = None,
) -> Flow[model.IssueOutcome]:
    """Gives one prize to one user, once for a request id: Granted, Rejected, or still PendingOutcome at the deadline.

    The request id names the reward that is due, is chosen by the caller, and is the same in every repetition. Raises
    OutcomeUnknown or Unavailable where no answer came: repeat with the same request id, or ask with `get_issuance`.
    """
    request = prize_pb2.IssuePrizeRequest(
        promotion_id=promotion_id,
        entrance_id=entrance_id,
        prize_id=prize_id,
        user_id=user_id,
        request_id=request_id,
        reference=reference,
        attributes=codec.attributes(attributes),
    )
    deadline = terms.deadline()
    outcome = codec.issue_outcome((yield from unary(terms, rpcs.ISSUE_PRIZE, request, deadline)))
    while isinstance(outcome, model.PendingOutcome):
        delay = _pending_wait_seconds(outcome)
        if delay >= deadline - terms.clock():
            return outcome
        yield delay
        try:
            response = yield from unary(terms, rpcs.ISSUE_PRIZE, request, deadline, outcome_open=True)
        except GuerdonError as error:
            if not error.outcome_unknown:
                raise
            return outcome  # pending is what is known; an error would say no more
        outcome = codec.issue_outcome(response)
    return outcome


def batch_issue_prizes(
    terms: Terms,
    /,
    *,
    promotion_id: str,
    entrance_id: str,
    items: Sequence[model.BatchItem],
    mode: model.BatchMode = model.BatchMode.PER_ITEM,
) -> Flow[tuple[model.ItemOutcome, ...]]:
    """Gives 1 to 1000 prizes of one promotion: an outcome per item, in order. Request ids are unique in the batch.

    PER_ITEM: each for itself. ALL_OR_NOTHING: all are granted, or none; a retried one replays whole. Raises like
    `issue_prize` for what is wrong with the batch; what is wrong with one item is its ItemError. Items that are pending
    or failed with what is repeated (see RetryPolicy) are asked for again within the deadline; the others keep their
    outcome.
    """
    request = prize_pb2.BatchIssuePrizesRequest(
        promotion_id=promotion_id,
        entrance_id=entrance_id,
        items=[codec.batch_item(item) for item in items],
        mode=codec.BATCH_MODE.number(mode),
    )
    deadline = terms.deadline()
    response, left_open = yield from attempted(terms, rpcs.BATCH_ISSUE_PRIZES, request, deadline)
    outcomes = [codec.item_outcome(result, outcome_open=left_open) for result in response.results]
    for attempt in itertools.count(1):
        waits = _waits_seconds(terms, outcomes, attempt)
        if not waits or max(waits.values()) >= deadline - terms.clock():
            break
        yield max(waits.values())
        asked = range(len(items)) if mode == model.BatchMode.ALL_OR_NOTHING else list(waits)
        again = prize_pb2.BatchIssuePrizesRequest(
            promotion_id=promotion_id,
            entrance_id=entrance_id,
            items=[request.items[i] for i in asked],
            mode=request.mode,
        )
        try:
            response = yield from unary(terms, rpcs.BATCH_ISSUE_PRIZES, again, deadline, outcome_open=True)
        except GuerdonError as error:
            # What the other items were granted must not be lost, and these may have been granted now.
            for i in asked:
                if error.outcome_unknown and isinstance(outcomes[i], model.ItemError | model.Rejected):
                    outcomes[i] = model.ItemError(error)
            break
        for i, result in zip(asked, response.results, strict=True):
            outcomes[i] = codec.item_outcome(result, outcome_open=True)
    return tuple(outcomes)


def _waits_seconds(terms: Terms, outcomes: Sequence[model.ItemOutcome], attempt: int) -> dict[int, float]:
    """Which items of a batch are worth asking for again, and how long each wants to wait before."""
    waits = {
        i: _pending_wait_seconds(each) for i, each in enumerate(outcomes) if isinstance(each, model.PendingOutcome)
    }
    errors = {i: each.error for i, each in enumerate(outcomes) if isinstance(each, model.ItemError)}
    delays = delays_before_retry(terms, list(errors.values()), attempt)
    return waits | {i: delay for i, delay in zip(errors, delays, strict=True) if delay is not None}


def get_issuance(
    terms: Terms,
    /,
    *,
    issuance_id: str | None = None,
    promotion_id: str | None = None,
    request_id: str | None = None,
    cancel_if_absent: bool = False,
) -> Flow[model.IssuanceState]:
    """What became of a request: its Issuance, PendingOutcome, or Absent. Resolves every unknown outcome.

    Asked by issuance_id, or by promotion_id and request_id. Absent means not yet, unless it is cancelled: with
    cancel_if_absent, a request that was not granted is ruled out for ever.
    """
    if issuance_id is not None and promotion_id is None and request_id is None:
        request = prize_pb2.GetIssuanceRequest(issuance_id=issuance_id, cancel_if_absent=cancel_if_absent)
    elif issuance_id is None and promotion_id is not None and request_id is not None:
        key = prize_pb2.RequestKey(promotion_id=promotion_id, request_id=request_id)
        request = prize_pb2.GetIssuanceRequest(request=key, cancel_if_absent=cancel_if_absent)
    else:
        raise TypeError("get_issuance takes either issuance_id, or promotion_id and request_id")
    return codec.issuance_state((yield from unary(terms, rpcs.GET_ISSUANCE, request, terms.deadline())))


def list_issuances(
    terms: Terms,
    /,
    *,
    user_id: str | None = None,
    promotion_id: str | None = None,
    reference: str | None = None,
    page_size: int = 0,
    page_token: str = "",
) -> Flow[model.Page[model.Issuance]]:
    """Issuances, the newest first, of a user, of a promotion, or with a reference. page_size: 1 to 500, 0 means 100."""
    _exactly_one("list_issuances", user_id=user_id, promotion_id=promotion_id, reference=reference)
    request = prize_pb2.ListIssuancesRequest(page_size=page_size, page_token=page_token)
    if user_id is not None:
        request.user_id = user_id
    if promotion_id is not None:
        request.promotion_id = promotion_id
    if reference is not None:
        request.reference = reference
    response = yield from unary(terms, rpcs.LIST_ISSUANCES, request, terms.deadline())
    return model.Page(tuple(codec.issuance(each) for each in response.issuances), response.next_page_token)


# Accounts


def get_balance(terms: Terms, /, *, account: model.AccountKey) -> Flow[model.Balance]:
    """The balance of one account; zero for one that has never been used."""
    request = account_pb2.GetBalanceRequest(account=codec.account_key(account))
    return codec.balance((yield from unary(terms, rpcs.GET_BALANCE, request, terms.deadline())))


def list_balances(
    terms: Terms,
    /,
    *,
    user_id: str | None = None,
    promotion_id: str | None = None,
    page_size: int = 0,
    page_token: str = "",
) -> Flow[model.Page[model.Balance]]:
    """All accounts of a user, or of a promotion (stock, budgets, liabilities). page_size: 1 to 500, 0 means 100."""
    _exactly_one("list_balances", user_id=user_id, promotion_id=promotion_id)
    request = account_pb2.ListBalancesRequest(page_size=page_size, page_token=page_token)
    if user_id is not None:
        request.user_id = user_id
    if promotion_id is not None:
        request.promotion_id = promotion_id
    response = yield from unary(terms, rpcs.LIST_BALANCES, request, terms.deadline())
    return model.Page(tuple(codec.balance(each) for each in response.balances), response.next_page_token)


def list_entries(
    terms: Terms, /, *, account: model.AccountKey, page_size: int = 0, page_token: str = ""
) -> Flow[model.Page[model.Entry]]:
    """The statement of one account, the newest entry first, each with the balance after it."""
    request = account_pb2.ListEntriesRequest(
        account=codec.account_key(account), page_size=page_size, page_token=page_token
    )
    response = yield from unary(terms, rpcs.LIST_ENTRIES, request, terms.deadline())
    return model.Page(tuple(codec.entry(each) for each in response.entries), response.next_page_token)


def get_trial_balance(terms: Terms, /) -> Flow[model.TrialBalance]:
    """The sums of all debits and credits by asset and kind of account."""
    request = account_pb2.GetTrialBalanceRequest()
    return codec.trial_balance((yield from unary(terms, rpcs.GET_TRIAL_BALANCE, request, terms.deadline())))


def check_health(terms: Terms, /, *, service: str = "") -> Flow[model.HealthStatus]:
    """Whether the server, or one service ("guerdon.v1.PrizeService"), takes calls.

    Raises NotFound for a service that the server does not have.
    """
    status = yield from unary(terms, rpcs.CHECK_HEALTH, StringValue(value=service), terms.deadline())
    known = list(model.HealthStatus)
    return known[status.value] if 0 <= status.value < len(known) else model.HealthStatus.UNKNOWN


def _pending_wait_seconds(pending: model.PendingOutcome) -> float:
    return max(_PENDING_WAIT_SECONDS_MIN, pending.retry_after_ms / 1000)


def _given(value: T | Keep, otherwise: T) -> T:
    return otherwise if isinstance(value, Keep) else value


def _mask(**fields: object) -> FieldMask:
    return FieldMask(paths=[name for name, value in fields.items() if value is not KEEP])


def _exactly_one(call: str, **filters: object) -> None:
    if sum(value is not None for value in filters.values()) != 1:
        raise TypeError(f"{call} takes exactly one of {', '.join(filters)}")

"""PrizeService's issuing half: the hot path, wire <-> domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from google.rpc import status_pb2

from guerdon.v1 import prize_pb2
from guerdon_server.core.issuance.model import Granted, IssueCall, IssueItem, Outcome, Pending, Rejection
from guerdon_server.core.issuance.pipeline import Issuer
from guerdon_server.core.ledger.model import RequestState
from guerdon_server.platform.errors import ServiceError, Violation
from guerdon_server.rpc.errors import to_status
from guerdon_server.rpc.issuance_read import IssuanceReads, issuance_to_wire, write_issuance
from guerdon_server.rpc.validation import AttributeValue, check_attributes, check_id, check_optional_id, is_id, refuse

ITEMS_MAX: Final = 1000
NO_ATTRIBUTES: Final[Mapping[str, AttributeValue]] = {}


class IssueServicer:
    """IssuePrize, BatchIssuePrizes, GetIssuance."""

    def __init__(self, issuer: Issuer, reads: IssuanceReads) -> None:
        self._issuer = issuer
        self._reads = reads

    async def IssuePrize(self, request: prize_pb2.IssuePrizeRequest, principal: str) -> prize_pb2.IssuePrizeResponse:
        """One prize to one user."""
        promotion_id, entrance_id = request.promotion_id, request.entrance_id
        violations: list[Violation] = []
        if not (is_id(promotion_id) and is_id(entrance_id)):
            check_id(violations, "promotion_id", promotion_id)
            check_id(violations, "entrance_id", entrance_id)
        item = _item(violations, "", request)
        refuse(violations)
        (outcome,) = await self._issuer.issue(IssueCall(promotion_id, entrance_id, principal, (item,)))
        response = prize_pb2.IssuePrizeResponse()
        if isinstance(outcome, Granted):
            write_issuance(response.granted, outcome.issuance)
            response.replayed = outcome.replayed
        elif isinstance(outcome, Rejection):
            _write_rejection(response.rejected, outcome)
        elif isinstance(outcome, Pending):
            _write_pending(response.pending, outcome)
        else:
            raise outcome
        return response

    async def BatchIssuePrizes(
        self, request: prize_pb2.BatchIssuePrizesRequest, principal: str
    ) -> prize_pb2.BatchIssuePrizesResponse:
        """Up to 1,000 prizes of one promotion.

        What is wrong with an item is that item's result (of an all-or-nothing batch, it also keeps the others from
        being granted); what is wrong with the batch refuses the call.
        """
        violations: list[Violation] = []
        check_id(violations, "promotion_id", request.promotion_id)
        check_id(violations, "entrance_id", request.entrance_id)
        if request.mode not in (prize_pb2.BATCH_MODE_PER_ITEM, prize_pb2.BATCH_MODE_ALL_OR_NOTHING):
            violations.append(Violation("mode", "must be BATCH_MODE_PER_ITEM or BATCH_MODE_ALL_OR_NOTHING"))
        count = len(request.items)
        if not 1 <= count <= ITEMS_MAX:
            violations.append(Violation("items", f"has {count} items; 1 to {ITEMS_MAX} are allowed"))
            refuse(violations)
        _check_distinct(violations, request)
        refuse(violations)
        return await self._batch(request, principal)

    async def _batch(
        self, request: prize_pb2.BatchIssuePrizesRequest, principal: str
    ) -> prize_pb2.BatchIssuePrizesResponse:
        all_or_nothing = request.mode == prize_pb2.BATCH_MODE_ALL_OR_NOTHING
        items: list[IssueItem] = []
        bad: dict[int, ServiceError] = {}
        for index, wire in enumerate(request.items):
            violations: list[Violation] = []
            item = _item(violations, f"items[{index}].", wire)
            try:
                refuse(violations)
            except ServiceError as error:
                bad[index] = error
            else:
                items.append(item)
        outcomes: list[Outcome] = []
        if items:
            call = IssueCall(
                request.promotion_id,
                request.entrance_id,
                principal,
                items,
                all_or_nothing=all_or_nothing,
                doomed=all_or_nothing and bool(bad),
            )
            outcomes = await self._issuer.issue(call)
        good = iter(outcomes)
        response = prize_pb2.BatchIssuePrizesResponse()
        for index in range(len(request.items)):
            _write_result(response.results.add(), bad[index] if index in bad else next(good))
        return response

    async def GetIssuance(self, request: prize_pb2.GetIssuanceRequest, principal: str) -> prize_pb2.GetIssuanceResponse:
        """What became of a request."""
        which = request.WhichOneof("key")
        violations: list[Violation] = []
        if which is None:
            violations.append(Violation("key", "must be one of issuance_id, request"))
        if which != "request" and request.cancel_if_absent:
            violations.append(Violation("cancel_if_absent", "needs a request key: an issuance id is of a grant"))
        if which == "request":
            check_id(violations, "request.promotion_id", request.request.promotion_id)
            check_id(violations, "request.request_id", request.request.request_id)
        refuse(violations)
        if which == "issuance_id":
            return await self._reads.by_id(request.issuance_id)
        known = await self._issuer.resolve(
            request.request.promotion_id, request.request.request_id, cancel_if_absent=request.cancel_if_absent
        )
        if isinstance(known, Pending):
            response = prize_pb2.GetIssuanceResponse()
            _write_pending(response.pending, known)
            return response
        if known.issuance is not None:
            return prize_pb2.GetIssuanceResponse(granted=issuance_to_wire(known.issuance))
        return prize_pb2.GetIssuanceResponse(absent=prize_pb2.Absent(cancelled=known.state is RequestState.CANCELLED))


def _item(
    violations: list[Violation], prefix: str, wire: prize_pb2.IssuePrizeRequest | prize_pb2.BatchItem
) -> IssueItem:
    prize_id, user_id, request_id, reference = wire.prize_id, wire.user_id, wire.request_id, wire.reference
    if not (is_id(prize_id) and is_id(user_id) and is_id(request_id) and (not reference or is_id(reference))):
        check_id(violations, f"{prefix}prize_id", prize_id)
        check_id(violations, f"{prefix}user_id", user_id)
        check_id(violations, f"{prefix}request_id", request_id)
        check_optional_id(violations, f"{prefix}reference", reference)
    attributes = wire.attributes
    return IssueItem(
        prize_id,
        user_id,
        request_id,
        reference,
        check_attributes(violations, f"{prefix}attributes", attributes) if attributes else NO_ATTRIBUTES,
    )


def _check_distinct(violations: list[Violation], request: prize_pb2.BatchIssuePrizesRequest) -> None:
    ids = [item.request_id for item in request.items]
    if len(set(ids)) == len(ids):
        return
    twice = {request_id for request_id, count in Counter(ids).items() if count > 1 and request_id}
    for index, request_id in enumerate(ids):
        if request_id in twice and request_id in ids[:index]:
            first = ids.index(request_id)
            violations.append(Violation(f"items[{index}].request_id", f"is the same as that of items[{first}]"))


def _write_result(result: prize_pb2.BatchItemResult, outcome: Outcome) -> None:
    if isinstance(outcome, Granted):
        write_issuance(result.granted, outcome.issuance)
        if outcome.replayed:
            result.replayed = True
    elif isinstance(outcome, Rejection):
        _write_rejection(result.rejected, outcome)
    elif isinstance(outcome, Pending):
        _write_pending(result.pending, outcome)
    else:
        status: status_pb2.Status = to_status(outcome)
        result.error.CopyFrom(status)


def _write_rejection(message: prize_pb2.Rejection, rejection: Rejection) -> None:
    message.reason = rejection.reason  # type: ignore[assignment]  # the numbers are the wire's
    message.rule = rejection.rule
    message.observed = rejection.observed
    message.threshold = rejection.threshold
    message.message = rejection.message


def _write_pending(message: prize_pb2.Pending, pending: Pending) -> None:
    message.retry_after_ms = pending.retry_after_ms

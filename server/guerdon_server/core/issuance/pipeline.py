"""The path of one reward: decide -> admit -> commit -> reply -> settle.

`Issuer.issue` is the whole of it. Batches form by themselves at the gate and at the commit; a call here is one chunk of
1 to 1,000 items that travels together. Settling happens where the commit is (committer.py), because a caller may have
gone by then.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from guerdon_server.core.issuance import rules
from guerdon_server.core.issuance.model import (
    Decision,
    Granted,
    IssueCall,
    IssueItem,
    Outcome,
    Pending,
    PromotionTerms,
    Reason,
    Rejection,
)
from guerdon_server.core.ledger.model import (
    CANCELLED,
    CommitCode,
    CommitItem,
    CommitResult,
    Issuance,
    KnownRequest,
    RequestState,
)
from guerdon_server.core.ledger.ports import OutcomeUnknown
from guerdon_server.core.stock.model import NO_LIMIT, AdmitCode, AdmitItem, Admitted, Answer, SettleCode, Settlement
from guerdon_server.platform.batching import ENOUGH_ITEMS, Coalescer, QueueFull
from guerdon_server.platform.errors import Code, ServiceError, failed_precondition, forget_frames, not_found

if TYPE_CHECKING:
    from guerdon_server.core.issuance.catalogue import Catalogue
    from guerdon_server.core.issuance.committer import Committed, Committer
    from guerdon_server.core.ledger.ports import Ledger

_TWIN_PAUSE_SECONDS_MIN = 0.004
_TWIN_PAUSE_SECONDS_MAX = 0.1
_LOOKUP_ITEMS_MAX = 1000
_LOOKUP_QUEUE_ITEMS_MAX = 50_000
_SLOT_BITS = 20
_MILLISECONDS_2026 = 1_767_225_600_000


class GatePort(Protocol):
    """The part of the gate that issuing needs."""

    async def admit(self, group: int, items: Sequence[AdmitItem]) -> Admitted: ...
    def settle(self, group: int, settlements: Iterable[Settlement]) -> None: ...
    async def settled(self) -> None: ...
    def epoch_refused(self, group: int, epoch: int) -> None: ...
    async def is_pending(self, group: int, request_id: str) -> bool: ...


class AdmissionIds:
    """Ids of admissions: a clock of 43 bits, then 20 bits of the worker's incarnation.

    Unique, because no two living workers share the low bits; growing over attempts at one request also across workers,
    because whoever meets a fence goes on above it (`above`), as a Lamport clock does.
    """

    def __init__(self, incarnation: int, *, now_ms: int | None = None) -> None:
        self._slot = incarnation & ((1 << _SLOT_BITS) - 1)
        ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        self._clock = max(1, ms - _MILLISECONDS_2026)

    def next(self) -> int:
        """The next id; greater than all before it and than any fence that was seen."""
        self._clock += 1
        return self._clock << _SLOT_BITS | self._slot

    def above(self, fence: int) -> None:
        """Go on above a fenced id."""
        self._clock = max(self._clock, fence >> _SLOT_BITS)

    @staticmethod
    def slot(admission: int) -> int:
        """The low bits of the incarnation that made it."""
        return admission & ((1 << _SLOT_BITS) - 1)

    @staticmethod
    def slot_of(incarnation: int) -> int:
        """What `slot` answers for the ids of an incarnation."""
        return incarnation & ((1 << _SLOT_BITS) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """attempts_max: how often one item may be decided anew (stale version or epoch, fence) before ABORTED."""

    twin_wait_seconds_max: float = 1.0
    attempts_max: int = 4


class _Slot:
    """One item on its way.

    `decision`: what it is admitted for; `admitted`: whether the gate ever let it pass, `gate_refused`: whether the last
    look said no; `refusal`: what is said unless it was granted before; `outcome`: final.
    """

    __slots__ = ("admission", "admitted", "decision", "epoch", "gate_refused", "item", "outcome", "refusal")

    def __init__(self, item: IssueItem) -> None:
        self.item = item
        self.decision: Decision | None = None
        self.refusal: Rejection | ServiceError | None = None
        self.outcome: Outcome | None = None
        self.admission = 0
        self.admitted = False
        self.gate_refused = False
        self.epoch = 0


class Issuer:
    """Issues prizes, and resolves what became of a request. One instance per event loop."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        gate: GatePort,
        committer: Committer,
        ledger: Ledger,
        principal: Callable[[str], Awaitable[int]],
        ids: AdmissionIds,
        settings: IssuerSettings = IssuerSettings(),
    ) -> None:
        self._catalogue = catalogue
        self._gate = gate
        self._committer = committer
        self._ledger = ledger
        self._principal = principal
        self._principals: dict[str, int] = {}
        self._ids = ids
        self._settings = settings
        self._groups = itertools.count(1)
        self.lookups: Coalescer[tuple[int, str], KnownRequest] = Coalescer(
            self._lookup,
            items_max=_LOOKUP_ITEMS_MAX,
            in_flight_max=2,
            queue_items_max=_LOOKUP_QUEUE_ITEMS_MAX,
            name="lookup",
            enough_items=ENOUGH_ITEMS,
        )
        self.outcomes: Counter[str] = Counter()
        """By outcome: granted, replayed, pending, error, or the reason of a rejection."""

    async def issue(self, call: IssueCall) -> list[Outcome]:
        """An outcome for each item, in order, after the grants are durable.

        Raises ServiceError where no item can be judged: RESOURCE_EXHAUSTED / OVERLOADED, NOT_FOUND /
        PROMOTION_NOT_FOUND, ENTRANCE_NOT_FOUND, FAILED_PRECONDITION / ENTRANCE_NOT_BOUND (unless all had been granted
        before). An error in the list leaves its own item's outcome open only if it says so (UNAVAILABLE /
        OUTCOME_UNKNOWN).
        """
        self._committer.check_room(len(call.items))
        slots = [_Slot(item) for item in call.items]
        todo, attempts = slots, 0
        twin_wait = _TwinWait(self._settings.twin_wait_seconds_max)
        while todo:
            try:
                terms, fresh = await self._decide(call, todo, anew=attempts > 0)
            except ServiceError as error:
                if todo is slots:
                    raise
                _settle_for(todo, error)  # others have their outcomes already
                break
            if call.all_or_nothing:
                todo = await self._without_replays(call, terms, todo)
            passed, refused = _split(todo, call)
            principal = (self._principals.get(call.principal) or await self._know(call.principal)) if passed else 0
            admitted, waiting, stale = (
                await self._admit(terms, passed, refused, call, fresh=fresh) if passed else ([], [], [])
            )
            again: list[_Slot] = []
            if admitted:
                stale = await self._commit(call, principal, admitted)
            if refused:
                # Before the others' look-up: what a neighbour took for nothing may be what they were refused for.
                if admitted:
                    again = await self._freed(call, terms, admitted, refused)
                await self._replay(call, terms, refused)
            if stale:
                attempts += 1
                if attempts >= self._settings.attempts_max:
                    _settle_for(stale, _aborted(call))
                    stale = []
            if waiting and not await twin_wait.pause():
                # The twin may have been granted, and its settlement be late.
                await self._replay(call, terms, waiting, otherwise=Pending())
                waiting = []
            todo = stale + again + waiting
            if call.all_or_nothing and todo and any(_spoils(slot) for slot in slots):
                for slot in todo:
                    slot.refusal = rules.batch_not_granted()
                await self._replay(call, terms, todo)
                todo = []
        return await self._finished(slots)

    async def _finished(self, slots: list[_Slot]) -> list[Outcome]:
        held = granted = False
        for slot in slots:
            outcome = slot.outcome
            if isinstance(outcome, Granted):
                granted = granted or not outcome.replayed
            elif slot.admitted and isinstance(outcome, Rejection):
                held = True
        if held:
            # What they took is given back before they hear of it: else their next request may be refused for it.
            await self._gate.settled()
        if not granted:
            for slot in slots:
                if isinstance(slot.outcome, ServiceError) and slot.outcome.reason == rules.ENTRANCE_NOT_BOUND:
                    raise slot.outcome  # of the call, not of the item
        return [self._counted(slot) for slot in slots]

    # --- decide ---------------------------------------------------------------------------------------------------

    async def _decide(self, call: IssueCall, slots: list[_Slot], *, anew: bool) -> tuple[PromotionTerms, bool]:
        """Set a decision or a refusal for each. A refusal is never made from terms older than the call.

        Returns the terms, and whether they were read after the call began.
        """
        terms = None if anew else self._catalogue.find(call.promotion_id)
        if terms is not None and self._decided(call, terms, slots):
            return terms, False
        terms = await self._catalogue.refresh(call.promotion_id)
        if terms is None:
            raise not_found(
                "PROMOTION_NOT_FOUND",
                f"there is no promotion {call.promotion_id}; create it with CreatePromotion",
                promotion_id=call.promotion_id,
            )
        if not self._decided(call, terms, slots):
            await self._explain(call, terms, slots)
        return terms, True

    def _decided(self, call: IssueCall, terms: PromotionTerms, slots: list[_Slot]) -> bool:
        """Whether no item was refused."""
        now = self._catalogue.now()
        passed = True
        for slot in slots:
            decision = rules.decide(terms, call.entrance_id, slot.item, now)
            if isinstance(decision, Decision):
                slot.decision, slot.refusal = decision, None
            else:
                slot.decision, slot.refusal = None, decision
                passed = False
        return passed

    async def _explain(self, call: IssueCall, terms: PromotionTerms, slots: list[_Slot]) -> None:
        """Tell an unknown id from one that belongs elsewhere; only failing calls pay for it."""
        if call.entrance_id not in terms.entrances and not await self._catalogue.entrance_exists(call.entrance_id):
            raise not_found(
                "ENTRANCE_NOT_FOUND",
                f"there is no entrance {call.entrance_id}; create it with CreateEntrance",
                entrance_id=call.entrance_id,
            )
        elsewhere: dict[str, bool] = {}
        for slot in slots:
            prize_id = slot.item.prize_id
            if not isinstance(slot.refusal, ServiceError) or slot.refusal.reason != "PRIZE_NOT_FOUND":
                continue
            if prize_id not in elsewhere:
                elsewhere[prize_id] = await self._catalogue.prize_exists(prize_id)
            if elsewhere[prize_id]:
                slot.refusal = failed_precondition(
                    "PRIZE_NOT_IN_PROMOTION",
                    f"prize {prize_id} belongs to another promotion than {call.promotion_id}",
                    prize_id=prize_id,
                    promotion_id=call.promotion_id,
                )

    async def _without_replays(self, call: IssueCall, terms: PromotionTerms, slots: list[_Slot]) -> list[_Slot]:
        """Of an all-or-nothing call: those that have to be granted. What was granted before need not pass the rules."""
        refused = [slot for slot in slots if slot.refusal is not None]
        if not refused or call.doomed:
            return slots
        await self._replay(call, terms, refused)
        left = [slot for slot in slots if slot.outcome is None]
        if any(map(_spoils, refused)):
            for slot in left:
                slot.refusal = rules.batch_not_granted()
        return left

    # --- admit ----------------------------------------------------------------------------------------------------

    async def _admit(
        self, terms: PromotionTerms, slots: list[_Slot], refused: list[_Slot], call: IssueCall, *, fresh: bool
    ) -> tuple[list[_Slot], list[_Slot], list[_Slot]]:
        """Ask the gate: who may go on to the commit, who waits for a twin in flight, who must be decided anew.

        Adds to `refused`. `fresh`: the terms are not older than the call. Raises QueueFull if no item of the call has
        an outcome yet: an error for each of a thousand would cost more than what it spares.
        """
        for slot in slots:
            slot.admission, slot.gate_refused = self._ids.next(), False
        try:
            answers = (await self._gate.admit(terms.sid, [_admit_item(slot) for slot in slots])).answers
            if (
                not fresh
                and any(map(_refused_by_terms, slots, answers))
                and await self._outdated(terms, slots, answers)
            ):
                return [], [], slots
        except ServiceError as error:
            if isinstance(error, QueueFull) and len(slots) + len(refused) == len(call.items):
                raise
            _settle_for(slots, error)
            return [], [], []
        all_or_nothing = call.all_or_nothing
        admitted: list[_Slot] = []
        waiting: list[_Slot] = []
        failed = False
        for slot, answer in zip(slots, answers, strict=True):
            slot.epoch = answer.epoch
            if answer.code is AdmitCode.ADMITTED:
                slot.admitted = True
                admitted.append(slot)
            elif answer.code is AdmitCode.PENDING:
                waiting.append(slot)
            else:
                refused.append(slot)
                if answer.code is not AdmitCode.GRANTED_BEFORE:  # which the look-up finds
                    failed = slot.gate_refused = True
                    slot.refusal = _gate_refusal(slot, answer)
                    if answer.sure and not all_or_nothing:
                        slot.outcome = slot.refusal
        if all_or_nothing and len(admitted) < len(slots):
            # Never sent to the commit: the group goes on whole or not at all.
            self._give_back(terms.sid, admitted)
            if not failed:
                return [], waiting + admitted, []
            return [], [], await self._group_refused(call, terms, slots, admitted, refused)
        return admitted, waiting, []

    async def _group_refused(
        self, call: IssueCall, terms: PromotionTerms, slots: list[_Slot], admitted: list[_Slot], refused: list[_Slot]
    ) -> list[_Slot]:
        """The gate refused part of an all-or-nothing call: sets who is `refused`, or returns those to be decided anew.

        What was granted or ruled out before is looked up first: the gate, which may not know it, let it hold what the
        others were refused for.
        """
        await self._recall(call, terms, slots)
        left = [slot for slot in slots if slot.outcome is None]
        held_in_vain = any(slot.outcome is not None for slot in admitted)
        if held_in_vain and not any(map(_spoils, slots)):
            refused.clear()
            await self._gate.settled()
            return left
        for slot in left:
            if held_in_vain or not slot.gate_refused:
                slot.refusal = rules.batch_not_granted()
        refused[:] = left
        return []

    async def _outdated(self, terms: PromotionTerms, slots: list[_Slot], answers: Sequence[Answer]) -> bool:
        """Whether the terms that the gate refused by have changed since they were read; then nobody goes on by them.

        Raises ServiceError where that can't be known, after what was admitted has been given back.
        """
        current = False
        try:
            current = await self._catalogue.is_current(terms)
        finally:
            if not current:
                pairs = zip(slots, answers, strict=True)
                admitted = [slot for slot, answer in pairs if answer.code is AdmitCode.ADMITTED]
                for slot in admitted:
                    slot.admitted = True
                self._give_back(terms.sid, admitted)
        return not current

    async def _freed(
        self, call: IssueCall, terms: PromotionTerms, admitted: list[_Slot], refused: list[_Slot]
    ) -> list[_Slot]:
        """Those that go to the gate again, because the ledger refused a neighbour that it had let pass.

        Alone, that neighbour would have taken nothing. They are taken from `refused`. It ends: each time one item more
        has its outcome, and those that the ledger knows already have theirs at once.
        """
        again = [slot for slot in refused if slot.gate_refused]
        if not again or not any(isinstance(slot.outcome, Rejection) for slot in admitted):
            return []
        await self._gate.settled()
        refused[:] = [slot for slot in refused if not slot.gate_refused]
        for slot in again:
            slot.outcome, slot.gate_refused = None, False
        await self._recall(call, terms, again)
        return [slot for slot in again if slot.outcome is None]

    def _give_back(self, group: int, slots: list[_Slot]) -> None:
        if slots:
            self._gate.settle(
                group, [Settlement(slot.admission, slot.item.request_id, SettleCode.GIVEN_BACK) for slot in slots]
            )

    # --- commit ---------------------------------------------------------------------------------------------------

    async def _commit(self, call: IssueCall, principal: int, slots: list[_Slot]) -> list[_Slot]:
        """Commit the admitted ones, set their outcomes, and return those that must be decided anew."""
        group = next(self._groups) if call.all_or_nothing else 0
        try:
            results = await self._committer.submit([_commit_item(slot, principal, group) for slot in slots])
        except ServiceError as error:
            _settle_for(slots, error)
            return []
        stale: list[_Slot] = []
        granted_before: list[_Slot] = []
        for slot, result in zip(slots, results, strict=True):
            if isinstance(result, ServiceError):
                slot.outcome = result
            elif result.code == CommitCode.GRANTED:
                slot.outcome = Granted(_issuance(call, slot, result), replayed=False)
            elif result.code == CommitCode.EXISTS:
                granted_before.append(slot)
            elif result.code in _DECIDE_ANEW:
                self._note(slot, result)
                stale.append(slot)
            else:
                slot.outcome = rules.commit_rejection(_decision(slot), slot.item, result)
        if call.all_or_nothing and (stale or (granted_before and not _is_refused(results))):
            # The others were not granted only because a neighbour was stale, or was granted before and may be another
            # request under its id: they are decided anew.
            stale = [slot for slot in slots if slot not in granted_before]
            _settle_for(stale, None)
        if granted_before:
            await self._replay(call, _decision(granted_before[0]).terms, granted_before)
        return stale

    def _note(self, slot: _Slot, result: CommitResult) -> None:
        """What was stale, so that the next attempt is not."""
        if result.code == CommitCode.FENCED:
            self._ids.above(result.observed or 0)
        elif result.code == CommitCode.STALE_EPOCH:
            self._gate.epoch_refused(_decision(slot).terms.sid, slot.epoch)

    # --- replay ---------------------------------------------------------------------------------------------------

    async def _replay(
        self, call: IssueCall, terms: PromotionTerms, slots: list[_Slot], *, otherwise: Outcome | None = None
    ) -> None:
        """Whoever was granted before gets that grant; the others their refusal, or `otherwise`.

        Joined with other callers' look-ups.
        """
        asked = [slot for slot in slots if slot.outcome is None]
        if asked:
            await self._recall(call, terms, asked)
        for slot in asked:
            if slot.outcome is None:
                slot.outcome = slot.refusal or otherwise or _aborted(call)

    async def _recall(self, call: IssueCall, terms: PromotionTerms, slots: list[_Slot]) -> None:
        """Whoever was granted before gets that grant, and whoever was ruled out for ever that; the others nothing."""
        asked = [slot for slot in slots if slot.outcome is None]
        if not asked:
            return
        try:
            known = await self.lookups.submit([(terms.sid, slot.item.request_id) for slot in asked])
        except ServiceError as error:
            # Not as it came, which says that nothing was granted: this very call may have been, or one before it.
            _settle_for(asked, OutcomeUnknown(f"what became of it could not be looked up: {error.message}"))
            return
        for slot, request in zip(asked, known, strict=True):
            if request.state is RequestState.GRANTED:
                answer = rules.replay(request, call.entrance_id, slot.item)
                mine = request.admission == slot.admission
                slot.outcome = answer if isinstance(answer, ServiceError) else Granted(answer, replayed=not mine)
            elif request.state is RequestState.CANCELLED:
                slot.outcome = rules.cancelled(slot.item)

    async def _lookup(self, keys: list[tuple[int, str]]) -> Sequence[KnownRequest]:
        return await self._ledger.lookup(keys)

    # --- resolve --------------------------------------------------------------------------------------------------

    async def resolve(self, promotion_id: str, request_id: str, *, cancel_if_absent: bool) -> KnownRequest | Pending:
        """What became of a request: granted, cancelled, pending (an attempt is in flight), or absent.

        With `cancel_if_absent` an absent one is ruled out for ever, after waiting for what is in flight. Raises
        NOT_FOUND / PROMOTION_NOT_FOUND.
        """
        terms = self._catalogue.find(promotion_id) or await self._catalogue.refresh(promotion_id)
        if terms is None:
            raise not_found("PROMOTION_NOT_FOUND", f"there is no promotion {promotion_id}", promotion_id=promotion_id)
        if cancel_if_absent and await self._ledger.cancel(terms.sid, request_id) is RequestState.CANCELLED:
            return CANCELLED
        known = await self._look_up(terms.sid, request_id)
        if known.state in _UNDECIDED and await self._in_flight(terms.sid, request_id):
            # It may have been granted since the look-up: its marker is settled after its commit.
            known = await self._look_up(terms.sid, request_id)
            return Pending() if known.state in _UNDECIDED else known
        return known

    async def _look_up(self, promotion: int, request_id: str) -> KnownRequest:
        (known,) = await self.lookups.submit([(promotion, request_id)])
        return known

    async def _in_flight(self, promotion: int, request_id: str) -> bool:
        try:
            return await self._gate.is_pending(promotion, request_id)
        except ServiceError:
            return False  # the ledger has answered "not yet", which is what absent says

    async def aclose(self) -> None:
        """Finish the look-ups in flight."""
        await self.lookups.aclose()

    async def _know(self, name: str) -> int:
        sid = await self._principal(name)
        if len(self._principals) >= 10_000:
            self._principals.clear()
        self._principals[name] = sid
        return sid

    def _counted(self, slot: _Slot) -> Outcome:
        outcome = slot.outcome
        assert outcome is not None
        if isinstance(outcome, Granted):
            self.outcomes["replayed" if outcome.replayed else "granted"] += 1
        elif isinstance(outcome, Rejection):
            self.outcomes[_REASON_NAMES[outcome.reason]] += 1
        else:
            self.outcomes["pending" if isinstance(outcome, Pending) else "error"] += 1
            if isinstance(outcome, ServiceError):
                forget_frames(outcome)
        return outcome


_REASON_NAMES = {reason: reason.name.lower() for reason in Reason}
_UNDECIDED = frozenset({RequestState.ABSENT, RequestState.FENCED})
_DECIDE_ANEW = frozenset({CommitCode.FENCED, CommitCode.STALE_EPOCH, CommitCode.STALE_VERSION})


class _TwinWait:
    """Waits for a twin in flight, a little longer each time, up to a limit over all."""

    __slots__ = ("_left", "_pause")

    def __init__(self, seconds_max: float) -> None:
        self._left = seconds_max
        self._pause = _TWIN_PAUSE_SECONDS_MIN

    async def pause(self) -> bool:
        """False once the limit is reached."""
        if self._left <= 0:
            return False
        pause = min(self._pause, self._left)
        self._left -= pause
        self._pause = min(self._pause * 2, _TWIN_PAUSE_SECONDS_MAX)
        await asyncio.sleep(pause)
        return True


def _decision(slot: _Slot) -> Decision:
    assert slot.decision is not None, "only what was decided is admitted and committed"
    return slot.decision


def _spoils(slot: _Slot) -> bool:
    """Whether this outcome keeps the others of an all-or-nothing call from being granted."""
    return slot.outcome is not None and not isinstance(slot.outcome, Granted)


def _is_refused(results: Sequence[Committed]) -> bool:
    """Whether a group was not granted for a reason that will hold when it is tried again."""
    passing = {CommitCode.GRANTED, CommitCode.EXISTS, CommitCode.GROUP_NOT_GRANTED}
    return any(isinstance(result, ServiceError) or result.code not in passing for result in results)


def _settle_for(slots: list[_Slot], outcome: Outcome | None) -> None:
    for slot in slots:
        slot.outcome = outcome


def _split(slots: list[_Slot], call: IssueCall) -> tuple[list[_Slot], list[_Slot]]:
    """Those that go on to the gate, and those that were refused; of an all-or-nothing call all or none go on."""
    refused = [slot for slot in slots if slot.refusal is not None]
    if not refused and not call.doomed:
        return slots, refused
    if not call.all_or_nothing:
        return [slot for slot in slots if slot.refusal is None], refused
    for slot in slots:
        if slot.refusal is None:
            slot.refusal = rules.batch_not_granted()
    return [], slots


def _admit_item(slot: _Slot) -> AdmitItem:
    decision, item = _decision(slot), slot.item
    prize = decision.prize
    if prize.limit_per_user:
        return AdmitItem(
            slot.admission, item.request_id, f"{prize.sid}:{item.user_id}", prize.limit_per_user, decision.claims
        )
    return AdmitItem(slot.admission, item.request_id, NO_LIMIT, 0, decision.claims)


def _commit_item(slot: _Slot, principal: int, group: int) -> CommitItem:
    decision, item = _decision(slot), slot.item
    return CommitItem(
        decision.terms.sid,
        decision.terms.version,
        slot.epoch,
        slot.admission,
        item.request_id,
        item.user_id,
        decision.prize.sid,
        decision.entrance,
        decision.basis,
        decision.value,
        item.reference or None,
        principal,
        group,
    )


def _refused_by_terms(slot: _Slot, answer: Answer) -> bool:
    """Whether the gate might have said yes under other terms: a limit, or a value. (Of stock every grant takes one.)"""
    if answer.code is AdmitCode.REFUSED:
        return answer.resource != _decision(slot).prize.stock_resource
    return answer.code is AdmitCode.LIMIT_REACHED


def _gate_refusal(slot: _Slot, answer: Answer) -> Rejection | ServiceError:
    decision = _decision(slot)
    if answer.code is AdmitCode.LIMIT_REACHED:
        return rules.limit_reached(decision.prize, answer.observed)
    if answer.code is AdmitCode.REFUSED and answer.resource == decision.prize.stock_resource:
        return rules.sold_out(decision.prize, answer.remaining)
    if answer.code is AdmitCode.REFUSED:
        return rules.budget_exhausted(decision.terms, decision.prize, answer.remaining, decision.value)
    return ServiceError(
        Code.UNAVAILABLE,
        "GATE_UNAVAILABLE",
        "the gate can't tell what is left of this prize now; retry",
        retry_after_ms=200,
    )


def _issuance(call: IssueCall, slot: _Slot, result: CommitResult) -> Issuance:
    decision, item = _decision(slot), slot.item
    assert result.issuance_id is not None
    assert result.issued_at is not None
    return Issuance(
        result.issuance_id,
        call.promotion_id,
        call.entrance_id,
        item.prize_id,
        item.user_id,
        item.request_id,
        item.reference,
        call.principal,
        decision.prize.kind,
        decision.prize.asset,
        decision.value,
        result.issued_at,
        result.expires_at,
    )


def _aborted(call: IssueCall) -> ServiceError:
    return ServiceError(
        Code.ABORTED,
        "STALE_CONFIGURATION",
        f"promotion {call.promotion_id} changed again and again while this was decided; retry with the same request id",
        metadata={"promotion_id": call.promotion_id},
        retry_after_ms=50,
    )

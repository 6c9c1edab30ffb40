"""What several clients saw at the same time, explained by the order in which the ledger has it.

The ledger's order is that of its batches; a change of the catalogue lies where its instant, read under its exclusive
lock, puts it among the instants of the batches, which are read under the shared one. This order is replayed through the
model: every grant must be allowed at its place, with its value. Then every answer must be true of it: a rejection at
some moment between call and answer, given what calls at the same time may have held.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.model.calls import (
    BatchCall,
    BudgetCall,
    Call,
    Done,
    Given,
    IssueCall,
    ResolveCall,
    StockCall,
    Told,
    make,
)
from tests.model.model import CallRefused, Item, Level, Model, No, Yes
from tests.model.stage import Play

_GRANTS = """
SELECT r.request_id, r.outcome, r.issuance_id, r.batch, s.user_id, z.prize_id, e.entrance_id, r.basis,
    r.basis_attribute, r.value, coalesce(r.reference, '') AS reference,
    (extract(epoch FROM b.booked_at - c.offset_us * interval '1 microsecond') * 1000000)::bigint AS at
FROM guerdon.clock c, guerdon.promotion p JOIN guerdon.request r ON r.promotion = p.sid
LEFT JOIN guerdon.batch b ON b.id = r.batch LEFT JOIN guerdon.subject s ON s.sid = r.subject
LEFT JOIN guerdon.prize z ON z.sid = r.prize LEFT JOIN guerdon.entrance e ON e.sid = r.entrance
WHERE p.promotion_id = $1 ORDER BY r.issuance_id
"""
_ADJUSTMENTS = """
SELECT t.batch, CASE WHEN t.kind IN (3, 6) THEN -t.amount ELSE t.amount END AS delta, z.prize_id, t.asset,
    (extract(epoch FROM b.booked_at - c.offset_us * interval '1 microsecond') * 1000000)::bigint AS at
FROM guerdon.clock c, guerdon.promotion p
JOIN guerdon.account a ON a.kind IN (2, 5) AND a.owner = p.sid
JOIN LATERAL (
    SELECT t.*, y.asset FROM guerdon.transfer t LEFT JOIN guerdon.asset y ON a.kind = 5 AND y.sid = a.item
    WHERE t.kind IN (2, 3, 5, 6) AND a.id IN (t.debit, t.credit)
) t ON true
JOIN guerdon.batch b ON b.id = t.batch
LEFT JOIN guerdon.prize z ON a.kind = 2 AND z.sid = a.item
WHERE p.promotion_id = $1
"""
_HELD = ("SOLD_OUT", "BUDGET_EXHAUSTED", "LIMIT_REACHED")
_TRY_AGAIN = ("STALE_CONFIGURATION", "CONTENTION")


@dataclass(frozen=True)
class Called:
    """One call by one client; instants in microseconds since 1970 by the clock that the database has, too."""

    client: int
    server: int
    call: Call
    told: Told
    started: int
    ended: int

    def overlaps(self, other: Called) -> bool:
        return self.started <= other.ended and other.started <= self.ended

    def answers(self) -> Iterator[tuple[str, Item, Given | No | str]]:
        """Entrance, item and answer of each reward that was asked for."""
        if isinstance(self.call, IssueCall):
            told = self.told.why if isinstance(self.told, CallRefused) else self.told
            assert isinstance(told, Given | No | str)
            yield self.call.entrance, self.call.item, told
        elif isinstance(self.call, BatchCall):
            told_all = [self.told.why] * len(self.call.items) if isinstance(self.told, CallRefused) else self.told
            assert isinstance(told_all, list)
            for item, answer in zip(self.call.items, told_all, strict=True):
                yield self.call.entrance, item, answer


@dataclass(frozen=True)
class Row:
    """A request key as the ledger holds it. `outcome`: 1 granted, 2 fenced, 3 cancelled."""

    request: str
    outcome: int
    issuance: str
    batch: int
    yes: tuple[str, str, str]
    basis: tuple[str, int] | None
    value: int | None
    reference: str
    at: int


@dataclass(frozen=True)
class _Event:
    """`answered`: when the last caller who may have made it knew of it."""

    at: int
    batch: int
    what: Row | Call
    answered: int


class History:
    """Checks one play's calls; `check` fails the play with all that was said."""

    def __init__(self, play: Play, calls: Sequence[Called], opened_at: int) -> None:
        self.play = play
        self.calls = sorted(calls, key=lambda called: called.started)
        self.rows: dict[str, Row] = {}
        self._opened_at = opened_at
        self._events: list[_Event] = []
        self._states: list[Model] = [copy.deepcopy(play.model)]
        """Before the first event, and after each."""

    async def read(self) -> None:
        """The ledger's side of it."""
        pool, promotion = self.play.stage.pool, self.play.promotion
        for row in await pool.fetch(_GRANTS, promotion):
            basis = None if row["basis"] is None else (row["basis_attribute"], row["basis"])
            self.rows[row["request_id"]] = Row(
                row["request_id"],
                row["outcome"],
                str(row["issuance_id"] or ""),
                row["batch"] or 0,
                (row["user_id"], row["prize_id"], row["entrance_id"]),
                basis,
                row["value"],
                row["reference"],
                row["at"] or 0,
            )
        self._events = [
            _Event(row.at, row.batch, row, self._told_of(row)) for row in self.rows.values() if row.outcome == 1
        ]
        for row in await pool.fetch(_ADJUSTMENTS, promotion):
            self._events.append(self._adjustment(row["at"], row["batch"], row["delta"], row["prize_id"], row["asset"]))
        made: dict[int, _Event] = {}
        for called in self.calls:
            if isinstance(called.told, Done):
                at = called.told.at - self._offset()
                if at >= self._opened_at:  # else nothing was changed: it was in that state from the start
                    known = made.get(at)
                    answered = called.ended if known is None else min(known.answered, called.ended)
                    made[at] = _Event(at, 0, called.call, answered)
        self._events = sorted([*self._events, *made.values()], key=lambda event: (event.at, event.batch))

    def _offset(self) -> int:
        return self.play.stage.offset_us

    def _told_of(self, row: Row) -> int:
        ends = [
            called.ended
            for called in self.calls
            for _, item, told in called.answers()
            if item.request == row.request and isinstance(told, Given)
        ]
        return min(ends, default=2**62)

    def _adjustment(self, at: int, batch: int, delta: int, prize: str | None, asset: str | None) -> _Event:
        promotion = self.play.promotion
        call: Call = (
            StockCall(prize, delta, f"replayed-{batch}")
            if prize
            else BudgetCall(promotion, str(asset), delta, f"replayed-{batch}")
        )
        ends = [
            called.ended for called in self.calls if _adjusts(called, call) and called.started <= at <= called.ended
        ]
        if not ends:
            self.fail(f"nobody asked for this adjustment: {call}")
        return _Event(at, batch, call, max(ends))

    # --- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> Model:
        """All of it; the model as it is in the end."""
        self._replay()
        for called in self.calls:
            self._check(called)
        makers: dict[str, int] = {}
        for called in self.calls:
            for _, item, told in called.answers():
                if isinstance(told, Given) and not told.replayed:
                    makers[item.request] = makers.get(item.request, 0) + 1
        granted = {row.request: 1 for row in self.rows.values() if row.outcome == 1}
        if makers != granted:
            self.fail(f"granted as new {makers}, but in the ledger {granted}")
        self._adjusted_once()
        return self._states[-1]

    def _replay(self) -> None:
        for event in self._events:
            model = copy.deepcopy(self._states[-1])
            if isinstance(event.what, Row):
                self._allow(model, event.what)
            else:
                answer = make(model, event.what)
                if isinstance(answer, No):
                    self.fail(f"the model does not allow {event.what} where the ledger has it: {answer}")
            self._states.append(model)
        for row in self.rows.values():
            if row.outcome == 3:
                self._states[-1].requests[self.play.promotion, row.request] = None

    def _allow(self, model: Model, row: Row) -> None:
        user, prize, entrance = row.yes
        item = Item(prize, user, row.request, row.reference, dict([row.basis]) if row.basis else {})
        answer = model.issue(self.play.promotion, entrance, item)
        if not isinstance(answer, Yes) or answer.replayed:
            self.fail(f"granted, but not allowed where the ledger has it: {item}: {answer}")
        if isinstance(answer, Yes) and answer.value != row.value:
            self.fail(f"{item} was granted {row.value}, at its place it is worth {answer.value}")

    def _adjusted_once(self) -> None:
        done = [
            called
            for called in self.calls
            if isinstance(called.call, StockCall | BudgetCall) and isinstance(called.told, tuple) and not called.told[1]
        ]
        if len(done) != sum(isinstance(event.what, StockCall | BudgetCall) for event in self._events):
            self.fail("not as many adjustments in the ledger as were acknowledged")

    def _check(self, called: Called) -> None:
        call, told = called.call, called.told
        if isinstance(told, No) and told.reason in _TRY_AGAIN:
            if not any(isinstance(other.told, Done) and other.overlaps(called) for other in self.calls):
                self.fail(f"aborted, but nothing was changed meanwhile: {called}")
            return
        if isinstance(call, IssueCall | BatchCall):
            self._check_issue(called)
        elif isinstance(call, ResolveCall):
            self._check_resolve(called, call)
        elif isinstance(call, StockCall | BudgetCall):
            self._check_adjustment(called, call)
        elif isinstance(told, No):
            window = self._window(called)
            if not any(make(copy.deepcopy(state), call) == told for state in window):
                self.fail(f"refused, but allowed all the time: {called}")

    def _window(self, called: Called) -> list[Model]:
        """The states between call and answer: from the first event that may not have been over when it began."""
        first = next(
            (number for number, event in enumerate(self._events) if event.answered > called.started),
            len(self._events),
        )
        last = bisect_left([event.at for event in self._events], called.ended + 1)
        return self._states[first : max(first, last) + 1]

    def _check_issue(self, called: Called) -> None:
        answers = list(called.answers())
        for entrance, item, told in answers:
            why = self._untrue(called, entrance, item, told)
            if why:
                self.fail(f"{item}: {why}: {told}")
        if isinstance(called.call, BatchCall) and called.call.together:
            made = [item for _, item, told in answers if isinstance(told, Given) and not told.replayed]
            new = {self.rows[item.request].batch for item in made}
            if new and (len(new) > 1 or not all(isinstance(told, Given) for _, _, told in answers)):
                self.fail(f"neither all nor nothing: {called}")

    def _untrue(self, called: Called, entrance: str, item: Item, told: Given | No | str) -> str:
        row = self.rows.get(item.request)
        if isinstance(told, Given):
            return self._untrue_grant(called, entrance, item, told, row)
        if isinstance(told, str) or told.reason in _TRY_AGAIN:
            busy = any(other is not called and other.overlaps(called) for other in self.calls)
            return "" if busy else "nothing else was under way"
        if told.reason == "REQUEST_ID_REUSED":
            granted = row is not None and row.outcome == 1 and row.at <= called.ended
            return "" if row and granted and told.field == _differing(row, entrance, item) else f"the ledger has {row}"
        if told.reason == "CANCELLED":
            return "" if row is not None and row.outcome == 3 else "it was not cancelled"
        return self._untrue_rejection(called, entrance, item, told, row)

    def _untrue_rejection(self, called: Called, entrance: str, item: Item, told: No, row: Row | None) -> str:
        if told.reason == "BATCH_NOT_GRANTED":
            others = [no for _, _, no in called.answers() if isinstance(no, No) and no.reason != told.reason]
            return "" if others and isinstance(called.call, BatchCall) and called.call.together else "no other failed"
        if row is not None and row.outcome == 1 and self._told_of(row) < called.started:
            return "it had been granted, and said so"
        window = self._window(called)
        if any(told in state.refusals(self.play.promotion, entrance, item) for state in window):
            return ""
        held = told.reason in _HELD and self._held(called, item, told, window)
        return "" if held else "it was not so at any moment"

    def _untrue_grant(self, called: Called, entrance: str, item: Item, told: Given, row: Row | None) -> str:
        it = told.issuance
        if row is None or row.issuance != it.issuance_id or row.value != (it.value.units if it.value.asset else None):
            return f"the ledger has {row}"
        if _differing(row, entrance, item):
            return f"granted for another {_differing(row, entrance, item)}"
        if it.reference != row.reference or (not told.replayed and row.reference != item.reference):
            return "the reference is another"
        if row.at > called.ended or (not told.replayed and row.at < called.started):
            return "it was booked at another time"
        return ""

    def _held(self, called: Called, item: Item, told: No, window: list[Model]) -> bool:
        """Whether it was so at some moment, if calls at the same time held what they asked for."""
        others = [
            other_item
            for other in self.calls
            if other.overlaps(called)
            for _, other_item, _ in other.answers()
            if other_item is not item
        ]
        observed = int(told.observed)
        prize = item.prize
        if told.reason == "SOLD_OUT":
            held = sum(other.prize == prize for other in others)
            return told.threshold == "1" and _fits([state.stock(prize) for state in window], held, observed, 1)
        if told.reason == "LIMIT_REACHED":
            held = sum((other.prize, other.user) == (prize, item.user) for other in others)
            counts = [state.holdings[item.user, prize] for state in window]
            limits = {str(state.prizes[prize].limit) for state in window}
            return (
                told.threshold in limits
                and observed >= int(told.threshold)
                and (min(counts) <= observed <= max(counts) + held)
            )
        asset = window[0].prizes[prize].asset
        held = sum(max(_values(window, other)) for other in others if window[0].prizes[other.prize].asset == asset)
        levels = [state.budget(self.play.promotion, asset) for state in window]
        worth = int(told.threshold)
        return worth in _values(window, item) and _fits(levels, held, observed, worth)

    def _check_resolve(self, called: Called, call: ResolveCall) -> None:
        row, told = self.rows.get(call.request), called.told
        if isinstance(told, Given):
            fine = row is not None and row.issuance == told.issuance.issuance_id and row.at <= called.ended
        elif told == "cancelled":
            fine = row is not None and row.outcome == 3
        elif told == "absent":
            cancelled_before = any(
                isinstance(other.call, ResolveCall)
                and other.call.request == call.request
                and other.told == "cancelled"
                and other.ended < called.started
                for other in self.calls
            )
            granted_before = row is not None and row.outcome == 1 and self._told_of(row) < called.started
            fine = not (call.cancel or cancelled_before or granted_before)
        else:
            fine = (
                told == "pending"
                and not call.cancel
                and any(
                    other.overlaps(called) and any(item.request == call.request for _, item, _ in other.answers())
                    for other in self.calls
                )
            )
        if not fine:
            self.fail(f"{called}, but the ledger has {row}")

    def _check_adjustment(self, called: Called, call: StockCall | BudgetCall) -> None:
        told, window = called.told, self._window(called)
        levels = [
            state.stock(call.prize) if isinstance(call, StockCall) else state.budget(call.promotion, call.asset)
            for state in window
        ]
        twins = [
            other
            for other in self.calls
            if other is not called
            and isinstance(other.call, type(call))
            and other.call.request == call.request
            and other.started <= called.ended
        ]
        if isinstance(told, tuple):
            same = any(_adjusts(other, call) for other in twins)
            if told[0] not in levels or (told[1] and not same):
                self.fail(f"{called}, but there was {levels}")
        elif isinstance(told, No) and told.reason == "REQUEST_ID_REUSED":
            if all(_adjusts(other, call) for other in twins):
                self.fail(f"not reused: {called}")
        elif not any(make(copy.deepcopy(state), call) == told for state in window):
            self.fail(f"{called}, but there was {levels}")

    def fail(self, why: str) -> None:
        """Fails the play with the whole history."""
        origin = self.calls[0].started if self.calls else 0
        self.play.log = [
            f"{called.started - origin:7} to {called.ended - origin:7} us, client {called.client} at server"
            f" {called.server}: {called.call}\n      {called.told}"
            for called in self.calls
        ]
        self.play.log += ["the ledger's order:"]
        self.play.log += [f"{event.at - origin:7} us, batch {event.batch}: {event.what}" for event in self._events]
        self.play.fail(why)


def _adjusts(called: Called, call: Call) -> bool:
    """Whether it asked for this adjustment, whatever its id."""
    mine = called.call
    if isinstance(mine, StockCall) and isinstance(call, StockCall):
        return (mine.prize, mine.delta) == (call.prize, call.delta)
    if isinstance(mine, BudgetCall) and isinstance(call, BudgetCall):
        return (mine.asset, mine.delta) == (call.asset, call.delta)
    return False


def _differing(row: Row, entrance: str, item: Item) -> str:
    names = zip(("user_id", "prize_id", "entrance_id"), row.yes, (item.user, item.prize, entrance), strict=True)
    for name, was, asked in names:
        if was != asked:
            return name
    if row.basis is not None and item.attributes.get(row.basis[0]) != row.basis[1]:
        return f"attributes[{row.basis[0]}]"
    return ""


def _values(window: list[Model], item: Item) -> list[int]:
    """What the item may be worth, over these states; 0 among them."""
    rules = [state.prizes[item.prize].rule for state in window]
    priced = [window[0].priced(rule, item) for rule in rules if rule is not None]
    return [0, *(value for value in priced if isinstance(value, int))]


def _fits(levels: list[Level], held: int, observed: int, need: int) -> bool:
    """Whether so much may have been seen, and was too little, if `held` was taken besides what these levels say."""
    limited = [level for level in levels if level.remaining is not None and level.capacity is not None]
    if not limited or observed >= need:
        return False
    least = min(level.remaining for level in limited if level.remaining is not None)
    lowest = min(level.capacity or 0 for level in limited) - max(level.issued for level in limited)
    most = max(level.remaining for level in limited if level.remaining is not None)
    return least - held < need and max(0, min(least, lowest) - held) <= observed <= most

"""A seeded system that keeps its promises, with everything that makes histories hard to judge: calls in flight that
hold units, callers who give up, effects that come late, servers that die with units held. Time is virtual."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.history.record import Budget, History, Kind, Operation, Outcome, Prize, Rules

_SALE, _COINS, _ASSET = "coupon", "coins", "COIN"
_PROMOTION = "spring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """callers at once, each `calls` calls of about `call_seconds`; shares of 1."""

    callers: int = 12
    calls: int = 20
    users: int = 6
    stock: int = 40
    budget: int = 200
    limit: int = 4
    call_seconds: float = 0.02
    unknown_share: float = 0.05
    held_seconds_max: float = 0.5


@dataclass(slots=True)
class _Account:
    """The ledger's numbers, and the gate's: `held` by admissions that are open."""

    capacity: int
    issued: int = 0
    held: int = 0


@dataclass(slots=True)
class _System:
    load: Load
    rng: random.Random
    history: History
    now: float = 0.0
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    issuances: itertools.count[int] = field(default_factory=lambda: itertools.count(1000))
    paused: bool = False
    accounts: dict[str, _Account] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    held_counts: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    wallets: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    granted: dict[str, Operation] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    marked: set[str] = field(default_factory=set)
    asked: list[Operation] = field(default_factory=list)

    # --- time -----------------------------------------------------------------------------------------------------

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), what))

    def soon(self) -> float:
        return self.rng.expovariate(1 / self.load.call_seconds) + 1e-6

    def run(self) -> None:
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()

    # --- callers --------------------------------------------------------------------------------------------------

    def caller(self, left: int) -> None:
        if not left:
            return

        def again() -> None:
            self.caller(left - 1)

        dice = self.rng.random()
        if dice < 0.70 or not self.asked:
            self.issue(self.fresh(), again)
        elif dice < 0.80:
            self.issue(self.repeated(), again)
        elif dice < 0.85:
            self.at_once(Kind.GET_ISSUANCE, again, self.look_up, request_id=self.rng.choice(self.asked).request_id)
        elif dice < 0.86:
            self.at_once(Kind.CANCEL, again, self.cancel, request_id=self.rng.choice(self.asked).request_id)
        elif dice < 0.91:
            self.at_once(Kind.READ_STOCK, again, self.read, prize_id=_SALE)
        elif dice < 0.94:
            self.at_once(Kind.READ_BUDGET, again, self.read, asset=_ASSET)
        elif dice < 0.97:
            self.at_once(Kind.READ_BALANCE, again, self.balance, user_id=self.user(), asset=_ASSET)
        elif dice < 0.98:
            self.at_once(Kind.READ_BALANCE, again, self.balance, user_id=self.user(), prize_id=_SALE)
        elif dice < 0.983:
            self.at_once(Kind.PAUSE, again, self.transition)
        elif dice < 0.992:
            self.at_once(Kind.RESUME, again, self.transition)
        else:
            amount = self.rng.choice([-3, -1, 2, 5])
            kind, name = self.rng.choice([(Kind.ADJUST_STOCK, _SALE), (Kind.ADJUST_BUDGET, _ASSET)])
            self.at_once(kind, again, self.adjust, **{_NAMES[kind]: name}, amount=amount)

    def user(self) -> str:
        return f"u{self.rng.randrange(self.load.users)}"

    def fresh(self) -> Operation:
        prize_id = self.rng.choice([_SALE, _COINS])
        call = Operation(Kind.ISSUE, self.now, promotion_id=_PROMOTION, prize_id=prize_id, user_id=self.user())
        call.request_id, call.server = f"q{next(self.numbers)}", self.rng.choice("ab")
        call.amount = self.rng.randrange(1, 8) if prize_id == _COINS else 0
        self.asked.append(call)
        return call

    def repeated(self) -> Operation:
        first = self.rng.choice(self.asked[-30:])
        call = Operation(Kind.ISSUE, self.now, promotion_id=_PROMOTION, prize_id=first.prize_id, user_id=first.user_id)
        call.request_id, call.amount, call.server = first.request_id, first.amount, self.rng.choice("ab")
        return call

    # --- issuing --------------------------------------------------------------------------------------------------

    def issue(self, call: Operation, again: Callable[[], None]) -> None:
        self.history.operations.append(call)
        if self.rng.random() < self.load.unknown_share:

            def gives_up() -> None:
                call.returned = self.now
                again()

            self.after(self.soon(), gives_up)
            again = _nothing
        self.after(self.soon(), lambda: self.gate(call, again))

    def answer(self, call: Operation, outcome: Outcome, again: Callable[[], None], reason: str = "") -> None:
        """After a while, unless the caller has given up (then `again` is nothing)."""
        if again is _nothing:
            return

        def returns() -> None:
            call.outcome, call.reason, call.returned = outcome, reason, self.now
            if outcome in {Outcome.GRANTED, Outcome.REPLAYED}:
                call.issuance_id = self.granted[call.request_id].issuance_id
            again()

        self.after(self.soon(), returns)

    def claims(self, call: Operation) -> tuple[_Account, int]:
        return (self.accounts[_SALE], 1) if call.prize_id == _SALE else (self.accounts[_ASSET], call.amount)

    def gate(self, call: Operation, again: Callable[[], None]) -> None:
        account, amount = self.claims(call)
        who = call.prize_id, call.user_id
        if call.request_id in self.granted:
            self.answer(call, Outcome.REPLAYED, again)
        elif call.request_id in self.cancelled:
            self.answer(call, Outcome.REJECTED, again, "CANCELLED")
        elif call.request_id in self.marked:
            self.answer(call, Outcome.PENDING, again)
        elif call.prize_id == _SALE and self.counts[who] + self.held_counts[who] >= self.load.limit:
            self.answer(call, Outcome.REJECTED, again, "LIMIT_REACHED")
        elif account.capacity - account.issued - account.held < amount:
            self.answer(call, Outcome.REJECTED, again, "SOLD_OUT" if call.prize_id == _SALE else "BUDGET_EXHAUSTED")
        else:
            self.marked.add(call.request_id)
            account.held += amount
            self.held_counts[who] += 1
            gave_up = again is _nothing
            if gave_up and self.rng.random() < 0.4:  # its server dies
                self.after(self.load.held_seconds_max * self.rng.random(), lambda: self.give_back(call))
            else:
                late = 20.0 if gave_up else 1.0
                self.after(self.soon() * late * self.rng.random(), lambda: self.commit(call, again))

    def give_back(self, call: Operation) -> None:
        account, amount = self.claims(call)
        account.held -= amount
        self.held_counts[call.prize_id, call.user_id] -= 1
        self.marked.discard(call.request_id)

    def commit(self, call: Operation, again: Callable[[], None]) -> None:
        account, amount = self.claims(call)
        self.give_back(call)
        if call.request_id in self.cancelled:
            self.answer(call, Outcome.REJECTED, again, "CANCELLED")
        elif self.paused:
            self.answer(call, Outcome.REJECTED, again, "PROMOTION_PAUSED")
        elif account.capacity - account.issued < amount:
            self.answer(call, Outcome.REJECTED, again, "SOLD_OUT" if call.prize_id == _SALE else "BUDGET_EXHAUSTED")
        else:
            account.issued += amount
            self.counts[call.prize_id, call.user_id] += 1
            self.wallets[call.user_id] += call.amount
            call.issuance_id = str(next(self.issuances))
            self.granted[call.request_id] = call
            if again is _nothing:
                # Kept apart: the caller was never told.
                self.granted[call.request_id] = Operation(Kind.ISSUE, 0, issuance_id=call.issuance_id)
                call.issuance_id = ""
            self.answer(call, Outcome.GRANTED, again)

    # --- everything else ------------------------------------------------------------------------------------------

    def at_once(
        self, kind: Kind, again: Callable[[], None], effect: Callable[[Operation], None], **fields: str | int
    ) -> None:
        """A call that takes effect at one moment between its two ends."""
        call = Operation(kind, self.now, promotion_id=_PROMOTION, server=self.rng.choice("ab"))
        for name, value in fields.items():
            setattr(call, name, value)
        self.history.operations.append(call)

        def returns() -> None:
            call.returned = self.now
            again()

        def acts() -> None:
            effect(call)
            self.after(self.soon(), returns)

        self.after(self.soon(), acts)

    def look_up(self, call: Operation) -> None:
        if call.request_id in self.granted:
            call.outcome, call.issuance_id = Outcome.GRANTED, self.granted[call.request_id].issuance_id
        elif call.request_id in self.cancelled:
            call.outcome = Outcome.CANCELLED
        else:
            call.outcome = Outcome.PENDING if call.request_id in self.marked else Outcome.ABSENT

    def cancel(self, call: Operation) -> None:
        if call.request_id not in self.granted:
            self.cancelled.add(call.request_id)
        self.look_up(call)

    def read(self, call: Operation) -> None:
        account = self.accounts[call.prize_id or call.asset]
        call.outcome, call.capacity, call.issued = Outcome.OK, account.capacity, account.issued
        call.remaining = account.capacity - account.issued

    def balance(self, call: Operation) -> None:
        call.outcome = Outcome.OK
        call.balance = self.wallets[call.user_id] if call.asset else self.counts[_SALE, call.user_id]

    def transition(self, call: Operation) -> None:
        call.outcome, self.paused = Outcome.OK, call.kind is Kind.PAUSE

    def adjust(self, call: Operation) -> None:
        account = self.accounts[call.prize_id or call.asset]
        if account.capacity + call.amount < account.issued:
            call.outcome, call.reason = Outcome.REJECTED, "STOCK_INSUFFICIENT"
            call.remaining = account.capacity - account.issued
            return
        account.capacity += call.amount
        if self.rng.random() < 0.5:  # the other half has no numbers in its answer
            self.read(call)
        call.outcome = Outcome.OK


_NAMES = {Kind.ADJUST_STOCK: "prize_id", Kind.ADJUST_BUDGET: "asset"}


def _nothing() -> None:
    """Where nobody waits any more."""


def simulate(seed: int, load: Load = Load()) -> History:
    """A correct history. At its end every request whose outcome is open is looked up, or every other one ruled out."""
    history = History(
        prizes=[
            Prize(_PROMOTION, _SALE, load.stock, load.limit),
            Prize(_PROMOTION, _COINS, None, 0, _ASSET, wallet=True),
        ],
        budgets=[Budget(_PROMOTION, _ASSET, load.budget)],
        rules=Rules(held_seconds_max=load.held_seconds_max),
    )
    system = _System(load, random.Random(seed), history)
    system.accounts = {_SALE: _Account(load.stock), _ASSET: _Account(load.budget)}
    for _ in range(load.callers):
        system.after(system.soon(), lambda: system.caller(load.calls))
    system.run()
    opened = {one.request_id for one in history.operations if one.kind is Kind.ISSUE and one.open}
    for number, request_id in enumerate(sorted(opened)):
        if number % 2:
            system.at_once(Kind.GET_ISSUANCE, _nothing, system.look_up, request_id=request_id)
        else:
            system.at_once(Kind.CANCEL, _nothing, system.cancel, request_id=request_id)
    for kind, name in ((Kind.READ_STOCK, _SALE), (Kind.READ_BUDGET, _ASSET)):
        system.at_once(kind, _nothing, system.read, **{"prize_id" if name == _SALE else "asset": name})
    for number in range(load.users):
        system.at_once(Kind.READ_BALANCE, _nothing, system.balance, user_id=f"u{number}", asset=_ASSET)
    system.run()
    return history

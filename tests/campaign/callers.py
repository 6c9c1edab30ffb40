"""Callers at work: clerks who issue and repeat, an auditor who reads. Everything they see goes into the journal."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guerdon.v1 import account_pb2 as account
from guerdon.v1 import prize_pb2 as prize
from tests.campaign.journal import Call, Journal, Key
from tests.campaign.stage import CASHBACK, ENTRANCE, OPEN, Offer, Stage
from tests.issuing.desk import Desk, Refusal, attributes, outcome, reason

ATTEMPT_SECONDS = 3.0
_TRIES_MAX = 8
_PAUSE_SECONDS = 0.05
_REMEMBERED = 400
# What happened is known from these: nothing.
REFUSED = frozenset({"OVERLOADED", "SHUTTING_DOWN", "GATE_UNAVAILABLE", "LEDGER_UNAVAILABLE"})
_MAY_REPEAT = frozenset({"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"})


@dataclass(slots=True)
class Strange:
    """An answer that no caller should ever see."""

    what: list[str] = field(default_factory=list)

    def add(self, call: Call, refusal: Refusal) -> None:
        if len(self.what) < 100:
            self.what.append(f"{call.kind} {call.request_id}: {refusal.code} {refusal.reason} {refusal.message[:300]}")


class Caller:
    """Sends single calls to one server and writes down what comes back."""

    def __init__(self, number: int, desk: Desk, journal: Journal, strange: Strange) -> None:
        self.number = number
        self.desk = desk
        self._journal = journal
        self._strange = strange

    async def issue(self, key: Key, offer: Offer, user_id: str, basis: int) -> Call:
        """One attempt at one request."""
        call = Call("issue", key[0], self.number, 0.0, request_id=key[1])
        call.prize_id, call.user_id, call.basis, call.asset = offer.prize_id, user_id, basis, offer.asset
        request = prize.IssuePrizeRequest(
            promotion_id=key[0],
            entrance_id=ENTRANCE,
            prize_id=offer.prize_id,
            user_id=user_id,
            request_id=key[1],
            attributes=attributes(order_cents=basis) if offer.kind == CASHBACK else {},
        )
        self._journal.asks(call)
        answer = await self._timed(call, self.desk.issue(request, timeout=ATTEMPT_SECONDS))
        if answer is not None:
            _read_outcome(call, answer)
        self._journal.record(call)
        return call

    async def batch(self, promotion_id: str, asked: Sequence[tuple[str, Offer, str, int]], *, together: bool) -> None:
        """One attempt at a batch of (request id, offer, user, basis)."""
        items, calls = [], []
        name = f"{promotion_id}/{asked[0][0]}/{time.monotonic_ns()}" if together else ""
        for request_id, offer, user_id, basis in asked:
            call = Call("issue", promotion_id, self.number, 0.0, request_id=request_id, together=name)
            call.prize_id, call.user_id, call.basis, call.asset = offer.prize_id, user_id, basis, offer.asset
            calls.append(call)
            self._journal.asks(call)
            items.append(
                prize.BatchItem(
                    prize_id=offer.prize_id,
                    user_id=user_id,
                    request_id=request_id,
                    attributes=attributes(order_cents=basis) if offer.kind == CASHBACK else {},
                )
            )
        whole = Call("batch", promotion_id, self.number, 0.0)
        results = await self._timed(
            whole,
            self.desk.batch(
                items, together=together, promotion_id=promotion_id, entrance_id=ENTRANCE, timeout=ATTEMPT_SECONDS
            ),
        )
        for place, call in enumerate(calls):
            call.invoked, call.returned, call.outcome = whole.invoked, whole.returned, whole.outcome
            if results is not None:
                self._read_item(call, results[place])
            self._journal.record(call)
        if together and results is not None:
            self._check_whole(calls)

    async def get(self, key: Key, *, cancel: bool) -> Call:
        """What became of a request."""
        call = Call("cancel" if cancel else "get", key[0], self.number, 0.0, request_id=key[1])
        lookup = prize.GetIssuanceRequest(
            request=prize.RequestKey(promotion_id=key[0], request_id=key[1]), cancel_if_absent=cancel
        )
        answer = await self._timed(call, self.desk.prizes.GetIssuance(lookup, timeout=ATTEMPT_SECONDS))
        if answer is not None:
            state = answer.WhichOneof("state")
            if state == "granted":
                call.outcome, call.issuance = "replayed", answer.granted
            elif state == "pending":
                call.outcome = "pending"
            else:
                call.outcome = "cancelled" if answer.absent.cancelled else "absent"
        self._journal.record(call)
        return call

    async def read_stock(self, offer: Offer) -> None:
        """The ledger's numbers of a prize."""
        call = Call("read_stock", offer.promotion_id, self.number, 0.0, prize_id=offer.prize_id)
        request = prize.GetPrizeStockRequest(prize_id=offer.prize_id)
        stock = await self._timed(call, self.desk.prizes.GetPrizeStock(request, timeout=ATTEMPT_SECONDS))
        if stock is not None:
            call.outcome = "ok"
            call.observed = {"issued": stock.issued_units, "remaining": stock.remaining_units, "capacity": stock.units}
        self._journal.record(call)

    async def read_wallet(self, promotion_id: str, user_id: str, asset: str) -> None:
        """What a user has of an asset."""
        call = Call("read_balance", promotion_id, self.number, 0.0, user_id=user_id, asset=asset)
        key = account.AccountKey(kind=account.ACCOUNT_KIND_WALLET, user_id=user_id, asset=asset)
        request = account.GetBalanceRequest(account=key)
        balance = await self._timed(call, self.desk.accounts.GetBalance(request, timeout=ATTEMPT_SECONDS))
        if balance is not None:
            call.outcome, call.observed = "ok", {"balance": balance.balance_units}
        self._journal.record(call)

    async def _timed(self, call: Call, answer: Awaitable[Any]) -> Any:
        """The answer; None: the call has its error as outcome."""
        call.invoked = time.monotonic()
        try:
            found = await outcome(answer)
        except asyncio.CancelledError:
            call.returned, call.outcome = time.monotonic(), "GIVEN_UP"
            raise
        call.returned = time.monotonic()
        if not isinstance(found, Refusal):
            return found
        self._note(call, found)
        return None

    def _read_item(self, call: Call, result: prize.BatchItemResult) -> None:
        if result.WhichOneof("outcome") == "error":
            self._note(call, Refusal.of(result.error))
        else:
            _read_outcome(call, result)

    def _note(self, call: Call, refusal: Refusal) -> None:
        call.outcome, call.reason = refusal.reason or refusal.code, refusal.message
        poisoned = "poison" in call.request_id and refusal.reason == "LEDGER_REFUSED"
        absent = call.kind == "read_balance" and refusal.code == "NOT_FOUND"
        if refusal.code not in _MAY_REPEAT and refusal.reason != "REQUEST_ID_REUSED" and not poisoned and not absent:
            self._strange.add(call, refusal)

    def _check_whole(self, calls: Sequence[Call]) -> None:
        """All or nothing: granted together, or not one of them by this call."""
        kinds = {call.outcome for call in calls}
        if "granted" in kinds and not kinds <= {"granted", "replayed"}:  # replayed: another caller had asked alone
            self._journal.contradictions.append(
                f"an all-or-nothing batch was granted in part: {[(c.request_id, c.outcome, c.reason) for c in calls]}"
            )


def _read_outcome(call: Call, answer: prize.IssuePrizeResponse | prize.BatchItemResult) -> None:
    which = answer.WhichOneof("outcome")
    if which == "granted":
        call.outcome, call.issuance = "replayed" if answer.replayed else "granted", answer.granted
    elif which == "rejected":
        call.outcome, call.reason = "rejected", reason(answer.rejected)
        for name, text in (("observed", answer.rejected.observed), ("threshold", answer.rejected.threshold)):
            if text.lstrip("-").isdigit():
                call.observed[name] = int(text)
    else:
        call.outcome = "pending"


class Crowd:
    """Clerks and an auditor on one stage over all servers, until `stop`."""

    def __init__(self, callers: Sequence[Caller], journal: Journal, stage: Stage, seed: int) -> None:
        self._callers = callers
        self._journal = journal
        self._stage = stage
        self._seed = seed
        self._recent: list[tuple[Key, Offer, str, int]] = []
        self._going = True
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0

    def start(self, clerks: int) -> None:
        """At once."""
        for number in range(clerks):
            self._tasks.append(asyncio.create_task(self._clerk(random.Random(f"{self._seed}-{number}"))))
        # One for each server asks for what is never sold out, so that each one's return is noticed.
        for caller in self._callers:
            self._tasks.append(asyncio.create_task(self._steady(caller)))
        self._tasks.append(asyncio.create_task(self._auditor(random.Random(f"{self._seed}-auditor"))))

    async def stop(self) -> None:
        """Calls under way come to their end; what has no final answer then is left open."""
        self._going = False
        await asyncio.wait(self._tasks, timeout=2 * ATTEMPT_SECONDS)
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    def fresh(self, rng: random.Random, promotion_id: str = "") -> tuple[Key, Offer, str, int]:
        """A request that nobody made before."""
        offers = [offer for offer in self._stage.offers if promotion_id in ("", offer.promotion_id)]
        offer = rng.choice(offers)
        self._number += 1
        key = offer.promotion_id, f"q{self._number}"
        return key, offer, rng.choice(self._stage.users), rng.randrange(1, 20_000) if offer.kind == CASHBACK else 0

    async def _clerk(self, rng: random.Random) -> None:
        while self._going:
            dice = rng.random()
            caller = rng.choice(self._callers)
            if dice < 0.62 or not self._recent:
                await self._one(rng, caller)
            elif dice < 0.70:  # the same again, at once, anywhere
                key, offer, user_id, basis = rng.choice(self._recent)
                await rng.choice(self._callers).issue(key, offer, user_id, basis)
            elif dice < 0.76:  # two of the same at the same moment
                twin = self.fresh(rng)
                self._remember(twin)
                await asyncio.gather(*(c.issue(*twin) for c in (caller, rng.choice(self._callers))))
            elif dice < 0.79:  # the id of another
                key, offer, _, basis = rng.choice(self._recent)
                await caller.issue(key, offer, rng.choice(self._stage.users), basis)
            elif dice < 0.90:
                promotion_id = rng.choice(self._stage.promotion_ids)
                asked = [self.fresh(rng, promotion_id) for _ in range(rng.randrange(2, 14))]
                for one in asked:
                    self._remember(one)
                await caller.batch(promotion_id, [(k[1], o, u, b) for k, o, u, b in asked], together=dice > 0.85)
            elif dice < 0.95:
                await caller.get(rng.choice(self._recent)[0], cancel=False)
            else:
                never = self.fresh(rng)
                key = never[0] if rng.random() < 0.5 else rng.choice(self._recent)[0]
                await asyncio.gather(caller.get(key, cancel=True), self._maybe(rng, never, key))
            await asyncio.sleep(rng.random() * _PAUSE_SECONDS)

    async def _maybe(self, rng: random.Random, fresh: tuple[Key, Offer, str, int], key: Key) -> None:
        """Ask for what is being ruled out at the same moment."""
        if fresh[0] == key:
            await rng.choice(self._callers).issue(*fresh)

    async def _one(self, rng: random.Random, caller: Caller) -> None:
        """A new request, repeated with the same id until the answer is final or patience ends."""
        asked = self.fresh(rng)
        self._remember(asked)
        for attempt in range(_TRIES_MAX):
            call = await caller.issue(*asked)
            if asked[0] not in self._journal.open or not self._going:
                return
            if call.outcome == "LEDGER_REFUSED":
                return
            await asyncio.sleep(_PAUSE_SECONDS * (1 + attempt))
            caller = rng.choice(self._callers)

    async def _steady(self, caller: Caller) -> None:
        offer = next(offer for offer in self._stage.offers if offer.kind == OPEN)
        number = 0
        while self._going:
            number += 1
            key = offer.promotion_id, f"steady-{caller.number}-{number}"
            await caller.issue(key, offer, f"{self._stage.users[0]}-steady-{caller.number}", 0)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _auditor(self, rng: random.Random) -> None:
        limited = [offer for offer in self._stage.offers if offer.stock is not None]
        while self._going:
            caller = rng.choice(self._callers)
            await caller.read_stock(rng.choice(limited))
            promotion_id = rng.choice(self._stage.promotion_ids)
            await caller.read_wallet(promotion_id, rng.choice(self._stage.users), rng.choice(("COIN", "USD/2")))
            await asyncio.sleep(_PAUSE_SECONDS)

    def _remember(self, asked: tuple[Key, Offer, str, int]) -> None:
        if len(self._recent) < _REMEMBERED:
            self._recent.append(asked)
        else:
            self._recent[self._number % _REMEMBERED] = asked

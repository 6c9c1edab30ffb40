"""The operator of a stage: tops up, recalls, pauses and changes rules, repeats until it is answered, keeps the sums."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from guerdon.v1 import prize_pb2 as prize
from guerdon.v1 import promotion_pb2 as promotion
from tests.campaign.callers import ATTEMPT_SECONDS, Caller
from tests.campaign.journal import Call, Journal
from tests.campaign.stage import Offer, Stage, state
from tests.issuing.desk import Refusal, outcome

ANSWER_SECONDS_MAX = 90.0
_PAUSE_SECONDS = 0.1
_SAID_NO = frozenset({"STOCK_INSUFFICIENT", "BUDGET_INSUFFICIENT", "TRANSITION_NOT_ALLOWED"})


class Unanswered(Exception):
    """An operator's call had no final answer in ANSWER_SECONDS_MAX."""


class Operator:
    """Every call has one id and is repeated, at any server, until it is done or refused: so the sums are exact.

    stock: initial + acknowledged changes by prize id; budgets: the same by (promotion id, asset).
    """

    def __init__(self, callers: Sequence[Caller], journal: Journal, stage: Stage, rng: random.Random) -> None:
        self._callers = callers
        self._journal = journal
        self._rng = rng
        self._number = 0
        self.stage = stage
        self.stock = {offer.prize_id: offer.stock for offer in stage.offers if offer.stock is not None}
        self.budgets = {key: units for key, units in stage.budgets.items() if units is not None}

    async def adjust_stock(self, offer: Offer, delta: int) -> bool:
        """Top-up or recall; False: less remains than is recalled."""
        request = prize.AdjustPrizeStockRequest(prize_id=offer.prize_id, delta_units=delta, request_id=self._id())
        call = Call("adjust_stock", offer.promotion_id, -1, 0.0, prize_id=offer.prize_id, amount=delta)
        answer = await self._until_answered(
            call, lambda caller: caller.desk.prizes.AdjustPrizeStock(request, timeout=ATTEMPT_SECONDS)
        )
        if answer is None:
            return False
        self.stock[offer.prize_id] += delta
        return True

    async def adjust_budget(self, promotion_id: str, asset: str, delta: int) -> bool:
        """The same for a budget."""
        request = promotion.AdjustPromotionBudgetRequest(
            promotion_id=promotion_id, asset=asset, delta_units=delta, request_id=self._id()
        )
        call = Call("adjust_budget", promotion_id, -1, 0.0, asset=asset, amount=delta)
        answer = await self._until_answered(
            call, lambda caller: caller.desk.promotions.AdjustPromotionBudget(request, timeout=ATTEMPT_SECONDS)
        )
        if answer is None:
            return False
        self.budgets[promotion_id, asset] += delta
        return True

    async def move(self, promotion_id: str, to: str) -> Call:
        """PAUSED, ACTIVE or ENDED; the call as the journal has it."""
        request = promotion.TransitionPromotionRequest(
            promotion_id=promotion_id, target_state=state(to), request_id=self._id()
        )
        kind = {"PAUSED": "pause", "ACTIVE": "resume", "ENDED": "end"}[to]
        call = Call(kind, promotion_id, -1, 0.0)
        await self._until_answered(
            call, lambda caller: caller.desk.promotions.TransitionPromotion(request, timeout=ATTEMPT_SECONDS)
        )
        return call

    async def set_value(self, offer: Offer, units: int) -> None:
        """Another fixed value from now on."""
        offer.fixed.add(units)  # before: it may be in force at any time from here
        await self._update(
            offer,
            "value.fixed_units",
            prize.Prize(prize_id=offer.prize_id, value=prize.PrizeValue(asset=offer.asset, fixed_units=units)),
            Call("set_value", offer.promotion_id, -1, 0.0, amount=units),
        )

    async def set_limit(self, offer: Offer, limit: int) -> None:
        """Another limit per user from now on."""
        offer.limit_highest = max(offer.limit_highest, limit)
        changed = prize.Prize(prize_id=offer.prize_id, limit_per_user=limit)
        await self._update(
            offer, "limit_per_user", changed, Call("set_limit", offer.promotion_id, -1, 0.0, amount=limit)
        )

    async def _update(self, offer: Offer, path: str, changed: prize.Prize, call: Call) -> None:
        request = prize.UpdatePrizeRequest(prize=changed, update_mask=FieldMask(paths=[path]), request_id=self._id())
        call.prize_id = offer.prize_id
        await self._until_answered(
            call, lambda caller: caller.desk.prizes.UpdatePrize(request, timeout=ATTEMPT_SECONDS)
        )

    async def _until_answered(self, call: Call, attempt: Callable[[Caller], Awaitable[Any]]) -> Any:
        """The answer; None: it said no. Raises Unanswered."""
        call.invoked = time.monotonic()
        while True:
            caller = self._rng.choice(self._callers)
            answer = await outcome(attempt(caller))
            call.returned, call.server = time.monotonic(), caller.number
            if not isinstance(answer, Refusal):
                call.outcome = "ok"
                break
            if answer.reason in _SAID_NO:
                call.outcome, call.reason, answer = "refused", answer.reason, None
                break
            if call.returned - call.invoked > ANSWER_SECONDS_MAX:
                raise Unanswered(f"{call.kind} of {call.promotion_id} {call.prize_id}: {answer}")
            await asyncio.sleep(_PAUSE_SECONDS)
        self._journal.record(call)
        return answer

    def _id(self) -> str:
        self._number += 1
        return f"{self.stage.promotion_ids[0]}-operator-{self._number}"

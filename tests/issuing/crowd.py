"""Callers who don't give up: each repeats its request with the same id until it has a final answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from guerdon.v1 import prize_pb2 as prize
from tests.issuing.desk import WAIT_SECONDS_MAX, Desk, Refusal, ask, eventually, fresh, outcome, reason

# CANCELLED: gRPC dropped what had waited for a second; nobody had looked at it (a busy machine).
_OPEN = {"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
_PAUSE_SECONDS = 0.02
_REPLAYS_AT_ONCE = 32


@dataclass
class Crowd:
    """What was asked and what was acknowledged. `strange`: answers that no caller should ever see."""

    desks: Sequence[Desk]
    prize_id: str = "welcome"
    promotion_id: str = "spring"
    name: str = field(default_factory=lambda: fresh("crowd"))
    timeout_seconds: float = 5.0
    users: int = 7
    think_seconds: float = 0.0  # between two requests of a caller
    granted: dict[str, prize.Issuance] = field(default_factory=dict)
    asked: dict[str, prize.IssuePrizeRequest] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    strange: list[object] = field(default_factory=list)
    going: bool = True

    async def more(self, count: int) -> None:
        """Waits until so many more grants are acknowledged."""
        until = len(self.granted) + count
        await eventually(lambda: len(self.granted) >= until or bool(self.strange), poll_seconds=0.005)
        assert not self.strange, self.strange[:3]

    async def more_or_noticed(self, count: int, *reasons: str) -> None:
        """Waits for whichever comes first."""
        until, before = len(self.granted) + count, self._refusals(reasons)
        await eventually(lambda: len(self.granted) >= until or self._refusals(reasons) > before, poll_seconds=0.005)

    def _refusals(self, reasons: Sequence[str]) -> int:
        return sum(self.refused[reason] for reason in reasons)

    async def noticed(self, *reasons: str) -> None:
        """Waits until callers are refused for one of these reasons."""
        before = self._refusals(reasons)
        await eventually(lambda: self._refusals(reasons) > before, poll_seconds=0.005)

    async def replays_are_the_originals(self) -> None:
        """Each acknowledged grant, asked again at every desk in turn, is answered by itself."""

        at_once = asyncio.Semaphore(_REPLAYS_AT_ONCE)  # all of them would be overload

        async def again(number: int, request_id: str) -> None:
            async with at_once:
                answer = await self._final(number, self.asked[request_id])
            assert answer is not None, self.strange[:3]
            assert answer.replayed, request_id
            assert answer.granted == self.granted[request_id]

        await asyncio.gather(*(again(n, request_id) for n, request_id in enumerate(list(self.granted))))

    async def clerk(self, number: int) -> None:
        """One caller: one request after the other."""
        count = 0
        while self.going:
            count += 1
            request = ask(
                f"{self.name}-{number}-{count}",
                user_id=f"u-{count % self.users}",
                prize_id=self.prize_id,
                promotion_id=self.promotion_id,
            )
            self.asked[request.request_id] = request
            answer = await self._final(number, request)
            if answer is not None and answer.HasField("granted"):
                self.granted[request.request_id] = answer.granted
            elif answer is not None:
                self.rejected[reason(answer.rejected)] += 1
            if self.think_seconds:
                await asyncio.sleep(self.think_seconds)

    async def _final(self, number: int, request: prize.IssuePrizeRequest) -> prize.IssuePrizeResponse | None:
        """Asks until the answer is granted or rejected; None: it was a strange one."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while True:
                desk = self.desks[number % len(self.desks)]
                answer = await outcome(desk.issue(request, timeout=self.timeout_seconds))
                if isinstance(answer, Refusal):
                    self.refused[answer.reason or answer.code] += 1
                    if answer.code not in _OPEN or (answer.reason and not self._may_retry(answer)):
                        self.strange.append((request.request_id, answer))
                        return None
                    await asyncio.sleep(_PAUSE_SECONDS)
                elif answer.HasField("pending"):
                    self.refused["pending"] += 1
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    return answer  # type: ignore[no-any-return]

    @staticmethod
    def _may_retry(refused: Refusal) -> bool:
        return refused.retry_after_ms is not None or refused.code == "DEADLINE_EXCEEDED"


@asynccontextmanager
async def crowd(desks: Sequence[Desk], *, clerks: int = 12, **how: object) -> AsyncIterator[Crowd]:
    """Callers at work while the block runs; after it each has the final answer to its last request."""
    people = Crowd(desks, **how)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(people.clerk(number)) for number in range(clerks)]
    try:
        yield people
    finally:
        people.going = False
        await asyncio.wait(tasks, timeout=WAIT_SECONDS_MAX)
        for task in tasks:
            task.cancel()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert not people.strange, people.strange[:3]
    assert not any(errors), errors

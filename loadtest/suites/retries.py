"""Callers who repeat: twins at the same moment, answers that nobody waited for, and the same again much later.

data: give_up_ms (how long a caller waits who then repeats), remembered (grants of each user that may be asked again).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import cast

import gevent
import grpc
from locust import task

from guerdon.v1.prize_pb2 import IssuePrizeRequest, IssuePrizeResponse
from loadtest.generator.stage import NewPrize, Stage, none_of
from loadtest.generator.user import GuerdonUser
from loadtest.plan import Check
from loadtest.tally import Tally

_PLENTY = 10**12
_CONTRADICTIONS = "answers that contradict an earlier one"
_TWICE = "requests granted twice"


class Retries(GuerdonUser):
    """Each task is four calls for two rewards, and one that was given up. Whatever is asked again is compared."""

    calls_per_task = 4

    @classmethod
    def prepare(cls, stage: Stage) -> None:
        stage.promotion("retries", [NewPrize("coupon", stock=_PLENTY)])

    def on_start(self) -> None:
        self._granted: deque[tuple[str, str, IssuePrizeResponse]] = deque(maxlen=self.stage.data("remembered"))
        super().on_start()

    @task
    def repeat(self) -> None:
        self._twins(self.new_id("u"), self.new_id("r"))
        self._lost(self.new_id("u"), self.new_id("r"))
        user_id, request_id, first = random.choice(self._granted) if self._granted else (self.new_id("u"), "", None)
        again = self.issue("retries", "coupon", user_id=user_id, request_id=request_id, again=first is not None)
        self._compare(first, again)

    def _twins(self, user_id: str, request_id: str) -> None:
        """Two calls with one request id at once: one grant, told twice."""
        both = [
            gevent.spawn(self.issue, "retries", "coupon", user_id=user_id, request_id=request_id, counted=counted)
            for counted in (True, False)
        ]
        gevent.joinall(both, raise_error=True)
        first, second = (each.value for each in both)
        granted = [each for each in (first, second) if each is not None and each.HasField("granted")]
        if len([each for each in granted if not each.replayed]) > 1:
            self.tally.counts[_TWICE] += 1
        self._compare(first, second)
        self._remember(user_id, request_id, next(iter(granted), None))

    def _lost(self, user_id: str, request_id: str) -> None:
        """A caller who gives up, not knowing, and asks again."""
        request: IssuePrizeRequest = self.request("retries", "coupon", user_id=user_id, request_id=request_id)
        early: IssuePrizeResponse | None = None
        try:
            early = self.stubs.prizes.IssuePrize(request, timeout=self.stage.data("give_up_ms") / 1000)
        except grpc.RpcError as error:
            self.tally.counts[f"given up: {cast(grpc.Call, error).code().name}"] += 1
        answer = self.issue("retries", "coupon", user_id=user_id, request_id=request_id)
        self._compare(early, answer)
        self._remember(user_id, request_id, answer)

    def _remember(self, user_id: str, request_id: str, answer: IssuePrizeResponse | None) -> None:
        if answer is not None and answer.HasField("granted"):
            self._granted.append((user_id, request_id, answer))

    def _compare(self, first: IssuePrizeResponse | None, again: IssuePrizeResponse | None) -> None:
        if first is None or again is None or not first.HasField("granted"):
            return
        self.tally.counts["compared"] += 1
        if first.granted != again.granted:
            self.tally.counts[_CONTRADICTIONS] += 1

    @classmethod
    def checks(cls, stage: Stage, tally: Tally) -> Iterator[Check]:
        yield from super().checks(stage, tally)
        compared = tally.counts["compared"]
        yield Check("repeated answers compared with the first", f"{compared:,}", "above 0", compared > 0)
        yield none_of(tally, _CONTRADICTIONS)
        yield none_of(tally, _TWICE)

"""The base of all workloads: a user who makes calls over the generated stubs, one at a time, at a constant rate.

A workload is a subclass in loadtest/suites: `prepare` makes what it needs, methods marked `@task` call `issue`, `batch`
or `read`, `checks` looks whether all came out right.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, TypeVar, cast

import gevent
import grpc
from locust import User

from guerdon import PRINCIPAL_METADATA_KEY
from guerdon.v1 import account_pb2_grpc, entrance_pb2_grpc, prize_pb2, prize_pb2_grpc
from guerdon.v1.types_pb2 import AttributeValue
from loadtest.generator.stage import UNKNOWN, Stage, granted_of
from loadtest.plan import Check
from loadtest.tally import Tally

GRANTED: Final = "GRANTED"
REPLAYED: Final = "REPLAYED"
SOLD_OUT: Final = "SOLD_OUT"
LIMIT_REACHED: Final = "LIMIT_REACHED"
"""Outcomes; rejections have the names of RejectionReason."""

_METADATA: Final = ((PRINCIPAL_METADATA_KEY, "loadtest"),)
_GOLDEN: Final = (5**0.5 - 1) / 2
_DETAILS_MAX: Final = 200
_PENDING: Final = "PENDING"
# What clients of Guerdon repeat, and how often: see clients/python/README.md. All of it is one call here.
_REPEATED: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED}
_ATTEMPTS_MAX: Final = 5
_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX = 0.05, 1.0
R = TypeVar("R", prize_pb2.IssuePrizeResponse, prize_pb2.BatchIssuePrizesResponse, Any)


class Stubs:
    """One connection."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        # Without a pool of its own every channel to one target would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        if credentials is None:
            channel = grpc.insecure_channel(target, options=options)
        else:
            channel = grpc.secure_channel(target, credentials, options=options)
        self.prizes = prize_pb2_grpc.PrizeServiceStub(channel)
        self.accounts = account_pb2_grpc.AccountServiceStub(channel)
        self.entrances = entrance_pb2_grpc.EntranceServiceStub(channel)


class Reading(NamedTuple):
    """What an answer says. `wait_seconds`: it is open, ask again after so long."""

    outcomes: Mapping[str, int]
    error: str = ""
    wait_seconds: float = 0.0


class GuerdonUser(User):
    """Subclass it; give tasks `@task(weight)` from locust. All ids begin with the run's name."""

    abstract = True
    calls_per_task: ClassVar[int] = 1
    """How many recorded calls each task makes: rates are in calls."""
    stage: ClassVar[Stage]
    tally: ClassVar[Tally]
    channels: ClassVar[Sequence[Stubs]] = ()
    _process: ClassVar[str] = ""
    _offset: ClassVar[float] = 0.0
    _numbers: ClassVar[Iterator[int]] = itertools.count()
    _users: ClassVar[Iterator[int]] = itertools.count()

    @classmethod
    def set_up(cls, stage: Stage) -> None:
        """Once in each process that has users."""
        cls.stage, cls.tally = stage, Tally()
        cls._process, cls._offset = os.urandom(6).hex(), random.random()
        cls.channels = [Stubs(stage.plan.target, stage.plan.credentials()) for _ in range(stage.plan.channels)]
        cls.tasks = [_whole(each) for each in cls.tasks]

    @classmethod
    def prepare(cls, stage: Stage) -> None:
        """Make promotions and prizes, before the load; once in a run."""
        raise NotImplementedError

    @classmethod
    def checks(cls, stage: Stage, tally: Tally) -> Iterator[Check]:
        """Look whether all came out right, after the load; once in a run, with what all processes saw."""
        return stage.granted_is_issued(tally)

    def on_start(self) -> None:
        """Users begin at moments of their own: so many users make the same rate from their first second on."""
        number = next(self._users)
        self.stubs = self.channels[number % len(self.channels)]
        # Multiples of the golden ratio are spread evenly, however many of them there are, and wherever they begin.
        share = (self._offset + number * _GOLDEN) % 1
        self._due = time.perf_counter() + share * self._interval_seconds
        gevent.sleep(self._due - time.perf_counter())

    def wait_time(self) -> float:
        """Until the next task is due: each user's tasks are due at a constant rate, and who is late catches up.

        Locust's `constant_throughput` counts from the making of the user: users that were made together would call
        together, all in the same moment. And it forgets what was not done in time: the rate would sink unseen.
        """
        self._due += self._interval_seconds
        return max(0.0, self._due - time.perf_counter())

    @property
    def _interval_seconds(self) -> float:
        return self.calls_per_task / self.stage.plan.profile.user_rate

    def new_id(self, what: str) -> str:
        """An id that nobody has used, in no process and no run."""
        return self.stage.id(f"{what}-{self._process}-{next(self._numbers)}")

    def issue(
        self,
        promotion: str,
        prize: str,
        *,
        user_id: str,
        request_id: str = "",
        allow: Collection[str] = (GRANTED,),
        attributes: Mapping[str, int] | None = None,
        again: bool = False,
        counted: bool = True,
    ) -> prize_pb2.IssuePrizeResponse | None:
        """One IssuePrize; None where it failed. Promotion and prize by their short names.

        `allow`: the outcomes that are right answers. `again`: the request has been granted before: only its replay is
        right. A request id is made if none is given; one that is sent twice is `counted` once.
        """
        request = self.request(promotion, prize, user_id=user_id, request_id=request_id, attributes=attributes)
        # A grant whose first answer was lost on the way is asked for again, and so replayed.
        right = {REPLAYED} if again else {*allow, REPLAYED} if GRANTED in allow else set(allow)
        name = "IssuePrize again" if again else "IssuePrize"
        answer = self._call(name, self.stubs.prizes.IssuePrize, request, lambda found: _read(found, right))
        if counted and not again:
            self._count(prize, [answer])
        return answer

    def request(
        self,
        promotion: str,
        prize: str,
        *,
        user_id: str,
        request_id: str = "",
        attributes: Mapping[str, int] | None = None,
    ) -> prize_pb2.IssuePrizeRequest:
        """The message that `issue` sends."""
        return prize_pb2.IssuePrizeRequest(
            promotion_id=self.stage.id(promotion),
            entrance_id=self.stage.entrance_id,
            prize_id=self.stage.id(prize),
            user_id=user_id,
            request_id=request_id or self.new_id("r"),
            attributes=_attributes(attributes),
        )

    def batch(
        self,
        promotion: str,
        prize: str,
        *,
        user_ids: Sequence[str],
        request_ids: Sequence[str] = (),
        allow: Collection[str] = (GRANTED,),
        again: bool = False,
    ) -> prize_pb2.BatchIssuePrizesResponse | None:
        """One BatchIssuePrizes, an item for each user; otherwise as `issue`."""
        ids = request_ids or [self.new_id("r") for _ in user_ids]
        request = prize_pb2.BatchIssuePrizesRequest(
            promotion_id=self.stage.id(promotion),
            entrance_id=self.stage.entrance_id,
            items=[
                prize_pb2.BatchItem(prize_id=self.stage.id(prize), user_id=user_id, request_id=request_id)
                for user_id, request_id in zip(user_ids, ids, strict=True)
            ],
            mode=prize_pb2.BATCH_MODE_PER_ITEM,
        )
        right = {REPLAYED} if again else {*allow, REPLAYED}
        name = "BatchIssuePrizes again" if again else "BatchIssuePrizes"
        answer = self._call(name, self.stubs.prizes.BatchIssuePrizes, request, lambda found: _read_batch(found, right))
        if not again:
            self._count(prize, answer.results if answer is not None else [None] * len(ids))
        return answer

    def read(self, name: str, method: Callable[..., R], request: object) -> R | None:
        """Any call that changes nothing; None where it failed."""
        return self._call(name, method, request, lambda _: Reading({"OK": 1}))

    def _count(
        self, prize: str, answers: Sequence[prize_pb2.IssuePrizeResponse | prize_pb2.BatchItemResult | None]
    ) -> None:
        for answer in answers:
            outcome = None if answer is None else answer.WhichOneof("outcome")
            if outcome == "granted":
                self.tally.counts[granted_of(prize)] += 1
            elif outcome != "rejected":
                self.tally.counts[UNKNOWN] += 1

    def _call(self, name: str, method: Callable[..., R], request: Any, read: Callable[[R], Reading]) -> R | None:
        """Send it until it is decided, within one deadline, and record it as one call."""
        began, started = time.time(), time.perf_counter()
        deadline = started + self.stage.plan.profile.deadline_seconds
        for attempt in itertools.count(1):
            answer, reading = _attempt(method, request, read, attempt, max(deadline - time.perf_counter(), 1e-3))
            if not reading.wait_seconds or time.perf_counter() + reading.wait_seconds > deadline:
                break
            gevent.sleep(reading.wait_seconds)
        ms = (time.perf_counter() - started) * 1000
        self.tally.record(name, began=began, ms=ms, outcomes=reading.outcomes, error=reading.error)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=name,
            response_time=ms,
            response_length=answer.ByteSize() if answer is not None else 0,
            exception=Wrong(reading.error) if reading.error else None,
            context={},
        )
        return answer


def _attempt(
    method: Callable[..., R], request: Any, read: Callable[[R], Reading], number: int, timeout_seconds: float
) -> tuple[R | None, Reading]:
    """Send it once. What callers repeat after an error waits, as they do: exponentially longer, with full jitter."""
    try:
        answer = method(request, timeout=timeout_seconds, metadata=_METADATA)
    except grpc.RpcError as error:
        failure = cast(grpc.Call, error)
        wait = 0.0
        if failure.code() in _REPEATED and number < _ATTEMPTS_MAX:
            most = min(_BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS * 2 ** (number - 1))
            wait = max(1e-3, random.random() * most)
        return None, Reading({}, f"{failure.code().name}: {_kind(failure.details() or '')}", wait)
    return answer, read(answer)


@functools.cache
def _whole(task: Callable[[GuerdonUser], None]) -> Callable[[GuerdonUser], None]:
    """The task, which a user who is stopped does not begin.

    Locust ends users who wait by an exception. One whose wait is just over would get it in the middle of the first
    call, whose answer nobody would have counted; here it arrives before.
    """

    @functools.wraps(task)
    def begin(user: GuerdonUser) -> None:
        gevent.sleep(0)
        task(user)

    return begin


class Wrong(Exception):
    """A call that failed, or an answer that the suite does not allow for."""


def _kind(details: str) -> str:
    """What errors of one kind have in common: without their numbers, and not without end."""
    return re.sub(r"\d+(\.\d+)?", "N", details)[:_DETAILS_MAX]


def _read(answer: prize_pb2.IssuePrizeResponse, right: Collection[str]) -> Reading:
    outcome, wait = _outcome(answer)
    return Reading({outcome: 1}, "" if outcome in right else f"answered {outcome}", wait)


def _read_batch(answer: prize_pb2.BatchIssuePrizesResponse, right: Collection[str]) -> Reading:
    outcomes, waits = zip(*map(_outcome, answer.results), strict=True)
    wrong = sorted(set(outcomes) - set(right))
    return Reading(Counter(outcomes), f"items answered {', '.join(wrong)}" if wrong else "", max(waits))


def _outcome(answer: prize_pb2.IssuePrizeResponse | prize_pb2.BatchItemResult) -> tuple[str, float]:
    """Its name, and the seconds after which to ask again where it is open."""
    match answer.WhichOneof("outcome"):
        case "granted":
            return REPLAYED if answer.replayed else GRANTED, 0.0
        case "rejected":
            return prize_pb2.RejectionReason.Name(answer.rejected.reason).removeprefix("REJECTION_REASON_"), 0.0
        case "pending":
            return _PENDING, max(0.01, answer.pending.retry_after_ms / 1000)
        case "error":
            assert isinstance(answer, prize_pb2.BatchItemResult)
            return f"ERROR {_kind(answer.error.message)}", 0.0
    return "NOTHING", 0.0


def _attributes(attributes: Mapping[str, int] | None) -> dict[str, AttributeValue]:
    return {name: AttributeValue(integer=value) for name, value in (attributes or {}).items()}

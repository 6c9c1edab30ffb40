"""An in-memory Guerdon for the tests of its users: the clients' own interface, no server, no network, no waiting.

    fake = FakeGuerdon()
    async with fake.async_client() as client:      # or: with fake.client() as client
        await client.create_promotion(promotion_id="spring", request_id="r1", ...)

Faked, and held to the same behaviour suite as the server: promotions with their states and times, entrances, prizes,
stock, budgets, limits per user, value rules, validity, issuing one by one and in batches of both modes, replays and
REQUEST_ID_REUSED, cancellation, lists, balances, statements, the trial balance, field violations.

Not faked: durability (it ends with the object), concurrency between processes, pending outcomes, overload, deadlines,
authentication, the size limits of messages, and the server's speed. A principal is recorded as it is given. Errors of
the network happen when you ask for them, with `FakeGuerdon.fail_next`.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from guerdon._flow import Attempt, RetryPolicy, Terms
from guerdon._rpcs import CHECK_HEALTH
from guerdon.client import AsyncClient, Client
from guerdon.fake import _accounts, _catalog, _issuing
from guerdon.fake._refusal import refusal
from guerdon.fake._store import Store

_SERVING: Final = 1
_HANDLERS: Final[Mapping[str, Callable[[Store, Any], Message]]] = {
    **_catalog.HANDLERS,
    **_issuing.HANDLERS,
    **_accounts.HANDLERS,
}
_RETRY_AT_ONCE: Final = RetryPolicy(base_delay_seconds=0.0, max_delay_seconds=0.0)


@dataclass(frozen=True, slots=True)
class _Failure:
    code: grpc.StatusCode
    reason: str
    applied: bool


class FakeGuerdon:
    """The state behind any number of fake clients. `clock` answers the time as an aware datetime; safe with threads."""

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = Store(clock)
        self._failures: deque[_Failure] = deque()
        self._lock = threading.Lock()

    def client(self, *, principal: str = "", retry: RetryPolicy = _RETRY_AT_ONCE) -> "FakeClient":
        """A synchronous client of this fake."""
        return FakeClient(self, principal=principal, retry=retry)

    def async_client(self, *, principal: str = "", retry: RetryPolicy = _RETRY_AT_ONCE) -> "FakeAsyncClient":
        """An asyncio client of this fake."""
        return FakeAsyncClient(self, principal=principal, retry=retry)

    def fail_next(self, code: grpc.StatusCode, *, reason: str = "", applied: bool = False, attempts: int = 1) -> None:
        """Lets the next attempts fail with this code. `applied`: the work is done and only the answer is lost.

        Clients retry UNAVAILABLE and ABORTED: to see such an error, fail as many attempts as the policy allows.
        """
        with self._lock:
            self._failures.extend([_Failure(code, reason, applied)] * attempts)

    def _answer(self, attempt: Attempt, principal: str) -> Message:
        with self._lock:
            failure = self._failures.popleft() if self._failures else None
            if failure is not None and not failure.applied:
                raise refusal(failure.code, failure.reason, "asked for with fail_next")
            self._store.principal = principal
            # What is kept must not change when the caller changes its message, and the other way round.
            request = attempt.rpc.request_type.FromString(attempt.request.SerializeToString())
            handler = _health if attempt.rpc is CHECK_HEALTH else _HANDLERS[attempt.rpc.path]
            response: Message = attempt.rpc.response_type.FromString(handler(self._store, request).SerializeToString())
            if failure is not None:
                raise refusal(failure.code, failure.reason, "asked for with fail_next, after the work was done")
            return response


def _health(_store: Store, request: StringValue) -> Int32Value:
    services = {path.split("/")[1] for path in _HANDLERS}
    if request.value and request.value not in services:
        raise refusal(grpc.StatusCode.NOT_FOUND, "", f"unknown service {request.value}")
    return Int32Value(value=_SERVING)


@dataclass(frozen=True, slots=True)
class _FakeTransport:
    fake: FakeGuerdon
    principal: str

    def send(self, attempt: Attempt) -> Message:
        return self.fake._answer(attempt, self.principal)

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _AsyncFakeTransport:
    fake: FakeGuerdon
    principal: str

    async def send(self, attempt: Attempt) -> Message:
        return self.fake._answer(attempt, self.principal)

    async def close(self) -> None: ...


class FakeClient(Client):
    """A `Client` of a FakeGuerdon; of a new one where none is given."""

    def __init__(
        self, fake: FakeGuerdon | None = None, *, principal: str = "", retry: RetryPolicy = _RETRY_AT_ONCE
    ) -> None:
        self.fake = fake or FakeGuerdon()
        self._terms = _terms(retry)
        self._transport = _FakeTransport(self.fake, principal)


class FakeAsyncClient(AsyncClient):
    """An `AsyncClient` of a FakeGuerdon; of a new one where none is given."""

    def __init__(
        self, fake: FakeGuerdon | None = None, *, principal: str = "", retry: RetryPolicy = _RETRY_AT_ONCE
    ) -> None:
        self.fake = fake or FakeGuerdon()
        self._terms = _terms(retry)
        self._transport = _AsyncFakeTransport(self.fake, principal)


def _terms(retry: RetryPolicy) -> Terms:
    return Terms(timeout_seconds=5.0, retry=retry, clock=time.monotonic, random=random.random)

"""What one call does: its attempts, its deadline, its retries, without any I/O.

A call is a generator that asks its driver to send an attempt or to wait so many seconds, and returns the result. One
driver is synchronous, one is asyncio; both are a few lines, and everything that decides is here, once.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from guerdon.errors import GuerdonError, from_rpc_error

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts on UNAVAILABLE, ABORTED, CANCELLED, and on RESOURCE_EXHAUSTED where the server says when to come back:
    always with the same request id, within the deadline of the call.

    Before attempt n+1 a random time between 0 and min(max_delay, base_delay x 2^(n-1)) is waited (full jitter), on top
    of what the server asks for with RetryInfo or grpc-retry-pushback-ms.

    All calls of a client share a budget, as with gRPC's retryThrottling: a failed attempt takes one of max_tokens, a
    call that succeeds gives token_ratio back, and while half of them or less are left nothing is repeated. So
    repetitions are at most token_ratio of what succeeds, and max_tokens / 2 at once. math.inf tokens: no budget.
    """

    max_attempts: int = 5
    base_delay_seconds: float = 0.05
    max_delay_seconds: float = 1.0
    max_tokens: float = 100.0
    token_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not self.max_tokens > 0 or not self.token_ratio >= 0:
            raise ValueError("max_tokens must be above 0, token_ratio at least 0")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if not 0 <= self.base_delay_seconds <= self.max_delay_seconds:
            raise ValueError("delays must satisfy 0 <= base_delay_seconds <= max_delay_seconds")

    def backoff_seconds_max(self, attempt: int) -> float:
        """The most that is waited after the attempt of this number, which counts from 1."""
        return min(self.max_delay_seconds, self.base_delay_seconds * 2.0 ** min(attempt - 1, 30))


class RetryTokens:
    """The retry budget of one client: what all of its calls, in all threads, have taken of it."""

    def __init__(self) -> None:
        self._taken = 0.0
        self._lock = threading.Lock()

    def succeeded(self, policy: RetryPolicy) -> None:
        """A call was answered."""
        if self._taken:
            with self._lock:
                self._taken = max(0.0, self._taken - policy.token_ratio)

    def failed(self, policy: RetryPolicy) -> bool:
        """An attempt failed that could be repeated; whether it may be."""
        with self._lock:
            self._taken = min(policy.max_tokens, self._taken + 1.0)
            return self._taken < policy.max_tokens / 2


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Request, Response]):
    """One method of the wire. `mutation`: whether a lost answer leaves open what was done."""

    path: str
    request_type: type[Request]
    response_type: type[Response]
    mutation: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send this once; the driver answers with the response or throws the RpcError into the generator."""

    rpc: Rpc[Any, Any]
    request: Message
    timeout_seconds: float


Wait: TypeAlias = float
Flow: TypeAlias = Generator[Attempt | Wait, Any, R]


@dataclass(frozen=True, slots=True)
class Terms:
    """What all calls of a client share."""

    timeout_seconds: float
    retry: RetryPolicy
    clock: Callable[[], float]
    random: Callable[[], float]
    tokens: RetryTokens = field(default_factory=RetryTokens)

    def deadline(self) -> float:
        return self.clock() + self.timeout_seconds


_NO_TIME_LEFT: Final = 0.001
"""An attempt that has less than this could only end in DEADLINE_EXCEEDED."""


def unary(
    terms: Terms, rpc: Rpc[Request, Response], request: Request, deadline: float, *, outcome_open: bool = False
) -> Flow[Response]:
    """One RPC, attempted until it is answered, decided, out of attempts, budget or time. Raises GuerdonError.

    `outcome_open`: whether the same request has been sent before and may have been applied.
    """
    response, _ = yield from attempted(terms, rpc, request, deadline, outcome_open=outcome_open)
    return response


def attempted(
    terms: Terms, rpc: Rpc[Request, Response], request: Request, deadline: float, *, outcome_open: bool = False
) -> Flow[tuple[Response, bool]]:
    """As `unary`; also whether an earlier attempt may have been applied, for answers that hold errors of their own."""
    attempt = 0
    while True:
        attempt += 1
        try:
            response: Response = yield Attempt(rpc, request, max(deadline - terms.clock(), _NO_TIME_LEFT))
            terms.tokens.succeeded(terms.retry)
            return response, outcome_open
        except grpc.RpcError as failure:
            error = from_rpc_error(failure, mutation=rpc.mutation, outcome_open=outcome_open)
            (delay,) = delays_before_retry(terms, [error], attempt)
            if delay is None or delay + _NO_TIME_LEFT >= deadline - terms.clock():
                raise error from failure
            outcome_open = outcome_open or error.outcome_unknown
        yield delay


def delays_before_retry(terms: Terms, errors: Sequence[GuerdonError], attempt: int) -> list[float | None]:
    """For each error of one failed attempt, the seconds to wait before the next; None: it is not to be repeated.

    The attempt has this number, which counts from 1; it takes one token of the budget, however many its errors.
    """
    failed = any(error.transient for error in errors)
    throttled = failed and not terms.tokens.failed(terms.retry)
    jitter = terms.random() * terms.retry.backoff_seconds_max(attempt)
    delays: list[float | None] = []
    for error in errors:
        wanted = error.transient and not error.retry_refused and attempt < terms.retry.max_attempts
        error.throttled = wanted and throttled
        delays.append((error.retry_after_seconds or 0.0) + jitter if wanted and not throttled else None)
    return delays

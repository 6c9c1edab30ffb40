"""What one call does: its attempts, its deadline, its retries, without any I/O.

A call is a generator that asks its driver to send an attempt or to wait so many seconds, and returns the result. One
driver is synchronous, one is asyncio; both are a few lines, and everything that decides is here, once.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from guerdon.errors import RETRIED, GuerdonError, from_rpc_error

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts on UNAVAILABLE, ABORTED and CANCELLED, always with the same request id, within the deadline of the call.

    Before attempt n+1 a random time between 0 and min(max_delay, base_delay x 2^(n-1)) is waited (full jitter), on top
    of what the server asks for with RetryInfo.
    """

    max_attempts: int = 5
    base_delay_seconds: float = 0.05
    max_delay_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if not 0 <= self.base_delay_seconds <= self.max_delay_seconds:
            raise ValueError("delays must satisfy 0 <= base_delay_seconds <= max_delay_seconds")

    def backoff_seconds_max(self, attempt: int) -> float:
        """The most that is waited after the attempt of this number, which counts from 1."""
        return min(self.max_delay_seconds, self.base_delay_seconds * 2.0 ** min(attempt - 1, 30))


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

    def deadline(self) -> float:
        return self.clock() + self.timeout_seconds


_NO_TIME_LEFT: Final = 0.001
"""An attempt that has less than this could only end in DEADLINE_EXCEEDED."""


def unary(
    terms: Terms, rpc: Rpc[Request, Response], request: Request, deadline: float, *, outcome_open: bool = False
) -> Flow[Response]:
    """One RPC, attempted until it is answered, decided, out of attempts, or out of time. Raises GuerdonError.

    `outcome_open`: whether the same request has been sent before and may have been applied.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            response: Response = yield Attempt(rpc, request, max(deadline - terms.clock(), _NO_TIME_LEFT))
            return response
        except grpc.RpcError as failure:
            error = from_rpc_error(failure, mutation=rpc.mutation, outcome_open=outcome_open)
            delay = delay_before_retry(terms, error, attempt)
            if delay is None or delay + _NO_TIME_LEFT >= deadline - terms.clock():
                raise error from failure
            outcome_open = outcome_open or error.outcome_unknown
        yield delay


def delay_before_retry(terms: Terms, error: GuerdonError, attempt: int) -> float | None:
    """Seconds to wait after the failed attempt of this number, which counts from 1; None where it was the last."""
    if error.code not in RETRIED or attempt >= terms.retry.max_attempts:
        return None
    return (error.retry_after_seconds or 0.0) + terms.random() * terms.retry.backoff_seconds_max(attempt)

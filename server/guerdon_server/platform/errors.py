"""One typed error that survives the RPC boundary: code, machine-readable reason, metadata, whether to retry."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Code(enum.Enum):
    """The canonical status codes that services here answer with (numbers as in google.rpc.Code)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that can't be accepted, and what would be: `items[3].user_id`, `must not be empty`."""

    field: str
    description: str


class ServiceError(Exception):
    """A refusal that a caller sees as a status. `reason` is UPPER_SNAKE and stable; `message` is for people and says
    what to do next; `retry_after_ms` is set where repeating the call with the same request id makes sense."""

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after_ms = retry_after_ms


def invalid(violations: Sequence[Violation]) -> ServiceError:
    """INVALID_ARGUMENT / INVALID_FIELD for one or more fields."""
    message = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return ServiceError(Code.INVALID_ARGUMENT, "INVALID_FIELD", message, violations=violations)


def not_found(reason: str, message: str, **metadata: str) -> ServiceError:
    """NOT_FOUND with the ids in the metadata."""
    return ServiceError(Code.NOT_FOUND, reason, message, metadata=metadata)


def failed_precondition(reason: str, message: str, **metadata: str) -> ServiceError:
    """FAILED_PRECONDITION: the state must change before this call can succeed."""
    return ServiceError(Code.FAILED_PRECONDITION, reason, message, metadata=metadata)


def forget_frames(error: BaseException | None) -> None:
    """Cut an error, and what it came from, off from the frames that it went through.

    For errors that are kept or answered: a frame that holds its error is held by it, and with it the call, until the
    garbage collector comes.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__

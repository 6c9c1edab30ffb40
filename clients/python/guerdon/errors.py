"""What goes wrong, as exceptions: one base class, and subclasses by what a caller does about them.

A refusal for business reasons (sold out, limit reached) is not an error: it is a `Rejected` value.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
from google.rpc import (  # type: ignore[import-untyped, unused-ignore]
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

_CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}
_REPEATED: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED})
"""Codes after which an attempt may be repeated at once. CANCELLED is the server's, which had no time to look at the
call: a caller's own cancellation is no error."""
_PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
# Codes with which the server says that it looked at the request and refused it. After any other code a mutation may
# have been applied, by this attempt or by an earlier one of the same call.
_DECIDED: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
# Codes with which one attempt was turned away before it was looked at: they say nothing about earlier attempts.
_TURNED_AWAY: Final = frozenset(
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that the server refused: its path (`items[3].user_id`) and what is wrong with it."""

    field: str
    description: str


class GuerdonError(Exception):
    """A call failed. Decide by class, `code` and `reason`; the message is for people.

    `reason` is empty where the failure did not come from a Guerdon server (connection refused, a proxy).
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        retry_refused: bool = False,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.domain = domain
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.field_violations = field_violations
        self.retry_after_seconds = retry_after_seconds
        """What the server asks to wait before the next attempt; None where it did not say."""
        self.retry_refused = retry_refused
        """Whether the server asks that nothing is repeated by itself (a negative grpc-retry-pushback-ms)."""
        self.throttled = False
        """Whether this was not repeated because the client's retry budget was used up."""
        self.outcome_unknown = outcome_unknown
        """Whether the mutation may have been applied: repeat it with the same request id, or ask."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own way loses keyword arguments: an error of a worker process could not be raised in its parent.
        return _restored, (type(self), self.message, {**self.__dict__})

    @property
    def retryable(self) -> bool:
        """Whether the same call with the same request id may succeed later without a change."""
        return self.code in _REPEATED or self.code is grpc.StatusCode.RESOURCE_EXHAUSTED or self.outcome_unknown

    @property
    def transient(self) -> bool:
        """Whether the client repeats such an attempt by itself, as far as attempts, budget, time and server allow."""
        told_when = self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_after_seconds is not None
        return self.code in _REPEATED or told_when

    def __str__(self) -> str:
        name = f"{self.code.name} / {self.reason}" if self.reason else self.code.name
        violations = "".join(f"; {v.field}: {v.description}" for v in self.field_violations)
        # What the server says of the last attempt ("nothing was done") may not hold for those before it.
        is_open = "; the outcome is open: repeat with the same request id, or ask" if self.outcome_unknown else ""
        throttled = "; not repeated: the retry budget is used up" if self.throttled else ""
        return f"{name}: {self.message}{violations}{is_open}{throttled}"


def _restored(kind: type[GuerdonError], message: str, attributes: dict[str, Any]) -> GuerdonError:
    error = kind(message, code=attributes["code"])
    error.__dict__.update(attributes)
    return error


class InvalidArgument(GuerdonError):
    """The request is malformed: see `field_violations`. Repeating it is pointless."""


class NotFound(GuerdonError):
    """A resource that the request names does not exist; `reason` says which kind."""


class FailedPrecondition(GuerdonError):
    """The resource is in a state that does not allow this: stale etag, forbidden transition, nothing left to recall."""


class AlreadyExists(GuerdonError):
    """The id to be created is taken."""


class RequestIdReused(AlreadyExists):
    """The request id was used before for something else; `field` names what differs. Usually a bug of the caller."""

    @property
    def field(self) -> str:
        return self.metadata.get("field", "")


class PermissionDenied(GuerdonError):
    """The caller is unknown to the server or may not do this."""


class Aborted(GuerdonError):
    """Lost a race, after all attempts: repeat at once with the same request id."""


class Unavailable(GuerdonError):
    """The server can't be reached or can't work now, after all attempts: repeat later with the same request id.

    Also CANCELLED, with which a server drops a call that it had no time to look at.
    """


class ResourceExhausted(GuerdonError):
    """The server is overloaded or a quota is used up: repeat after `retry_after_seconds`. Never means sold out."""


class DeadlineExceeded(GuerdonError):
    """No answer within the deadline."""


class OutcomeUnknown(DeadlineExceeded):
    """No answer to a mutation within the deadline: it may have been applied, or still be under way.

    For a grant: repeat with the same request id, or ask `get_issuance(promotion_id=..., request_id=...)`.
    """


_CLASSES: Final[Mapping[grpc.StatusCode, type[GuerdonError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_rpc_error(error: grpc.RpcError, *, mutation: bool, outcome_open: bool = False) -> GuerdonError:
    """Decodes what a channel raised, from the status details and never from the message.

    `outcome_open`: whether an earlier attempt of the same call may have been applied.
    """
    decoded = from_status(_status_of(error), mutation=mutation, outcome_open=outcome_open)
    pushback_seconds = _pushback_seconds(error)
    if pushback_seconds is not None:
        decoded.retry_refused = pushback_seconds < 0
        if not decoded.retry_refused:
            decoded.retry_after_seconds = max(decoded.retry_after_seconds or 0.0, pushback_seconds)
    return decoded


def from_status(status: status_pb2.Status, *, mutation: bool, outcome_open: bool = False) -> GuerdonError:
    """Decodes a google.rpc.Status, of a call or of one item of a batch."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, violations, retry_after_seconds = _details_of(status)
    unknown = mutation and code not in _DECIDED and (outcome_open or code not in _TURNED_AWAY)
    return _class_of(code, info.reason, unknown=unknown)(
        status.message,
        code=code,
        reason=info.reason,
        domain=info.domain,
        metadata=info.metadata,
        field_violations=violations,
        retry_after_seconds=retry_after_seconds,
        outcome_unknown=unknown,
    )


def _class_of(code: grpc.StatusCode, reason: str, *, unknown: bool) -> type[GuerdonError]:
    if reason == "REQUEST_ID_REUSED":
        return RequestIdReused
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and unknown:
        return OutcomeUnknown
    return _CLASSES.get(code, GuerdonError)


def _status_of(error: grpc.RpcError) -> status_pb2.Status:
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return status_pb2.Status(code=code_pb2.UNKNOWN, message=str(error))
    call = cast(grpc.Call, error)  # an AioRpcError is no Call, but has what is read of one
    try:
        rich = rpc_status.from_call(call)
    except Exception:  # details that contradict the status or can't be parsed: the plain status is what is left
        rich = None
    if rich is not None:
        return rich
    code = call.code() or grpc.StatusCode.UNKNOWN
    return status_pb2.Status(code=code.value[0], message=call.details() or "")


def _pushback_seconds(error: grpc.RpcError) -> float | None:
    """What the trailer says; negative: don't repeat, as is anything that is no number."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    trailers: Iterable[tuple[str, str | bytes]] = cast(grpc.Call, error).trailing_metadata() or ()
    for key, value in trailers:
        if key == _PUSHBACK_KEY:
            try:
                return int(value) / 1000
            except ValueError:
                return -1.0
    return None


def _details_of(
    status: status_pb2.Status,
) -> tuple[error_details_pb2.ErrorInfo, tuple[FieldViolation, ...], float | None]:
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_seconds: float | None = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_seconds = retry.retry_delay.ToMicroseconds() / 1e6
        elif not detail.Unpack(info):
            detail.Unpack(request)
    return info, _violations(request.field_violations), retry_after_seconds


def _violations(found: Iterable[error_details_pb2.BadRequest.FieldViolation]) -> tuple[FieldViolation, ...]:
    return tuple(FieldViolation(field=v.field, description=v.description) for v in found)

"""What surrounds every call, whatever transport carries it: bounds, reading, who calls, which error leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import grpc.aio
from google.protobuf.message import DecodeError, Message

from guerdon_server.platform.errors import Code, ServiceError, Violation, forget_frames
from guerdon_server.platform.telemetry import MethodMetrics
from guerdon_server.rpc.call_limit import Priority
from guerdon_server.rpc.errors import internal, unavailable
from guerdon_server.rpc.validation import check_id, is_id, refuse

_log = logging.getLogger(__name__)

PRINCIPAL_KEY: Final = "guerdon-principal"
ANONYMOUS: Final = "anonymous"
_DEADLINE_SECONDS_MIN: Final = 0.001
DEADLINE_TOO_SHORT: Final = ServiceError(
    Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", "the deadline leaves no time to answer; nothing was done"
)

Handler: TypeAlias = Callable[[Any, str], Coroutine[Any, Any, Message]]
Reader: TypeAlias = Callable[[bytes], "Message | ServiceError"]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC, `/service/name`: how a request is read, answered and written. All are unary."""

    service: str
    name: str
    priority: Priority
    read: Reader
    answer: Handler
    write: Callable[[Any], bytes]
    metrics: MethodMetrics

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


class Transport(Protocol):
    """What carries the calls of one server. It answers every one, or lets gRPC say that it did not begin."""

    async def start(self, host: str, port: int) -> int:
        """Listen and serve; the bound port. Raises OSError if the address can't be bound."""

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, give what is in flight so long, and close the connections (GOAWAY)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a transport may take, in the words of the settings."""

    message_bytes_max: int
    calls_per_connection_max: int
    backlog_seconds_max: int


Attach: TypeAlias = Callable[[grpc.aio.Server], None]
"""Adds health and reflection to a grpcio server."""


def reader(request_class: type[Message], message_bytes_max: int) -> Reader:
    """Reads a request, or says why it can't be: an exception here would leave as UNKNOWN, past all that is counted."""
    parse = request_class.FromString

    def read(data: bytes) -> Message | ServiceError:
        if len(data) > message_bytes_max:
            message = f"the request has {len(data)} bytes; at most {message_bytes_max} are read: send smaller batches"
            return ServiceError(Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", message)
        try:
            return parse(data)
        except DecodeError:
            name = request_class.DESCRIPTOR.full_name
            return ServiceError(Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", f"the bytes are no {name}")

    return read


def hopeless(seconds_left: float | None) -> ServiceError | None:
    """Why a call with so much time left (None: no deadline) is not worth beginning."""
    return None if seconds_left is None or seconds_left > _DEADLINE_SECONDS_MIN else DEADLINE_TOO_SHORT


def principal(metadata: Iterable[Sequence[str | bytes]]) -> str:
    """Who calls: the metadata `guerdon-principal`, an id; without it, `anonymous`. Raises ServiceError."""
    for key, value in metadata:
        if key == PRINCIPAL_KEY:
            name = str(value)
            if not is_id(name):
                violations: list[Violation] = []
                check_id(violations, PRINCIPAL_KEY, name)
                refuse(violations)
            return name
    return ANONYMOUS


def failure(error: BaseException, method: Method, request: object) -> ServiceError:
    """What the caller is told of it; a defect of ours is logged. What is answered is cut off from its frames."""
    told = error if isinstance(error, ServiceError) else unavailable(error)
    if told is None:
        request_id = getattr(request, "request_id", "")
        _log.error("a call failed", exc_info=error, extra={"rpc": method.path[1:], "request_id": request_id})
        told = internal()
    forget_frames(error)
    return told

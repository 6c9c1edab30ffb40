"""A real gRPC server whose answers are written down beforehand: for what a healthy server would not do on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped, unused-ignore]
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

HANG = object()
"""Never answers: the caller's deadline ends it."""
Step: TypeAlias = Message | Callable[[bytes], Message] | object


@dataclass(frozen=True, slots=True)
class Seen:
    """One attempt, as the server saw it."""

    method: str
    request: bytes
    metadata: dict[str, str]
    peer: str
    time_remaining_seconds: float
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Pushback:
    """An error that ends with the trailer grpc-retry-pushback-ms."""

    status: status_pb2.Status
    milliseconds: str


@dataclass(slots=True)
class ScriptedServer:
    """Answers one step after the other; the last one answers all that follow. A google.rpc.Status is an error; with
    a trailer, a Pushback."""

    target: str = ""
    steps: list[Step] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def answers(self, *steps: Step) -> None:
        self.steps = list(steps)

    async def answer(self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        remaining = context.time_remaining() or 0.0
        self.seen.append(Seen(method, request, metadata, context.peer(), remaining, time.monotonic()))
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if step is HANG:
            await asyncio.Event().wait()
        if isinstance(step, Pushback):
            as_sent = rpc_status.to_status(step.status)
            trailers = (*as_sent.trailing_metadata, ("grpc-retry-pushback-ms", step.milliseconds))
            await context.abort(as_sent.code, as_sent.details, trailers)
        if isinstance(step, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(step))
        response = step(request) if callable(step) else step
        assert isinstance(response, Message)
        return response.SerializeToString()


class _AnyMethod(grpc.GenericRpcHandler):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return await self._server.answer(str(handler_call_details.method), request, context)

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def scripted_server(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[ScriptedServer]:
    """Listens on a free port, in plain text unless there are credentials."""
    server = ScriptedServer()
    listening = grpc.aio.server()
    listening.add_generic_rpc_handlers((_AnyMethod(server),))
    free = "127.0.0.1:0"
    port = listening.add_secure_port(free, credentials) if credentials else listening.add_insecure_port(free)
    server.target = f"127.0.0.1:{port}"
    await listening.start()
    try:
        yield server
    finally:
        await listening.stop(None)


def status(
    code: grpc.StatusCode,
    reason: str = "",
    *,
    metadata: dict[str, str] | None = None,
    violations: Sequence[tuple[str, str]] = (),
    retry_after_ms: int | None = None,
) -> status_pb2.Status:
    """An error as a Guerdon server sends it; without a reason, as something between sends it."""
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="guerdon.dev", metadata=metadata or {}))
    if violations:
        listed = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations]
        details.append(error_details_pb2.BadRequest(field_violations=listed))
    if retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(retry_after_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for each, detail in zip(packed, details, strict=True):
        each.Pack(detail)
    return status_pb2.Status(code=code.value[0], message="for people", details=packed)

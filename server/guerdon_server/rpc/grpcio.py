"""The transport grpcio: the C core, the default; what it can't do, none can."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import Message

from guerdon_server.platform.errors import ServiceError, forget_frames
from guerdon_server.rpc.call_limit import CallLimit
from guerdon_server.rpc.calls import Attach, Bounds, Method, failure, hopeless, principal
from guerdon_server.rpc.errors import STATUS_CODES, to_trailers
from guerdon_server.rpc.grpcio_core import woken_server
from guerdon_server.rpc.tls import TlsFiles

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
# gRPC itself refuses what is larger than it may read, but without details; up to this much more is read to be refused
# by us.
_MESSAGE_BYTES_READ: Final = 4
_NOTHING: Final = Message()


class GrpcioTransport:
    """`grpc.aio`. Connections are moved after `connection_age_seconds_max`, each at a moment of its own (± 10 %).

    With `tls` files, `start` raises TlsFilesError, too.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        limit: CallLimit,
        attach: Attach,
        *,
        bounds: Bounds,
        connection_age_seconds_max: int,
        shares_port: bool,
        tls: TlsFiles | None = None,
    ) -> None:
        self._tls = tls
        self._server = woken_server(
            (
                ("grpc.max_receive_message_length", bounds.message_bytes_max * _MESSAGE_BYTES_READ),
                ("grpc.max_send_message_length", 64 << 20),
                ("grpc.max_connection_age_ms", connection_age_seconds_max * 1000),
                ("grpc.max_connection_age_grace_ms", 30_000),
                # What overloads us must not reach Python, where refusing a call costs most of what granting one does.
                ("grpc.max_concurrent_streams", bounds.calls_per_connection_max),
                ("grpc.http.overload_protection", 1),
                ("grpc.server_max_unrequested_time_in_server", bounds.backlog_seconds_max),
                ("grpc.so_reuseport", int(shares_port)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            )
        )
        handlers: dict[str, dict[str, Any]] = defaultdict(dict)
        for method in methods:
            handlers[method.service][method.name] = grpc.unary_unary_rpc_method_handler(
                _guarded(method, limit), request_deserializer=method.read, response_serializer=method.write
            )
        for service, its in handlers.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, its),))
        attach(self._server)

    async def start(self, host: str, port: int) -> int:
        """See Transport."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = self._tls.credentials() if self._tls is not None else None
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"{address} can't be bound: is something else listening there?") from error
        await self._server.start()
        return bound

    async def stop(self, grace_seconds: float) -> None:
        """See Transport."""
        await self._server.stop(grace_seconds)


def _guarded(method: Method, limit: CallLimit) -> Callable[[Any, Context], Awaitable[Message]]:
    """What happens around every call: one function instead of interceptors, which cost more than the handlers.

    Every call is counted, bounded, attributed to a principal, and leaves as OK or as one mapped error.
    """
    metrics, answer, priority = method.metrics, method.answer, method.priority

    async def handle(request: Message | ServiceError, context: Context) -> Message:
        started = time.perf_counter()
        metrics.started()
        refusal = limit.refusal(priority) or hopeless(context.time_remaining())
        if refusal is None and isinstance(request, ServiceError):
            refusal = request
        if refusal is not None:
            metrics.observe(refusal.code.name, time.perf_counter() - started)
            return await _ended(context, refusal)
        limit.begun(priority)
        code = "CANCELLED"
        try:
            response = await answer(request, principal(context.invocation_metadata() or ()))
            code = "OK"
            return response
        except asyncio.CancelledError:
            # gRPC cancels in both cases; that the caller ran out of time is our fault, perhaps.
            if hopeless(context.time_remaining()):
                code = "DEADLINE_EXCEEDED"
            raise
        except Exception as error:
            told = failure(error, method, request)
            code = told.code.name
            return await _ended(context, told)
        finally:
            limit.ended(priority)
            metrics.observe(code, time.perf_counter() - started)

    return handle


async def _ended(context: Context, error: ServiceError) -> Message:
    """End the call with this error, in trailers only: only those does gRPC's own retry policy repeat.

    The exception of `abort` is kept by the call, and must not keep the call by its frames until the garbage collector
    comes: until then gRPC counts the call among those of its connection (calls_per_connection_max).
    """
    code, message, trailers = to_trailers(error)
    if error.retry_after_ms is not None:  # RetryInfo says the same, which gRPC's own retries don't know
        trailers.append(("grpc-retry-pushback-ms", str(error.retry_after_ms)))
    try:
        await context.abort(STATUS_CODES[code], message, tuple(trailers))
    except grpc.aio.AbortError as aborted:
        forget_frames(aborted)
    return _NOTHING  # is not sent: gRPC raises the exception once more

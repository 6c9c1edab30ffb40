"""The gRPC server: registration of servicers, what happens around every call, health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from guerdon.v1 import account_pb2, entrance_pb2, prize_pb2, promotion_pb2
from guerdon_server.platform.errors import Code, ServiceError, Violation, forget_frames
from guerdon_server.platform.telemetry import MethodMetrics, RpcMetrics
from guerdon_server.rpc.errors import STATUS_CODES, internal, to_status, unavailable
from guerdon_server.rpc.validation import check_id, is_id, refuse

_log = logging.getLogger(__name__)

PRINCIPAL_KEY: Final = "guerdon-principal"
ANONYMOUS: Final = "anonymous"
_DEADLINE_SECONDS_MIN: Final = 0.001
_RETRY_AFTER_MS: Final = 200
_NOTHING: Final = Message()
_SERVICES: Final = {
    descriptor.services_by_name[name].full_name: descriptor.services_by_name[name]
    for descriptor, name in (
        (promotion_pb2.DESCRIPTOR, "PromotionService"),
        (entrance_pb2.DESCRIPTOR, "EntranceService"),
        (prize_pb2.DESCRIPTOR, "PrizeService"),
        (account_pb2.DESCRIPTOR, "AccountService"),
    )
}
METHODS: Final = {f"/{service}/{method.name}": "unary" for service, d in _SERVICES.items() for method in d.methods}
"""All methods that are served, for RpcMetrics."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Callable[[Any, str], Awaitable[Message]]
Reader: TypeAlias = Callable[[bytes], "Message | ServiceError"]
# gRPC itself refuses what is larger than it may read, but without details; up to this much more is read to be refused
# by us.
_MESSAGE_BYTES_READ: Final = 4


class CallLimit:
    """How many calls are being answered, and the most that may; also what a drain waits for."""

    def __init__(self, in_flight_max: int) -> None:
        self.in_flight = 0
        self.in_flight_max = in_flight_max
        self.shed_total = 0
        self.draining = False
        self._idle = asyncio.Event()

    def refusal(self) -> ServiceError | None:
        """Why a call can't begin now."""
        if self.draining:
            message = "this server is stopping; retry with the same request id on another connection"
            return ServiceError(Code.UNAVAILABLE, "SHUTTING_DOWN", message, retry_after_ms=_RETRY_AFTER_MS)
        if self.in_flight >= self.in_flight_max:
            self.shed_total += 1
            message = f"{self.in_flight} calls are in flight, the most that may; retry later with the same request id"
            return ServiceError(Code.RESOURCE_EXHAUSTED, "OVERLOADED", message, retry_after_ms=_RETRY_AFTER_MS)
        return None

    def ended(self) -> None:
        """A call is over."""
        self.in_flight -= 1
        if self.draining and not self.in_flight:
            self._idle.set()

    async def drain(self) -> None:
        """Refuse new calls, and wait for those in flight."""
        self.draining = True
        if self.in_flight:
            await self._idle.wait()


class Server:
    """One gRPC server on one event loop. `port` is the bound one after `start`."""

    def __init__(
        self,
        servicers: Sequence[object],
        *,
        metrics: RpcMetrics,
        in_flight_max: int,
        message_bytes_max: int,
        connection_age_seconds_max: int,
        calls_per_connection_max: int,
        backlog_seconds_max: int,
    ) -> None:
        self.limit = CallLimit(in_flight_max)
        self.port = 0
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", message_bytes_max * _MESSAGE_BYTES_READ),
                ("grpc.max_send_message_length", 64 << 20),
                ("grpc.max_connection_age_ms", connection_age_seconds_max * 1000),
                ("grpc.max_connection_age_grace_ms", 30_000),
                # What overloads us must not reach Python, where refusing a call costs most of what granting one does.
                ("grpc.max_concurrent_streams", calls_per_connection_max),
                ("grpc.http.overload_protection", 1),
                ("grpc.server_max_unrequested_time_in_server", backlog_seconds_max),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            )
        )
        for name, service in _SERVICES.items():
            handlers = _handlers(name, service, servicers, metrics, self.limit, message_bytes_max=message_bytes_max)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int) -> None:
        """Listen and serve. Raises OSError if the address can't be bound."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"{address} can't be bound: is something else listening there?") from error
        await self._server.start()
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, drain_seconds_max: float) -> None:
        """Say NOT_SERVING, finish what is in flight, then close the connections."""
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            await asyncio.wait_for(self.limit.drain(), drain_seconds_max)
        except TimeoutError:
            _log.warning("calls were still in flight at the end of the drain", extra={"calls": self.limit.in_flight})
        await self._server.stop(grace=1.0)

    async def _say(self, status: int) -> None:
        for name in ("", *_SERVICES):
            await self._health.set(name, status)


def _handlers(
    name: str,
    service: descriptor.ServiceDescriptor,
    servicers: Sequence[object],
    metrics: RpcMetrics,
    limit: CallLimit,
    *,
    message_bytes_max: int,
) -> dict[str, Any]:
    handlers = {}
    for method in service.methods:
        (implementation,) = [getattr(s, method.name) for s in servicers if hasattr(s, method.name)]
        request_class = GetMessageClass(method.input_type)
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            _guarded(implementation, metrics.method(f"/{name}/{method.name}"), limit, f"{name}/{method.name}"),
            request_deserializer=_reader(request_class, message_bytes_max),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return handlers


def _reader(request_class: type[Message], message_bytes_max: int) -> Reader:
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


def _guarded(
    implementation: Handler, metrics: MethodMetrics, limit: CallLimit, rpc: str
) -> Callable[[Any, Context], Awaitable[Message]]:
    """What happens around every call: one function instead of interceptors, which cost more than the handlers.

    Every call is counted, bounded, attributed to a principal, and leaves as OK or as one mapped error.
    """

    async def handle(request: Message | ServiceError, context: Context) -> Message:
        started = time.perf_counter()
        metrics.started()
        refusal = limit.refusal() or _hopeless(context)
        if refusal is None and isinstance(request, ServiceError):
            refusal = request
        if refusal is not None:
            metrics.observe(refusal.code.name, time.perf_counter() - started)
            return await _ended(context, refusal)
        limit.in_flight += 1
        code = "CANCELLED"
        try:
            response = await implementation(request, _principal(context))
            code = "OK"
            return response
        except Exception as error:
            failure = _failure_of(error, rpc, request)
            code = failure.code.name
            forget_frames(error)
            return await _ended(context, failure)
        finally:
            limit.ended()
            metrics.observe(code, time.perf_counter() - started)

    return handle


def _failure_of(error: Exception, rpc: str, request: Message | ServiceError) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    failure = unavailable(error)
    if failure is None:
        _log.exception("a call failed", extra={"rpc": rpc, "request_id": getattr(request, "request_id", "")})
        return internal()
    return failure


def _hopeless(context: Context) -> ServiceError | None:
    remaining = context.time_remaining()
    if remaining is None or remaining > _DEADLINE_SECONDS_MIN:
        return None
    message = "the deadline leaves no time to answer; nothing was done"
    return ServiceError(Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", message)


def _principal(context: Context) -> str:
    """Who calls: the metadata `guerdon-principal`, an id; without it, `anonymous`."""
    for key, value in context.invocation_metadata() or ():
        if key == PRINCIPAL_KEY:
            name = str(value)
            if not is_id(name):
                violations: list[Violation] = []
                check_id(violations, PRINCIPAL_KEY, name)
                refuse(violations)
            return name
    return ANONYMOUS


async def _ended(context: Context, error: ServiceError) -> Message:
    """End the call with this error, in trailers only: only those does gRPC's own retry policy repeat.

    The exception of `abort` is kept by the call, and must not keep the call by its frames until the garbage collector
    comes: until then gRPC counts the call among those of its connection (calls_per_connection_max).
    """
    status = to_status(error)
    try:
        await context.abort(
            STATUS_CODES[error.code.value],
            status.message,
            (("grpc-status-details-bin", status.SerializeToString()),),
        )
    except grpc.aio.AbortError as aborted:
        forget_frames(aborted)
    return _NOTHING  # is not sent: gRPC raises the exception once more

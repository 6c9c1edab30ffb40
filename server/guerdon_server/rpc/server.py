"""The gRPC server: its methods, health, reflection, drain. What carries the calls is a transport's affair."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import grpc.aio
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from guerdon.v1 import account_pb2, entrance_pb2, prize_pb2, promotion_pb2
from guerdon_server.platform.telemetry import RpcMetrics
from guerdon_server.rpc.call_limit import CallLimit, Priority
from guerdon_server.rpc.calls import Attach, Method, Transport, reader

_log = logging.getLogger(__name__)

_CLOSE_SECONDS: Final = 1.0
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
_ISSUING: Final = frozenset({"IssuePrize", "BatchIssuePrizes", "GetIssuance"})
_PRIORITIES: Final[Mapping[str, Priority]] = {
    "Create": Priority.OPERATING,
    "Update": Priority.OPERATING,
    "Transition": Priority.OPERATING,
    "Adjust": Priority.OPERATING,
    "Get": Priority.READING,
    "List": Priority.READING,
}
"""By the verb of a method's name; a verb that is not here has to be given its place before it can be served."""

MakeTransport: TypeAlias = Callable[[Sequence[Method], CallLimit, Attach], Transport]


class Server:
    """One gRPC server on one event loop. `port` is the bound one after `start`."""

    def __init__(
        self,
        servicers: Sequence[object],
        *,
        transport: MakeTransport,
        metrics: RpcMetrics,
        limit: CallLimit,
        message_bytes_max: int,
    ) -> None:
        self.limit = limit
        self.port = 0
        self._health = health.aio.HealthServicer()
        methods = tuple(_methods(servicers, metrics, message_bytes_max))
        self._transport = transport(methods, self.limit, self._attach)

    async def start(self, host: str, port: int) -> None:
        """Listen and serve. Raises OSError if the address can't be bound."""
        self.port = await self._transport.start(host, port)
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, drain_seconds_max: float) -> None:
        """Say NOT_SERVING, finish what is in flight, then close the connections."""
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            await asyncio.wait_for(self.limit.drain(), drain_seconds_max)
        except TimeoutError:
            _log.warning(
                "calls were still in flight at the end of the drain",
                extra={"calls": sum(self.limit.in_flight.values())},
            )
        await self._transport.stop(_CLOSE_SECONDS)

    def _attach(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def _say(self, status: int) -> None:
        for name in ("", *_SERVICES):
            await self._health.set(name, status)


def priority_of(method: str) -> Priority:
    """What a method, by its name without the service, is for."""
    if method in _ISSUING:
        return Priority.ISSUING
    return next(priority for verb, priority in _PRIORITIES.items() if method.startswith(verb))


def _methods(servicers: Sequence[object], metrics: RpcMetrics, message_bytes_max: int) -> Iterator[Method]:
    for service, descriptor in _SERVICES.items():
        for method in descriptor.methods:
            (implementation,) = [getattr(s, method.name) for s in servicers if hasattr(s, method.name)]
            yield Method(
                service=service,
                name=method.name,
                priority=priority_of(method.name),
                read=reader(GetMessageClass(method.input_type), message_bytes_max),
                answer=implementation,
                write=GetMessageClass(method.output_type).SerializeToString,
                metrics=metrics.method(f"/{service}/{method.name}"),
            )

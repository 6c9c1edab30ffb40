"""A `grpc.aio` server whose threads wake each other less often; docs/adr/0017-grpcio-wake-ups.md: what each part gives.

This module, and no other, uses private names of grpcio, of which the server pins one version (docs/adr/0005).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import grpc
import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server

from guerdon_server.platform.scheduling import threads_that_wait

_log = logging.getLogger(__name__)

CALLS_ASKED_FOR: Final = 32
"""At once. gRPC itself asks its core for one, and for the next when the event loop has seen that one."""
_WAKE_UPS: Final = 4096
_socketpair = socket.socketpair


def woken_server(options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """Like `grpc.aio.server(options=options)`. Without interceptors, limit of calls and compression of its own."""
    return cast("grpc.aio.Server", _WokenServer(options))


class _WokenServer(_server.Server):
    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._askers: list[asyncio.Task[None]] = []
        with _wake_ups_read_together(), threads_that_wait():
            super().__init__(None, (), (), options, None, None)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """See grpc.aio.Server."""
        self._handlers.extend(generic_rpc_handlers)
        super().add_generic_rpc_handlers(generic_rpc_handlers)

    async def start(self) -> None:
        """See grpc.aio.Server."""
        await super().start()
        loop = asyncio.get_running_loop()
        self._askers = [loop.create_task(self._ask(loop)) for _ in range(CALLS_ASKED_FOR - 1)]

    async def stop(self, grace: float | None) -> None:
        """See grpc.aio.Server."""
        await super().stop(grace)
        await asyncio.gather(*self._askers)

    async def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """What gRPC's own task does, once more: wait for a call, begin it, ask for the next."""
        core = self._server
        while core.is_running():
            try:
                # Nothing here may hold the call until the next one comes: gRPC counts it among those of its connection.
                self._begin(await core._request_call(), loop)
            except Exception:
                if core.is_running():  # else the server is being stopped
                    _log.exception("gRPC gives one call less at once")
                return

    def _begin(self, call: Any, loop: asyncio.AbstractEventLoop) -> None:
        answered = cygrpc._handle_rpc(self._handlers, (), call, loop, False)
        task = loop.create_task(cygrpc._schedule_rpc_coro(answered, call, loop))
        self._calls.add(task)  # the loop has only a weak reference
        task.add_done_callback(self._calls.discard)


class _Woken(socket.socket):
    """The event loop's end of the pair by which gRPC's poller wakes it: with a byte for each event.

    gRPC reads one byte and handles all events there are; every other byte would be one more wake-up, for nothing.
    """

    def recv(self, _bytes: int, flags: int = 0) -> bytes:
        return super().recv(_WAKE_UPS, flags)


@contextlib.contextmanager
def _wake_ups_read_together() -> Iterator[None]:
    """gRPC makes the pair with the process's first server or channel on an event loop."""

    def pair() -> tuple[socket.socket, socket.socket]:
        ours, theirs = _socketpair()
        return _Woken(ours.family, ours.type, ours.proto, ours.detach()), theirs

    socket.socketpair = pair  # type: ignore[assignment]
    try:
        yield
    finally:
        socket.socketpair = _socketpair

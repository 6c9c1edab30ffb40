"""The transport native: HTTP/2 in Rust (pygrpc-native), at about a fifth of grpcio's CPU for each call.

It drives the package's low-level API, not its drop-in for `grpc.aio.server()`: a refusal needs no task then, and a call
that is cancelled before its task ran is forgotten (the drop-in of 0.5.0 keeps it for ever). docs/adr/0011 says what it
lacks.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import Message
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from guerdon_server.platform.errors import ServiceError
from guerdon_server.platform.scheduling import threads_that_wait
from guerdon_server.rpc.call_limit import OVERLOADED, SHUTTING_DOWN, CallLimit
from guerdon_server.rpc.calls import DEADLINE_TOO_SHORT, Attach, Bounds, Method, failure, hopeless, principal
from guerdon_server.rpc.errors import to_trailers

if TYPE_CHECKING:
    from pygrpc_native._native import DetailedEvent, Metadata

_EVENTS_MAX: Final = 64  # taken at once; between two lots the event loop does other things


class _Call(NamedTuple):
    """One that is being answered. Times of perf_counter; `until`: its deadline, None without one."""

    number: int
    method: Method
    request: Message
    started: float
    until: float | None

    def is_too_late(self) -> bool:
        return self.until is not None and hopeless(self.until - time.perf_counter()) is not None


class NativeTransport:
    """Our methods in Rust; health and reflection, which stream, by a grpcio server on a Unix socket behind it.

    A thread hands calls to the event loop as they come, so all that is not answered is known: `limit` bounds it, and
    what the loop gets to see only after `bounds.backlog_seconds_max` is refused. Start it, then stop it, once.
    """

    _front: NativeGrpcFront
    _folder: Path
    _loop: asyncio.AbstractEventLoop

    def __init__(
        self, methods: Sequence[Method], limit: CallLimit, attach: Attach, *, bounds: Bounds, shares_port: bool
    ) -> None:
        self._methods = tuple(methods)
        self._limit = limit
        self._bounds = bounds
        self._shares_port = shares_port
        self._tasks: dict[int, asyncio.Task[Message]] = {}
        self._behind = grpc.aio.server()
        attach(self._behind)

    async def start(self, host: str, port: int) -> int:
        """See Transport."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            with threads_that_wait():
                self._front = NativeGrpcFront(
                    address,
                    [(method.path, False) for method in self._methods],
                    call_details=True,
                    max_concurrent_streams=self._bounds.calls_per_connection_max,
                    reuse_port=self._shares_port,
                )
        except OSError as error:
            raise OSError(f"{address} can't be bound: is something else listening there?") from error
        try:
            await self._start_behind()
        except BaseException:
            self._front.close()
            raise
        self._loop = asyncio.get_running_loop()
        with threads_that_wait():
            self._front.start()
            threading.Thread(target=self._receive, name="native-calls", daemon=True).start()
        return self._front.bound_port

    async def _start_behind(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="guerdon-"))  # ours alone: nobody else may connect
        socket = self._folder / "behind.sock"
        try:
            self._behind.add_insecure_port(f"unix:{socket}")
        except RuntimeError as error:
            self._folder.rmdir()
            raise OSError(f"{socket} can't be bound; is its path too long? Set TMPDIR to a short folder") from error
        await self._behind.start()
        self._front.set_fallback(str(socket))

    async def stop(self, grace_seconds: float) -> None:
        """See Transport."""
        behind = asyncio.create_task(self._behind.stop(grace_seconds))
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace_seconds)
        late = list(self._tasks.values())
        for task in late:
            task.cancel()
        await asyncio.gather(behind, *late, return_exceptions=True)
        await asyncio.to_thread(self._front.close)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _receive(self) -> None:
        """A thread of its own, until the front is closed."""
        while (events := self._front.recv_batch_details(_EVENTS_MAX)) is not None:
            try:
                self._loop.call_soon_threadsafe(self._take, time.perf_counter(), events)
            except RuntimeError:  # the loop was closed before us
                self._front.close()
                return

    def _take(self, arrived: float, events: Sequence[DetailedEvent]) -> None:
        waited_seconds = time.perf_counter() - arrived
        for kind, call, method_number, payload, _, details in events:
            if kind == EVENT_CANCEL:  # the caller left, or its deadline passed
                if (task := self._tasks.get(call)) is not None:
                    task.cancel()
                continue
            assert payload is not None
            assert details is not None
            metadata, _, seconds_left = details
            until = None
            if seconds_left is not None:
                until = arrived + seconds_left
                seconds_left -= waited_seconds
            method = self._methods[method_number]
            method.metrics.started()
            refusal = self._limit.refusal(method.priority) or hopeless(seconds_left)
            if refusal is None and waited_seconds >= self._bounds.backlog_seconds_max:
                refusal = self._limit.shed(method.priority)
            if refusal is None:
                refusal = self._begin(call, method, payload, metadata, until)
            if refusal is not None:
                method.metrics.observe(refusal.code.name, waited_seconds)
                self._fail(call, refusal)

    def _begin(
        self, call: int, method: Method, payload: bytes, metadata: Metadata, until: float | None
    ) -> ServiceError | None:
        """Start answering, or say why not: whatever fails here is an answer to this call, and not to the others."""
        request = None
        try:
            request = method.read(payload)
            if isinstance(request, ServiceError):
                return request
            caller = principal(metadata)
        except Exception as error:
            return failure(error, method, request)
        started = time.perf_counter()
        self._limit.begun(method.priority)
        self._tasks[call] = task = self._loop.create_task(method.answer(request, caller))
        # A callback, since a task that is cancelled before its first step runs nothing of its own.
        under_way = _Call(call, method, request, started, until)
        task.add_done_callback(partial(self._ended, under_way))
        return None

    def _ended(self, call: _Call, task: asyncio.Task[Message]) -> None:
        del self._tasks[call.number]
        code = self._answered(call, task)
        call.method.metrics.observe(code, time.perf_counter() - call.started)
        self._limit.ended(call.method.priority)

    def _answered(self, call: _Call, task: asyncio.Task[Message]) -> str:
        """Send what came of it; the name of its code. To a caller that has left, nothing is sent."""
        if task.cancelled():
            status = grpc.StatusCode.DEADLINE_EXCEEDED if call.is_too_late() else grpc.StatusCode.CANCELLED
            message = "the call was cancelled; its outcome is unknown: repeat with the same request id"
            self._front.fail(call.number, status.value[0], message)
            return status.name
        try:
            self._front.respond(call.number, call.method.write(task.result()))
        except Exception as error:
            told = failure(error, call.method, call.request)
            self._fail(call.number, told)
            return told.code.name
        return "OK"

    def _fail(self, call: int, error: ServiceError) -> None:
        code, message, trailers = _WRITTEN.get(error) or to_trailers(error)
        self._front.fail(call, code, message, trailers)


_WRITTEN: Final = {error: to_trailers(error) for error in (OVERLOADED, SHUTTING_DOWN, DEADLINE_TOO_SHORT)}
"""A refusal has to cost little: these are written once."""

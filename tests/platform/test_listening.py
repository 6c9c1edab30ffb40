"""Leaving a port that others listen on, too."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
from tests.issuing.desk import eventually

from guerdon_server.platform import listening


def _listener(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", port))
    one.listen()
    return one


def _connecting(port: int) -> socket.socket:
    one = socket.socket()
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        one.connect(("127.0.0.1", port))
    return one


_OTHER = """
import socket, sys
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
one.bind(("127.0.0.1", int(sys.argv[1])))
one.listen()
print("listens", flush=True)
kept = []
while True:
    kept.append(one.accept()[0])
    kept[-1].sendall(b"other")
"""


@asynccontextmanager
async def _another_process(port: int) -> AsyncIterator[None]:
    """It listens there as well, and says `other` to whom it accepts."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OTHER, str(port), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"listens\n"
        yield
    finally:
        child.kill()
        await child.wait()


def _connects(stack: ExitStack, port: int, wanted: Callable[[socket.socket], bool]) -> socket.socket:
    """The first of many connections that is as wanted."""
    for _ in range(200):
        one = stack.enter_context(_connecting(port))
        if wanted(one):
            return one
    raise AssertionError("of 200 connections none was as wanted")


def _syn_sent(one: socket.socket) -> bool:
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x02"


async def test_no_connection_is_lost_when_one_of_two_processes_leaves_the_port() -> None:
    with ExitStack() as stack:
        port = stack.enter_context(listening.reserve("127.0.0.1", 0)).getsockname()[1]
        listener = stack.enter_context(_listener(port))
        async with _another_process(port):
            # On one machine a connection is in a queue when `connect` returns.
            early = _connects(stack, port, lambda _: bool(select.select([listener], [], [], 0)[0]))
            leaving = asyncio.create_task(listening.stop_accepting(port))
            await asyncio.sleep(0)  # from here on it lets nobody in
            late = _connects(stack, port, _syn_sent)
            accepted, address = listener.accept()
            assert address[1] == early.getsockname()[1]
            await leaving

            with pytest.raises(OSError, match="Invalid argument"):
                listener.accept()
            accepted.sendall(b"here")
            assert early.recv(5) == b"here"
            accepted.close()
            # Its kernel tries again, and finds the other one.
            late.settimeout(30)
            assert await asyncio.to_thread(late.recv, 5) == b"other"


async def test_it_waits_for_what_is_in_the_queue() -> None:
    with listening.reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        listener = _listener(port)
        with _connecting(port):
            leaving = asyncio.create_task(listening.stop_accepting(port))
            await asyncio.wait([leaving], timeout=1.5)
            assert not leaving.done()
            accepted, _ = listener.accept()
            await leaving
            accepted.close()
        listener.close()


async def test_the_last_connection_is_waited_for() -> None:
    with listening.reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with _listener(port) as listener, _connecting(port) as caller:
            accepted, _ = listener.accept()
            waiting = asyncio.create_task(listening.connections_gone(port))
            await eventually(lambda: listening.connections(port) == 1)
            assert not waiting.done()
            caller.close()
            accepted.close()
            await waiting


def test_a_port_that_is_listened_on_is_not_shared_by_mistake() -> None:
    with listening.reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with _listener(port), pytest.raises(OSError, match=f"127.0.0.1:{port} can't be bound"):
            listening.reserve("127.0.0.1", port)
    listening.reserve("127.0.0.1", port).close()

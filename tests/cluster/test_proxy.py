"""The proxy does to connections what its names say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import pytest
import pytest_asyncio

from tests.cluster.proxy import HOST, Proxy, has_http2_message
from tests.cluster.waiting import until

_ANSWER_SECONDS_MAX = 10.0
_NO_ANSWER_SECONDS = 0.05
_CUT = (ConnectionError, asyncio.IncompleteReadError)


class Target:
    """Answers each line with it, and remembers."""

    def __init__(self, name: bytes = b"") -> None:
        self.name = name
        self.heard: list[bytes] = []
        self.open = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await until(self.is_left, "the target to be left")

    async def is_left(self) -> bool:
        return self.open == 0

    async def has_heard(self, line: bytes) -> None:
        async def heard() -> bool:
            return line in self.heard

        await until(heard, f"the target to hear {line!r}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(self.name + line)
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


class Caller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, line: bytes) -> None:
        self._writer.write(line)

    async def answer(self) -> bytes:
        """Raises one of _CUT."""
        async with asyncio.timeout(_ANSWER_SECONDS_MAX):
            return await self._reader.readuntil(b"\n")

    async def ask(self, line: bytes) -> bytes:
        self.send(line)
        return await self.answer()

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(_NO_ANSWER_SECONDS):
                await self._reader.readuntil(b"\n")

    async def is_cut(self) -> None:
        with pytest.raises(_CUT):
            await self.answer()

    @property
    def unsent_bytes(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def calling(proxy: Proxy) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def _has_connections(proxy: Proxy, count: int) -> bool:
    return proxy.connections == count


@pytest_asyncio.fixture
async def target() -> AsyncIterator[Target]:
    async with Target() as target:
        yield target


@pytest_asyncio.fixture
async def proxy(target: Target) -> AsyncIterator[Proxy]:
    async with Proxy(HOST, target.port) as proxy:
        yield proxy


async def test_without_faults_all_passes_both_ways(proxy: Proxy) -> None:
    long = b"x" * 60_000 + b"\n"
    async with calling(proxy) as caller, calling(proxy) as other:
        for _ in range(20):
            assert await caller.ask(long) == long
        assert await other.ask(b"short\n") == b"short\n"
        assert proxy.connections == 2


async def test_a_lost_reply_was_acted_on_and_its_connection_is_cut(proxy: Proxy, target: Target) -> None:
    proxy.lose_replies = 1
    async with calling(proxy) as caller, calling(proxy) as other:
        caller.send(b"lost\n")
        await caller.is_cut()
        assert target.heard == [b"lost\n"]
        assert await other.ask(b"next\n") == b"next\n"


async def test_mute_swallows_answers_and_leaves_connections_open(proxy: Proxy, target: Target) -> None:
    async with calling(proxy) as caller:
        proxy.mute = True
        caller.send(b"unheard\n")
        await target.has_heard(b"unheard\n")
        await caller.hears_nothing()
        proxy.mute = False
        assert await caller.ask(b"heard\n") == b"heard\n"


async def test_away_cuts_and_refuses(proxy: Proxy, target: Target) -> None:
    async with calling(proxy) as caller:
        assert await caller.ask(b"1\n") == b"1\n"
        proxy.away = True
        await caller.is_cut()
        async with calling(proxy) as refused:
            refused.send(b"2\n")
            await refused.is_cut()
    proxy.away = False
    async with calling(proxy) as caller:
        assert await caller.ask(b"3\n") == b"3\n"
    assert target.heard == [b"1\n", b"3\n"]


async def test_delayed_data_comes_later_and_in_order(proxy: Proxy) -> None:
    proxy.delay_seconds = 0.05
    loop = asyncio.get_running_loop()
    async with calling(proxy) as caller:
        begun = loop.time()
        caller.send(b"first\n")
        assert await caller.answer() == b"first\n"
        assert loop.time() - begun >= 2 * proxy.delay_seconds
        caller.send(b"slow\n")
        await asyncio.sleep(0)
        proxy.delay_seconds = 0
        caller.send(b"fast\n")
        assert [await caller.answer(), await caller.answer()] == [b"slow\n", b"fast\n"]


async def test_stalled_data_arrives_after_the_stall_even_when_its_sender_has_left(proxy: Proxy, target: Target) -> None:
    async with calling(proxy) as caller, calling(proxy) as patient:
        assert [await caller.ask(b"1\n"), await patient.ask(b"2\n")] == [b"1\n", b"2\n"]
        proxy.stall = True
        caller.send(b"late\n")
        patient.send(b"patient\n")
        await patient.hears_nothing()
        caller.close()
        await until(lambda: _has_connections(proxy, 1), "the proxy to see the caller leave")
        assert (target.heard, target.open) == ([b"1\n", b"2\n"], 2)  # it does not even know that the caller has left
        proxy.stall = False
        await target.has_heard(b"late\n")
        assert await patient.answer() == b"patient\n"


async def test_much_that_was_sent_during_a_stall_waits_with_its_sender_and_arrives(
    proxy: Proxy, target: Target
) -> None:
    line = b"x" * 60_000 + b"\n"
    async with calling(proxy) as caller:
        proxy.stall = True
        for _ in range(500):
            caller.send(line)
        await caller.hears_nothing()
        assert caller.unsent_bytes > 0  # the proxy holds only so much
        proxy.stall = False
        for _ in range(500):
            assert await caller.answer() == line
    assert target.heard == [line] * 500


async def test_an_orphaned_request_is_acted_on_while_the_target_sees_no_end(proxy: Proxy, target: Target) -> None:
    proxy.orphan_requests = 1
    async with calling(proxy) as caller, calling(proxy) as other:
        caller.send(b"orphan\n")
        await caller.is_cut()
        await target.has_heard(b"orphan\n")
        assert await other.ask(b"next\n") == b"next\n"
        assert (target.open, proxy.connections) == (2, 1)
    proxy.cut()


async def test_all_callers_can_be_cut_while_the_target_goes_on(proxy: Proxy, target: Target) -> None:
    async with calling(proxy) as caller:
        assert await caller.ask(b"1\n") == b"1\n"
        assert proxy.orphan() == 1
        await caller.is_cut()
        assert target.open == 1
    proxy.cut()
    await until(target.is_left, "the target to be left")


async def test_a_new_target_gets_everybody(proxy: Proxy, target: Target) -> None:
    async with Target(b"new ") as new, calling(proxy) as caller:
        assert await caller.ask(b"1\n") == b"1\n"
        port = proxy.port
        proxy.retarget(HOST, new.port)
        await caller.is_cut()
        async with calling(proxy) as again:
            assert await again.ask(b"2\n") == b"new 2\n"
            assert (proxy.port, proxy.target) == (port, (HOST, new.port))
            await until(target.is_left, "the old target to be left")


async def test_a_target_that_is_not_there_turns_callers_away(proxy: Proxy) -> None:
    async with Target() as gone:
        port = gone.port
    proxy.retarget(HOST, port)
    async with calling(proxy) as caller:
        await caller.is_cut()


async def test_calm_ends_every_fault(proxy: Proxy) -> None:
    proxy.away = proxy.mute = proxy.stall = True
    proxy.lose_replies = proxy.orphan_requests = 5
    proxy.delay_seconds = 60
    proxy.calm()
    async with calling(proxy) as caller:
        assert await caller.ask(b"1\n") == b"1\n"


def _frame(kind: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + payload


@pytest.mark.parametrize(
    ("data", "is_message"),
    [
        (_frame(6, b"pingpong"), False),
        (_frame(8, b"1234") + _frame(6, b"pingpong"), False),
        (_frame(8, b"1234") + _frame(0, b"message"), True),
        (_frame(1, b"headers"), True),
        (b"", False),
    ],
)
def test_pings_and_window_updates_are_no_messages(data: bytes, is_message: bool) -> None:
    assert has_http2_message(data) is is_message

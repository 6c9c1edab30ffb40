"""A TCP proxy that breaks connections in all the ways that networks and failing-over servers do."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self, cast

HOST = "127.0.0.1"
_CONNECT_SECONDS_MAX = 10.0
_ORPHAN_SECONDS_MAX = 10.0  # then the target is told: a database would keep the session for ever
_HELD_BYTES_MAX = 4 << 20  # of one direction of one connection, while it is delayed or stalled; then its source waits
_HTTP2_MESSAGE_FRAMES = frozenset({0, 1})  # DATA, HEADERS
_HTTP2_FRAME_HEAD_BYTES = 9


class Proxy:
    """`async with Proxy(host, port) as proxy`: a port of its own that stays, before a target that may change.

    delay_seconds: each piece of data arrives so much later, in both directions.
    mute: answers are swallowed; connections stay open.
    stall: nothing passes in either direction, not even the end of a connection; False lets it all through, late.
    away: connections are cut, and new ones are cut at once, until it is False again.
    lose_replies: so many of the next answers are swallowed, and their connections cut, after the target has acted.
    orphan_requests: so many of the next requests are passed on, and at once the caller's side of their connection is
    cut; the target's side stays open for a while, so that it goes on and acts later without anybody listening.
    """

    def __init__(self, host: str, port: int, *, counts: Callable[[bytes], bool] | None = None) -> None:
        """`counts`: whether a piece of data is a request or an answer for the two counters; None: every piece is."""
        self._target = (host, port)
        self._port = 0
        self._counts = counts or (lambda _: True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._away = False
        self.delay_seconds = 0.0
        self.mute = False
        self.lose_replies = 0
        self.orphan_requests = 0

    @property
    def host(self) -> str:
        """Where it listens."""
        return HOST

    @property
    def port(self) -> int:
        assert self._port, "the proxy is not started"
        return self._port

    @property
    def address(self) -> str:
        """HOST:PORT of itself."""
        return f"{self.host}:{self.port}"

    @property
    def target(self) -> tuple[str, int]:
        """Where it leads."""
        return self._target

    @property
    def connections(self) -> int:
        """Open on the callers' side."""
        return sum(link.has_caller for link in self._links)

    @property
    def away(self) -> bool:
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        self._away = away
        if away:
            self.cut()

    @property
    def stall(self) -> bool:
        return not self._passing.is_set()

    @stall.setter
    def stall(self, stall: bool) -> None:
        if stall:
            self._passing.clear()
            return
        self._passing.set()
        for link in tuple(self._links):
            link.flush()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Link(self).caller, HOST, 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> int:
        """Cut every connection now, on both sides. Returns how many there were."""
        links = tuple(self._links)
        for link in links:
            link.cut()
        return len(links)

    def orphan(self) -> int:
        """Cut the callers' side of every connection now; the target's side stays open for a while.

        What the caller has sent is still delivered, and answers go nowhere. Returns how many there were.
        """
        links = [link for link in self._links if link.has_caller]
        for link in links:
            link.orphan()
        return len(links)

    def retarget(self, host: str, port: int) -> None:
        """Lead elsewhere from now on; cuts what leads to the old target."""
        self._target = (host, port)
        self.cut()

    def calm(self) -> None:
        """All faults off."""
        self.delay_seconds = 0.0
        self.mute = False
        self.lose_replies = self.orphan_requests = 0
        self.away = self.stall = False

    # --- called by its links --------------------------------------------------------------------------------------

    def _opened(self, link: _Link) -> bool:
        """Whether the connection may be."""
        if not self._away:
            self._links.add(link)
        return not self._away

    def _closed(self, link: _Link) -> None:
        self._links.discard(link)

    async def _reach(self, link: _Link) -> None:
        """Connect the link to the target; while stalled, nothing gets there."""
        try:
            await self._passing.wait()
            async with asyncio.timeout(_CONNECT_SECONDS_MAX):
                await asyncio.get_running_loop().create_connection(lambda: link.target, *self._target)
        except (OSError, TimeoutError):
            link.cut()

    def _is_lost(self, data: bytes) -> bool:
        if self.lose_replies and self._counts(data):
            self.lose_replies -= 1
            return True
        return False

    def _is_orphaned(self, data: bytes) -> bool:
        if self.orphan_requests and self._counts(data):
            self.orphan_requests -= 1
            return True
        return False


class _Link:
    """One connection of a caller and the one to the target that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.caller = _End(on_open=self._caller_came, on_data=self._requested, on_lost=self._caller_left)
        self.target = _End(on_open=self._target_reached, on_data=self._answered, on_lost=self._target_left)
        self._requests = _Way(proxy, self.caller, self.target)
        self._answers = _Way(proxy, self.target, self.caller)
        self._reaching: asyncio.Task[None] | None = None
        self._orphan_timer: asyncio.TimerHandle | None = None
        self._cut = False

    @property
    def has_caller(self) -> bool:
        return self.caller.is_open

    def flush(self) -> None:
        self._requests.flush()
        self._answers.flush()

    def cut(self) -> None:
        self._cut = True
        if self._reaching is not None and self._reaching is not asyncio.current_task():
            self._reaching.cancel()
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
        self.caller.abort()
        self.target.abort()
        self._forget_if_over()

    def orphan(self) -> None:
        self._orphan_timer = asyncio.get_running_loop().call_later(_ORPHAN_SECONDS_MAX, self.cut)
        self.caller.abort()

    @property
    def _is_orphan(self) -> bool:
        return self._orphan_timer is not None

    def _caller_came(self) -> None:
        if self.proxy._opened(self):
            self._reaching = asyncio.get_running_loop().create_task(self.proxy._reach(self))
        else:
            self.caller.abort()

    def _target_reached(self) -> None:
        if self._cut:
            self.target.abort()
        else:
            self._requests.flush()

    def _requested(self, data: bytes) -> None:
        self._requests.feed(data)
        if self.proxy._is_orphaned(data):
            self.orphan()

    def _answered(self, data: bytes) -> None:
        if self._is_orphan or self.proxy.mute:
            return
        if self.proxy._is_lost(data):
            self.cut()
        else:
            self._answers.feed(data)

    def _caller_left(self) -> None:
        if not self._is_orphan:
            self._requests.end()
        self._forget_if_over()

    def _target_left(self) -> None:
        self._answers.end()
        self._forget_if_over()

    def _forget_if_over(self) -> None:
        unreachable = self._reaching is None or self._reaching.done() or self._cut
        if not self.caller.is_open and not self.target.is_open and unreachable:
            if self._orphan_timer is not None:
                self._orphan_timer.cancel()
            self.proxy._closed(self)


class _Way:
    """One direction: what comes from `source` goes to `sink`, now or, delayed or stalled, later."""

    def __init__(self, proxy: Proxy, source: _End, sink: _End) -> None:
        self._proxy = proxy
        self._source = source
        self._sink = sink
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._ended = False
        sink.on_pace = self._pace

    def feed(self, data: bytes) -> None:
        proxy = self._proxy
        if not self._held and self._sink.is_open and not proxy.delay_seconds and not proxy.stall:
            self._sink.write(data)
            return
        loop = asyncio.get_running_loop()
        self._held.append((loop.time() + proxy.delay_seconds, data))
        self._held_bytes += len(data)
        self._pace()
        loop.call_later(proxy.delay_seconds, self.flush)

    def end(self) -> None:
        """Nothing more will come: what is held goes first, then the end."""
        self._ended = True
        self.flush()

    def flush(self) -> None:
        if self._proxy.stall or not self._sink.is_open:
            return
        now = asyncio.get_running_loop().time() + 0.001
        while self._held and self._held[0][0] <= now:
            _, data = self._held.popleft()
            self._held_bytes -= len(data)
            self._sink.write(data)
        self._pace()
        if self._ended and not self._held:
            self._sink.close()

    def _pace(self) -> None:
        self._source.pause_reading(self._sink.is_full or self._held_bytes > _HELD_BYTES_MAX)


class _End(asyncio.Protocol):
    """One socket."""

    def __init__(
        self, *, on_open: Callable[[], None], on_data: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._on_open = on_open
        self._on_data = on_data
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self.on_pace: Callable[[], None] = lambda: None
        self.is_full = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._on_open()

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._on_lost()

    def pause_writing(self) -> None:
        self.is_full = True
        self.on_pace()

    def resume_writing(self) -> None:
        self.is_full = False
        self.on_pace()

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def pause_reading(self, pause: bool) -> None:
        if pause == self._paused or not self.is_open:
            return
        assert self._transport is not None
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        if self.is_open:
            assert self._transport is not None
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def has_http2_message(data: bytes) -> bool:
    """Whether frames of a call (HEADERS or DATA) are in it, and not only pings and window updates. For `counts`.

    Looks at frames from the start of the piece, where senders begin them; inside a long DATA frame it may be wrong.
    """
    at = 0
    while at + _HTTP2_FRAME_HEAD_BYTES <= len(data):
        if data[at + 3] in _HTTP2_MESSAGE_FRAMES:
            return True
        at += _HTTP2_FRAME_HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
    return False

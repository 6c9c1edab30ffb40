"""HTTP/2 by hand: what no client library would send."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

ISSUE = "/guerdon.v1.PrizeService/IssuePrize"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
REFUSED_STREAM = 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def settings(values: Mapping[int, int] | None = None) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in (values or {}).items()))


def _length(number: int) -> bytes:
    if number < 127:
        return bytes([number])
    coded, number = [127], number - 127
    while number >= 128:
        coded.append(number % 128 + 128)
        number //= 128
    return bytes([*coded, number])


def header_block(target: str, more: Sequence[tuple[bytes, bytes]] = (), *, path: str = ISSUE) -> bytes:
    """Uncompressed request headers of a gRPC call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", target.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]
    return b"".join(b"\x00" + _length(len(name)) + name + _length(len(value)) + value for name, value in fields)


def call(target: str, stream: int, message: bytes, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A whole unary call on that stream (odd numbers, rising)."""
    body = b"\x00" + len(message).to_bytes(4) + message
    headers = frame(HEADERS, END_HEADERS, stream, header_block(target, more))
    return headers + frame(DATA, END_STREAM, stream, body)


@dataclass(frozen=True, slots=True)
class Frame:
    """As it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Wire:
    """A connection. `async with Wire(target) as wire`: the preface is sent, the server's settings are acknowledged."""

    def __init__(self, target: str, own_settings: Mapping[int, int] | None = None) -> None:
        self._target = target
        self._settings = own_settings
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        host, port = self._target.rsplit(":", 1)
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self.send(PREFACE + settings(self._settings))
        while (await self.receive()).kind != SETTINGS:
            pass
        self.send(frame(SETTINGS, ACK, 0, b""))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.vanish()

    def send(self, data: bytes) -> None:
        """As it is; without waiting."""
        self._writer.write(data)

    async def sent(self) -> None:
        """Until the kernel has most of it. Raises ConnectionError."""
        await self._writer.drain()

    async def receive(self) -> Frame:
        """The next frame. Raises asyncio.IncompleteReadError or ConnectionError at the end of the connection."""
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        return Frame(head[3], head[4], int.from_bytes(head[5:9]), payload)

    async def rest(self) -> list[Frame]:
        """All frames until the server closes."""
        frames = []
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                frames.append(await self.receive())
        return frames

    async def ends(self, streams: int) -> Mapping[int, Frame]:
        """Until so many streams have ended: by stream the frame that ended it, trailers or a reset."""
        ended: dict[int, Frame] = {}
        while len(ended) < streams:
            it = await self.receive()
            if it.kind == RST_STREAM or (it.kind in (DATA, HEADERS) and it.flags & END_STREAM):
                ended.setdefault(it.stream, it)
        return ended

    def vanish(self) -> None:
        """As a client does whose machine lost its power, but for the RST."""
        self._writer.transport.abort()

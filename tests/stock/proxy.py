"""A TCP proxy before Redis that loses replies and turns connections away."""

from __future__ import annotations

import asyncio
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """`async with Proxy(url) as proxy`: talk to `proxy.url`.

    lose_replies: so many of the next answers are swallowed, and their connections cut, after the server has acted.
    mute: answers are swallowed and connections stay open. away: connections are cut and refused.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.lose_replies = 0
        self.mute = False
        self.away = False
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        credentials, _, _ = self._target.netloc.rpartition("@")
        netloc = f"{credentials}@127.0.0.1:{port}" if credentials else f"127.0.0.1:{port}"
        self.url = urlunsplit(self._target._replace(netloc=netloc))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in self._writers:
            writer.close()

    def go_away(self) -> None:
        """Cut every connection and refuse new ones until `away` is False again."""
        self.away = True
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.away:
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, up_writer}
        for pump in (self._pump(reader, up_writer, replies=False), self._pump(up_reader, writer, replies=True)):
            task = asyncio.get_running_loop().create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        try:
            while data := await reader.read(65536):
                if replies and self.mute:
                    continue
                if replies and self.lose_replies:
                    self.lose_replies -= 1
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

"""A worker's end of the channel to its supervisor: one JSON object a line, over a socket that it was born with.

| from the supervisor | means |
|---|---|
| the first line | its `slot`, and what its program needs to start: here, so that secrets show in no list of processes |
| `{"do": "retire"}` | take no new connections; say so when the last one has gone |

| to the supervisor | means |
|---|---|
| `{"ready": {...}}` | it serves; the fields of `Ready` |
| `{"refused": "..."}` | it can't start as things are, and has told why on standard error; it ends |
| `{"retired": true}` | it has no connections any more |

The end of the channel means that the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from guerdon_server.platform import listening

_READ_BYTES = 65536


class SupervisorLink:
    """Made once, from the file descriptor that the supervisor passed on. `slot`: which worker this is; see `first`."""

    def __init__(self, file_descriptor: int) -> None:
        self._socket = socket.socket(fileno=file_descriptor)
        self._socket.set_inheritable(False)
        self._read = b""
        self.slot = 0

    def first(self) -> dict[str, Any]:
        """What the supervisor said first. Blocks; raises EOFError if it is gone."""
        while b"\n" not in self._read:
            more = self._socket.recv(_READ_BYTES)
            if not more:
                raise EOFError("the supervisor is gone")
            self._read += more
        self._socket.setblocking(False)
        message = self._line() or {}
        self.slot = message["slot"]
        return message

    def send(self, **message: Any) -> None:
        """Say something; a supervisor that is gone hears nothing."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    async def obey(self, port: int) -> None:
        """Do what the supervisor says about the port that is served, until it is gone."""
        while (message := await self._next()) is not None:
            if message.get("do") == "retire":
                await listening.stop_accepting(port)
                await listening.connections_gone(port)
                self.send(retired=True)

    async def _next(self) -> dict[str, Any] | None:
        loop = asyncio.get_running_loop()
        while (message := self._line()) is None:
            try:
                more = await loop.sock_recv(self._socket, _READ_BYTES)
            except ConnectionError:
                return None
            if not more:
                return None
            self._read += more
        return message

    def _line(self) -> dict[str, Any] | None:
        line, newline, rest = self._read.partition(b"\n")
        if not newline:
            return None
        self._read = rest
        message: dict[str, Any] = json.loads(line)
        return message

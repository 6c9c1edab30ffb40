"""One worker as its supervisor sees it: a process, what it has said, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from guerdon_server.platform.engines.process import launcher


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says when it serves: addresses as HOST:PORT, and by which number others know it."""

    grpc: str
    metrics: str
    incarnation: int


class Worker:
    """A process that was spawned (never forked: gRPC's threads don't survive it) and dies with its supervisor."""

    def __init__(self, slot: int, process: asyncio.subprocess.Process) -> None:
        self.slot = slot
        self.ready: Ready | None = None
        self.refused: str | None = None
        self.asked_to_end = False
        self.had_to_be_killed = False
        self._process = process
        self._began = time.monotonic()
        self._served_from: float | None = None
        self._seconds = 0.0
        self._settled, self._retired = asyncio.Event(), asyncio.Event()
        self._ended: asyncio.Task[int] | None = None
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    async def spawn(cls, slot: int, command: Sequence[str], first: Mapping[str, Any]) -> Self:
        """Start `command` with the number of its channel as the last argument. Call it from the main thread.

        `first`: the first message there, to which the slot is added.
        """
        with ExitStack() as ends:
            ours, theirs = map(ends.enter_context, socket.socketpair())
            process = await asyncio.create_subprocess_exec(
                *map(str, launcher(None, os.getpid(), signal.SIGKILL)),
                *command,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # gRPC's own messages on standard error are no JSON; what matters comes as an exception, too.
                env={"GRPC_VERBOSITY": "NONE", **os.environ},
                start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor only
            )
            reader, writer = await asyncio.open_connection(sock=ours.dup())
        worker = cls(slot, process)
        worker._writer = writer
        worker._ended = asyncio.create_task(worker._until_its_end(reader))
        worker._send({**first, "slot": slot})
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    @property
    def served_seconds(self) -> float:
        """How long it served, until now or its end."""
        if self._served_from is None:
            return 0.0
        return self._seconds or time.monotonic() - self._served_from

    @property
    def end(self) -> str:
        """How it ended, in words."""
        status = self._process.returncode
        if self.refused is not None:
            return f"refused to start: {self.refused}"
        if status is None or status >= 0:
            return f"exit status {status}"
        return f"killed by {signal.Signals(-status).name}"

    @property
    def status(self) -> int:
        """Its exit status; negative: the signal. -1 while it lives."""
        return -1 if self._process.returncode is None else self._process.returncode

    async def settled(self) -> bool:
        """Waits until it serves (True) or has ended before."""
        await self._settled.wait()
        return not self.is_over

    async def ended(self) -> int:
        """Waits for its end; the status."""
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def retired(self) -> None:
        """Asks it to take no new connections; returns when it has none any more, or has ended."""
        self.asked_to_end = True
        self._send({"do": "retire"})
        await self._retired.wait()

    async def stop(self, seconds_max: float) -> None:
        """SIGTERM, and SIGKILL if it takes longer than that."""
        self.asked_to_end = True
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.ended(), seconds_max)
        except TimeoutError:
            self.had_to_be_killed = True
            self.signal(signal.SIGKILL)
            await self.ended()

    def signal(self, number: signal.Signals) -> None:
        """To the process, if it still lives."""
        if not self.is_over:
            self._process.send_signal(number)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _until_its_end(self, reader: asyncio.StreamReader) -> int:
        try:
            async for line in reader:
                self._heard(json.loads(line))
        except ConnectionError:
            pass  # it was killed with something unread
        status = await self._process.wait()
        if self._served_from is not None:
            self._seconds = time.monotonic() - self._served_from
        assert self._writer is not None
        self._writer.close()
        self._settled.set()
        self._retired.set()
        return status

    def _heard(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            self.ready = Ready(**message["ready"])
            self._served_from = time.monotonic()
            self._settled.set()
        elif "refused" in message:
            self.refused = message["refused"]
        elif "retired" in message:
            self._retired.set()

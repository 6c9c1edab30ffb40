"""A server whose event loop a test can hold up, since the test has another one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from guerdon_server import bootstrap
from guerdon_server.settings import Settings


@contextmanager
def elsewhere(settings: Settings) -> Iterator[tuple[bootstrap.Endpoints, asyncio.AbstractEventLoop]]:
    """A server in a thread with a loop of its own."""
    ready: Future[tuple[bootstrap.Endpoints, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with bootstrap.running(settings) as endpoints:
            ready.set_result((endpoints, asyncio.get_running_loop(), stop))
            await stop.wait()

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(asyncio.run, serve())
        served.add_done_callback(lambda done: _not_ready(ready, done))
        endpoints, loop, stop = ready.result()
        try:
            yield endpoints, loop
        finally:
            loop.call_soon_threadsafe(stop.set)
            served.result()


def _not_ready(ready: Future[Any], done: Future[None]) -> None:
    if not ready.done():
        ready.set_exception(done.exception() or AssertionError("it ended before it served"))

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.client.scripted import ScriptedServer, scripted_server


@pytest_asyncio.fixture(loop_scope="session")
async def scripted() -> AsyncIterator[ScriptedServer]:
    """A server that answers what the test wrote down."""
    async with scripted_server() as server:
        yield server

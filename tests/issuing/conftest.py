from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, opened
from tests.issuing.proof import proven


@pytest_asyncio.fixture(loop_scope="session")
async def desk(settings: Settings, server_target: str) -> AsyncIterator[Desk]:
    """A server of this test; when the test is over, its books are proven."""
    async with opened(server_target) as desk:
        yield desk
    await proven(settings)


@pytest_asyncio.fixture(loop_scope="session")
async def other(settings: Settings, desk: Desk) -> AsyncIterator[Desk]:
    """A second server beside it, on the same database and gate."""
    async with bootstrap.running(settings) as endpoints, opened(endpoints.grpc) as other:
        yield other

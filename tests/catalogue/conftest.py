from __future__ import annotations

import pytest

from guerdon_server.platform.postgres import Pool
from tests.catalogue.driver import Catalogue


@pytest.fixture
def catalogue(pool: Pool) -> Catalogue:
    """An empty catalogue."""
    return Catalogue(pool)

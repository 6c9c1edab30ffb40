"""A folder for each module of tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Removed at the end of the module."""
    path = Path(tempfile.mkdtemp(prefix="guerdon-cluster-"))
    yield path
    shutil.rmtree(path)

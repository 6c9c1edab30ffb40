"""A server that is as patient as the runs of these tests: what a busy machine makes late is no error."""

from __future__ import annotations

import dataclasses

import pytest

from guerdon_server.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Of the tests' server, without its limits on waiting."""
    return dataclasses.replace(settings, backlog_seconds_max=600, queue_ms_max=60_000, twin_wait_ms_max=60_000)

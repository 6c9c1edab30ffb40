"""Both transports, for the tests that hold them to the same behaviour."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(
        find_spec("pygrpc_native") is None, reason="pygrpc-native is not installed: scripts/setup --dev"
    ),
)
TRANSPORTS = ("grpcio", NATIVE)
on_both_transports = pytest.mark.parametrize("transport", TRANSPORTS, indirect=True)
on_native = pytest.mark.parametrize("transport", [NATIVE], indirect=True)
"""Of the fixture `transport`, and so of the `settings` of the test."""

"""What the native transport lacks is refused at the start, in words that say what to do."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import pytest

from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.issuing.desk import WAIT_SECONDS_MAX, ask, opened
from tests.running.processes import environment, refused, serving
from tests.transports import frames, on_both_transports, on_native
from tests.transports.frames import Wire


@on_native
@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("GUERDON_CONNECTION_AGE_SECONDS_MAX", "60", ("connection_age_seconds_max", "transport = grpcio")),
        ("GUERDON_GRPC_HOST", "0.0.0.0", ("grpc_host", "native_trusts_callers = true")),  # noqa: S104
        ("GUERDON_GRPC_HOST", "reward.internal", ("grpc_host", "native_trusts_callers = true")),
    ],
)
async def test_what_it_can_not_do_is_refused(
    settings: Settings, variable: str, value: str, told: tuple[str, ...]
) -> None:
    ended = await refused(environment(settings, **{variable: value}))

    assert ended.status == 2
    for words in told:
        assert words in ended.told, ended.told
    assert "Traceback" not in ended.told


@on_native
async def test_trusted_callers_reach_it_from_elsewhere(settings: Settings) -> None:
    more = {"GUERDON_GRPC_HOST": "0.0.0.0", "GUERDON_NATIVE_TRUSTS_CALLERS": "true"}  # noqa: S104
    async with serving(settings, **more) as process, opened(process.grpc.replace("0.0.0.0", "127.0.0.1")) as desk:  # noqa: S104
        await desk.opens()
        await desk.coupon()
        await desk.grant(ask())


async def test_grpcio_moves_connections_when_it_is_asked_to(settings: Settings) -> None:
    restless = dataclasses.replace(settings, transport="grpcio", connection_age_seconds_max=1)
    async with bootstrap.running(restless) as endpoints, Wire(endpoints.grpc) as wire:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while (await wire.receive()).kind != frames.GOAWAY:
                pass


async def test_connections_move_after_a_minute_unless_it_is_said_otherwise(settings: Settings) -> None:
    assert settings.connection_age_seconds_max is None
    assert settings.connection_age_seconds == 60
    assert dataclasses.replace(settings, connection_age_seconds_max=7).connection_age_seconds == 7


@on_both_transports
async def test_a_port_is_shared_only_when_it_is_asked_for(settings: Settings) -> None:
    async with bootstrap.running(settings, shares_port=True) as endpoints:
        same = dataclasses.replace(settings, grpc_port=int(endpoints.grpc.rpartition(":")[2]))
        async with bootstrap.running(same, shares_port=True) as second:
            assert second.grpc == endpoints.grpc
        with pytest.raises(OSError, match="listening"):
            async with bootstrap.running(same):
                pass


@on_native
async def test_without_its_package_the_start_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    monkeypatch.delitem(sys.modules, "guerdon_server.rpc.native", raising=False)

    with pytest.raises(bootstrap.StartRefused) as refusal:
        async with bootstrap.running(settings):
            pass

    assert "guerdon-server[native]" in str(refusal.value)
    assert "transport = grpcio" in str(refusal.value)


@on_native
async def test_nothing_is_left_behind_of_the_socket_between_its_two_halves(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with bootstrap.running(settings):
        (folder,) = os.listdir(tmp_path)
        assert os.stat(tmp_path / folder).st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == []


@on_native
async def test_a_folder_too_long_for_a_socket_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    os.mkdir(long)
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with pytest.raises(OSError, match="TMPDIR"):
        async with bootstrap.running(settings):
            pass

    assert os.listdir(long) == []


def test_native_takes_the_calls_that_its_clients_would_keep_back(settings: Settings) -> None:
    """They wait unseen there, in the order of arrival, until their deadlines: nobody refuses them (ADR 11)."""
    grpcio = dataclasses.replace(settings, transport="grpcio", calls_per_connection_max=None)
    native = dataclasses.replace(grpcio, transport="native")
    assert (grpcio.calls_per_connection, native.calls_per_connection) == (256, 1024)
    assert dataclasses.replace(native, calls_per_connection_max=16).calls_per_connection == 16

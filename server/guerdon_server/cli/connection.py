"""Which server a command speaks to, and the client for it."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import click
import grpc

from guerdon import AsyncClient, Client
from guerdon_server.cli.options import default_data_dir, given_pem_files, given_target, id_text, timeout_seconds

DEFAULT_TARGET: Final = "127.0.0.1:7450"
_ENDPOINTS_FILE: Final = "guerdon.json"
_FOUND: Final = "guerdon.found"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """What a `guerdon up` says of itself in its data folder: addresses as "host:port", and its process."""

    grpc: str
    metrics: str
    pid: int

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            return True
        return True


def announce(data_dir: Path, server: RunningServer) -> None:
    """Writes the file by which other commands find this server."""
    from guerdon_server.platform.engines.folder import write_private  # noqa: PLC0415  psutil, for this one use

    write_private(data_dir / _ENDPOINTS_FILE, json.dumps(asdict(server), indent=2) + "\n")


def withdraw(data_dir: Path) -> None:
    (data_dir / _ENDPOINTS_FILE).unlink(missing_ok=True)


def find_server(data_dir: Path) -> RunningServer | None:
    """The `guerdon up` that runs on this folder now."""
    try:
        server = RunningServer(**json.loads((data_dir / _ENDPOINTS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return server if server.alive() else None


@dataclass(frozen=True, slots=True)
class Target:
    """The server's address, and why this one."""

    address: str
    origin: str


def find_target(ctx: click.Context) -> Target:
    given = given_target(ctx)
    if given:
        return Target(given, "as given by --target or GUERDON_TARGET")
    folder = default_data_dir()
    running = find_server(folder)
    if running is not None:
        return Target(running.grpc, f"of the `guerdon up` that runs on {folder}")
    return Target(DEFAULT_TARGET, f"the default; no `guerdon up` runs on {folder}")


def used_target(ctx: click.Context) -> Target | None:
    return ctx.meta.get(_FOUND)


class Door(Protocol):
    """How clients are made; a test puts its own into the context's `obj`."""

    def client(
        self, target: str, *, timeout: float, principal: str, credentials: grpc.ChannelCredentials | None
    ) -> Client: ...
    def async_client(
        self, target: str, *, timeout: float, principal: str, channels: int, credentials: grpc.ChannelCredentials | None
    ) -> AsyncClient: ...


class _Network:
    def client(
        self, target: str, *, timeout: float, principal: str, credentials: grpc.ChannelCredentials | None
    ) -> Client:
        return Client(target, timeout=timeout, principal=principal, credentials=credentials)

    def async_client(
        self, target: str, *, timeout: float, principal: str, channels: int, credentials: grpc.ChannelCredentials | None
    ) -> AsyncClient:
        return AsyncClient(target, timeout=timeout, principal=principal, channels=channels, credentials=credentials)


def _door(ctx: click.Context) -> Door:
    return ctx.find_root().obj or _Network()


def _resolve(ctx: click.Context) -> str:
    target = ctx.meta[_FOUND] = find_target(ctx)
    return target.address


def _credentials(ctx: click.Context) -> grpc.ChannelCredentials | None:
    files = given_pem_files(ctx)
    if files is None:
        return None
    ca, certificate, key = (file.read_bytes() if file is not None else None for file in files)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _principal() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return os.environ.get("GUERDON_PRINCIPAL") or id_text(f"cli:{user}")


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the server that the running command is meant for."""
    ctx = click.get_current_context()
    client = _door(ctx).client(
        _resolve(ctx), timeout=timeout_seconds(ctx), principal=_principal(), credentials=_credentials(ctx)
    )
    with client:
        yield client


def open_async_client(ctx: click.Context, *, channels: int, timeout: float) -> AsyncClient:
    """The same for asyncio; call it inside the loop, close it."""
    return _door(ctx).async_client(
        _resolve(ctx), timeout=timeout, principal=_principal(), channels=channels, credentials=_credentials(ctx)
    )

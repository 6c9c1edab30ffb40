"""TLS on grpcio: who connects, renewal without a restart, and what is refused at the start."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from guerdon import AsyncClient, HealthStatus, RetryPolicy, Unavailable
from guerdon_server import bootstrap
from guerdon_server.rpc import tls
from guerdon_server.settings import Settings
from tests.cli.conftest import Cli
from tests.running.processes import environment, refused

CERTIFICATES = Path(__file__).with_name("certificates")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with server.pem and server.key, to be renewed."""
    install(tmp_path, "server")
    return tmp_path


def install(folder: Path, name: str) -> None:
    for kind in ("key", "pem"):
        shutil.copy(CERTIFICATES / f"{name}.{kind}", folder / f"new.{kind}")
        os.replace(folder / f"new.{kind}", folder / f"server.{kind}")


def with_tls(settings: Settings, folder: Path, *, client_ca: str = "") -> Settings:
    return dataclasses.replace(
        settings,
        transport="grpcio",
        tls_certificate_file=str(folder / "server.pem"),
        tls_key_file=str(folder / "server.key"),
        tls_client_ca_file=client_ca,
    )


@pytest_asyncio.fixture(loop_scope="session")
async def target(settings: Settings, files: Path) -> AsyncIterator[str]:
    """A server that speaks TLS; anybody may call."""
    async with bootstrap.running(with_tls(settings, files)) as endpoints:
        yield endpoints.grpc


def pem(name: str) -> bytes:
    return (CERTIFICATES / name).read_bytes()


def client(target: str, credentials: grpc.ChannelCredentials | None) -> AsyncClient:
    return AsyncClient(target, timeout=10, retry=RetryPolicy(max_attempts=1), credentials=credentials)


def certificate_of(target: str) -> str:
    host, _, port = target.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=str(CERTIFICATES / "authority.pem"))


async def test_a_caller_who_trusts_the_authority_is_served(target: str) -> None:
    async with client(target, grpc.ssl_channel_credentials(pem("authority.pem"))) as caller:
        assert await caller.check_health() is HealthStatus.SERVING


async def test_neither_plain_text_nor_one_who_trusts_others_gets_through(target: str) -> None:
    for credentials in (None, grpc.ssl_channel_credentials(pem("strange-caller.pem"))):
        async with client(target, credentials) as caller:
            with pytest.raises(Unavailable):
                await caller.check_health()


async def test_the_command_line_speaks_tls(target: str, tmp_path: Path) -> None:
    cli = Cli({"GUERDON_TARGET": target, "XDG_DATA_HOME": str(tmp_path)})
    told = await asyncio.to_thread(cli.json, "health", "--ca", str(CERTIFICATES / "authority.pem"))
    assert told["status"] == "SERVING"
    await asyncio.to_thread(cli, "health", "--timeout", "0.5", code=3)


async def test_renewed_certificates_are_used_without_a_restart(target: str, files: Path) -> None:
    before = await asyncio.to_thread(certificate_of, target)
    install(files, "renewed")
    assert await asyncio.to_thread(certificate_of, target) != before


async def test_half_a_renewal_leaves_the_former_certificate_in_use(target: str, files: Path) -> None:
    before = await asyncio.to_thread(certificate_of, target)
    shutil.copy(CERTIFICATES / "renewed.pem", files / "server.pem")
    assert await asyncio.to_thread(certificate_of, target) == before, "its key is that of another certificate"
    (files / "server.key").unlink()
    assert await asyncio.to_thread(certificate_of, target) == before
    install(files, "renewed")
    assert await asyncio.to_thread(certificate_of, target) != before


def test_what_is_replaced_while_it_is_read_at_the_start_is_seen(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = tls.TlsFiles.read

    def and_then_replaced(self: tls.TlsFiles) -> grpc.ServerCertificateConfiguration:
        found = read(self)
        install(files, "renewed")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(tls.TlsFiles, "read", and_then_replaced)
        renewal = tls._Renewal(tls.TlsFiles(files / "server.pem", files / "server.key"))
    assert renewal.look() is not None
    assert renewal.look() is None, "once"


async def test_callers_can_be_asked_for_a_certificate(settings: Settings, files: Path) -> None:
    mutual = with_tls(settings, files, client_ca=str(CERTIFICATES / "authority.pem"))
    async with bootstrap.running(mutual) as endpoints:
        for name, let_in in (("caller", True), ("strange-caller", False), (None, False)):
            own = (pem(f"{name}.key"), pem(f"{name}.pem")) if name else (None, None)
            async with client(endpoints.grpc, grpc.ssl_channel_credentials(pem("authority.pem"), *own)) as caller:
                if let_in:
                    assert await caller.check_health() is HealthStatus.SERVING
                else:
                    with pytest.raises(Unavailable):
                        await caller.check_health()


async def test_the_command_line_shows_its_certificate(settings: Settings, files: Path, tmp_path: Path) -> None:
    authority, own = CERTIFICATES / "authority.pem", CERTIFICATES / "caller.pem"
    async with bootstrap.running(with_tls(settings, files, client_ca=str(authority))) as endpoints:
        known = {"GUERDON_TARGET": endpoints.grpc, "GUERDON_CA": str(authority), "XDG_DATA_HOME": str(tmp_path)}
        cli = Cli(known)
        told = await asyncio.to_thread(
            cli.json, "health", "--certificate", str(own), "--key", str(own.with_suffix(".key"))
        )
        assert told["status"] == "SERVING"
        await asyncio.to_thread(cli, "health", "--timeout", "0.5", code=3)
        refusal = await asyncio.to_thread(cli, "health", "--certificate", str(own), code=2)
    assert "--certificate needs --key" in refusal.err


@pytest.mark.parametrize(
    ("variables", "status", "told"),
    [
        ({"GUERDON_TLS_KEY_FILE": "renewed.key"}, 1, "are not a certificate and its key"),
        ({"GUERDON_TLS_KEY_FILE": "nobody.key"}, 1, "nobody.key can't be read: No such file"),
        ({"GUERDON_TLS_CLIENT_CA_FILE": "make"}, 1, "make has no certificate in PEM"),
        ({"GUERDON_TLS_KEY_FILE": ""}, 2, "Set tls_key_file."),
        ({"GUERDON_TRANSPORT": "native"}, 2, "no TLS with transport = native"),
    ],
)
async def test_what_can_not_be_is_refused_at_the_start(
    settings: Settings, variables: dict[str, str], status: int, told: str
) -> None:
    wanted = {"GUERDON_TLS_CERTIFICATE_FILE": "server.pem", "GUERDON_TLS_KEY_FILE": "server.key", **variables}
    paths = {name: str(CERTIFICATES / value) if value and "TLS" in name else value for name, value in wanted.items()}
    ended = await refused(environment(dataclasses.replace(settings, transport="grpcio"), **paths))
    assert ended.status == status, ended.told
    assert told in ended.told
    assert "Traceback" not in ended.told

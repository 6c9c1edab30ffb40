"""TLS of the transport grpcio: certificates are read again when their files change, so that they can be renewed."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

_log = logging.getLogger(__name__)
_Version: TypeAlias = tuple[tuple[int, int], ...]


class TlsFilesError(OSError):
    """They can't be used; says which, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate with its chain, its key, who signs those of callers (None: none needed)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC asks at every handshake. Raises TlsFilesError if they can't be used now."""
        renewal = _Renewal(self)
        return grpc.dynamic_ssl_server_credentials(
            renewal.configuration,
            renewal.look,  # type: ignore[arg-type]  # None means no change, says its documentation
            require_client_authentication=self.client_ca is not None,
        )

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises TlsFilesError."""
        for path in self._paths:
            try:
                path.read_bytes()
            except OSError as error:
                raise TlsFilesError(f"{path} can't be read: {error.strerror}") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except (ssl.SSLError, ValueError) as error:
            raise TlsFilesError(
                f"{self.certificate} and {self.key} are not a certificate and its key, unencrypted, in PEM: {error}"
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise TlsFilesError(f"{self.client_ca} has no certificate in PEM: {error}") from error
        return grpc.ssl_server_certificate_configuration(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=self.client_ca.read_bytes() if self.client_ca is not None else None,
        )

    def version(self) -> _Version:
        """Another one when a file has been replaced. Raises TlsFilesError."""
        try:
            return tuple((status.st_mtime_ns, status.st_ino) for status in (path.stat() for path in self._paths))
        except OSError as error:
            raise TlsFilesError(f"{error.filename} can't be read: {error.strerror}") from error

    @property
    def _paths(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *((self.client_ca,) if self.client_ca is not None else ()))


class _Renewal:
    """Called from gRPC's threads, one handshake at a time or several: what is lost then is one more reading."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = files.version()  # before they are read: what is replaced meanwhile is seen at the next handshake
        self.configuration = files.read()

    def look(self) -> grpc.ServerCertificateConfiguration | None:
        """New certificates, or None: go on with the ones there are. Never fails, or no caller could connect."""
        try:
            version = self._files.version()
            if version == self._seen:
                return None
            configuration = self._files.read()
        except TlsFilesError as error:  # half of them replaced, say: the next handshake looks again
            _log.warning("new TLS files can't be used, the former are", extra={"why": str(error)})
            return None
        self._seen = version
        _log.info("TLS files were read again")
        return configuration

"""All settings of a server. Where a name ends in `_max`, exceeding it is refused or bounded, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from guerdon_server.platform import failpoints
from guerdon_server.platform.config import Conflict, setting
from guerdon_server.platform.redis_url import parse as parse_redis_url

_POSTGRES_SCHEMES = ("postgresql://", "postgres://")
_CONNECTION_AGE_SECONDS = 60
_CALLS_PER_CONNECTION = {"grpcio": 256, "native": 1024}
_TLS = ("tls_certificate_file", "tls_key_file", "tls_client_ca_file")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One frozen object, built once at start. Environment: GUERDON_ and the name in capitals."""

    postgres_dsn: str = setting(
        doc="PostgreSQL >= 15, the authority: postgresql://USER:PASSWORD@HOST/DATABASE.", secret=True
    )
    redis_url: str = setting(
        doc="Redis >= 7 or Valkey >= 8, the gate: redis://:PASSWORD@HOST:PORT/0, redis+cluster://:PASSWORD@HOST:PORT,"
        "HOST:PORT, redis+sentinel://:PASSWORD@HOST:PORT,HOST:PORT/NAME; rediss... for TLS.",
        secret=True,
    )

    grpc_host: str = setting(default="127.0.0.1", doc="Address on which gRPC is served.")
    grpc_port: int = setting(default=7450, minimum=0, maximum=65535, doc="Port of gRPC; 0 takes a free one.")
    metrics_host: str = setting(default="127.0.0.1", doc="Address on which Prometheus metrics are served.")
    metrics_port: int = setting(default=7451, minimum=0, maximum=65535, doc="Port of the metrics; 0 takes a free one.")

    message_bytes_max: int = setting(
        default=4 << 20, minimum=64 << 10, maximum=64 << 20, doc="The largest request that is read."
    )
    transport: Literal["grpcio", "native"] = setting(
        default="grpcio",
        doc="What carries gRPC: grpcio, or native (HTTP/2 in Rust: less CPU, fewer features; guerdon-server[native]).",
    )
    native_trusts_callers: bool = setting(
        default=False,
        doc="Allows the native transport on an address that others can reach: it reads requests of any size before it"
        " refuses them, so who can connect can use up the memory.",
    )
    tls_certificate_file: str = setting(
        default="",
        doc="TLS: the server's certificate with its chain (PEM). Renewed files are used from the next connection on."
        " Empty: plain text.",
    )
    tls_key_file: str = setting(default="", doc="TLS: the key of tls_certificate_file (PEM, unencrypted).")
    tls_client_ca_file: str = setting(
        default="", doc="TLS: callers need a certificate that was signed by one of these (PEM). Empty: they need none."
    )
    connection_age_seconds_max: int | None = setting(
        default=None,
        minimum=2,
        maximum=86400,
        doc="Connections are moved after this, so that load spreads over workers; a rolling restart waits for it."
        " Empty: 60 with grpcio; native moves none.",
    )
    calls_per_connection_max: int | None = setting(
        default=None,
        minimum=16,
        maximum=100_000,
        doc="Calls of one connection at once. grpcio refuses more, unseen, as UNAVAILABLE: clients repeat them. native"
        " makes clients keep them back, where they wait unseen. Empty: 256, native 1024.",
    )
    backlog_seconds_max: int = setting(
        default=1,
        minimum=1,
        maximum=600,
        doc="Calls that nobody had time to look at for so long are dropped by gRPC (CANCELLED; native: OVERLOADED);"
        " nothing was done.",
    )
    requests_in_flight_max: int = setting(
        default=2000,
        minimum=1,
        maximum=100_000,
        doc="Issuing calls being answered at once; more are refused as OVERLOADED.",
    )
    reads_in_flight_max: int = setting(
        default=128,
        minimum=4,
        maximum=100_000,
        doc="While so many calls that read or issue are being answered, only four reads at once are; more are refused"
        " as OVERLOADED.",
    )
    drain_seconds_max: float = setting(
        default=20.0, minimum=0, maximum=600, doc="On SIGTERM, how long calls in flight may take to finish."
    )

    postgres_connections_max: int = setting(
        default=12,
        minimum=6,
        maximum=600,
        doc="Connections besides those that commit: a third each for callers' reads, for operators' changes, and for"
        " issuing and the server's own jobs.",
    )
    statement_cache_items_max: int = setting(
        default=256,
        minimum=0,
        maximum=10_000,
        doc="Prepared statements a connection keeps; 0 behind a pgbouncer before 1.21.",
    )

    admit_batch_items_max: int = setting(default=1000, minimum=1000, maximum=2000, doc="Items of one call to the gate.")
    admit_batches_in_flight_max: int = setting(
        default=2, minimum=1, maximum=16, doc="Calls to the gate at once, for each promotion."
    )
    admit_queue_items_max: int = setting(
        default=20_000,
        minimum=1000,
        maximum=1_000_000,
        doc="Items that may wait for the gate; more are refused as OVERLOADED.",
    )
    commit_batch_items_max: int = setting(default=1000, minimum=1000, maximum=5000, doc="Items of one commit.")
    commit_batches_in_flight_max: int = setting(
        default=2, minimum=1, maximum=16, doc="Commits at once; each has a connection of its own."
    )
    commit_queue_items_max: int = setting(
        default=20_000,
        minimum=1000,
        maximum=1_000_000,
        doc="Items that may wait for a commit; more are refused as OVERLOADED.",
    )
    commit_seconds_max: float = setting(
        default=10.0,
        minimum=0.1,
        maximum=300,
        doc="After this a commit without an answer counts as unknown and is fenced.",
    )
    read_seconds_max: float = setting(
        default=10.0,
        minimum=0.1,
        maximum=300,
        doc="After this a read or a change of the catalogue without an answer is given up, and its connection cut.",
    )
    queue_ms_max: int = setting(
        default=250,
        minimum=10,
        maximum=60_000,
        doc="While items have waited longer than this for the gate or a commit, or more than 512 calls are in flight"
        " and more than are answered in this time, new ones are refused as OVERLOADED.",
    )
    twin_wait_ms_max: int = setting(
        default=1000,
        minimum=0,
        maximum=60_000,
        doc="How long a repeated request waits for its first attempt in flight.",
    )

    lease_seconds: float = setting(
        default=5.0, minimum=1, maximum=300, doc="A worker not seen for this long is dead: its admissions are fenced."
    )
    admission_age_ms_max: int = setting(
        default=30_000,
        minimum=1000,
        maximum=3_600_000,
        doc="Open admissions older than this are looked at by the sweeper.",
    )
    reconcile_interval_ms: int = setting(
        default=1000, minimum=50, maximum=60_000, doc="How often the gate is compared with the ledger."
    )
    invariants_interval_seconds: float = setting(
        default=60.0,
        minimum=1,
        maximum=86400,
        doc="How often one server looks at the books for guerdon_invariant_violations.",
    )
    capacity_interval_seconds: float = setting(
        default=5.0,
        minimum=0.1,
        maximum=3600,
        doc="How often one server reads how far stock and budget of running promotions are used, for the metrics.",
    )
    catalogue_poll_ms: int = setting(
        default=1000, minimum=50, maximum=60_000, doc="How often changes of the catalogue are looked for."
    )
    catalogue_promotions_max: int = setting(
        default=10_000, minimum=10, maximum=1_000_000, doc="Promotions kept in memory; others are read when asked for."
    )

    log_level: Literal["debug", "info", "warning", "error"] = setting(
        default="info", doc="The least level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = setting(
        default="auto", doc="json, console, or auto: console on a terminal, else json."
    )
    test_mode: bool = setting(default=False, doc="Allows what only tests may do: moving clocks, failpoints.")
    test_clock_offset_seconds: float = setting(
        default=0.0,
        minimum=-86400,
        maximum=86400,
        doc="Test mode only: how far this server's clock is off. Admission ids show it; the database's clock stays.",
    )
    failpoints: str = setting(
        default="",
        doc="Test mode only: where this server dies, fails, hangs or is cancelled:"
        " postgres.commit_issuances.after=kill@3;redis.gate.admit.before=delay:5.",
    )

    @property
    def connection_age_seconds(self) -> int:
        """After how long grpcio moves a connection: `connection_age_seconds_max`, or what it is by default."""
        return self.connection_age_seconds_max or _CONNECTION_AGE_SECONDS

    @property
    def calls_per_connection(self) -> int:
        """`calls_per_connection_max`, or what it is by default on this transport."""
        return self.calls_per_connection_max or _CALLS_PER_CONNECTION[self.transport]

    def validate(self) -> Iterator[Conflict]:
        """What single fields can't say."""
        yield from self._validate_addresses()
        if self.grpc_port and self.grpc_port == self.metrics_port and self.grpc_host == self.metrics_host:
            yield Conflict(("grpc_port", "metrics_port"), "two different ports", "Move one of them.")
        yield from self._validate_transport()
        yield from self._validate_tls()
        yield from self._validate_test_mode()
        if self.commit_queue_items_max < self.commit_batch_items_max:
            yield Conflict(
                ("commit_queue_items_max", "commit_batch_items_max"),
                "a queue that holds at least one batch",
                "Raise commit_queue_items_max.",
            )
        if self.admit_queue_items_max < self.admit_batch_items_max:
            yield Conflict(
                ("admit_queue_items_max", "admit_batch_items_max"),
                "a queue that holds at least one batch",
                "Raise admit_queue_items_max.",
            )

    def _validate_addresses(self) -> Iterator[Conflict]:
        """Empty ones are fine: `up` and `verify` put in their engines' own."""
        if self.postgres_dsn and not self.postgres_dsn.startswith(_POSTGRES_SCHEMES):
            begins = "an address that begins with " + " or ".join(_POSTGRES_SCHEMES)
            yield Conflict(("postgres_dsn",), begins, "Set postgres_dsn.")
        try:
            if self.redis_url:
                parse_redis_url(self.redis_url)
        except ValueError as error:
            yield Conflict(("redis_url",), "the address of Redis", f"Set redis_url: {error}.")

    def _validate_transport(self) -> Iterator[Conflict]:
        """What the native transport lacks is refused where it is asked for, not left out."""
        if self.transport != "native":
            return
        if self.connection_age_seconds_max is not None:
            yield Conflict(
                ("connection_age_seconds_max", "transport"),
                "no connection_age_seconds_max with transport = native, which can't move connections",
                "Remove it (callers spread by themselves then: several connections each), or set transport = grpcio.",
            )
        if not self.native_trusts_callers and not _is_loopback(self.grpc_host):
            yield Conflict(
                ("grpc_host", "transport"),
                "a loopback address with transport = native, which reads requests of any size before it refuses them",
                "Set native_trusts_callers = true if only trusted callers can connect, or transport = grpcio.",
            )

    def _validate_tls(self) -> Iterator[Conflict]:
        given = [name for name in _TLS if getattr(self, name)]
        if not given:
            return
        if self.transport == "native":
            mend = "Set transport = grpcio, or remove them and let a proxy speak TLS."
            yield Conflict((*given, "transport"), "no TLS with transport = native", mend)
        for name in _TLS[:2]:
            if name not in given:
                yield Conflict((name, *given), f"{name} with {' and '.join(given)}", f"Set {name}.")

    def _validate_test_mode(self) -> Iterator[Conflict]:
        for name in ("failpoints", "test_clock_offset_seconds"):
            if getattr(self, name) and not self.test_mode:
                mend = f"Remove {name}: it is for tests, and breaks a server on purpose."
                yield Conflict((name, "test_mode"), f"{name} only with test_mode", mend)
        try:
            failpoints.parse(self.failpoints)
        except ValueError as error:
            yield Conflict(("failpoints",), "a list of failpoints", f"{error}.")

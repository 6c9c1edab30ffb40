"""Options that many commands share. Their values are in `ctx.meta`, so that they may stand before or after a verb."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_JSON: Final = "guerdon.json"
_TARGET: Final = "guerdon.target"
_CA: Final = "guerdon.ca"
_CERTIFICATE: Final = "guerdon.certificate"
_KEY: Final = "guerdon.key"
_TIMEOUT: Final = "guerdon.timeout_seconds"
_REQUEST_ID: Final = "guerdon.request_id"

NOT_SETTINGS: Final = frozenset(
    {
        *("GUERDON_PYTHON", "GUERDON_TARGET", "GUERDON_DATA", "GUERDON_CONFIG", "GUERDON_PRINCIPAL"),
        *("GUERDON_WORKERS", "GUERDON_CA", "GUERDON_CERTIFICATE", "GUERDON_KEY"),
    }
)
"""Environment variables of the command line that are no settings of a server."""


def _remember(key: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
        if value not in (None, False):
            ctx.meta[key] = value
        return value

    return callback


json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_remember(_JSON), help="Print JSON and nothing else."
)
target_option = click.option(
    "--target",
    metavar="HOST:PORT",
    envvar="GUERDON_TARGET",
    expose_value=False,
    callback=_remember(_TARGET),
    help="The server; otherwise the one that a running `guerdon up` serves, else 127.0.0.1:7450.",
    show_envvar=True,
)


def _pem_option(name: str, key: str, text: str) -> Callable[[F], F]:
    return click.option(
        f"--{name}",
        metavar="FILE",
        envvar=f"GUERDON_{name.upper()}",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        expose_value=False,
        callback=_remember(key),
        help=text,
        show_envvar=True,
    )


ca_option = _pem_option("ca", _CA, "Speak TLS, and trust a server whose certificate one of these has signed (PEM).")
certificate_option = _pem_option("certificate", _CERTIFICATE, "Show this one to a server that asks for it (PEM).")
key_option = _pem_option("key", _KEY, "Of --certificate (PEM, unencrypted).")
timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.001, 3600),
    expose_value=False,
    callback=_remember(_TIMEOUT),
    help="For one call in all, its retries included. [default: 10]",
)


def wire(command: F) -> F:
    """The options of every command that calls a server."""
    for option in (json_option, timeout_option, key_option, certificate_option, ca_option, target_option):
        command = option(command)
    return command


def _request_id(ctx: click.Context, _: click.Parameter, value: str | None) -> str:
    chosen = value or f"cli-{uuid.uuid4().hex}"
    ctx.meta[_REQUEST_ID] = chosen
    return chosen


request_id_option = click.option(
    "--request-id",
    metavar="ID",
    callback=_request_id,
    help="Names this change: repeated with the same id it is applied once. Without it a random one is made, and told"
    " if no answer comes.",
)
etag_option = click.option("--etag", default="", metavar="ETAG", help="Only if this is still the etag.")
limit_option = click.option(
    "--limit", type=click.IntRange(0), default=100, show_default=True, metavar="N", help="How many at most; 0 for all."
)


def default_data_dir() -> Path:
    """$GUERDON_DATA, else guerdon/ in $XDG_DATA_HOME, else ~/.local/share/guerdon."""
    given = os.environ.get("GUERDON_DATA")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    # The specification of these variables says that a relative one is to be ignored.
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "share") / "guerdon"


def is_json(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(_JSON))


def given_target(ctx: click.Context) -> str | None:
    return ctx.meta.get(_TARGET)


def given_pem_files(ctx: click.Context) -> tuple[Path, Path | None, Path | None] | None:
    """Who is trusted, own certificate, its key; None: plain text. Raises UsageError if they don't go together."""
    ca, certificate, key = (ctx.meta.get(name) for name in (_CA, _CERTIFICATE, _KEY))
    if (certificate is None) != (key is None) or (key is not None and ca is None):
        raise click.UsageError("--certificate needs --key and --ca, and --key needs --certificate.")
    return None if ca is None else (ca, certificate, key)


def timeout_seconds(ctx: click.Context) -> float:
    return float(ctx.meta.get(_TIMEOUT, 10.0))


def used_request_id(ctx: click.Context) -> str:
    """The request id of the change under way; empty for a command that changes nothing."""
    return str(ctx.meta.get(_REQUEST_ID, ""))


def remember_request_id(ctx: click.Context, request_id: str) -> None:
    ctx.meta[_REQUEST_ID] = request_id


def id_text(text: str) -> str:
    """The text with whatever an id may not hold replaced, at most 128 characters."""
    return re.sub(r"[^A-Za-z0-9._:-]", "_", text)[:128]

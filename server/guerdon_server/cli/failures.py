"""How a failure is told: what was wrong, what to do next, and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import click

from guerdon_server.cli.connection import used_target
from guerdon_server.cli.options import is_json, used_request_id
from guerdon_server.cli.output import console, draw, print_json, say, table

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNKNOWN: Final = 3

_NEXT: Final[Mapping[str, str]] = {
    "PROMOTION_NOT_FOUND": "See which there are: guerdon promotion list",
    "ENTRANCE_NOT_FOUND": "Create it first: guerdon entrance create ID. See which there are: guerdon entrance list",
    "PRIZE_NOT_FOUND": "See which there are: guerdon prize list",
    "PROMOTION_EXISTS": "Look at it (guerdon promotion show ID), or choose another id.",
    "ENTRANCE_EXISTS": "Look at it (guerdon entrance show ID), or choose another id.",
    "PRIZE_EXISTS": "Look at it (guerdon prize show ID), or choose another id.",
    "BUDGET_MISSING": "Give the promotion a budget in that asset: guerdon promotion adjust-budget ID ASSET +AMOUNT",
    "BUDGET_INSUFFICIENT": "See what is left: guerdon promotion show ID",
    "STOCK_INSUFFICIENT": "See what is left: guerdon prize stock ID",
    "CAPACITY_UNLIMITED": "It is unlimited: there is nothing to top up or to recall.",
    "ETAG_MISMATCH": "Somebody changed it meanwhile: look at it (show) and repeat with its etag, or without one.",
    "REQUEST_ID_REUSED": "This request id stands for something else already; another change needs another one.",
    "TRANSITION_NOT_ALLOWED": "The way is draft, scheduled, active or paused, ended, archived.",
    "ENTRANCE_NOT_BOUND": "Bind it: guerdon promotion update ID --entrance E (all that shall be bound, each time).",
    "PRIZE_NOT_IN_PROMOTION": "See the promotion's prizes: guerdon prize list --promotion ID",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What is told. `rows` is a table (the first row names the columns); `document` is the JSON beside the message."""

    exit_code: int
    message: str
    next: str = ""
    details: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


class Refusal(Exception):
    """A command's own failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refuse(message: str, *, next: str = "", exit_code: int = REFUSED) -> Refusal:
    return Refusal(Failure(exit_code, message, next))


def failure_of(error: Exception, ctx: click.Context) -> Failure | None:
    """How to tell it; None for what is a defect of ours and deserves its traceback."""
    from guerdon import GuerdonError  # noqa: PLC0415  the next ones neither: each costs what only its commands need

    if isinstance(error, Refusal):
        return error.failure
    if isinstance(error, GuerdonError):
        return _call_failure(error, ctx)
    return _settings_failure(error) or _engine_failure(error) or _database_failure(error)


def _call_failure(error: Any, ctx: click.Context) -> Failure:
    """`error`: a GuerdonError."""
    code, request_id = error.code.name, used_request_id(ctx)
    document = {
        "code": code,
        "reason": error.reason,
        "field_violations": [{"field": v.field, "description": v.description} for v in error.field_violations],
        "metadata": dict(error.metadata),
        "outcome_unknown": error.outcome_unknown,
        "request_id": request_id,
    }
    details = tuple(f"{v.field}: {v.description}" for v in error.field_violations)
    name = f"{code} / {error.reason}" if error.reason else code
    open_outcome = error.outcome_unknown or code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
    exit_code = USAGE if code == "INVALID_ARGUMENT" else UNKNOWN if open_outcome else REFUSED
    if code == "RESOURCE_EXHAUSTED":
        exit_code = UNKNOWN
    message = f"{error.message or 'the call failed'} ({name})"
    return Failure(exit_code, message, _advice(error, ctx, request_id), details, document=document)


def _advice(error: Any, ctx: click.Context, request_id: str) -> str:
    code, target = error.code.name, used_target(ctx)
    advice = _NEXT.get(error.reason, "")
    if code == "UNAVAILABLE" and not error.reason and target is not None:
        advice = (
            f"No server answered at {target.address} ({target.origin}). Start one with `guerdon up`, or name it with"
            " --target or GUERDON_TARGET."
        )
    elif code == "RESOURCE_EXHAUSTED":
        advice = "The server has too much to do. Repeat in a moment."
    if request_id and exit_is_open(error):
        said = "What was asked may have been done or not" if error.outcome_unknown else "Nothing is decided"
        advice = f"{advice} {said}: repeat the same command with --request-id {request_id}; it is done once.".strip()
    return advice


def exit_is_open(error: Any) -> bool:
    """Whether repeating the same call with the same request id is the thing to do."""
    return bool(error.retryable) or error.code.name == "DEADLINE_EXCEEDED"


def _settings_failure(error: Exception) -> Failure | None:
    from guerdon_server.platform.config import SettingsError  # noqa: PLC0415

    if not isinstance(error, SettingsError):
        return None
    count = len(error.problems)
    rows = tuple((p.field, p.source, p.given, p.allowed, p.mend) for p in error.problems)
    document = {"problems": [dict(zip(_PROBLEM, row, strict=True)) for row in rows]}
    message = f"The settings can't be used: {count} problem{'s' if count != 1 else ''}."
    return Failure(
        USAGE,
        message,
        "See all settings with `guerdon config template`, the effective ones with `guerdon config show`.",
        rows=(("setting", "from", "given", "allowed", "what to do"), *rows),
        document=document,
    )


_PROBLEM: Final = ("setting", "source", "given", "allowed", "mend")


def _engine_failure(error: Exception) -> Failure | None:
    from guerdon_server.platform.engines import EngineError  # noqa: PLC0415

    if isinstance(error, EngineError):
        return Failure(REFUSED, str(error))
    # Where nobody has imported it, nobody can have raised it: it is the dearest import of all.
    bootstrap = sys.modules.get("guerdon_server.bootstrap")
    return Failure(REFUSED, str(error)) if bootstrap and isinstance(error, bootstrap.StartRefused) else None


def _database_failure(error: Exception) -> Failure | None:
    import asyncpg  # noqa: PLC0415
    import redis  # noqa: PLC0415

    from guerdon_server.platform.masking import mask_passwords  # noqa: PLC0415
    from guerdon_server.platform.postgres import MigrationError  # noqa: PLC0415

    if isinstance(error, MigrationError):
        return Failure(REFUSED, str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(REFUSED, f"{error.filename}: {error.strerror}")
    if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | redis.RedisError | OSError):
        text = mask_passwords(str(error)) or type(error).__name__
        return Failure(UNKNOWN, f"{type(error).__name__}: {text}", "Look whether PostgreSQL and Redis can be reached.")
    return None


def report(failure: Failure, ctx: click.Context) -> None:
    """Tells it on stderr; in JSON mode as a document on stdout."""
    if is_json(ctx):
        print_json(
            {"error": {"message": failure.message, "next": failure.next, **failure.document}},
        )
        return
    say(f"Error: {failure.message}", "bold red")
    for detail in failure.details:
        say(f"  - {detail}")
    if failure.rows:
        draw(console(sys.stderr), table(failure.rows[0], failure.rows[1:]))
    if failure.next:
        say(failure.next)

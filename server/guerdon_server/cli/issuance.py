"""`guerdon issuance`: what was given."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.table import Table

from guerdon import Absent, Issuance, PendingOutcome
from guerdon_server.cli.amounts import format_units
from guerdon_server.cli.connection import connected
from guerdon_server.cli.failures import REFUSED, UNKNOWN
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.instants import format_instant, format_second
from guerdon_server.cli.options import limit_option, wire
from guerdon_server.cli.output import draw, emit, emit_list, fields_table
from guerdon_server.cli.pages import pages
from guerdon_server.cli.params import Id, fail_usage, written
from guerdon_server.cli.resource import ResourceGroup


@click.group(
    cls=ResourceGroup,
    epilog=examples(
        "guerdon issuance list --user ada",
        "guerdon issuance show --promotion spring --request-id first-1",
        "guerdon issuance show --promotion spring --request-id first-1 --cancel-if-absent",
    ),
)
def issuance() -> None:
    """What was given, and what became of a request.

    An issuance is one granted reward: durable, final, the answer to its request id for ever.
    """


@issuance.command(
    epilog=examples(
        "guerdon issuance show --promotion spring --request-id order-4711-cashback",
        "guerdon issuance show --promotion spring --request-id order-4711-cashback --cancel-if-absent",
    )
)
@click.argument("issuance_id", metavar="[ID]", required=False)
@click.option("--promotion", "promotion_id", type=Id(), help="With --request-id, instead of the issuance's own id.")
@click.option("--request-id", type=Id())
@click.option("--cancel-if-absent", is_flag=True, help="If nothing was given, rule it out for ever.")
@wire
def show(issuance_id: str | None, promotion_id: str | None, request_id: str | None, cancel_if_absent: bool) -> None:
    """Show one issuance, or what became of a request.

    A request is granted, still pending (exit status 3), or absent (exit status 1). Absent means not yet: a repeated
    request may still be granted. With --cancel-if-absent an absent one never will be.
    """
    by_key = promotion_id is not None and request_id is not None
    if (issuance_id is None) != by_key or (promotion_id is None) != (request_id is None):
        fail_usage("Give the issuance's ID, or --promotion and --request-id.")
    if cancel_if_absent and not by_key:
        fail_usage("--cancel-if-absent needs --promotion and --request-id.")
    with connected() as client:
        state = client.get_issuance(
            issuance_id=issuance_id,
            promotion_id=promotion_id,
            request_id=request_id,
            cancel_if_absent=cancel_if_absent,
        )
    if isinstance(state, Issuance):
        emit({"state": "granted", "issuance": state}, lambda out: draw(out, issuance_table(state)))
        return
    if isinstance(state, PendingOutcome):
        text, code = "pending: an attempt is still in flight; ask again in a moment", UNKNOWN
    else:
        text, code = _absent_text(state), 0 if state.cancelled and cancel_if_absent else REFUSED
    word = "pending" if isinstance(state, PendingOutcome) else "absent"
    emit({"state": word, **asdict(state)}, lambda out: out.print(text))
    click.get_current_context().exit(code)


def _absent_text(state: Absent) -> str:
    if state.cancelled:
        return "absent: nothing was granted, and nothing ever will be"
    return "absent: nothing was granted so far"


@issuance.command(
    "list",
    epilog=examples("guerdon issuance list --user ada", "guerdon issuance list --promotion spring --limit 0 --json"),
)
@click.option("--user", "user_id", type=Id(), metavar="ID")
@click.option("--promotion", "promotion_id", type=Id(), metavar="ID")
@click.option("--reference", type=Id(), metavar="REFERENCE", help="The caller's order, task or draw.")
@limit_option
@wire
def list_(user_id: str | None, promotion_id: str | None, reference: str | None, limit: int) -> None:
    """List issuances, the newest first, of a user, of a promotion, or with a reference."""
    if sum(given is not None for given in (user_id, promotion_id, reference)) != 1:
        fail_usage("Give one of --user, --promotion, --reference.")
    with connected() as client:
        emit_list(
            pages(
                lambda size, token: client.list_issuances(
                    user_id=user_id, promotion_id=promotion_id, reference=reference, page_size=size, page_token=token
                ),
                limit=limit,
            ),
            {
                "issued": lambda each: format_second(each.issued_at),
                "promotion": lambda each: each.promotion_id,
                "prize": lambda each: each.prize_id,
                "user": lambda each: each.user_id,
                "value": money_text,
                "request": lambda each: each.request_id,
                "reference": lambda each: each.reference or "-",
                "expires": lambda each: format_second(each.expires_at),
                "issuance": lambda each: each.issuance_id,
            },
            empty="Nothing was given here.",
        )


def money_text(found: Issuance) -> str:
    return "-" if found.value is None else f"{format_units(found.value.units, found.value.asset)} {found.value.asset}"


def issuance_table(found: Issuance) -> Table:
    """All of one issuance, a line for each field."""
    fields = {
        "issuance": found.issuance_id,
        "prize": f"{found.prize_id} ({written(found.kind)})",
        "value": money_text(found),
        "user": found.user_id,
        "promotion": found.promotion_id,
        "entrance": found.entrance_id,
        "request": found.request_id,
        "reference": found.reference,
        "asked by": found.principal,
        "issued": format_instant(found.issued_at),
        "expires": format_instant(found.expires_at) if found.expires_at else "never",
    }
    return fields_table([[name, value] for name, value in fields.items() if value])

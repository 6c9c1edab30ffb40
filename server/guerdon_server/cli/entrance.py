"""`guerdon entrance`: the places where rewards are asked for."""

from __future__ import annotations

import click

from guerdon import KEEP, Entrance, EntrancePrize, EntrancePromotion
from guerdon_server.cli.connection import connected
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.instants import format_instant, format_second
from guerdon_server.cli.options import etag_option, is_json, limit_option, request_id_option, wire
from guerdon_server.cli.output import emit_fields, emit_list
from guerdon_server.cli.pages import pages
from guerdon_server.cli.params import Id, written
from guerdon_server.cli.promotion import state_of
from guerdon_server.cli.resource import ResourceGroup
from guerdon_server.cli.terms import value_text


@click.group(
    cls=ResourceGroup,
    epilog=examples(
        'guerdon entrance create checkout --name "After paying"', "guerdon entrance live checkout --user ada"
    ),
)
def entrance() -> None:
    """The places where rewards are asked for.

    An entrance is a place in an app: a page, a button, a job. A promotion says at which entrances its prizes may be
    asked for; a request names the one it comes from, and is refused anywhere else.
    """


@entrance.command(epilog=examples('guerdon entrance create checkout --name "After paying"'))
@click.argument("entrance_id", metavar="ID", type=Id())
@click.option("--name", default="", help="Shown to people.")
@request_id_option
@wire
def create(entrance_id: str, name: str, request_id: str) -> None:
    """Create an entrance."""
    with connected() as client:
        _show(client.create_entrance(entrance_id=entrance_id, display_name=name, request_id=request_id))


@entrance.command()
@click.argument("entrance_id", metavar="ID", type=Id())
@wire
def show(entrance_id: str) -> None:
    """Show one entrance."""
    with connected() as client:
        _show(client.get_entrance(entrance_id=entrance_id))


@entrance.command("list")
@limit_option
@wire
def list_(limit: int) -> None:
    """List the entrances by id."""
    with connected() as client:
        emit_list(
            pages(lambda size, token: client.list_entrances(page_size=size, page_token=token), limit=limit),
            {
                "entrance": lambda each: each.entrance_id,
                "name": lambda each: each.display_name,
                "created": lambda each: format_second(each.created_at),
            },
            empty="There are no entrances yet. Create one: guerdon entrance create checkout",
        )


@entrance.command(epilog=examples('guerdon entrance update checkout --name "Thank-you page"'))
@click.argument("entrance_id", metavar="ID", type=Id())
@click.option("--name", help="Shown to people.")
@etag_option
@request_id_option
@wire
def update(entrance_id: str, name: str | None, etag: str, request_id: str) -> None:
    """Change what is given, keep the rest."""
    if name is None:
        raise click.UsageError("Nothing to change: give --name.")
    with connected() as client:
        _show(
            client.update_entrance(
                entrance_id=entrance_id, display_name=KEEP if name is None else name, etag=etag, request_id=request_id
            )
        )


@entrance.command(epilog=examples("guerdon entrance live checkout", "guerdon entrance live checkout --user ada"))
@click.argument("entrance_id", metavar="ID", type=Id())
@click.option("--user", "user_id", type=Id(), help="As this user would see it.")
@limit_option
@wire
def live(entrance_id: str, user_id: str | None, limit: int) -> None:
    """What is live here now, and what this user could get.

    An answer of its moment, not a promise: only issuing decides. Without a user, limits per user are not looked at.
    """
    with connected() as client:
        found = pages(
            lambda size, token: client.list_entrance_promotions(
                entrance_id=entrance_id, user_id=user_id or "", page_size=size, page_token=token
            ),
            limit=limit,
            page_size_max=100,
        )
        _emit_live(list(found), with_user=user_id is not None)


def _emit_live(found: list[EntrancePromotion], *, with_user: bool) -> None:
    # Machines get the promotions as they are on the wire; people a line for each prize.
    if is_json(click.get_current_context()):
        emit_list(found, {}, empty="")
        return
    lines = [(promotion, prize) for promotion in found for prize in promotion.prizes]
    columns = {
        "promotion": lambda line: line[0].promotion.promotion_id,
        "state": lambda line: state_of(line[0].promotion),
        "prize": lambda line: line[1].prize.prize_id,
        "kind": lambda line: written(line[1].prize.kind),
        "value": lambda line: value_text(line[1].prize.value),
        "available": lambda line: _availability(line[1]),
    }
    if with_user:
        columns["had"] = lambda line: line[1].user_granted_count
    emit_list(lines, columns, empty="Nothing is live here now. See why: guerdon promotion list")


def _availability(prize: EntrancePrize) -> str:
    if prize.available:
        return "yes"
    return f"no: {written(prize.unavailable_reason)}" if prize.unavailable_reason else "no"


def _show(found: Entrance) -> None:
    emit_fields(
        found,
        {
            "entrance": found.entrance_id,
            "name": found.display_name,
            "etag": found.etag,
            "created": format_instant(found.created_at),
            "updated": format_instant(found.updated_at),
        },
    )

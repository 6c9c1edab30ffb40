"""`guerdon prize`: what is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime

import click

from guerdon import (
    KEEP,
    UNLIMITED,
    Capacity,
    Client,
    FixedValue,
    Keep,
    Prize,
    PrizeKind,
    PrizeStock,
    PrizeValue,
    RateValue,
    Rounding,
    Unlimited,
    Validity,
)
from guerdon_server.cli.connection import connected
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.instants import format_instant
from guerdon_server.cli.options import etag_option, limit_option, request_id_option, wire
from guerdon_server.cli.output import emit_fields, emit_list
from guerdon_server.cli.pages import pages
from guerdon_server.cli.params import NONE, Id, Instant, OneOf, RateOf, StockOf, fail_usage, units_or_fail, written
from guerdon_server.cli.promotion import signed_units
from guerdon_server.cli.resource import SIGNED_ARGUMENTS, ResourceGroup
from guerdon_server.cli.terms import capacity_text, validity_from, validity_text, value_from, value_text


@click.group(
    cls=ResourceGroup,
    aliases={"adjust": "adjust-stock"},
    epilog=examples(
        "guerdon prize create welcome --promotion spring --kind coupon --stock 2000 --limit-per-user 1",
        "guerdon prize stock welcome",
        "guerdon prize adjust-stock welcome +500",
    ),
)
def prize() -> None:
    """What is given: coupons, coins, cashback, goods.

    A prize belongs to one promotion for ever. Its stock is how many there are; its value, where it has one, is the
    same for every grant (--value) or a share of an attribute of the request (--rate), and comes out of the
    promotion's budget in that asset. What was granted keeps the terms under which it was granted.
    """


_value_options = (
    click.option("--value", "fixed", metavar="AMOUNT", help="The same for every grant: 5.00"),
    click.option("--rate", type=RateOf(), help="A share of an integer attribute of the request: order_cents:5%"),
    click.option("--floor", metavar="AMOUNT", help="With --rate: at least so much, where it is not zero."),
    click.option("--cap", metavar="AMOUNT", help="With --rate: at most so much."),
    click.option("--rounding", type=OneOf(Rounding), help="With --rate. [default: half-up]"),
)


def _with_value_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_value_options):
        command = option(command)
    return command


@prize.command(
    epilog=examples(
        "guerdon prize create welcome --promotion spring --kind coupon --stock 2000 --limit-per-user 1 \\",
        "      --valid-days 30",
        "guerdon prize create cashback --promotion spring --kind cashback --asset USD/2 \\",
        "      --rate order_cents:5% --cap 5.00 --rounding half-up",
        "guerdon prize create daily --promotion spring --kind coin --asset COIN --value 10 --stock unlimited",
    )
)
@click.argument("prize_id", metavar="ID", type=Id())
@click.option("--promotion", "promotion_id", required=True, type=Id(), help="Whose prize it is, for ever.")
@click.option("--kind", required=True, type=OneOf(PrizeKind))
@click.option("--name", default="", help="Shown to people.")
@click.option(
    "--stock",
    type=StockOf(),
    help="How many there are, or unlimited. Required for coupons and goods; coins and cashback are otherwise unlimited,"
    " and bounded by their budget.",
)
@click.option("--limit-per-user", type=click.IntRange(0), default=0, help="How many one user may have; 0: no limit.")
@click.option("--asset", help="What the value is counted in: COIN, USD/2.")
@_with_value_options
@click.option("--valid-days", type=click.IntRange(1, 36500), help="A grant expires after so many times 24 hours.")
@click.option("--valid-until", type=Instant(), help="All grants expire at this time.")
@request_id_option
@wire
def create(
    *,
    prize_id: str,
    promotion_id: str,
    kind: PrizeKind,
    name: str,
    stock: Capacity | None,
    limit_per_user: int,
    asset: str | None,
    fixed: str | None,
    rate: tuple[str, int] | None,
    floor: str | None,
    cap: str | None,
    rounding: Rounding | None,
    valid_days: int | None,
    valid_until: datetime | None,
    request_id: str,
) -> None:
    """Create a prize of a promotion, with its stock.

    Coins and cashback need a value, coupons and goods may have one (it is set aside from the budget while they are
    outstanding). The promotion needs a budget in the asset of the value.
    """
    if stock is None and kind in (PrizeKind.COUPON, PrizeKind.GOODS):
        fail_usage(f"How many are there? Give --stock N, or --stock unlimited, for a prize of kind {written(kind)}.")
    value = value_from(asset=asset, fixed=fixed, rate=rate, floor=floor, cap=cap, rounding=rounding)
    if value is None and kind in (PrizeKind.COIN, PrizeKind.CASHBACK):
        fail_usage(f"A prize of kind {written(kind)} needs --asset, and --value or --rate.")
    with connected() as client:
        _show(
            client.create_prize(
                prize_id=prize_id,
                promotion_id=promotion_id,
                kind=kind,
                display_name=name,
                stock=UNLIMITED if stock is None else stock,
                limit_per_user=limit_per_user,
                value=value,
                validity=validity_from(valid_days, valid_until),
                request_id=request_id,
            )
        )


@prize.command()
@click.argument("prize_id", metavar="ID", type=Id())
@wire
def show(prize_id: str) -> None:
    """Show one prize: its terms. What is left of it: guerdon prize stock ID."""
    with connected() as client:
        _show(client.get_prize(prize_id=prize_id))


@prize.command("list", epilog=examples("guerdon prize list --promotion spring"))
@click.option("--promotion", "promotion_id", type=Id(), help="Only of this promotion.")
@limit_option
@wire
def list_(promotion_id: str | None, limit: int) -> None:
    """List the prizes by id."""
    with connected() as client:
        emit_list(
            pages(
                lambda size, token: client.list_prizes(
                    promotion_id=promotion_id or "", page_size=size, page_token=token
                ),
                limit=limit,
            ),
            {
                "prize": lambda each: each.prize_id,
                "promotion": lambda each: each.promotion_id,
                "kind": lambda each: written(each.kind),
                "value": lambda each: value_text(each.value),
                "per user": lambda each: each.limit_per_user or "-",
                "valid": lambda each: validity_text(each.validity),
                "name": lambda each: each.display_name,
            },
            empty="There are no prizes yet. See `guerdon prize create --help`.",
        )


@prize.command()
@click.argument("prize_id", metavar="ID", type=Id())
@wire
def stock(prize_id: str) -> None:
    """How many there were, were given, are left, as the ledger has it."""
    with connected() as client:
        found = client.get_prize_stock(prize_id=prize_id)
    emit_fields(found, _stock_fields(found))


@prize.command(
    "adjust-stock",
    context_settings=SIGNED_ARGUMENTS,
    epilog=examples(
        "guerdon prize adjust-stock welcome +500", "guerdon prize adjust-stock welcome -100 --request-id recall-3"
    ),
)
@click.argument("prize_id", metavar="ID", type=Id())
@click.argument("units", metavar="+UNITS|-UNITS")
@request_id_option
@wire
def adjust_stock(prize_id: str, units: str, request_id: str) -> None:
    """Top the stock up, or recall what is left.

    A change with its sign, not a new total; with --request-id it is applied once however often it is repeated. Never
    less remains than was given.
    """
    delta = signed_units(units, "UNIT")
    with connected() as client:
        done = client.adjust_prize_stock(prize_id=prize_id, delta_units=delta, request_id=request_id)
    applied = "before, by this request id: the stock is as it is now" if done.replayed else "now"
    emit_fields(done, {**_stock_fields(done.stock), "applied": applied})


@prize.command(
    epilog=examples(
        "guerdon prize update cashback --cap 7.50",
        "guerdon prize update welcome --limit-per-user 2 --valid-until none",
    )
)
@click.argument("prize_id", metavar="ID", type=Id())
@click.option("--name", help="Shown to people.")
@click.option("--limit-per-user", type=click.IntRange(0), help="0: no limit.")
@_with_value_options
@click.option("--valid-days", type=click.IntRange(1, 36500), help="A grant expires after so many times 24 hours.")
@click.option("--valid-until", type=Instant(clears=True), help="All grants expire at this time; none: they never do.")
@etag_option
@request_id_option
@wire
def update(
    *,
    prize_id: str,
    name: str | None,
    limit_per_user: int | None,
    fixed: str | None,
    rate: tuple[str, int] | None,
    floor: str | None,
    cap: str | None,
    rounding: Rounding | None,
    valid_days: int | None,
    valid_until: datetime | str | None,
    etag: str,
    request_id: str,
) -> None:
    """Change what is given, keep the rest; what was granted keeps its terms.

    --floor none and --cap none take them away. The asset of the value can't be changed; the stock is changed with
    adjust-stock.
    """
    changes_value = any(option is not None for option in (fixed, rate, floor, cap, rounding))
    if not changes_value and all(given is None for given in (name, limit_per_user, valid_days, valid_until)):
        fail_usage("Nothing to change: see --help for what can be given.")
    with connected() as client:
        value: PrizeValue | Keep = KEEP
        if changes_value:
            value, current = _changed_value(
                client, prize_id, fixed=fixed, rate=rate, floor=floor, cap=cap, rounding=rounding
            )
            etag = etag or current  # the new rule was made from what was read: it must not have changed since
        _show(
            client.update_prize(
                prize_id=prize_id,
                display_name=KEEP if name is None else name,
                limit_per_user=KEEP if limit_per_user is None else limit_per_user,
                value=value,
                validity=_changed_validity(valid_days, valid_until),
                etag=etag,
                request_id=request_id,
            )
        )


def _changed_value(
    client: Client,
    prize_id: str,
    *,
    fixed: str | None,
    rate: tuple[str, int] | None,
    floor: str | None,
    cap: str | None,
    rounding: Rounding | None,
) -> tuple[PrizeValue, str]:
    """The new value, and the etag of the prize that it was made from."""
    found = client.get_prize(prize_id=prize_id)
    before = found.value
    if before is None:
        fail_usage(f"Prize {prize_id} has no value, and can't be given one.")
    if fixed is not None:
        value = value_from(asset=before.asset, fixed=fixed, rate=rate, floor=floor, cap=cap, rounding=rounding)
        assert value is not None
        return value, found.etag
    if rate is None and isinstance(before, FixedValue):
        fail_usage("Its value is fixed: --floor, --cap and --rounding need --rate.")
    rule = before if isinstance(before, RateValue) else RateValue(before.asset, *(rate or ("", 0)))
    return dataclasses.replace(
        rule,
        attribute=rate[0] if rate else rule.attribute,
        basis_points=rate[1] if rate else rule.basis_points,
        floor_units=_bound(floor, rule.floor_units, rule.asset, "--floor"),
        cap_units=_bound(cap, rule.cap_units, rule.asset, "--cap"),
        rounding=rounding or rule.rounding,
    ), found.etag


def _bound(given: str | None, before: int | None, asset: str, option: str) -> int | None:
    if given is None:
        return before
    return None if given == NONE else units_or_fail(given, asset, option)


def _changed_validity(days: int | None, until: datetime | str | None) -> Validity | Keep | None:
    if isinstance(until, str):
        return validity_from(days, None)
    return KEEP if days is None and until is None else validity_from(days, until)


def _show(found: Prize) -> None:
    emit_fields(
        found,
        {
            "prize": found.prize_id,
            "promotion": found.promotion_id,
            "name": found.display_name,
            "kind": written(found.kind),
            "value": value_text(found.value),
            "stock": f"{capacity_text(found.stock)} at creation; now: guerdon prize stock {found.prize_id}",
            "limit per user": found.limit_per_user or "none",
            "valid": validity_text(found.validity),
            "etag": found.etag,
            "created": format_instant(found.created_at),
            "updated": format_instant(found.updated_at),
        },
    )


def _stock_fields(found: PrizeStock) -> dict[str, object]:
    unlimited = isinstance(found.capacity, Unlimited)
    return {
        "prize": found.prize_id,
        "capacity": capacity_text(found.capacity),
        "issued": found.issued_units,
        "left": "unlimited" if unlimited else found.remaining_units,
    }

"""`guerdon promotion`: when, where and within which budget prizes are given away."""

from __future__ import annotations

from datetime import datetime

import click

from guerdon import KEEP, Budget, Capacity, Promotion, PromotionState, Unlimited
from guerdon_server.cli.amounts import format_units
from guerdon_server.cli.connection import connected
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.instants import format_instant, format_second
from guerdon_server.cli.options import etag_option, limit_option, request_id_option, wire
from guerdon_server.cli.output import emit_fields, emit_list, say
from guerdon_server.cli.pages import pages
from guerdon_server.cli.params import NONE, BudgetOf, Id, Instant, OneOf, fail_usage, units_or_fail, written
from guerdon_server.cli.resource import SIGNED_ARGUMENTS, ResourceGroup
from guerdon_server.cli.terms import capacity_text


@click.group(
    cls=ResourceGroup,
    aliases={"adjust": "adjust-budget"},
    epilog=examples(
        "guerdon promotion create spring --entrance checkout --budget USD/2=10000.00 --budget COIN=unlimited",
        "guerdon promotion transition spring scheduled",
        "guerdon promotion adjust-budget spring USD/2 +100.00",
        "guerdon promotion show spring",
    ),
)
def promotion() -> None:
    """When, where and within which budget prizes are given away.

    A promotion begins as a draft: add its prizes (guerdon prize create), then schedule it. From --starts-at on, or at
    once, it is active by itself, until --ends-at; an operator may pause, resume and end it.

    A budget is what it may spend in one asset. An asset's name says its decimals: COIN has none, USD/2 has two, and
    amounts are written so: USD/2=10000.00.
    """


@promotion.command(
    epilog=examples(
        'guerdon promotion create spring --name "Spring" --entrance checkout --budget USD/2=10000.00 \\',
        "      --budget COIN=unlimited --starts-at 2026-05-01T00:00:00Z --ends-at 2026-06-01T00:00:00Z",
        "guerdon promotion create weekend --entrance app --budget COIN=50000 --starts-at +1h --ends-at +3d",
    )
)
@click.argument("promotion_id", metavar="ID", type=Id())
@click.option("--name", default="", help="Shown to people.")
@click.option("--entrance", "entrances", multiple=True, type=Id(), help="Where it may be asked for; repeat for more.")
@click.option(
    "--budget", "budgets", multiple=True, type=BudgetOf(), help="USD/2=10000.00 or COIN=unlimited; repeat for more."
)
@click.option("--starts-at", type=Instant(), help="2026-05-01T00:00:00Z, or +7d from now; otherwise once scheduled.")
@click.option("--ends-at", type=Instant(), help="Nothing is given from then on; otherwise open-ended.")
@request_id_option
@wire
def create(
    *,
    promotion_id: str,
    name: str,
    entrances: tuple[str, ...],
    budgets: tuple[tuple[str, Capacity], ...],
    starts_at: datetime | None,
    ends_at: datetime | None,
    request_id: str,
) -> None:
    """Create a promotion, as a draft, with its budgets.

    Its entrances must exist (guerdon entrance create). Prizes that give value need a budget in their asset.
    """
    if len({asset for asset, _ in budgets}) < len(budgets):
        fail_usage("Two budgets in the same asset.", "--budget")
    with connected() as client:
        _show(
            client.create_promotion(
                promotion_id=promotion_id,
                display_name=name,
                entrance_ids=entrances,
                budgets=dict(budgets),
                starts_at=starts_at,
                ends_at=ends_at,
                request_id=request_id,
            )
        )
    say(f"Next: its prizes (guerdon prize create --help), then: guerdon promotion transition {promotion_id} scheduled")


@promotion.command()
@click.argument("promotion_id", metavar="ID", type=Id())
@wire
def show(promotion_id: str) -> None:
    """Show one promotion: its state now, its window, what is left of its budgets."""
    with connected() as client:
        _show(client.get_promotion(promotion_id=promotion_id))


@promotion.command("list", epilog=examples("guerdon promotion list", "guerdon promotion list --state archived"))
@click.option(
    "--state", "states", multiple=True, type=OneOf(PromotionState), help="Only of this state; repeat for more."
)
@limit_option
@wire
def list_(states: tuple[PromotionState, ...], limit: int) -> None:
    """List the promotions by id; without --state all but archived ones."""
    with connected() as client:
        emit_list(
            pages(
                lambda size, token: client.list_promotions(states=states, page_size=size, page_token=token),
                limit=limit,
            ),
            {
                "promotion": lambda each: each.promotion_id,
                "state": state_of,
                "name": lambda each: each.display_name,
                "starts": lambda each: format_second(each.starts_at),
                "ends": lambda each: format_second(each.ends_at),
                "entrances": lambda each: ", ".join(each.entrance_ids),
                "budgets left": lambda each: [_left_text(budget) for budget in each.budgets],
            },
            empty="There are no promotions yet. See `guerdon promotion create --help`.",
        )


@promotion.command(
    epilog=examples(
        "guerdon promotion transition spring scheduled",
        "guerdon promotion transition spring paused      # from the answer on, not one more prize",
        "guerdon promotion transition spring active",
    )
)
@click.argument("promotion_id", metavar="ID", type=Id())
@click.argument("state", type=OneOf(PromotionState))
@etag_option
@request_id_option
@wire
def transition(promotion_id: str, state: PromotionState, etag: str, request_id: str) -> None:
    """Move a promotion along draft, scheduled, active or paused, ended, archived.

    A scheduled promotion becomes active by itself when it starts. Once a pause is answered, not one more prize is
    given. What has ended can't be resumed.
    """
    with connected() as client:
        _show(
            client.transition_promotion(promotion_id=promotion_id, target_state=state, etag=etag, request_id=request_id)
        )


@promotion.command(
    "adjust-budget",
    context_settings=SIGNED_ARGUMENTS,
    epilog=examples(
        "guerdon promotion adjust-budget spring USD/2 +100.00",
        "guerdon promotion adjust-budget spring USD/2 -250.00 --request-id recall-17",
    ),
)
@click.argument("promotion_id", metavar="ID", type=Id())
@click.argument("asset")
@click.argument("amount", metavar="+AMOUNT|-AMOUNT")
@request_id_option
@wire
def adjust_budget(promotion_id: str, asset: str, amount: str, request_id: str) -> None:
    """Top a budget up, or recall what is not spent.

    The amount has its sign, and the decimals of its asset. It is a change, not a new total; with --request-id it is
    applied once however often it is repeated. Never less remains than was spent.
    """
    delta = signed_units(amount, asset)
    with connected() as client:
        done = client.adjust_promotion_budget(
            promotion_id=promotion_id, asset=asset, delta_units=delta, request_id=request_id
        )
    emit_fields(
        done,
        {
            "promotion": promotion_id,
            "asset": asset,
            "capacity": capacity_text(done.budget.capacity, asset),
            "spent": format_units(done.budget.spent_units, asset),
            "left": _remaining(done.budget),
            "applied": "before, by this request id: the budget is as it is now" if done.replayed else "now",
        },
    )


def signed_units(amount: str, asset: str) -> int:
    """A change in units from text with a sign; a usage error otherwise."""
    if not amount.startswith(("+", "-")):
        fail_usage(f"Say which way: +{amount} tops up, -{amount} recalls.", "AMOUNT")
    return units_or_fail(amount, asset, "AMOUNT")


@promotion.command(
    epilog=examples(
        "guerdon promotion update spring --ends-at 2026-07-01T00:00:00Z",
        "guerdon promotion update spring --ends-at none",
        "guerdon promotion update spring --entrance checkout --entrance app",
    )
)
@click.argument("promotion_id", metavar="ID", type=Id())
@click.option("--name", help="Shown to people.")
@click.option("--entrance", "entrances", multiple=True, type=Id(), help="All that shall be bound; repeat for more.")
@click.option("--no-entrances", is_flag=True, help="Unbind all.")
@click.option("--starts-at", type=Instant(clears=True), help="A time, or none.")
@click.option("--ends-at", type=Instant(clears=True), help="A time, or none.")
@etag_option
@request_id_option
@wire
def update(
    *,
    promotion_id: str,
    name: str | None,
    entrances: tuple[str, ...],
    no_entrances: bool,
    starts_at: datetime | str | None,
    ends_at: datetime | str | None,
    etag: str,
    request_id: str,
) -> None:
    """Change what is given, keep the rest. Budgets are changed with adjust-budget."""
    if name is None and not entrances and not no_entrances and starts_at is None and ends_at is None:
        fail_usage("Nothing to change: give --name, --entrance, --no-entrances, --starts-at or --ends-at.")
    if entrances and no_entrances:
        fail_usage("Give --entrance or --no-entrances, not both.")
    with connected() as client:
        _show(
            client.update_promotion(
                promotion_id=promotion_id,
                display_name=KEEP if name is None else name,
                entrance_ids=entrances if entrances or no_entrances else KEEP,
                starts_at=KEEP if starts_at is None else _instant(starts_at),
                ends_at=KEEP if ends_at is None else _instant(ends_at),
                etag=etag,
                request_id=request_id,
            )
        )


def _instant(given: datetime | str) -> datetime | None:
    return None if given == NONE or isinstance(given, str) else given


def state_of(found: Promotion) -> str:
    return written(found.state)


def _show(found: Promotion) -> None:
    emit_fields(
        found,
        {
            "promotion": found.promotion_id,
            "name": found.display_name,
            "state": state_of(found),
            "starts": format_instant(found.starts_at) if found.starts_at else "once it is scheduled",
            "ends": format_instant(found.ends_at) if found.ends_at else "open-ended",
            "entrances": ", ".join(found.entrance_ids) or "none: nothing can be asked for yet",
            "budgets": [_budget_text(budget) for budget in found.budgets],
            "etag": found.etag,
            "created": format_instant(found.created_at),
            "updated": format_instant(found.updated_at),
        },
    )


def _budget_text(budget: Budget) -> str:
    spent = format_units(budget.spent_units, budget.asset)
    if isinstance(budget.capacity, Unlimited):
        return f"{budget.asset}: unlimited, {spent} spent"
    return f"{budget.asset}: {capacity_text(budget.capacity, budget.asset)}, {spent} spent, {_remaining(budget)} left"


def _left_text(budget: Budget) -> str:
    return f"{_remaining(budget)} {budget.asset}"


def _remaining(budget: Budget) -> str:
    if isinstance(budget.capacity, Unlimited):
        return "unlimited"
    return format_units(budget.remaining_units, budget.asset)

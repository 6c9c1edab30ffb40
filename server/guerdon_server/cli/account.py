"""`guerdon account`: what the ledger says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.table import Table

from guerdon import AccountKey, AccountKind, Balance, Entry, TrialBalance
from guerdon_server.cli.amounts import format_units
from guerdon_server.cli.connection import connected
from guerdon_server.cli.failures import REFUSED
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.instants import format_second
from guerdon_server.cli.options import limit_option, wire
from guerdon_server.cli.output import draw, emit, emit_fields, emit_list, table
from guerdon_server.cli.pages import pages
from guerdon_server.cli.params import Id, OneOf, fail_usage, written
from guerdon_server.cli.resource import ResourceGroup

_PARTS = {
    AccountKind.STOCK_SOURCE: ("prize",),
    AccountKind.STOCK: ("prize",),
    AccountKind.HOLDING: ("user", "prize"),
    AccountKind.BUDGET_SOURCE: ("promotion", "asset"),
    AccountKind.BUDGET: ("promotion", "asset"),
    AccountKind.WALLET: ("user", "asset"),
    AccountKind.LIABILITY: ("promotion", "asset"),
}


@click.group(
    cls=ResourceGroup,
    epilog=examples(
        "guerdon account balances --user ada",
        "guerdon account entries wallet --user ada --asset COIN",
        "guerdon account trial-balance",
    ),
)
def account() -> None:
    """Balances, statements and the trial balance of the ledger.

    Everything of value is in an account: a prize's stock, a promotion's budget in an asset, a user's wallet in an
    asset, a user's holding of a prize. A reward is a transfer from one to another.

    \b
    An account is named by its kind and what it is of:
      stock, stock-source                --prize
      holding                            --user --prize
      budget, budget-source, liability   --promotion --asset
      wallet                             --user --asset
    """


def _names_account(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--asset", help="COIN, USD/2"),
        click.option("--prize", type=Id(), metavar="ID"),
        click.option("--promotion", type=Id(), metavar="ID"),
        click.option("--user", type=Id(), metavar="ID"),
        click.argument("kind", type=OneOf(AccountKind)),
    ):
        command = option(command)
    return command


@account.command(epilog=examples("guerdon account balance wallet --user ada --asset COIN"))
@_names_account
@wire
def balance(kind: AccountKind, **parts: str | None) -> None:
    """The balance of one account; zero for one that has never been used."""
    with connected() as client:
        found = client.get_balance(account=_key(kind, parts))
    emit_fields(
        found,
        {
            "account": account_text(found.account),
            "balance": _units(found, found.balance_units),
            "debits": _units(found, found.debits_units),
            "credits": _units(found, found.credits_units),
        },
    )


@account.command(epilog=examples("guerdon account balances --user ada", "guerdon account balances --promotion spring"))
@click.option("--user", "user_id", type=Id(), metavar="ID")
@click.option("--promotion", "promotion_id", type=Id(), metavar="ID")
@limit_option
@wire
def balances(user_id: str | None, promotion_id: str | None, limit: int) -> None:
    """All accounts of a user, or of a promotion."""
    if (user_id is None) == (promotion_id is None):
        fail_usage("Give --user or --promotion.")
    with connected() as client:
        emit_list(
            pages(
                lambda size, token: client.list_balances(
                    user_id=user_id, promotion_id=promotion_id, page_size=size, page_token=token
                ),
                limit=limit,
            ),
            {
                "account": lambda each: written(each.account.kind),
                "of": lambda each: _owner_text(each.account),
                "balance": lambda each: _units(each, each.balance_units),
                "debits": lambda each: _units(each, each.debits_units),
                "credits": lambda each: _units(each, each.credits_units),
            },
            empty="No accounts: nothing has been given here yet.",
        )


@account.command(epilog=examples("guerdon account entries wallet --user ada --asset COIN --limit 10"))
@_names_account
@limit_option
@wire
def entries(kind: AccountKind, limit: int, **parts: str | None) -> None:
    """The statement of one account, the newest entry first, each with the balance after it."""
    key = _key(kind, parts)
    amount: Callable[[int], str] = lambda units: format_units(units, key.asset)  # noqa: E731
    columns: dict[str, Callable[[Entry], Any]] = {
        "booked": lambda each: format_second(each.booked_at),
        "what": lambda each: written(each.kind),
        "amount": lambda each: ("+" if each.amount_units > 0 else "") + amount(each.amount_units),
        "balance": lambda each: amount(each.balance_units),
        "other side": lambda each: account_text(each.counterpart),
        "issuance": lambda each: each.issuance_id or "-",
        "transfer": lambda each: each.transfer_id,
    }
    with connected() as client:
        emit_list(
            pages(lambda size, token: client.list_entries(account=key, page_size=size, page_token=token), limit=limit),
            columns,
            empty="No entries: this account has never been used.",
        )


@account.command("trial-balance")
@wire
def trial_balance() -> None:
    """The sums of all debits and credits by asset and kind of account.

    They are equal for every asset, or the books are broken: then the exit status is 1. `guerdon verify` proves more.
    """
    with connected() as client:
        found = client.get_trial_balance()
    emit(found, lambda out: draw(out, _trial_table(found)))
    if not found.balanced:
        click.get_current_context().exit(REFUSED)


def _trial_table(found: TrialBalance) -> Table:
    rows: list[list[object]] = [
        [
            line.asset,
            written(line.kind),
            line.account_count,
            format_units(line.debits_units, line.asset),
            format_units(line.credits_units, line.asset),
        ]
        for line in found.lines
    ]
    for asset in dict.fromkeys(line.asset for line in found.lines):
        of_asset = [line for line in found.lines if line.asset == asset]
        debits, credits = sum(each.debits_units for each in of_asset), sum(each.credits_units for each in of_asset)
        verdict = "balanced" if debits == credits else "NOT BALANCED"
        rows.append([asset, verdict, "", format_units(debits, asset), format_units(credits, asset)])
    return table(["asset", "accounts of kind", "accounts", "debits", "credits"], rows)


def _key(kind: AccountKind, parts: Mapping[str, str | None]) -> AccountKey:
    wanted = _PARTS[kind]
    given = {name for name, value in parts.items() if value}
    if given != set(wanted):
        fail_usage(f"A {written(kind)} account is named by {' and '.join(f'--{name}' for name in wanted)}.")
    return AccountKey(
        kind=kind,
        user_id=parts["user"] or "",
        promotion_id=parts["promotion"] or "",
        prize_id=parts["prize"] or "",
        asset=parts["asset"] or "",
    )


def account_text(key: AccountKey) -> str:
    return f"{written(key.kind)} {_owner_text(key)}".strip()


def _owner_text(key: AccountKey) -> str:
    return " ".join(part for part in (key.user_id, key.promotion_id, key.prize_id, key.asset) if part)


def _units(found: Balance, units: int) -> str:
    return format_units(units, found.account.asset)

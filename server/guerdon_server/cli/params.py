"""The types of arguments and options: text from the command line to values, with an error that says what to write."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, NoReturn, TypeVar

import click

from guerdon import UNLIMITED, AttributeInput, Capacity
from guerdon_server.cli.amounts import UNITS_MAX, AmountError, parse_units
from guerdon_server.cli.attributes import parse_value, split_name
from guerdon_server.cli.instants import parse_instant

E = TypeVar("E", bound=StrEnum)


class Id(click.ParamType[str]):
    """1 to 128 of A-Z a-z 0-9 . _ : -"""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", value):
            self.fail(f"{value!r} is no id: 1 to 128 characters of A-Z a-z 0-9 . _ : -", param, ctx)
        return str(value)


class Instant(click.ParamType[datetime | str]):
    """A time; with `clears`, also `none`, which is None."""

    name = "time"

    def __init__(self, *, clears: bool = False) -> None:
        self._clears = clears

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | str:
        if isinstance(value, datetime):
            return value
        if self._clears and value == NONE:
            return NONE
        try:
            return parse_instant(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


NONE = "none"
"""What is written to take a field's value away."""


class BudgetOf(click.ParamType[tuple[str, Capacity]]):
    """`USD/2=10000.00` or `COIN=unlimited` as (asset, units or UNLIMITED)."""

    name = "asset=amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Capacity]:
        asset, equals, amount = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is no budget; write it like USD/2=10000.00 or COIN=unlimited", param, ctx)
        try:
            units = parse_units("0" if amount == "unlimited" else amount, asset)
        except AmountError as error:
            self.fail(str(error), param, ctx)
        if units < 0:
            self.fail(f"{amount} is negative; a budget starts at 0 or more", param, ctx)
        return asset, UNLIMITED if amount == "unlimited" else units


class StockOf(click.ParamType[Capacity]):
    """A number of units from 0, or `unlimited`."""

    name = "units|unlimited"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Capacity:
        if value == "unlimited":
            return UNLIMITED
        if not re.fullmatch(r"[0-9]{1,16}", str(value)) or int(value) > UNITS_MAX:
            self.fail(f"{value!r} is no stock; write a number from 0 to {UNITS_MAX}, or unlimited", param, ctx)
        return int(value)


class RateOf(click.ParamType[tuple[str, int]]):
    """`order_cents:5%` as (attribute, basis points)."""

    name = "attribute:percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        attribute, colon, rate = value.rpartition(":")
        match = re.fullmatch(r"([0-9]{1,5})(?:\.([0-9]{1,2}))?%", rate)
        if not colon or match is None:
            self.fail(f"{value!r} is no rate; write it like order_cents:5% or order_cents:0.25%", param, ctx)
        points = int(match[1] + (match[2] or "").ljust(2, "0"))
        if not 1 <= points <= 1_000_000:
            self.fail(f"{rate} is out of range: 0.01% to 10000%", param, ctx)
        try:
            name, _ = split_name(attribute)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return name, points


class AttributeOf(click.ParamType[tuple[str, AttributeInput]]):
    """`order_cents=1999` or `sku:text=007` as (name, value)."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, AttributeInput]:
        left, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is no attribute; write it like order_cents=1999 or sku:text=007", param, ctx)
        try:
            name, kind = split_name(left)
            return name, parse_value(text, kind)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class OneOf(click.ParamType[E], Generic[E]):
    """A name of an enum as people write it: half-up for HALF_UP."""

    name = "word"

    def __init__(self, kind: type[E]) -> None:
        self._members = {written(member): member for member in kind if member.value != "UNSPECIFIED"}

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self._members)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> E:
        member = self._members.get(str(value).lower().replace("_", "-"))
        if member is None:
            self.fail(f"{value!r} is none of {', '.join(self._members)}", param, ctx)
        return member


def written(member: StrEnum) -> str:
    """An enum's name as people write it."""
    return member.value.lower().replace("_", "-")


def units_or_fail(text: str, asset: str, option: str) -> int:
    """An amount whose asset another option names; a usage error that names this option."""
    try:
        return parse_units(text, asset)
    except AmountError as error:
        fail_usage(str(error), option)


def fail_usage(message: str, option: str = "") -> NoReturn:
    ctx = click.get_current_context()
    if option:
        raise click.BadParameter(message, ctx=ctx, param_hint=f"'{option}'")
    raise click.UsageError(message, ctx=ctx)

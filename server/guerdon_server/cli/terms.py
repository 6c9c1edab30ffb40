"""A prize's terms (value, validity, stock) as text and from options. Pure but for usage errors."""

from __future__ import annotations

from datetime import datetime

from guerdon import Capacity, FixedValue, PrizeValue, RateValue, Rounding, Unlimited, ValidDays, Validity, ValidUntil
from guerdon_server.cli.amounts import format_units
from guerdon_server.cli.instants import format_instant
from guerdon_server.cli.params import fail_usage, units_or_fail, written


def value_text(value: PrizeValue | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, FixedValue):
        return f"{format_units(value.units, value.asset)} {value.asset}"
    floor = "" if value.floor_units is None else f", at least {format_units(value.floor_units, value.asset)}"
    cap = "" if value.cap_units is None else f", at most {format_units(value.cap_units, value.asset)}"
    rate = f"{format_units(value.basis_points, 'X/2').rstrip('0').rstrip('.')}%"
    return f"{rate} of {value.attribute} in {value.asset}{floor}{cap}, rounded {written(value.rounding)}"


def validity_text(validity: Validity | None) -> str:
    if validity is None:
        return "for ever"
    if isinstance(validity, ValidDays):
        return f"{validity.days} day{'s' if validity.days != 1 else ''} from the grant"
    return f"until {format_instant(validity.at)}"


def capacity_text(capacity: Capacity, asset: str = "") -> str:
    return "unlimited" if isinstance(capacity, Unlimited) else format_units(capacity, asset)


def validity_from(days: int | None, until: datetime | None) -> Validity | None:
    """From --valid-days and --valid-until."""
    if days is not None and until is not None:
        fail_usage("Give --valid-days or --valid-until, not both.")
    if days is not None:
        return ValidDays(days)
    return ValidUntil(until) if until is not None else None


def value_from(
    *,
    asset: str | None,
    fixed: str | None,
    rate: tuple[str, int] | None,
    floor: str | None,
    cap: str | None,
    rounding: Rounding | None,
) -> PrizeValue | None:
    """From the options of `prize create`; None where no value is given."""
    if fixed is None and rate is None:
        if asset or floor or cap or rounding:
            fail_usage("--asset, --floor, --cap and --rounding describe a value: give --value or --rate too.")
        return None
    if fixed is not None and rate is not None:
        fail_usage("Give --value (the same for every grant) or --rate (of an attribute), not both.")
    if asset is None:
        fail_usage("A value needs its asset: --asset COIN, --asset USD/2.")
    if fixed is not None:
        if floor or cap or rounding:
            fail_usage("--floor, --cap and --rounding belong to --rate.")
        return FixedValue(asset, units_or_fail(fixed, asset, "--value"))
    assert rate is not None
    return RateValue(
        asset=asset,
        attribute=rate[0],
        basis_points=rate[1],
        floor_units=None if floor is None else units_or_fail(floor, asset, "--floor"),
        cap_units=None if cap is None else units_or_fail(cap, asset, "--cap"),
        rounding=rounding or Rounding.HALF_UP,
    )

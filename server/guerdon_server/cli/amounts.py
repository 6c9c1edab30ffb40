"""Amounts as people write them: decimals by the scale of the asset ("USD/2": 10000.00; "COIN": 12). Pure."""

from __future__ import annotations

import re
from typing import Final

UNITS_MAX: Final = 2**53 - 1
_ASSET: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}(?:/([0-9]{1,2}))?")
_DECIMAL: Final = re.compile(r"([+-]?)([0-9]{1,30})(?:\.([0-9]{1,99}))?")


class AmountError(ValueError):
    """The text is no amount of this asset; the message says why."""


def scale_of(asset: str) -> int:
    """How many decimals an asset has. Raises AmountError for what is no asset."""
    match = _ASSET.fullmatch(asset)
    if match is None:
        raise AmountError(f"{asset!r} is no asset; write it like COIN (no decimals) or USD/2 (two decimals)")
    return int(match[1] or 0)


def parse_units(text: str, asset: str) -> int:
    """The amount in minor units, with its sign. Raises AmountError."""
    scale = scale_of(asset)
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        raise AmountError(f"{text!r} is no amount; write it like {_sample(scale)}")
    decimals = match[3] or ""
    if len(decimals) > scale:
        raise AmountError(f"{text} has {len(decimals)} decimals, {asset} has {scale}; write it like {_sample(scale)}")
    units = int(match[2] + decimals.ljust(scale, "0"))
    if units > UNITS_MAX:
        raise AmountError(f"{text} is too large; the most is {format_units(UNITS_MAX, asset)}")
    return -units if match[1] == "-" else units


def format_units(units: int, asset: str) -> str:
    """Minor units as a decimal that `parse_units` reads back; plain units where the asset is none (of prizes)."""
    match = _ASSET.fullmatch(asset)
    scale = int(match[1] or 0) if match else 0
    digits = str(abs(units)).rjust(scale + 1, "0")
    whole, decimals = (digits[:-scale], f".{digits[-scale:]}") if scale else (digits, "")
    return f"{'-' if units < 0 else ''}{whole}{decimals}"


def _sample(scale: int) -> str:
    return format_units(1200 if scale else 12, f"X/{scale}")

"""Points in time as people write them. Pure but for the clock of relative ones."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_RELATIVE: Final = re.compile(r"\+([0-9]{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_instant(text: str, *, now: datetime | None = None) -> datetime:
    """`2026-05-01T09:00:00+02:00`, `2026-05-01T07:00Z`, `now`, or `+90m` (s m h d w) from now. Raises ValueError."""
    now = now or datetime.now(UTC)
    if text == "now":
        return now
    relative = _RELATIVE.fullmatch(text)
    try:
        if relative:
            return now + timedelta(**{_UNITS[relative[2]]: int(relative[1])})
        instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time; write it like 2026-05-01T09:00:00Z, now, or +7d") from None
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} does not say its time zone; add Z (UTC) or an offset: {instant.isoformat()}Z")
    return instant


def format_second(instant: datetime | None) -> str:
    """The same without fractions, for lists."""
    return format_instant(instant.replace(microsecond=0) if instant else None)


def format_instant(instant: datetime | None) -> str:
    """RFC 3339 in UTC with what precision it has; `-` for none."""
    if instant is None:
        return "-"
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")

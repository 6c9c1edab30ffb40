"""What a request must look like. Every check notes what is wrong and goes on, so that a caller hears of all at once:

    violations: list[Violation] = []
    check_id(violations, "user_id", request.user_id)
    …
    refuse(violations)

Checks that convert return a value in any case; it is of use only if nothing was noted.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import Final, TypeAlias, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.v1 import prize_pb2, promotion_pb2, types_pb2
from guerdon_server.core.ledger.postgres.capacity import UNITS_MAX
from guerdon_server.platform.errors import Violation, invalid

AttributeValue: TypeAlias = int | str | bool | dt.datetime | tuple[str, ...]
"""A fact about a request, as the domain has it."""

ID_CHARACTERS_MAX: Final = 128
DISPLAY_NAME_CHARACTERS_MAX: Final = 200
ATTRIBUTES_MAX: Final = 50
ATTRIBUTE_NAME_CHARACTERS_MAX: Final = 64
ATTRIBUTE_TEXT_CHARACTERS_MAX: Final = 1024
LIST_VALUES_MAX: Final = 100
LIST_VALUE_CHARACTERS_MAX: Final = 256
VIOLATIONS_MAX: Final = 12
PAGE_SIZE_MAX: Final = 500
PAGE_SIZE_DEFAULT: Final = 100

is_id = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch
"""For the hot path: truthy for a well-formed id. `check_id` says what is wrong with any other."""

_is_asset = re.compile(r"[A-Z][A-Z0-9]{1,11}(/[0-9]{1,2})?").fullmatch
_foreign_to_id = re.compile(r"[^A-Za-z0-9._:-]").search
_control = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]").search
_SECONDS_MIN: Final = int(dt.datetime(2000, 1, 1, tzinfo=dt.UTC).timestamp())
_SECONDS_END: Final = int(dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC).timestamp())
"""Excluded: for asyncpg the last microsecond of the year 9999 is infinity, and comes back without a time zone."""
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_E = TypeVar("_E", bound=IntEnum)


def refuse(violations: Sequence[Violation]) -> None:
    """Raises INVALID_ARGUMENT / INVALID_FIELD with what was noted, if anything was; the first 12, because an error
    travels in a trailer, which has room for 8 KB."""
    if len(violations) > VIOLATIONS_MAX:
        more = f"and {len(violations) - VIOLATIONS_MAX} more problems"
        violations = [*violations[:VIOLATIONS_MAX], Violation("", more)]
    if violations:
        raise invalid(violations)


# --- texts ----------------------------------------------------------------------------------------------------------


def check_id(violations: list[Violation], field: str, value: str, *, characters_max: int = ID_CHARACTERS_MAX) -> None:
    """1 to 128 of A-Z a-z 0-9 . _ : -"""
    if len(value) <= characters_max and is_id(value):
        return
    if not value:
        description = "must not be empty"
    elif len(value) > characters_max:
        description = f"has {len(value)} characters; at most {characters_max} are allowed"
    else:
        wrong = _foreign_to_id(value)
        assert wrong is not None, "an id of allowed characters and length is well-formed"
        description = f"has {_shown(wrong)}; allowed are A-Z a-z 0-9 . _ : -"
    violations.append(Violation(field, description))


def check_optional_id(violations: list[Violation], field: str, value: str) -> None:
    """As `check_id`, or empty."""
    if value:
        check_id(violations, field, value)


def check_asset(violations: list[Violation], field: str, value: str) -> None:
    """ "COIN", "USD/2": 2 to 12 capitals and digits, then optionally the number of decimals."""
    if not value:
        violations.append(Violation(field, "must not be empty"))
    elif not _is_asset(value):
        violations.append(Violation(field, 'must be like "COIN" or "USD/2": 2 to 12 of A-Z 0-9, then /decimals'))


def check_display_name(violations: list[Violation], field: str, value: str) -> None:
    """0 to 200 characters, no control characters."""
    if len(value) > DISPLAY_NAME_CHARACTERS_MAX:
        description = f"has {len(value)} characters; at most {DISPLAY_NAME_CHARACTERS_MAX} are allowed"
        violations.append(Violation(field, description))
    elif wrong := _control(value):
        violations.append(Violation(field, f"has {_shown(wrong)}; control characters are not allowed"))


def check_etag(violations: list[Violation], field: str, value: str) -> None:
    """Empty, or something that an etag could be."""
    if len(value) > ID_CHARACTERS_MAX or _control(value):
        violations.append(Violation(field, "is not an etag that this server gave"))


def _quoted(text: str) -> str:
    """What a caller wrote, short and harmless."""
    return text[:ATTRIBUTE_NAME_CHARACTERS_MAX].encode("unicode_escape").decode()[:ATTRIBUTE_NAME_CHARACTERS_MAX]


def _shown(wrong: re.Match[str]) -> str:
    return f"the character U+{ord(wrong[0]):04X} at position {wrong.start() + 1}"


# --- numbers, instants, enums ---------------------------------------------------------------------------------------


def check_units(violations: list[Violation], field: str, value: int, *, least: int = 1, most: int = UNITS_MAX) -> None:
    """An amount of at least `least` and at most `most`."""
    if not least <= value <= most:
        violations.append(Violation(field, f"is {value}; must be {least} to {most}"))


def check_capacity(
    violations: list[Violation], field: str, value: promotion_pb2.Budget | prize_pb2.Stock
) -> int | None:
    """Units, 0 to 2^53 - 1, or None where unlimited."""
    match value.WhichOneof("capacity"):
        case "units":
            check_units(violations, f"{field}.units", value.units, least=0)
            return value.units
        case "unlimited":
            if not value.unlimited:
                violations.append(Violation(f"{field}.unlimited", "must be true where set; set units otherwise"))
        case None:
            violations.append(Violation(field, "must say how much: set units, or unlimited"))
    return None


def check_delta(violations: list[Violation], field: str, value: int) -> None:
    """A change of an amount: not 0, magnitude up to 2^53 - 1."""
    if value == 0:
        violations.append(Violation(field, "must not be 0: positive tops up, negative recalls"))
    elif abs(value) > UNITS_MAX:
        violations.append(Violation(field, f"is {value}; must be -{UNITS_MAX} to {UNITS_MAX}"))


def check_instant(violations: list[Violation], field: str, value: Timestamp) -> dt.datetime:
    """An aware datetime in UTC, to the microsecond (the rest is cut off), of the years 2000 to 9999."""
    if not 0 <= value.nanos < 1_000_000_000:
        violations.append(Violation(f"{field}.nanos", f"is {value.nanos}; must be 0 to 999999999"))
    elif not _SECONDS_MIN <= value.seconds < _SECONDS_END:
        violations.append(Violation(field, "must lie in the years 2000 to 9999"))
    else:
        return _EPOCH + dt.timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    return _EPOCH


def check_optional_instant(violations: list[Violation], field: str, value: Timestamp | None) -> dt.datetime | None:
    """As `check_instant`, or None; also for a malformed one, so that nothing more is said about that."""
    if value is None:
        return None
    noted = len(violations)
    at = check_instant(violations, field, value)
    return at if len(violations) == noted else None


def to_timestamp(at: dt.datetime | None) -> Timestamp | None:
    """The other way, exact to the microsecond."""
    if at is None:
        return None
    since = at - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def check_enum(violations: list[Violation], field: str, value: int, enum: type[_E]) -> _E:
    """A number that the domain's enum has; 0 is not specified."""
    try:
        return enum(value)
    except ValueError:
        names = ", ".join(member.name for member in enum)
        problem = "must be specified" if value == 0 else f"is {value}, which is unknown here"
        violations.append(Violation(field, f"{problem}; one of {names}"))
        return next(iter(enum))


def check_page_size(
    violations: list[Violation], size: int, *, most: int = PAGE_SIZE_MAX, default: int = PAGE_SIZE_DEFAULT
) -> int:
    """1 to `most`; 0 means `default`."""
    if not 0 <= size <= most:
        violations.append(Violation("page_size", f"is {size}; must be 1 to {most}, or 0 for {default}"))
    return size or default


# --- masks and attributes -------------------------------------------------------------------------------------------


def check_mask(violations: list[Violation], mask: FieldMask, known: Collection[str]) -> tuple[str, ...]:
    """The paths of update_mask, sorted and once each; at least one, all known."""
    if not mask.paths:
        violations.append(Violation("update_mask", f"must name at least one of {', '.join(known)}"))
    for path in sorted(set(mask.paths) - set(known))[:10]:
        violations.append(Violation("update_mask", f"{_quoted(path)} can't be updated; only {', '.join(known)}"))
    return tuple(sorted(set(mask.paths)))


def check_attributes(
    violations: list[Violation], field: str, attributes: Mapping[str, types_pb2.AttributeValue]
) -> dict[str, AttributeValue]:
    """Up to 50 facts by name, as the domain has them."""
    if not attributes:
        return {}
    if len(attributes) > ATTRIBUTES_MAX:
        violations.append(Violation(field, f"has {len(attributes)} entries; at most {ATTRIBUTES_MAX} are allowed"))
        return {}
    values: dict[str, AttributeValue] = {}
    for name, value in attributes.items():
        where = f"{field}[{_quoted(name)}]"
        if len(name) > ATTRIBUTE_NAME_CHARACTERS_MAX or not is_id(name):
            wrong: list[Violation] = []
            check_id(wrong, where, name, characters_max=ATTRIBUTE_NAME_CHARACTERS_MAX)
            violations.extend(Violation(where, f"its name {violation.description}") for violation in wrong)
        values[name] = _attribute(violations, where, value)
    return values


def _attribute(violations: list[Violation], field: str, value: types_pb2.AttributeValue) -> AttributeValue:
    kind = value.WhichOneof("kind")
    if kind == "integer":
        return value.integer
    if kind == "text":
        _check_text(violations, field, value.text, ATTRIBUTE_TEXT_CHARACTERS_MAX)
        return value.text
    if kind == "boolean":
        return value.boolean
    if kind == "time":
        return check_instant(violations, field, value.time)
    if kind == "list":
        return _attribute_list(violations, field, value.list)
    violations.append(Violation(field, "has no value; set one of integer, text, boolean, time, list"))
    return 0


def _attribute_list(violations: list[Violation], field: str, value: types_pb2.AttributeList) -> tuple[str, ...]:
    if len(value.values) > LIST_VALUES_MAX:
        violations.append(Violation(field, f"has {len(value.values)} values; at most {LIST_VALUES_MAX} are allowed"))
        return ()
    for index, text in enumerate(value.values):
        _check_text(violations, f"{field}[{index}]", text, LIST_VALUE_CHARACTERS_MAX)
    return tuple(value.values)


def _check_text(violations: list[Violation], field: str, value: str, most: int) -> None:
    if len(value) > most:
        violations.append(Violation(field, f"has {len(value)} characters; at most {most} are allowed"))

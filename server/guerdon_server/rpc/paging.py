"""Page tokens: where the next page begins, and of which list it is.

Opaque, but not secret: base64 of the last key of the page and a digest of the list's name and filter, so that a token
of another list is recognised.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Final, TypeVar

from guerdon_server.platform.errors import Violation
from guerdon_server.rpc.validation import is_id

_TOKEN_CHARACTERS_MAX: Final = 1024
_NUMBER_MAX: Final = 2**63 - 1
_T = TypeVar("_T")


def encode_token(scope: Sequence[str], position: Sequence[int | str]) -> str:
    """`scope`: the list's name and its filter; `position`: the key of the last item of this page."""
    content = json.dumps([_digest(scope), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def decode_numbers(violations: list[Violation], token: str, scope: Sequence[str], length: int) -> list[int] | None:
    """The position, `length` numbers of 64 bits; None at the beginning (no token) or if a violation was noted."""
    position = _decode(violations, token, scope)
    numbers = [value for value in position or () if type(value) is int and abs(value) <= _NUMBER_MAX]
    if position is not None and not len(numbers) == len(position) == length:
        _refuse(violations)
        return None
    return numbers or None


def decode_id(violations: list[Violation], token: str, scope: Sequence[str]) -> str:
    """The position, one id; '' at the beginning (no token) or if a violation was noted."""
    position = _decode(violations, token, scope)
    if position is None:
        return ""
    value = position[0] if len(position) == 1 else None
    if isinstance(value, str) and is_id(value):
        return value
    _refuse(violations)
    return ""


def cut(items: Sequence[_T], size: int) -> tuple[Sequence[_T], _T | None]:
    """Of `size + 1` items that were asked for: the page, and its last item if more follow."""
    return (items[:size], items[size - 1]) if len(items) > size else (items, None)


def _decode(violations: list[Violation], token: str, scope: Sequence[str]) -> list[object] | None:
    if not token:
        return None
    try:
        if len(token) > _TOKEN_CHARACTERS_MAX:
            raise ValueError("longer than any token")
        content = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, list) or content[:1] != [_digest(scope)]:
        _refuse(violations)
        return None
    return content[1:]


def _digest(scope: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(scope)).encode()).hexdigest()[:12]


def _refuse(violations: list[Violation]) -> None:
    violations.append(Violation("page_token", "is not a next_page_token of this list with these filters"))

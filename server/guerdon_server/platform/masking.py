"""Take the secret out of a text before anyone sees it. When in doubt too much is masked, never too little."""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "********"
_DSN = re.compile(r"://|\b(?:host|port|dbname|user|password)\s*=")
# Greedy up to the last "@": a password may hold an unescaped "@", ":" or "/".
_URL_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*:)(\S+)(?=@)")
_KEYWORD_PASSWORD = re.compile(r"(?i)(password\s*=\s*)('(?:\\.|[^'\\])*'|[^\s&'\"]+)")
# `scheme://user:password` whose "@host" was forgotten: what follows the colon is no port.
_NO_PORT = re.compile(r"://[^/@]*:(?!\d+(?:[,/?]|$))")


def mask_secret(text: str) -> str:
    """A secret setting's text for showing: only the password masked of a URL or keyword DSN, else masked whole."""
    if not text:
        return text
    if not _DSN.search(text) or (_NO_PORT.search(text) and not _URL_PASSWORD.search(text)):
        return MASK
    return mask_passwords(text)


def mask_passwords(text: str) -> str:
    """Any text with `scheme://user:PASSWORD@` and `password=PASSWORD` masked, wherever they occur in it."""
    return _KEYWORD_PASSWORD.sub(rf"\g<1>{MASK}", _URL_PASSWORD.sub(rf"\g<1>{MASK}", text))


def secret_parts(text: str) -> set[str]:
    """What of a secret must never be shown: its passwords, raw and unquoted, or the whole of an opaque secret."""
    if mask_secret(text) == MASK:
        return {text}
    matches = [*_URL_PASSWORD.finditer(text), *_KEYWORD_PASSWORD.finditer(text)]
    raw = {match.group(2).strip("'") for match in matches} - {""}
    return raw | {unquote(part) for part in raw}

"""Lists that come in pages, as one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from guerdon import Page
from guerdon_server.cli.output import say

T = TypeVar("T")

PAGE_SIZE_MAX: Final = 500


def pages(call: Callable[[int, str], Page[T]], *, limit: int, page_size_max: int = PAGE_SIZE_MAX) -> Iterator[T]:
    """Up to `limit` items (0: all), reading pages as they are needed; says on stderr when there are more.

    `call` gets page size and page token.
    """
    token, left = "", limit
    while True:
        page = call(min(left, page_size_max) if limit else page_size_max, token)
        yield from page.items
        token = page.next_page_token
        left -= len(page.items)
        if not token or (limit and left <= 0):
            break
    if token:
        say(f"There are more than {limit}: --limit N, or --limit 0 for all.")

"""The address of Redis: one server, a cluster by some of its nodes, or a primary by the sentinels that know it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_PORTS = {"cluster": 6379, "sentinel": 26379}
_PORT_MAX = 65535
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")

_NETLOC_END = re.compile(r"[/?#]")

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a URL says. addresses: of nodes or of sentinels, none for one server; service: the name that sentinels give.

    sentinel_options: `username` and `password` for the sentinels themselves.
    """

    mode: Literal["single", "cluster", "sentinel"]
    url: str
    addresses: tuple[Address, ...] = ()
    service: str = ""
    database: int = 0
    sentinel_options: Mapping[str, str] = field(default_factory=dict)
    _scheme: str = "redis"
    _user: str = ""
    _query: str = ""

    def at(self, host: str, port: int) -> str:
        """The URL of one server, with this one's TLS, user, password, database and options."""
        where = f"[{host}]" if ":" in host else host
        query = f"?{self._query}" if self._query else ""
        return f"{self._scheme}://{self._user}{where}:{port}/{self.database}{query}"


def parse(url: str) -> RedisUrl:
    """Raises ValueError, which says what is wrong and never quotes the URL: it holds a password."""
    named, _, rest = url.partition("://")
    if named not in SCHEMES:
        raise ValueError("it has to begin with " + ", ".join(f"{known}://" for known in SCHEMES))
    scheme, _, mode = named.partition("+")
    if not mode:
        return RedisUrl("single", url)
    netloc = _NETLOC_END.split(rest, maxsplit=1)[0]
    parts = urlsplit(rest[len(netloc) :])  # without the hosts: some versions of Python refuse several with brackets
    user, at, hosts = netloc.rpartition("@")
    addresses = tuple(_address(host, _PORTS[mode]) for host in hosts.split(","))
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    sentinel_options = {
        name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL_OPTIONS if name in options
    }
    path = [unquote(word) for word in parts.path.strip("/").split("/")]
    if mode == "cluster":
        if sentinel_options:
            raise ValueError("sentinel_username and sentinel_password are for redis+sentinel://")
        if path not in ([""], ["0"]):
            raise ValueError("a cluster has only database 0: end it after the last port, or with /0")
        return RedisUrl("cluster", url, addresses, _scheme=scheme, _user=user + at, _query=urlencode(options))
    service, *further = path
    if not service or len(further) > 1 or (further and not further[0].isdecimal()):
        raise ValueError(
            "sentinels are asked for a name, so it ends with /NAME or /NAME/DATABASE: redis+sentinel://HOST:PORT/NAME"
        )
    return RedisUrl(
        "sentinel",
        url,
        addresses,
        service,
        int(further[0]) if further else 0,
        sentinel_options,
        _scheme=scheme,
        _user=user + at,
        _query=urlencode(options),
    )


def _address(text: str, port: int) -> Address:
    host, colon, number = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, number = text, str(port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not number.isdecimal() or not 0 < int(number) <= _PORT_MAX:
        raise ValueError("each address is HOST:PORT (or [IPv6]:PORT), with commas between them")
    return host, int(number)

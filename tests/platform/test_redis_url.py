"""Addresses of Redis: what each form means, and what is refused."""

from __future__ import annotations

import re

import pytest
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from guerdon_server.platform import redis, redis_deployment
from guerdon_server.platform.config import SettingsError, load
from guerdon_server.platform.redis_cluster import Cluster
from guerdon_server.platform.redis_url import parse
from guerdon_server.settings import Settings


def test_a_cluster_is_named_by_some_of_its_nodes() -> None:
    url = parse("redis+cluster://ann:p%40ss@one:7001,[::1]:7002,three?ssl_ca_certs=%2Fca.pem")
    assert (url.mode, url.addresses) == ("cluster", (("one", 7001), ("::1", 7002), ("three", 6379)))
    assert url.at("four", 7004) == "redis://ann:p%40ss@four:7004/0?ssl_ca_certs=%2Fca.pem"
    assert url.at("::4", 7004) == "redis://ann:p%40ss@[::4]:7004/0?ssl_ca_certs=%2Fca.pem"
    assert parse("rediss+cluster://one/0").at("two", 1) == "rediss://two:1/0"


def test_a_primary_is_named_by_its_sentinels() -> None:
    url = parse("rediss+sentinel://:secret@one,two:26380/gate/3?sentinel_password=other&ssl_check_hostname=no")
    assert (url.mode, url.service, url.database) == ("sentinel", "gate", 3)
    assert url.addresses == (("one", 26379), ("two", 26380))
    assert url.sentinel_options == {"password": "other"}
    assert url.at("three", 6379) == "rediss://:secret@three:6379/3?ssl_check_hostname=no"


@pytest.mark.parametrize("url", ["redis://:secret@one:1/0", "rediss://one", "unix:///run/redis.sock"])
def test_one_server_is_named_as_before(url: str) -> None:
    assert (parse(url).mode, parse(url).url) == ("single", url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://:secret@one", "has to begin with redis://"),
        ("redis+proxy://:secret@one", "has to begin with redis://"),
        ("redis+cluster://:secret@one:7001/2", "only database 0"),
        ("redis+cluster://:secret@one:x", "HOST:PORT"),
        ("redis+cluster://:secret@one:70000", "HOST:PORT"),
        ("redis+cluster://:secret@one,,two", "HOST:PORT"),
        ("redis+cluster://:secret@one?sentinel_password=x", "for redis+sentinel://"),
        ("redis+sentinel://:secret@one", "/NAME"),
        ("redis+sentinel://:secret@one/gate/x", "/NAME"),
        ("redis+sentinel://:secret@one/gate/0/1", "/NAME"),
    ],
)
def test_what_cannot_be_is_refused_without_the_password(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match=re.escape(said)) as refused:
        load(Settings, env={}, overrides={"redis_url": url, "postgres_dsn": "postgresql://x@h/d"})
    assert "secret" not in str(refused.value)


async def test_tls_goes_to_every_node_to_the_sentinels_and_to_the_primary() -> None:
    cluster = redis_deployment.connect("rediss+cluster://:secret@one:7001")
    assert isinstance(cluster, Cluster)
    assert "SSL" in cluster.client(("two", 7002)).connection_pool.connection_class.__name__
    await cluster.aclose()
    client = redis_deployment.connect(
        "rediss+sentinel://:secret@one/gate?sentinel_username=watcher&ssl_ca_certs=/ca.pem"
    )
    assert isinstance(client, redis.Client)
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert issubclass(pool.connection_class, SentinelManagedSSLConnection)
    assert pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem"
    (sentinel,) = pool.sentinel_manager.sentinels
    assert "SSL" in sentinel.connection_pool.connection_class.__name__
    assert sentinel.connection_pool.connection_kwargs["username"] == "watcher"
    await client.aclose()

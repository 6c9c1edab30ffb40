"""Preparing rewards and looking at them, on a real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import Cli


def test_a_promotion_is_created_shown_changed_and_moved(cli: Cli) -> None:
    cli("entrance", "create", "p1-door", "--name", "Door")
    made = cli.json(
        *("promotion", "create", "p1", "--name", "Spring", "--entrance", "p1-door", "--budget", "USD/2=10000.00"),
        *("--budget", "COIN=unlimited", "--starts-at", "+1h", "--ends-at", "+3d"),
    )
    assert (made["state"], made["entrance_ids"]) == ("DRAFT", ["p1-door"])
    assert [(b["asset"], b["capacity"]) for b in made["budgets"]] == [("COIN", "UNLIMITED"), ("USD/2", 1_000_000)]
    shown = cli("promotion", "show", "p1").out
    assert "USD/2: 10000.00, 0.00 spent, 10000.00 left" in shown
    assert "COIN: unlimited" in shown

    assert cli.json("promotion", "update", "p1", "--name", "May", "--ends-at", "none")["ends_at"] is None
    assert cli.json("promotion", "show", "p1")["display_name"] == "May"
    assert cli.json("promotion", "update", "p1", "--no-entrances")["entrance_ids"] == []
    assert cli.json("promotion", "transition", "p1", "scheduled")["state"] == "SCHEDULED"
    assert cli.json("promotion", "update", "p1", "--starts-at", "none")["state"] == "ACTIVE"
    assert cli.json("promotion", "transition", "p1", "paused")["state"] == "PAUSED"
    assert "p1" in {each["promotion_id"] for each in cli("promotion", "list", "--limit", 0, "--json").documents}
    assert cli("promotion", "list", "--state", "draft", "--json").documents == []


def test_budgets_are_adjusted_once_for_a_request_id(cli: Cli, lay_out: Callable[[Cli, str], None]) -> None:
    lay_out(cli, "p2")
    for _ in range(2):
        done = cli.json("promotion", "adjust-budget", "p2", "USD/2", "+100.00", "--request-id", "top-up-1")
    assert (done["budget"]["capacity"], done["replayed"]) == (11_000, True)
    assert "left       105.00" in cli("promotion", "adjust", "p2", "USD/2", "-5.00").out
    refused = cli("promotion", "adjust-budget", "p2", "USD/2", "-500.00", code=1)
    assert "BUDGET_INSUFFICIENT" in refused.err
    assert "guerdon promotion show" in refused.err


def test_stock_is_adjusted_and_shown(cli: Cli, lay_out: Callable[[Cli, str], None]) -> None:
    lay_out(cli, "p3")
    assert cli.json("prize", "adjust-stock", "p3-coupon", "+500")["stock"]["capacity"] == 505
    assert cli.json("prize", "adjust", "p3-coupon", "-1")["stock"]["remaining_units"] == 504
    assert cli.json("prize", "stock", "p3-coupon")["issued_units"] == 0
    assert "STOCK_INSUFFICIENT" in cli("prize", "adjust-stock", "p3-coupon", "-505", code=1).err
    assert cli.json("prize", "stock", "p3-cashback")["capacity"] == "UNLIMITED"


def test_a_prize_is_shown_and_changed_part_by_part(cli: Cli, lay_out: Callable[[Cli, str], None]) -> None:
    lay_out(cli, "p4")
    shown = cli("prize", "show", "p4-cashback").out
    assert "5% of order_cents in USD/2, at most 5.00, rounded half-up" in shown
    changed = cli.json("prize", "update", "p4-cashback", "--cap", "7.50", "--valid-until", "+30d")
    assert changed["value"]["cap_units"] == 750
    assert changed["value"]["basis_points"] == 500
    assert cli.json("prize", "update", "p4-cashback", "--cap", "none", "--rate", "order_cents:0.25%")["value"] == {
        "asset": "USD/2",
        "attribute": "order_cents",
        "basis_points": 25,
        "floor_units": None,
        "cap_units": None,
        "rounding": "HALF_UP",
    }
    assert cli.json("prize", "update", "p4-cashback", "--valid-until", "none")["validity"] is None
    assert [each["prize_id"] for each in cli("prize", "list", "--promotion", "p4", "--json").documents] == [
        "p4-cashback",
        "p4-coupon",
    ]


def test_lists_say_when_there_is_more(cli: Cli) -> None:
    for i in range(3):
        cli("entrance", "create", f"many-{i}")
    some = cli("entrance", "list", "--limit", 2, "--json")
    assert len(some.documents) == 2
    assert "--limit" in some.err
    everything = cli("entrance", "list", "--limit", 0, "--json")
    assert {f"many-{i}" for i in range(3)} <= {each["entrance_id"] for each in everything.documents}
    assert everything.err == ""


def test_a_stale_etag_is_refused(cli: Cli) -> None:
    etag = cli.json("entrance", "create", "stale-door")["etag"]
    cli("entrance", "update", "stale-door", "--name", "one", "--etag", etag)
    refused = cli.json("entrance", "update", "stale-door", "--name", "two", "--etag", etag, code=1)
    assert refused["error"]["reason"] == "ETAG_MISMATCH"
    assert cli.json("entrance", "show", "stale-door")["display_name"] == "one"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("promotion", "create", "a b"), "is no id"),
        (("promotion", "create", "x", "--budget", "USD/2"), "USD/2=10000.00"),
        (("promotion", "create", "x", "--budget", "USD/2=1.001"), "2 decimals"[2:]),
        (("promotion", "create", "x", "--budget", "COIN=1", "--budget", "COIN=2"), "same asset"),
        (("promotion", "create", "x", "--starts-at", "2026-05-01T00:00:00"), "time zone"),
        (("promotion", "adjust-budget", "x", "USD/2", "100"), "+100"),
        (("promotion", "transition", "x", "running"), "scheduled"),
        (("promotion", "update", "x"), "Nothing to change"),
        (("prize", "create", "x", "--promotion", "y", "--kind", "coupon"), "--stock"),
        (("prize", "create", "x", "--promotion", "y", "--kind", "coin"), "--asset"),
        (
            ("prize", "create", "x", "--promotion", "y", "--kind", "coin", "--asset", "COIN", "--rate", "n"),
            "order_cents:5%",
        ),
        (("account", "balance", "wallet", "--user", "ada"), "--asset"),
        (("account", "balances"), "--promotion"),
        (("issuance", "show"), "--request-id"),
        (("issuance", "list"), "--reference"),
    ],
)
def test_wrong_use_says_what_to_write_and_asks_nobody(alone: Cli, args: tuple[str, ...], told: str) -> None:
    assert told in alone(*args, code=2).err


def test_nobody_there(alone: Cli) -> None:
    done = alone("promotion", "list", "--target", "127.0.0.1:1", code=3)
    assert "guerdon up" in done.err
    assert "127.0.0.1:1" in done.err
    assert alone.json("health", "--target", "127.0.0.1:1", code=3)["error"]["code"] == "UNAVAILABLE"


def test_what_does_not_exist(cli: Cli) -> None:
    assert "guerdon prize list" in cli("prize", "show", "nope", code=1).err
    error = cli.json("promotion", "create", "lost", "--entrance", "nowhere", code=1)["error"]
    assert error["reason"] == "ENTRANCE_NOT_FOUND"
    assert "guerdon entrance create" in error["next"]

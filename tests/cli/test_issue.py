"""One reward, from the command line."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from guerdon import Client
from tests.cli.conftest import Cli, FakeDoor

LayOut = Callable[[Cli, str], None]


def ask(name: str, prize: str, user: str, request_id: str, *more: str) -> tuple[str, ...]:
    where = ("--promotion", name, "--entrance", f"{name}-door", "--prize", f"{name}-{prize}")
    return ("issue", *where, "--user", user, "--request-id", request_id, *more)


def test_a_reward_is_given_once_and_seen_everywhere(cli: Cli, lay_out: LayOut) -> None:
    lay_out(cli, "i1")
    command = ask("i1", "cashback", "i1-ada", "order-1", "--attr", "order_cents=1999", "--reference", "order-1")
    first = cli.json(*command)
    assert (first["outcome"], first["replayed"], first["issuance"]["value"]["units"]) == ("granted", False, 100)
    again = cli.json(*command)
    assert (again["replayed"], again["issuance"]) == (True, first["issuance"])
    assert "by an earlier attempt" in cli(*command).out

    issuance_id = first["issuance"]["issuance_id"]
    assert cli.json("issuance", "show", issuance_id)["issuance"] == first["issuance"]
    assert cli.json("issuance", "list", "--reference", "order-1") == first["issuance"]
    assert cli.json("account", "balance", "wallet", "--user", "i1-ada", "--asset", "USD/2")["balance_units"] == 100
    assert "1.00" in cli("account", "balances", "--user", "i1-ada").out
    (entry,) = cli("account", "entries", "wallet", "--user", "i1-ada", "--asset", "USD/2", "--json").documents
    assert (entry["kind"], entry["amount_units"], entry["issuance_id"]) == ("ISSUE_VALUE", 100, issuance_id)
    assert cli.json("account", "trial-balance")["balanced"] is True


def test_a_rejection_says_why_and_what_to_do(cli: Cli, lay_out: LayOut) -> None:
    lay_out(cli, "i2")
    cli(*ask("i2", "coupon", "i2-ada", "one"))
    refused = cli(*ask("i2", "coupon", "i2-ada", "two"), code=1)
    assert "LIMIT_REACHED" in refused.out
    assert "guerdon issuance list --user i2-ada" in refused.out
    document = cli.json(*ask("i2", "cashback", "i2-ada", "three"), code=1)
    assert (document["outcome"], document["rejection"]["reason"]) == ("rejected", "ATTRIBUTE_MISSING")
    cli("promotion", "transition", "i2", "paused")
    assert "guerdon promotion transition i2 active" in cli(*ask("i2", "coupon", "i2-bob", "four"), code=1).out


def test_a_request_id_that_stands_for_something_else(cli: Cli, lay_out: LayOut) -> None:
    lay_out(cli, "i3")
    cli(*ask("i3", "coupon", "i3-ada", "one"))
    error = cli.json(*ask("i3", "coupon", "i3-bob", "one"), code=1)["error"]
    assert error["reason"] == "REQUEST_ID_REUSED"
    assert error["metadata"]["field"] == "user_id"


def test_what_became_of_a_request(cli: Cli, lay_out: LayOut) -> None:
    lay_out(cli, "i4")
    key = ("issuance", "show", "--promotion", "i4", "--request-id", "maybe")
    assert cli.json(*key, code=1) == {"state": "absent", "cancelled": False}
    assert cli.json(*key, "--cancel-if-absent") == {"state": "absent", "cancelled": True}
    assert cli.json(*ask("i4", "coupon", "i4-ada", "maybe"), code=1)["rejection"]["reason"] == "CANCELLED"


def test_what_is_live_for_a_user(cli: Cli, lay_out: LayOut) -> None:
    lay_out(cli, "i5")
    assert "yes" in cli("entrance", "live", "i5-door", "--user", "i5-ada").out
    cli(*ask("i5", "coupon", "i5-ada", "one"))
    (live,) = cli("entrance", "live", "i5-door", "--user", "i5-ada", "--json").documents
    had = {each["prize"]["prize_id"]: (each["available"], each["user_granted_count"]) for each in live["prizes"]}
    assert had == {"i5-coupon": (False, 1), "i5-cashback": (True, 0)}
    assert "no: limit-reached" in cli("entrance", "live", "i5-door", "--user", "i5-ada").out


def test_a_reward_needs_a_request_id(alone: Cli) -> None:
    where = ("--promotion", "p", "--entrance", "e", "--prize", "z", "--user", "u")
    assert "--request-id" in alone("issue", *where, code=2).err
    assert "columns of the file" in alone("issue", "--file", __file__, "--user", "u", code=2).err


def test_a_lost_answer_is_told_with_the_request_id_and_repeated_safely(
    faked: Cli, fake: FakeDoor, lay_out: LayOut
) -> None:
    lay_out(faked, "f1")
    fake.fake.fail_next(grpc.StatusCode.UNAVAILABLE, applied=True, attempts=5)
    lost = faked(*ask("f1", "coupon", "ada", "one"), code=3)
    assert "--request-id one" in lost.err
    assert faked.json(*ask("f1", "coupon", "ada", "one"))["replayed"] is True


def test_an_interrupted_change_tells_its_id(faked: Cli) -> None:
    class Interrupted(FakeDoor):
        def client(self, target: str, *, timeout: float, principal: str, credentials: object) -> Client:
            raise KeyboardInterrupt

    faked.obj = Interrupted()
    told = faked("prize", "adjust-stock", "f3-coupon", "+5", code=130).err
    assert "--request-id cli-" in told
    assert faked("prize", "stock", "f3-coupon", code=130).err == ""


def test_an_operators_change_without_an_answer_tells_the_id_that_was_made_up(
    faked: Cli, fake: FakeDoor, lay_out: LayOut
) -> None:
    lay_out(faked, "f2")
    fake.fake.fail_next(grpc.StatusCode.UNAVAILABLE, applied=True, attempts=5)
    error = faked.json("prize", "adjust-stock", "f2-coupon", "+5", code=3)["error"]
    assert error["outcome_unknown"] is True
    assert f"--request-id {error['request_id']}" in error["next"]
    done = faked.json("prize", "adjust-stock", "f2-coupon", "+5", "--request-id", error["request_id"])
    assert (done["replayed"], done["stock"]["capacity"]) == (True, 10)

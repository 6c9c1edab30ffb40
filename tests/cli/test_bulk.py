"""Many rewards from a file: what is checked, what is written, what an interruption leaves."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.cli.conftest import COMMAND, Cli, FakeDoor, clean_env

LayOut = Callable[[Cli, str], None]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def where(name: str, prize: str) -> tuple[str, ...]:
    return ("--promotion", name, "--entrance", f"{name}-door", "--prize", f"{name}-{prize}")


def test_a_line_for_each_line(cli: Cli, lay_out: LayOut, tmp_path: Path) -> None:
    lay_out(cli, "b1")
    text = "user_id,request_id,reference,attr.order_cents,prize_id\r\n"
    text += "ada,r1,o1,1999,\r\n" + 'bob,"r2",o2,,b1-coupon\r\n' + "cy,r3,,0,\r\n" + "\r\n" + "dan,r4,,1,nope\r\n"
    claims = write(tmp_path / "claims.csv", "\ufeff" + text)
    summary = cli.json("issue", "--file", claims, *where("b1", "cashback"), code=1)
    assert summary["outcomes"] == {"granted": 2, "rejected": 1, "error": 1}
    found = {row["line"]: (row["outcome"], row["reason"]) for row in rows_of(tmp_path / "claims.results.csv")}
    assert found == {
        "2": ("granted", ""),
        "3": ("granted", ""),
        "4": ("rejected", "VALUE_ZERO"),
        "6": ("error", "PRIZE_NOT_FOUND"),
    }
    assert cli.json("account", "balance", "wallet", "--user", "ada", "--asset", "USD/2")["balance_units"] == 100


def test_run_again_it_asks_only_what_has_no_answer(cli: Cli, lay_out: LayOut, tmp_path: Path) -> None:
    lay_out(cli, "b2")
    lines = "".join(f"u{i},r{i}\n" for i in range(8))
    claims = write(tmp_path / "claims.csv", f"user_id,request_id\n{lines}")
    command = ("issue", "--file", claims, *where("b2", "coupon"), "--batch", 3)
    assert cli.json(*command, code=1)["outcomes"] == {"granted": 5, "rejected": 3}
    again = cli.json(*command, code=1)
    assert (again["outcomes"], again["skipped"]) == ({}, {"granted": 5, "rejected": 3})
    cli("prize", "adjust-stock", "b2-coupon", "+2")
    third = cli.json(*command, "--retry-rejected", code=1)
    assert (third["outcomes"], third["skipped"]) == ({"granted": 2, "rejected": 1}, {"granted": 5})
    rows = rows_of(tmp_path / "claims.results.csv")
    assert sorted(row["request_id"] for row in rows) == [f"r{i}" for i in range(8)]

    # Without the results nothing is given twice either: the request ids are the file's.
    fresh = cli.json(*command, "--results", tmp_path / "other.csv", code=1)
    assert (fresh["outcomes"]["granted"], fresh["replayed"]) == (7, 7)
    assert cli.json("prize", "stock", "b2-coupon")["issued_units"] == 7


def test_a_torn_results_file_is_mended(cli: Cli, lay_out: LayOut, tmp_path: Path) -> None:
    lay_out(cli, "b3")
    claims = write(tmp_path / "claims.csv", "user_id,request_id\nada,r1\nbob,r2\n")
    command = ("issue", "--file", claims, *where("b3", "coupon"))
    cli(*command)
    results = tmp_path / "claims.results.csv"
    results.write_bytes(results.read_bytes()[:-4])  # killed in the middle of the last line
    assert cli.json(*command)["replayed"] == 1
    assert [row["outcome"] for row in rows_of(results)] == ["granted", "granted"]


def test_an_interrupted_run_leaves_correct_results_and_is_resumed(
    cli: Cli, server: str, lay_out: LayOut, tmp_path: Path
) -> None:
    lay_out(cli, "b4")
    cli("prize", "adjust-stock", "b4-coupon", "+100000")
    lines = "".join(f"u{i},r{i}\n" for i in range(4000))
    claims = write(tmp_path / "claims.csv", f"user_id,request_id\n{lines}")
    command = ("issue", "--file", str(claims), *where("b4", "coupon"))
    slowly = [*COMMAND, *command, "--batch", "1", "--concurrency", "1"]
    results = tmp_path / "claims.results.csv"
    process = subprocess.Popen(slowly, env=clean_env(GUERDON_TARGET=server), stdout=subprocess.PIPE, text=True)  # noqa: S603
    _wait_until(lambda: results.exists() and len(results.read_bytes().splitlines()) > 20)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again" in out
    before = rows_of(results)
    assert 20 <= len(before) < 4000
    assert Counter(row["outcome"] for row in before) == {"granted": len(before)}

    summary = cli.json(*command)
    assert summary["skipped"] == {"granted": len(before)}
    assert summary["outcomes"] == {"granted": 4000 - len(before)}
    assert summary["replayed"] == 0  # what was in flight was waited for
    assert len({row["issuance_id"] for row in rows_of(results)}) == 4000


def test_two_runs_do_not_share_a_results_file(cli: Cli, server: str, lay_out: LayOut, tmp_path: Path) -> None:
    lay_out(cli, "b5")
    claims = write(tmp_path / "claims.csv", "user_id,request_id\n" + "".join(f"u{i},r{i}\n" for i in range(4000)))
    command = ("issue", "--file", str(claims), *where("b5", "coupon"), "--batch", "1", "--concurrency", "1")
    process = subprocess.Popen(  # noqa: S603
        [*COMMAND, *command], env=clean_env(GUERDON_TARGET=server), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    results = tmp_path / "claims.results.csv"
    _wait_until(lambda: results.exists() and len(results.read_bytes().splitlines()) > 1)
    assert "Another run" in cli(*command, code=2).err
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130


def test_lost_answers_are_asked_for_until_they_come(
    faked: Cli, fake: FakeDoor, lay_out: LayOut, tmp_path: Path
) -> None:
    lay_out(faked, "b6")
    claims = write(tmp_path / "claims.csv", "user_id,request_id\nada,r1\n")
    command = ("issue", "--file", claims, *where("b6", "coupon"))
    fake.fake.fail_next(grpc.StatusCode.OK, attempts=0)
    _lose_batches(fake, 5)
    assert faked.json(*command)["replayed"] == 1


def test_without_an_answer_the_outcome_is_unknown_and_nothing_more_is_sent(
    faked: Cli, fake: FakeDoor, lay_out: LayOut, tmp_path: Path
) -> None:
    lay_out(faked, "b7")
    claims = write(tmp_path / "claims.csv", "user_id,request_id\nada,r1\nbob,r2\ncy,r3\n")
    command = ("issue", "--file", claims, *where("b7", "coupon"), "--batch", 1, "--concurrency", 1, "--patience", 0)
    _lose_batches(fake, 5)
    summary = faked.json(*command, code=3)
    assert (summary["outcomes"], summary["unsent"]) == ({"unknown": 1}, 2)
    (row,) = rows_of(tmp_path / "claims.results.csv")
    assert (row["request_id"], row["outcome"], row["reason"]) == ("r1", "unknown", "UNAVAILABLE")
    assert faked.json(*command)["outcomes"] == {"granted": 3}


def _lose_batches(fake: FakeDoor, attempts: int) -> None:
    """The next answers to batches are lost after the work; other calls are answered."""
    answer: Callable[..., Any] = fake.fake._answer

    def losing(attempt: Any, principal: str) -> Any:
        nonlocal attempts
        if attempt.rpc.path.endswith("BatchIssuePrizes") and attempts:
            attempts -= 1
            fake.fake.fail_next(grpc.StatusCode.UNAVAILABLE, applied=True)
        return answer(attempt, principal)

    fake.fake._answer = losing  # type: ignore[method-assign]


BAD = """\
user_id,request_id,attr.order_cents:int
ada,r1,5
a b,r2,x
,r3,1
bob,r1,1
cy,r4
"dan,r5,1
"""


def test_malformed_lines_are_told_with_line_and_field_before_anything_is_sent(
    cli: Cli, lay_out: LayOut, tmp_path: Path
) -> None:
    lay_out(cli, "b8")
    claims = write(tmp_path / "claims.csv", BAD)
    command = ("issue", "--file", claims, *where("b8", "coupon"))
    error = cli.json(*command, code=2)["error"]
    assert [(each["line"], each["field"]) for each in error["problems"]] == [
        (3, "user_id"),
        (3, "attr.order_cents"),
        (4, "user_id"),
        (5, "request_id"),
        (6, "line"),
        (7, "line"),
    ]
    assert "5 lines can't be sent, 1 can" in error["message"]
    assert not (tmp_path / "claims.results.csv").exists()
    assert cli.json("prize", "stock", "b8-coupon")["issued_units"] == 0

    assert cli.json(*command, "--skip-bad", code=2)["outcomes"] == {"granted": 1, "malformed": 5}
    assert [row["line"] for row in rows_of(tmp_path / "claims.results.csv") if row["outcome"] == "granted"] == ["2"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"user_id,request_id\n", "'promotion_id' is missing (or give --promotion)"),
        (b"usr_id,request_id\n", "did you mean 'user_id'"),
        (b"user_id,user_id,request_id\n", "twice"),
        (b"user_id,request_id,attr.a b\n", "attribute name"),
        (b"user_id;request_id\n", "--delimiter"),
        ("user_id,request_id\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_first_line_that_can_not_be_used(alone: Cli, tmp_path: Path, content: bytes, told: str) -> None:
    claims = tmp_path / "claims.csv"
    claims.write_bytes(content)
    assert told in alone("issue", "--file", claims, code=2).err


def test_one_line_that_is_no_text_does_not_spoil_the_others(cli: Cli, lay_out: LayOut, tmp_path: Path) -> None:
    lay_out(cli, "b9")
    claims = tmp_path / "claims.csv"
    claims.write_bytes(b'request_id;user_id;attr.note\nr1;ada;"two\nlines; quoted"\nr2;b\xffb;\nr3;cy;x\n')
    command = ("issue", "--file", claims, *where("b9", "coupon"), "--delimiter", ";", "--skip-bad")
    assert cli.json(*command, code=2)["outcomes"] == {"granted": 2, "malformed": 1}
    assert [row["line"] for row in rows_of(tmp_path / "claims.results.csv") if row["outcome"] == "malformed"] == ["4"]


def test_a_file_that_is_no_results_file_is_left_alone(cli: Cli, lay_out: LayOut, tmp_path: Path) -> None:
    lay_out(cli, "b10")
    claims = write(tmp_path / "claims.csv", "user_id,request_id\nada,r1\n")
    precious = write(tmp_path / "precious.csv", "a,b\n1,2\n")
    command = ("issue", "--file", claims, *where("b10", "coupon"), "--results")
    assert "no results file" in cli(*command, precious, code=2).err
    assert precious.read_text() == "a,b\n1,2\n"
    assert "overwrite" in cli(*command, claims, code=2).err


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""Logs as a reader of stderr sees them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from guerdon_server.platform.logs import LogFormat, RepeatLimit, configure_logging, in_request, log_uncaught

logger = logging.getLogger("app.part")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_fields(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    logger.info("took %d\nof them", 3, extra={"items": 12, "ratio": float("nan"), "who": {"a"}, "level": "x"})
    (event,) = events(stream)
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "INFO",
        "logger": "app.part",
        "message": "took 3\nof them",
        "items": 12,
        "ratio": "nan",
        "who": "{'a'}",
        "field_level": "x",
    }


def test_the_request_is_on_every_event_inside_it_and_in_no_other(stream: io.StringIO) -> None:
    configure_logging(stream=stream)

    async def handle(number: int, seen: asyncio.Barrier) -> None:
        with in_request(request_id=f"r{number}", rpc="/app.Shop/Buy"):
            await seen.wait()
            await asyncio.gather(asyncio.to_thread(logger.info, "from %d", number))

    async def both() -> None:
        seen = asyncio.Barrier(2)
        await asyncio.gather(handle(1, seen), handle(2, seen))
        logger.info("outside")

    asyncio.run(both())
    found = {event["message"]: event.get("request_id") for event in events(stream)}
    assert found == {"from 1": "r1", "from 2": "r2", "outside": None}
    assert events(stream)[0]["rpc"] == "/app.Shop/Buy"


def test_the_level_is_kept_and_an_unknown_one_refused(stream: io.StringIO) -> None:
    configure_logging(stream=stream, level="WARNING")
    logger.info("no")
    logger.warning("yes")
    assert [event["message"] for event in events(stream)] == ["yes"]
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging(stream=stream, level="LOUD")


def test_configuring_again_replaces(stream: io.StringIO) -> None:
    configure_logging(stream=io.StringIO())
    configure_logging(stream=stream)
    logger.info("once")
    assert len(events(stream)) == 1


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_reaches_the_log(stream: io.StringIO, log_format: LogFormat) -> None:
    configure_logging(stream=stream, log_format=log_format, secrets=("hunter2-hunter2",))
    try:
        raise RuntimeError("cannot use hunter2-hunter2")
    except RuntimeError:
        logger.exception("with hunter2-hunter2", extra={"key": ["hunter2-hunter2"]})
    logger.error("to %s", "postgres://app:pw1@db/app", extra={"dsn": "host=x password=pw1"})
    assert "hunter2" not in stream.getvalue()
    assert "pw1" not in stream.getvalue()
    assert "postgres://app:********@db/app" in stream.getvalue()
    assert "RuntimeError" in stream.getvalue()


def test_a_terminal_gets_plain_text_that_cannot_be_forged() -> None:
    stream = Terminal()
    configure_logging(stream=stream)
    logger.warning("user %s", "x\n12:00:00 ERROR forged \x1b[31m", extra={"items": 2})
    (line,) = stream.getvalue().splitlines()
    assert "WARNING app.part  user x\\n12:00:00 ERROR forged \\x1b[31m  items=2" in line


def test_events_are_bounded(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    logger.info("x" * 1_000_000, extra={f"f{number}": "y" * 100_000 for number in range(100)})
    assert len(stream.getvalue()) < 400_000
    assert "left out" in events(stream)[0]["message"]


def test_any_text_can_be_logged(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    logger.info("lone \udc80 surrogate, ünïcode, \x00")
    assert events(stream)[0]["message"] == "lone \udc80 surrogate, ünïcode, \x00"
    stream.getvalue().encode()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_repeated_error_is_limited_and_counted(stream: io.StringIO) -> None:
    clock = Clock()
    configure_logging(stream=stream, repeat_limit=RepeatLimit(burst=2, window_seconds=10, clock=clock))

    def fail(number: int) -> None:
        logger.error("failed %d", number)

    for number in range(50):
        fail(number)
        logger.info("information is never limited")
    logger.error("another place")
    clock.now = 10.0
    fail(50)
    errors = [event for event in events(stream) if event["level"] == "ERROR"]
    assert [event["message"] for event in errors] == ["failed 0", "failed 1", "another place", "failed 50"]
    assert [event.get("suppressed") for event in errors] == [None, None, None, 48]
    assert len(events(stream)) == 54


def test_errors_of_different_kinds_at_one_place_are_told_apart(stream: io.StringIO) -> None:
    configure_logging(stream=stream, repeat_limit=RepeatLimit(burst=1))
    for error in (KeyError("a"), ValueError("b"), KeyError("c")):
        logger.error("failed", exc_info=error)
    assert ["KeyError" in event["exception"] for event in events(stream)] == [True, False]


def test_the_memory_of_places_is_bounded(stream: io.StringIO) -> None:
    configure_logging(stream=stream, repeat_limit=RepeatLimit(burst=1, places_max=1))
    for _ in range(3):  # with room for one place, each of two drives the other out
        logger.error("one")
        logger.error("two")
    assert len(events(stream)) == 6


class Watcher(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.set()


def test_what_nobody_caught_is_logged(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    configure_logging(stream=stream)

    async def die() -> None:
        raise LookupError("unseen")

    async def main() -> None:
        loop, watcher = asyncio.get_running_loop(), Watcher()
        log_uncaught(loop)
        logging.getLogger("uncaught").addHandler(watcher)
        loop.call_soon(lambda: loop.create_task(die()) and None)
        async with asyncio.timeout(30):
            await watcher.seen.wait()
        logging.getLogger("uncaught").removeHandler(watcher)

    asyncio.run(main())
    (event,) = events(stream)
    assert event["level"] == "ERROR"
    assert "never retrieved" in event["message"]
    assert "LookupError: unseen" in event["exception"]


PROGRAM = """
import asyncio, threading
from guerdon_server.platform.logs import configure_logging, log_uncaught
configure_logging()
loop = asyncio.new_event_loop()
log_uncaught(loop)
def fail(): raise KeyError("in a thread")
thread = threading.Thread(target=fail); thread.start(); thread.join()
raise RuntimeError("at the end")
"""


def test_a_program_that_dies_says_so_in_the_log() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)  # noqa: S603
    assert ended.returncode == 1
    found = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [event["level"] for event in found] == ["ERROR", "CRITICAL"]
    assert "KeyError" in found[0]["exception"]
    assert "RuntimeError: at the end" in found[1]["exception"]

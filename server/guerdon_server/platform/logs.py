"""Structured logs on stderr: one event a line, as JSON for machines or as plain text for a terminal.

Use the standard `logging`; fields go into `extra`: `logger.info("batch committed", extra={"items": 12})`. While a
request is handled (`in_request`), its id and RPC are on every event. Log nothing per request at INFO: formatting costs
as much CPU as the request itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import IO, Any, Literal

from guerdon_server.platform.masking import MASK, mask_passwords

LogFormat = Literal["auto", "json", "console"]
TEXT_CHARS_MAX = 8192
FIELDS_MAX = 32
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# A secret shorter than this would riddle unrelated text; as part of an address it is masked at any length.
_REDACTED_CHARS_MIN = 4


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What every event says while a request is handled."""

    request_id: str
    rpc: str


REQUEST: ContextVar[RequestContext | None] = ContextVar("guerdon_request", default=None)


@contextmanager
def in_request(*, request_id: str, rpc: str) -> Iterator[None]:
    """Put the request's id and RPC on every event logged inside, in this task and the tasks it starts."""
    token = REQUEST.set(RequestContext(request_id, rpc))
    try:
        yield
    finally:
        REQUEST.reset(token)


class RepeatLimit(logging.Filter):
    """Lets at most `burst` warnings and errors of one place in the code through per `window_seconds`.

    The first event let through afterwards carries `suppressed`, the number left out. At most `places_max` places are
    remembered (the least recently seen is forgotten first), so a flood costs bounded memory.
    """

    def __init__(
        self,
        *,
        burst: int = 5,
        window_seconds: float = 10.0,
        places_max: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._burst, self._window, self._places_max, self._clock = burst, window_seconds, places_max, clock
        self._places: OrderedDict[object, tuple[float, int]] = OrderedDict()  # place -> (window's start, seen in it)
        self._lock = threading.Lock()  # filters run outside the handler's own lock

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the event is let through."""
        if record.levelno < logging.WARNING:
            return True
        kind = record.exc_info[0] if record.exc_info else None
        place = (record.name, record.levelno, record.pathname, record.lineno, kind)
        now = self._clock()
        with self._lock:
            begun, seen = self._places.pop(place, (now, 0))
            left_out = 0
            if now - begun >= self._window:
                left_out, begun, seen = max(0, seen - self._burst), now, 0
            self._places[place] = (begun, seen + 1)
            if len(self._places) > self._places_max:
                self._places.popitem(last=False)
        if left_out:
            record.suppressed = left_out
        return seen < self._burst


class _Formatter(logging.Formatter):
    """Turns a record into an event (a flat dict of plain values, redacted and bounded)."""

    def __init__(self, secrets: Iterable[str], fields: Mapping[str, object]) -> None:
        super().__init__()
        self._fields = fields
        self._secrets = sorted((s for s in secrets if len(s) >= _REDACTED_CHARS_MIN), key=len, reverse=True)

    def redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        text = mask_passwords(text)
        if len(text) <= TEXT_CHARS_MAX:
            return text
        half = TEXT_CHARS_MAX // 2  # of a traceback both ends matter
        return f"{text[:half]} …{len(text) - TEXT_CHARS_MAX} left out… {text[-half:]}"

    def plain(self, value: object) -> object:
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        return self.redact(str(value))

    def event(self, record: logging.LogRecord) -> dict[str, object]:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        event: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": self.redact(record.getMessage()),
            **self._fields,
        }
        fixed = frozenset(event)
        request = REQUEST.get()
        if request is not None:
            event |= {"request_id": self.plain(request.request_id), "rpc": self.plain(request.rpc)}
        fields = [(key, value) for key, value in vars(record).items() if key not in _STANDARD]
        for key, value in fields[:FIELDS_MAX]:
            event[f"field_{key}" if key in fixed else key] = self.plain(value)
        if record.exc_info and record.exc_info[0] is not None:
            event["exception"] = self.redact(self.formatException(record.exc_info))
        if record.stack_info:
            event["stack"] = self.redact(record.stack_info)
        return event


class JsonFormatter(_Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, request_id, rpc, the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.event(record), ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


class ConsoleFormatter(_Formatter):
    """`20:01:02.345 WARNING platform.x  message  key=value …` in local time; a traceback follows on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        event = self.event(record)
        trace = [str(event.pop(key)) for key in ("exception", "stack") if key in event]
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        head = f"{moment} {event.pop('level'):7} {event.pop('logger')}  {_one_line(str(event.pop('message')))}"
        del event["time"]
        fields = "".join(f"  {key}={_one_line(str(value))}" for key, value in event.items())
        return "\n".join([head + fields, *trace])


def _one_line(text: str) -> str:
    """Control characters shown, so that what a caller sent cannot forge a line or drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class EventHandler(logging.StreamHandler[IO[str]]):
    """The one handler that `configure_logging` installs; the type lets a second call replace the first."""


def configure_logging(
    *,
    level: str = "INFO",
    log_format: LogFormat = "auto",
    secrets: Iterable[str] = (),
    fields: Mapping[str, object] = MappingProxyType({}),
    stream: IO[str] | None = None,
    repeat_limit: RepeatLimit | None = None,
) -> EventHandler:
    """Send all logs of the process to stderr; `auto` means console on a terminal, else JSON. Call again to change.

    secrets: texts that are replaced wherever they occur. fields: what each event says besides. Raises ValueError for an
    unknown level.
    """
    stream = stream or sys.stderr
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    handler = EventHandler(stream)
    handler.setFormatter((ConsoleFormatter if console else JsonFormatter)(secrets, fields))
    handler.addFilter(repeat_limit or RepeatLimit())
    root = logging.getLogger()
    root.setLevel(level)
    for old in [old for old in root.handlers if isinstance(old, EventHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(True)
    return handler


def log_uncaught(loop: asyncio.AbstractEventLoop) -> None:
    """Log what nobody caught, in the loop's tasks and callbacks, in threads and in the main program."""
    logger = logging.getLogger("uncaught")

    def in_loop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        subject = context.get("task") or context.get("future") or context.get("handle")
        extra = {"subject": repr(subject)} if subject else {}
        logger.error(context["message"], exc_info=error or False, extra=extra)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if issubclass(args.exc_type, SystemExit):
            return
        name = args.thread.name if args.thread else "unknown"
        logger.error("thread %s ended by an exception", name, exc_info=args.exc_value or False)

    def in_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            logger.critical("ended by an exception", exc_info=(kind, error, trace))

    loop.set_exception_handler(in_loop)
    threading.excepthook = in_thread
    sys.excepthook = in_main

"""The bench as a process: its event loop, its signals, its result file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console

from guerdon_server.bench.report import Screen
from guerdon_server.bench.result import Result
from guerdon_server.bench.run import run
from guerdon_server.bench.stage import Options

_PIPE_WIDTH: Final = 120  # no column of a table is cut then


def interruptible_bench(options: Options, *, json_file: Path | None, json_to_stdout: bool) -> Result | None:
    """Run it, tell it, write it; None when Ctrl-C or SIGTERM ended it, after everything has been stopped."""
    stream = sys.stderr if json_to_stdout else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    console = Console(file=stream, width=width, highlight=False, emoji=False)
    screen = Screen(console)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            result = runner.run(_stoppable(options, screen))
        except (KeyboardInterrupt, asyncio.CancelledError):
            screen.end()
            console.print("Stopped: everything that was started has ended.", style="bold")
            return None
    screen.summary(result)
    document = json.dumps(result.to_json(), indent=1, ensure_ascii=False)
    if json_file is not None:
        _write(json_file, document + "\n")
    if json_to_stdout:
        sys.stdout.write(document + "\n")
    return result


async def _stoppable(options: Options, screen: Screen) -> Result:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(options, screen)


def _write(path: Path, text: str) -> None:
    # Whole or not at all: whoever waits for the file must not read half of it.
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)

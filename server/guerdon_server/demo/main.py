"""The demo as a process: its event loop, its signals, its result file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import uvloop
from rich.console import Console

from guerdon_server.demo.report import Screen
from guerdon_server.demo.result import Result
from guerdon_server.demo.run import Options, run

_FILE_WIDTH = 120


def interruptible_demo(options: Options, *, json_file: Path | None, json_to_stdout: bool) -> Result | None:
    """Run it, tell it, write it; None when Ctrl-C or SIGTERM ended it, after everything has been stopped.

    `json_to_stdout`: the standard output gets the result for machines, people read on the standard error.
    """
    console = Console(stderr=json_to_stdout, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    screen = Screen(console)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            result = runner.run(_stoppable(options, screen))
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print("Stopped: server and engines have ended. What was granted is durable.", style="bold")
            return None
    screen.summary(result)
    document = json.dumps(result.to_json(), indent=2, ensure_ascii=False)
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

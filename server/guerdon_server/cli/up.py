"""`guerdon up`: the whole of Guerdon in one process and one folder."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from guerdon_server.cli.failures import refuse
from guerdon_server.cli.first_steps import FIRST_STEPS, LOOK_AFTERWARDS, examples
from guerdon_server.cli.loading import CONNECTIONS, load_settings, overrides_of, port_options, settings_options
from guerdon_server.cli.options import default_data_dir, is_json, json_option
from guerdon_server.cli.output import console, print_json, say

if TYPE_CHECKING:
    from guerdon_server.bootstrap import Endpoints
    from guerdon_server.platform.config import Loaded
    from guerdon_server.platform.engines import Engines
    from guerdon_server.settings import Settings

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED: Final = 130


@click.command(
    epilog=examples("guerdon up", "guerdon up --data ./trial --grpc-port 7460", "guerdon up --set log_level=debug")
)
@click.option(
    "--data",
    "data_dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="GUERDON_DATA",
    help="Where everything is kept. [default: guerdon in $XDG_DATA_HOME, else ~/.local/share/guerdon; env var:"
    " GUERDON_DATA]",
)
@settings_options
@port_options
@json_option
def up(
    *,
    data_dir: Path | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    grpc_port: str | None,
    metrics_port: str | None,
) -> None:
    """Serve here and now, until Ctrl-C, on a PostgreSQL and Valkey of its own.

    Starts both engines on the data folder, brings the database to the version of this program, and serves gRPC on
    127.0.0.1:7450 and Prometheus metrics on 127.0.0.1:7451; where a port is taken and was not asked for, a free one is
    taken and told. The data survives a restart and a crash. One folder serves one `guerdon up`.

    Other commands on this machine find the server by themselves (or with --target, GUERDON_TARGET).
    """
    folder = (data_dir or default_data_dir()).expanduser().absolute()
    overrides = overrides_of(assignments, grpc_port=grpc_port, metrics_port=metrics_port)
    # Its engines are its own, whatever the environment says; their addresses are known once they run.
    loaded = load_settings(config_file, {**overrides, **dict.fromkeys(CONNECTIONS, "")})
    loaded = _with_free_ports(loaded)
    import uvloop  # noqa: PLC0415

    stopped_early = uvloop.run(_Up(folder, loaded, json=is_json(click.get_current_context())).run())
    if stopped_early:
        click.get_current_context().exit(_INTERRUPTED)


class _Up:
    """One run: engines, migration, server; ended in the reverse order."""

    def __init__(self, folder: Path, loaded: Loaded[Settings], *, json: bool) -> None:
        self._folder = folder
        self._loaded = loaded
        self._json = json

    async def run(self) -> bool:
        """Serves until it is asked to stop; whether that was before it was ready."""
        from guerdon_server.platform.engines import Engines  # noqa: PLC0415

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in _SIGNALS:  # until the server has its own
            loop.add_signal_handler(number, task.cancel)
        try:
            async with Engines(self._folder, on_progress=self._progress) as engines:
                try:
                    await self._serve(engines)
                finally:
                    for number in _SIGNALS:  # the engines are stopped in peace, however often one asks
                        loop.add_signal_handler(number, lambda: None)
                    self._progress("stopping the engines")
        except asyncio.CancelledError:
            task.uncancel()
            self._progress("stopped before it was ready")
            return True
        self._progress(f"stopped; the data is in {self._folder}")
        return False

    async def _serve(self, engines: Engines) -> None:
        from guerdon_server import bootstrap  # noqa: PLC0415
        from guerdon_server.cli.connection import withdraw  # noqa: PLC0415
        from guerdon_server.cli.migrate import apply_steps  # noqa: PLC0415

        await apply_steps(engines.postgres_dsn)
        settings = dataclasses.replace(
            self._loaded.settings, postgres_dsn=engines.postgres_dsn, redis_url=engines.redis_url
        )
        secrets = dataclasses.replace(self._loaded, settings=settings).secrets()
        serving = asyncio.create_task(bootstrap.serve(settings, on_ready=self._ready, secrets=secrets))
        watching = asyncio.create_task(engines.wait_for_exit())
        try:
            await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            withdraw(self._folder)
            for each in (serving, watching):
                each.cancel()
            ended = await asyncio.gather(serving, watching, return_exceptions=True)
        if isinstance(ended[1], tuple):
            name, status = ended[1]
            raise refuse(
                f"{name} ended by itself, with status {status}.",
                next=f"Its log is in {self._folder / 'logs'}. No grant is lost: run `guerdon up` again.",
            )
        serving.result()

    def _ready(self, endpoints: Endpoints) -> None:
        from guerdon_server.cli.connection import RunningServer, announce  # noqa: PLC0415

        announce(self._folder, RunningServer(grpc=endpoints.grpc, metrics=endpoints.metrics, pid=os.getpid()))
        if self._json:
            print_json(
                {"event": "ready", "grpc": endpoints.grpc, "metrics": endpoints.metrics, "data": str(self._folder)}
            )
            return
        out = console(sys.stdout)
        lines = [
            "Guerdon is up.",
            f"  gRPC      {endpoints.grpc}",
            f"  metrics   http://{endpoints.metrics}/metrics",
            f"  data      {self._folder}",
            "",
            "The first reward, in another terminal:",
            "",
            *(f"  {line}" for line in self._first_steps(endpoints)),
            "",
            "Ctrl-C stops it; the data stays.",
        ]
        for line in lines:
            out.print(line, soft_wrap=True)
        sys.stdout.flush()

    def _first_steps(self, endpoints: Endpoints) -> list[str]:
        """Commands that work when they are pasted, wherever this program was installed."""
        lines = []
        if not _found_by_name():
            program = shlex.join([sys.executable, "-m", "guerdon_server"])
            lines.append(f'guerdon() {{ {program} "$@"; }}')
        if self._folder != default_data_dir():
            lines.append(f"export GUERDON_TARGET={endpoints.grpc}")
        return [*lines, *FIRST_STEPS, LOOK_AFTERWARDS]

    def _progress(self, text: str) -> None:
        if self._json:
            print_json({"event": "progress", "text": text})
        else:
            say(text)


def _found_by_name() -> bool:
    found = shutil.which("guerdon")
    return found is not None and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()


def _with_free_ports(loaded: Loaded[Settings]) -> Loaded[Settings]:
    """Default ports that are taken become 0 (a free one), and it is said; one that was asked for is refused."""
    settings = loaded.settings
    changes: dict[str, Any] = {}
    for name, host, port, what in (
        ("grpc_port", settings.grpc_host, settings.grpc_port, "gRPC"),
        ("metrics_port", settings.metrics_host, settings.metrics_port, "the metrics"),
    ):
        if port == 0 or _is_free(host, port):
            continue
        if loaded.sources[name] != "default":
            raise refuse(f"Port {port}, for {what}, is taken.", next=f"Choose another {name}, or 0 for a free one.")
        say(f"Port {port} is taken: {what} will be on another one.")
        changes[name] = 0
    return dataclasses.replace(loaded, settings=dataclasses.replace(settings, **changes))


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True

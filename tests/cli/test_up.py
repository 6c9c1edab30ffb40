"""`guerdon up`, as a stranger would use it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.cli.conftest import COMMAND, Cli, clean_env, started


def test_from_nothing_to_the_first_reward_and_back(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    env = {"XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    here = Cli({**env, "GUERDON_DATA": str(folder), "GUERDON_TARGET": ""})
    with _taken(7450, 7451), started("up", "--data", folder, env=env) as (process, ready):
        assert not {ready["grpc"], ready["metrics"]} & {"127.0.0.1:7450", "127.0.0.1:7451"}
        assert ready["data"] == str(folder)
        assert (folder / "guerdon.json").stat().st_mode & 0o777 == 0o600
        second = subprocess.run(  # noqa: S603
            [*COMMAND, "up", "--data", folder], env=clean_env(**env), capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert str(process.pid) in second.stderr
        assert "up" in second.stderr
        assert here.json("health")["status"] == "SERVING"  # found by its folder
        here("entrance", "create", "checkout")
        assert here.json("verify", "--data", folder)["ok"] is True
        process.kill()
        process.wait()

    # The dead server's address is not believed.
    assert "no `guerdon up` runs" in here("health", "--timeout", "0.2", code=3).err

    process, printed = _start_for_people(folder, env)
    # Each line that was printed is run as it is, by a shell that knows nothing of this program.
    script = "\n".join(["set -e", "cd /", *(line.strip() for line in printed if _is_command(line))])
    script = script.replace("guerdon entrance create checkout\n", "")  # kept, through the SIGKILL
    pasted = subprocess.run(["bash", "-c", script], env=clean_env(**env), capture_output=True, text=True, check=False)  # noqa: S603, S607
    assert pasted.returncode == 0, pasted.stderr
    assert "Granted" in pasted.stdout
    assert re.search(r"wallet +ada COIN +10 ", pasted.stdout)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()  # noqa: RUF059
    assert process.returncode == 0, err
    assert not (folder / "guerdon.json").exists()

    proof = here.json("verify", "--data", folder)  # of a stopped system
    assert proof["ok"] is True
    assert {check["name"]: check["compared"] for check in proof["checks"]}["grants_are_whole"] == 1


@contextmanager
def _taken(*ports: int) -> Iterator[None]:
    """Ports on which somebody listens: we, or whoever does already."""
    with ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


def _is_command(line: str) -> bool:
    return line.startswith(("  guerdon", "  export"))


def _start_for_people(folder: Path, env: dict[str, str]) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(  # noqa: S603
        [*COMMAND, "up", "--data", str(folder), "--grpc-port", "0", "--metrics-port", "0"],
        env=clean_env(**env, PATH="/usr/bin:/bin"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    printed: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line.rstrip("\n"))
        if line.startswith("Ctrl-C"):
            return process, printed
    raise AssertionError(process.communicate())


def test_a_taken_port_is_avoided_or_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        here = Cli({"XDG_DATA_HOME": str(tmp_path)})
        refused = here("up", "--grpc-port", port, code=1)
        assert f"Port {port}" in refused.err
        assert not (tmp_path / "guerdon" / "postgres").exists()


def test_wrong_settings_are_refused_before_anything_starts(tmp_path: Path) -> None:
    here = Cli({"XDG_DATA_HOME": str(tmp_path)})
    assert "log_level" in here("up", "--set", "log_level=loud", code=2).err
    assert list(tmp_path.iterdir()) == []


def test_stopped_before_it_is_ready(tmp_path: Path) -> None:
    env = clean_env(XDG_DATA_HOME=str(tmp_path))
    command = [*COMMAND, "up", "--json", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "progress"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130, err

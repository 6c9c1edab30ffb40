"""`guerdon issue`: one reward from the command line, thousands from a file."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from guerdon import AttributeInput, Granted, IssueOutcome, Rejected
from guerdon_server.cli.bulk import BulkRun, Tally
from guerdon_server.cli.claims import BadLine, Claim, ClaimsFileError, read_claims
from guerdon_server.cli.connection import connected, open_async_client
from guerdon_server.cli.failures import OK, REFUSED, UNKNOWN, USAGE, Failure, Refusal, refuse
from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.issuance import issuance_table
from guerdon_server.cli.options import remember_request_id, timeout_seconds, wire
from guerdon_server.cli.output import console, draw, emit, say, table
from guerdon_server.cli.params import AttributeOf, Id, fail_usage
from guerdon_server.cli.results import Result, ResultsFile, ResultsFileError

_BAD_LINES_SHOWN_MAX: Final = 20
_INTERRUPTED: Final = 130
_BATCH_SECONDS_MIN: Final = 30.0
_NEXT: Final[Mapping[str, str]] = {
    "PROMOTION_NOT_STARTED": "If it is a draft: guerdon promotion transition {promotion_id} scheduled",
    "PROMOTION_PAUSED": "Resume it: guerdon promotion transition {promotion_id} active",
    "SOLD_OUT": "Top the stock up: guerdon prize adjust-stock {prize_id} +UNITS",
    "BUDGET_EXHAUSTED": "Top the budget up: guerdon promotion adjust-budget {promotion_id} ASSET +AMOUNT",
    "ATTRIBUTE_MISSING": "Say it: --attr NAME=VALUE. Which one the prize needs: guerdon prize show {prize_id}",
    "LIMIT_REACHED": "See what the user had: guerdon issuance list --user {user_id}",
}


@click.command(
    epilog=examples(
        "guerdon issue --promotion spring --entrance checkout --prize welcome --user ada --request-id first-1",
        "guerdon issue --promotion spring --entrance checkout --prize cashback --user ada \\",
        "      --request-id order-4711-cashback --reference order-4711 --attr order_cents=1999",
        "guerdon issue --file claims.csv --promotion spring --entrance checkout",
    )
)
@click.option("--promotion", "promotion_id", type=Id(), metavar="ID")
@click.option("--entrance", "entrance_id", type=Id(), metavar="ID", help="Where it is asked for.")
@click.option("--prize", "prize_id", type=Id(), metavar="ID")
@click.option("--user", "user_id", type=Id(), metavar="ID")
@click.option(
    "--request-id", type=Id(), metavar="ID", help="Names the reward that is due; the same in every repetition."
)
@click.option("--reference", type=Id(), metavar="TEXT", help="Your order, task or draw.")
@click.option(
    "--attr",
    "attributes",
    multiple=True,
    type=AttributeOf(),
    help="A fact about the request: order_cents=1999. What is an integer is one; else say name:TYPE=value, with int,"
    " text, bool, time or list (a,b,c). Repeat for more.",
)
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Many, from a CSV file.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --file: a line for each line. [default: beside the file, NAME.results.csv]",
)
@click.option("--concurrency", type=click.IntRange(1, 64), default=4, show_default=True, help="Batches in flight.")
@click.option(
    "--batch", "batch_items", type=click.IntRange(1, 1000), default=500, show_default=True, help="Lines in one."
)
@click.option("--skip-bad", is_flag=True, help="Report malformed lines and send the others.")
@click.option("--retry-rejected", is_flag=True, help="Also ask again for what an earlier run was refused.")
@click.option(
    "--patience",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a batch is repeated while the server is away or busy.",
)
@click.option("--delimiter", default=",", metavar="CHARACTER", help="Between the columns of the file.")
@wire
def issue(*, file: Path | None, attributes: tuple[tuple[str, AttributeInput], ...], **given: Any) -> None:
    """Give one prize to one user, or many from a file.

    The request id names the reward that is due. Whatever happens - no answer, a crash, a second try - repeat the
    command with the same request id: the reward is given once, and the answer is the same. Never make up a new id for
    the same reward.

    Exit status: 0 granted (also: had been granted before); 1 rejected, with the reason; 3 no answer yet.

    From a file: --file claims.csv, in UTF-8, the first line names the columns.

    \b
      promotion_id,entrance_id,prize_id,user_id,request_id,reference,attr.order_cents
      spring,checkout,cashback,ada,order-4711-cashback,order-4711,1999

    --promotion, --entrance and --prize stand for missing columns and empty cells. An attribute's column may name its
    type: attr.sku:text. All lines are checked before anything is sent. The results file gets a line for each: granted,
    rejected (reason), pending, unknown, error. Run the same command again after an interruption: what was granted or
    rejected is skipped, the rest is asked again, and nothing is given twice, as the request ids are the file's. Batches
    are in flight at the same time: where the order of the lines matters, use --concurrency 1.

    Exit status with --file: 0 all granted; 1 some were rejected or in error; 2 malformed lines, nothing was sent (or,
    with --skip-bad, all others were granted); 3 some have no answer: run it again; 130 interrupted.
    """
    if file is not None:
        if given["user_id"] or given["request_id"] or given["reference"] or attributes:
            fail_usage("--user, --request-id, --reference and --attr are columns of the file.")
        _issue_file(file, **given)
        return
    needed = {"--promotion": "promotion_id", "--entrance": "entrance_id", "--prize": "prize_id", "--user": "user_id"}
    missing = [option for option, name in {**needed, "--request-id": "request_id"}.items() if not given[name]]
    if missing:
        fail_usage(f"Missing: {', '.join(missing)}.")
    remember_request_id(click.get_current_context(), given["request_id"])
    with connected() as client:
        outcome = client.issue_prize(
            promotion_id=given["promotion_id"],
            entrance_id=given["entrance_id"],
            prize_id=given["prize_id"],
            user_id=given["user_id"],
            request_id=given["request_id"],
            reference=given["reference"] or "",
            attributes=dict(attributes),
        )
    _tell(outcome, given)


def _tell(outcome: IssueOutcome, given: Mapping[str, str]) -> None:
    ctx = click.get_current_context()
    if isinstance(outcome, Granted):
        document = {"outcome": "granted", "replayed": outcome.replayed, "issuance": outcome.issuance}
        emit(document, lambda out: _print_grant(out, outcome))
        return
    if isinstance(outcome, Rejected):
        emit({"outcome": "rejected", "rejection": outcome}, lambda out: _print_rejection(out, outcome, given))
        ctx.exit(REFUSED)
    emit(
        {"outcome": "pending", "retry_after_ms": outcome.retry_after_ms},
        lambda out: out.print(
            "Pending: an earlier attempt is still in flight. Repeat the same command with the same"
            f" --request-id {given['request_id']}."
        ),
    )
    ctx.exit(UNKNOWN)


def _print_grant(out: Console, outcome: Granted) -> None:
    out.print("Granted, by an earlier attempt" if outcome.replayed else "Granted", style="bold green")
    draw(out, issuance_table(outcome.issuance))


def _print_rejection(out: Console, outcome: Rejected, given: Mapping[str, str]) -> None:
    out.print(f"Rejected: {outcome.reason.value}", style="bold yellow")
    rows = {
        "why": outcome.message,
        "rule": outcome.rule,
        "observed": outcome.observed,
        "threshold": outcome.threshold,
        "next": _NEXT.get(outcome.reason.value, "").format_map(given),
    }
    for name, value in rows.items():
        if value:
            out.print(f"  {name}: {value}", soft_wrap=True)


# --- from a file ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a first reading of the file found; of the bad lines the first few."""

    claims: int
    bad_count: int
    bad: tuple[BadLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The file and how to read it."""

    path: Path
    defaults: Mapping[str, str]
    delimiter: str

    def lines(self) -> Iterator[Claim | BadLine]:
        return read_claims(self.path, defaults=self.defaults, delimiter=self.delimiter)

    def survey(self) -> _Survey:
        claims, bad_count = 0, 0
        bad: list[BadLine] = []
        for line in self.lines():
            if isinstance(line, Claim):
                claims += 1
                continue
            bad_count += 1
            if len(bad) < _BAD_LINES_SHOWN_MAX:
                bad.append(line)
        return _Survey(claims, bad_count, tuple(bad))


def _issue_file(path: Path, *, results: Path | None, delimiter: str, **given: Any) -> None:
    if len(delimiter) != 1:
        fail_usage("It is one character.", "--delimiter")
    results = results or path.with_name(f"{path.stem}.results.csv")
    if results.absolute() == path.absolute():
        fail_usage("The results would overwrite the claims.", "--results")
    defaults = {name: given[name] or "" for name in ("promotion_id", "entrance_id", "prize_id")}
    file = _File(path=path, defaults=defaults, delimiter=delimiter)
    try:
        survey = file.survey()
        if survey.bad_count and not given["skip_bad"]:
            raise Refusal(_malformed(path, survey))
        with connected() as client:  # a server that is not there is told at once, before anything is written
            client.check_health()
        with ResultsFile(results, ask_rejected_again=given["retry_rejected"]) as sink:
            report = asyncio.run(_run(file, survey, sink, given))
    except (ClaimsFileError, ResultsFileError) as error:
        raise refuse(str(error), exit_code=USAGE) from None
    emit(report.document(), report.render)
    click.get_current_context().exit(report.exit_code)


def _malformed(path: Path, survey: _Survey) -> Failure:
    rows = [(str(line.line), field, problem) for line in survey.bad for field, problem in line.problems]
    left_out = survey.bad_count - len(survey.bad)
    more = f" The first {len(survey.bad)} are shown." if left_out else ""
    return Failure(
        USAGE,
        f"{path}: {_count(survey.bad_count, 'line')} can't be sent, {survey.claims} can. Nothing was sent.{more}",
        "Mend the lines, or send the others with --skip-bad.",
        rows=(("line", "field", "problem"), *rows),
        document={
            "bad_lines": survey.bad_count,
            "problems": [{"line": int(line), "field": field, "problem": problem} for line, field, problem in rows],
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """How a run from a file ended."""

    results: Path
    survey: _Survey
    tally: Tally
    seconds: float
    interrupted: bool

    @property
    def unsent(self) -> int:
        return self.survey.claims + self.survey.bad_count - self.tally.lines

    @property
    def exit_code(self) -> int:
        outcomes = self.tally.outcomes + self.tally.skipped
        if self.interrupted:
            return _INTERRUPTED
        if self.unsent or outcomes["unknown"] or outcomes["pending"]:
            return UNKNOWN
        if outcomes["rejected"] or outcomes["error"]:
            return REFUSED
        return USAGE if outcomes["malformed"] else OK

    def document(self) -> dict[str, object]:
        reasons = [
            {"outcome": outcome, "reason": reason, "lines": count}
            for (outcome, reason), count in self.tally.reasons.most_common()
        ]
        return {
            "results": str(self.results),
            "outcomes": dict(self.tally.outcomes),
            "replayed": self.tally.replayed,
            "reasons": reasons,
            "skipped": dict(self.tally.skipped),
            "unsent": self.unsent,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
        }

    def render(self, out: Console) -> None:
        outcomes, skipped = self.tally.outcomes, self.tally.skipped
        again = f", {self.tally.replayed} of them by an earlier attempt" if self.tally.replayed else ""
        rows: list[list[object]] = [["granted", outcomes["granted"], again.removeprefix(", ")]]
        rows += [[outcome, count, reason] for (outcome, reason), count in self.tally.reasons.most_common()]
        rows += [[f"skipped ({outcome} before)", count, ""] for outcome, count in skipped.items()]
        rows += [["not sent", self.unsent, ""]] if self.unsent else []
        draw(out, table(["outcome", "lines", "reason"], rows))
        sent = outcomes.total() - outcomes["malformed"]
        rate = f", {sent / self.seconds:,.0f} a second" if sent and self.seconds else ""
        out.print(f"{_count(sent, 'line')} sent in {self.seconds:.1f} s{rate}. Results: {self.results}")
        if self.exit_code in (UNKNOWN, _INTERRUPTED):
            out.print("Run the same command again: what has an answer is skipped, the rest is asked with the same ids.")
        elif outcomes["rejected"] or skipped["rejected"]:
            out.print("Rejections may end (a top-up, another day): --retry-rejected asks again for them.")


async def _run(file: _File, survey: _Survey, sink: ResultsFile, given: Mapping[str, Any]) -> _Report:
    ctx = click.get_current_context()
    stop, tally = asyncio.Event(), Tally()
    began = time.monotonic()
    with _progress(survey.claims + survey.bad_count) as advance, _interruptible(stop) as interrupted:

        def record(results: Sequence[Result]) -> None:
            sink.append(results)
            tally.add(results)
            advance(tally.lines)

        timeout = max(timeout_seconds(ctx), _BATCH_SECONDS_MIN)
        async with open_async_client(ctx, channels=1, timeout=timeout) as client:
            run = BulkRun(
                client=client,
                record=record,
                stop=stop,
                batch_items_max=given["batch_items"],
                batches_in_flight_max=given["concurrency"],
                patience_seconds=given["patience"],
            )
            await run.issue(_claims_left(file, sink, tally, record))
    seconds = time.monotonic() - began
    return _Report(results=sink.path, survey=survey, tally=tally, seconds=seconds, interrupted=interrupted.is_set())


def _claims_left(
    file: _File, sink: ResultsFile, tally: Tally, record: Callable[[Sequence[Result]], None]
) -> Iterator[Claim]:
    """What is to be asked; counts what an earlier run has answered, records what can't be sent."""
    for line in file.lines():
        if isinstance(line, BadLine):
            text = "; ".join(f"{field}: {problem}" for field, problem in line.problems)
            record([Result(line.line, "", "", "malformed", "MALFORMED_LINE", message=text)])
        elif line.key in sink.done:
            tally.skipped[sink.done[line.key]] += 1
        else:
            yield line


@contextmanager
def _interruptible(stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """The first Ctrl-C (or SIGTERM) ends the run in good order, a second one at once; whether there was one."""
    interrupted = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if interrupted.is_set():
            task.cancel()
            return
        interrupted.set()
        stop.set()
        say("Stopping: waiting for the answers to what was sent. Once more to stop at once.")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield interrupted
    except asyncio.CancelledError:
        if not interrupted.is_set():
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; call it with the number of lines done."""
    err = console(sys.stderr)
    if not err.is_terminal:
        yield lambda _: None
        return
    columns = TextColumn("issuing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("issuing", total=total)
        yield lambda done: bar.update(task, completed=done)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

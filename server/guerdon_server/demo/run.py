"""The demo from end to end."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from guerdon import AsyncClient, GuerdonError, RetryPolicy
from guerdon_server import bootstrap
from guerdon_server.demo.books import Books, read_books
from guerdon_server.demo.comparison import Row, compare_again, compare_with_answers, compare_with_file, refused_for_lack
from guerdon_server.demo.crashes import Watch, moments
from guerdon_server.demo.delivery import Delivery
from guerdon_server.demo.errors import DemoError
from guerdon_server.demo.expectation import Expectation, expect
from guerdon_server.demo.process import ServerProcess
from guerdon_server.demo.promotion import ensure_promotion
from guerdon_server.demo.purchases import in_date_order, read_purchases
from guerdon_server.demo.report import Screen
from guerdon_server.demo.result import Result, delivery_outcome
from guerdon_server.demo.scenario import Scenario, Visit, scenario
from guerdon_server.platform import config, postgres
from guerdon_server.platform.engines import EngineError, Engines
from guerdon_server.settings import Settings

_GIVEN_BACK_SECONDS_MAX = 60.0
_GIVEN_BACK_PAUSE_SECONDS = 0.25
_CALL_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """`data` None: a fresh folder, removed at the end. `purchases` None: all; else the first so many by date."""

    data: Path | None = None
    crash: bool = False
    purchases: int | None = None
    seed: int = 1997


async def run(options: Options, screen: Screen) -> Result:
    """Whatever it finds is in the result: failed checks, and what stopped it. Cancel it to stop; it cleans up."""
    purchases = in_date_order(read_purchases())[: options.purchases]
    expectation = expect(purchases)
    plan = scenario(purchase_count=len(purchases), twin_seed=options.seed)
    visits = plan.visits(purchases)
    folder = options.data or _fresh_folder()
    result = Result(plan.promotion_id, len(purchases), expectation.customer_count, str(folder.absolute()))
    try:
        twins = sum(visit.twin for visit in visits)
        screen.opening(result, plan, twins=twins, kept=options.data is not None, crash=options.crash)
        await _Demo(plan, visits, expectation, screen, result).run(folder, crash=options.crash)
    except (DemoError, EngineError, GuerdonError, postgres.MigrationError, OSError) as error:
        result.error = str(error)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        result.seconds = screen.seconds
        # Who has to find out why a check failed needs the data and the logs.
        result.data_kept = options.data is not None or bool(result.error) or (bool(result.rows) and not result.passed)
        if not result.data_kept:
            shutil.rmtree(folder, ignore_errors=True)
    return result


@dataclass(frozen=True, slots=True)
class _Demo:
    plan: Scenario
    visits: Sequence[Visit]
    expectation: Expectation
    screen: Screen
    result: Result

    @property
    def ask_count(self) -> int:
        return sum(len(visit.asks) for visit in self.visits)

    async def run(self, folder: Path, *, crash: bool) -> None:
        async with AsyncExitStack() as stack:
            engines = Engines(folder)
            with self.screen.phase("engines started") as note:
                await stack.enter_async_context(engines)
                note(", ".join(f"{name} {version}" for name, version in engines.versions.items()))
            with self.screen.phase("database migrated") as note:
                versioned, repeatable = bootstrap.migration_sources()
                report = await postgres.migrate(engines.postgres_dsn, versioned=versioned, repeatable=repeatable)
                note(f"{len(report.applied)} steps")
            server = ServerProcess(
                postgres_dsn=engines.postgres_dsn,
                redis_url=engines.redis_url,
                folder=folder,
                log_path=folder / "logs" / "demo-server.log",
            )
            with self.screen.phase("server started") as note:
                await stack.enter_async_context(server)
                note(f"gRPC on {server.target}")
            serving = asyncio.Event()
            serving.set()
            watch = Watch(server, serving, moments(self.plan, ask_count=self.ask_count) if crash else ())
            await _while_watched(self._on(engines, server, serving, watch), watch.run(), _engines_end(engines))

    async def _on(self, engines: Engines, server: ServerProcess, serving: asyncio.Event, watch: Watch) -> None:
        # Without retries below: here every call that has no answer is to be seen, counted and delivered again.
        retry = RetryPolicy(max_attempts=1)
        async with AsyncClient(server.target, principal="demo", timeout=_CALL_SECONDS_MAX) as client:
            with self.screen.phase("promotion ready") as note:
                self.result.continued = await ensure_promotion(client, self.plan)
                note(
                    "an earlier run's: what it granted is replayed" if self.result.continued else self.plan.promotion_id
                )
            first = Delivery(client.with_options(retry=retry), self.plan, serving=serving, observe=watch.observe)
            await self._deliver_first(client, first, watch)
            with self.screen.phase("balances read") as note:
                books = await self._read_books(client)
                note(f"{books.account_count:,} accounts")
            self.result.from_file = compare_with_file(self.expectation, self.plan, first.answers, books)
            self.result.promises = (*compare_with_answers(first.answers, books), *self._crash_rows(watch))
            with self.screen.phase("books verified") as note:
                self.result.verified = await _verify(engines)
                note(f"{len(self.result.verified)} invariants")
            await self._deliver_again(client, first, books, serving)

    async def _deliver_first(self, client: AsyncClient, delivery: Delivery, watch: Watch) -> None:
        started = perf_counter()
        async with self.screen.delivering("every purchase delivered", delivery, self.ask_count):
            await delivery.in_order(self.visits)
            watch.close_accounts(delivery.answers)
            undecided = len(delivery.answers.changes_of_mind)
            asked_again = await self._ask_again(client, delivery)
        self.result.first = delivery_outcome(
            delivery.answers, seconds=perf_counter() - started, asked_again=asked_again
        )
        self.result.crashes = watch.crashes
        if not watch.crashes and not asked_again:
            # Without a crash nothing is given back, so twins have no reason to be told different things.
            delivery.answers.contradictions += delivery.answers.changes_of_mind[:undecided]

    async def _ask_again(self, client: AsyncClient, delivery: Delivery) -> int:
        """Who was refused for what a dead server held is asked for again, until what is left is too little for all."""
        asked = 0
        give_up_at = perf_counter() + _GIVEN_BACK_SECONDS_MAX
        while able := refused_for_lack(
            delivery.answers, self.plan, await read_books(client, self.plan, ()), self.expectation
        ):
            if perf_counter() > give_up_at:
                break  # the comparison will tell
            await delivery.asks(answer.ask for answer in able[:100])
            asked += len(able[:100])
            await asyncio.sleep(_GIVEN_BACK_PAUSE_SECONDS)
        return asked

    async def _deliver_again(self, client: AsyncClient, first: Delivery, before: Books, serving: asyncio.Event) -> None:
        again = Delivery(client, self.plan, serving=serving)
        once = [Visit(visit.purchase, visit.asks, twin=False) for visit in self.visits]
        started = perf_counter()
        async with self.screen.delivering("everything delivered once more", again, self.ask_count):
            await again.in_order(once)
        self.result.again = delivery_outcome(again.answers, seconds=perf_counter() - started, asked_again=0)
        with self.screen.phase("balances read again"):
            after = await self._read_books(client)
        self.result.unchanged = compare_again(first.answers, again.answers, before, after)

    async def _read_books(self, client: AsyncClient) -> Books:
        return await read_books(client, self.plan, self.expectation.coins_by_customer)

    def _crash_rows(self, watch: Watch) -> Sequence[Row]:
        if not watch.planned_count:
            return ()
        return (Row("crashes survived", f"{len(watch.crashes)}", f"{watch.planned_count}", not watch.left_count),)


async def _verify(engines: Engines) -> Sequence[Row]:
    given = {"GUERDON_POSTGRES_DSN": engines.postgres_dsn, "GUERDON_REDIS_URL": engines.redis_url}
    checks = await bootstrap.verify(config.load(Settings, env=given).settings)
    return [
        Row(
            check.promise,
            f"{check.compared:,} {check.what} compared, {check.violation_count:,} wrong",
            "; ".join(check.violations) or "none wrong",
            check.ok,
        )
        for check in checks
    ]


async def _engines_end(engines: Engines) -> None:
    name, status = await engines.wait_for_exit()
    raise DemoError(f"{name} ended by itself with status {status}. Its log is in {engines.data_dir / 'logs'}.")


async def _while_watched(work: Coroutine[None, None, None], *watches: Coroutine[None, None, None]) -> None:
    """Until the work is done; a watch that ends first ends it with its exception."""
    tasks = [asyncio.create_task(each) for each in (work, *watches)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in sorted(done, key=tasks.index, reverse=True):  # why the work failed is best known by a watch
        task.result()


def _fresh_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="guerdon-demo-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # PostgreSQL runs as another user then, who has to get through
    return folder

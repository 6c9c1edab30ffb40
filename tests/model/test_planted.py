"""The machines can fail: each planted defect is found, in the model or in a server, and the story of it is told.

A defect of the model must show in the very programs that the sequential machine takes. Because the servers are slow and
the model is not, the program is looked for with two models, and then taken on the servers.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings

from guerdon_server.core.issuance import rules
from guerdon_server.core.issuance.committer import Committer
from guerdon_server.core.issuance.model import IssueItem
from guerdon_server.core.ledger.model import CommitItem, KnownRequest
from guerdon_server.settings import Settings
from tests.model.calls import Call, Clock, Done, Expected, Given, GoCall, IssueCall, Told, make
from tests.model.conftest import staged
from tests.model.history import Called, History
from tests.model.model import Fixed, Item, Level, Model, No, Validity
from tests.model.programs import (
    AdjustStock,
    Again,
    Amount,
    Ask,
    Batch,
    Crowd,
    Goes,
    Issue,
    NewPrize,
    Pass,
    Program,
    SetUp,
    Step,
    programs,
)
from tests.model.stage import Disagreement, Play, Stage
from tests.model.test_concurrent import perform

_PROGRAMS_MAX = 200


class _LimitIsOneMore(Model):
    def refusals(self, promotion: str, entrance: str, item: Item) -> list[No]:
        prize = self.prizes.get(item.prize)
        if prize is None or not prize.limit:
            return super().refusals(promotion, entrance, item)
        prize.limit += 1
        found = super().refusals(promotion, entrance, item)
        prize.limit -= 1
        return found


class _HalfGoesUp(Model):
    def rounded(self, parts: int, rounding: str) -> int:
        return super().rounded(parts, "HALF_UP" if rounding == "HALF_EVEN" else rounding)


class _RefusedTakesStock(Model):
    def refusals(self, promotion: str, entrance: str, item: Item) -> list[No]:
        found = super().refusals(promotion, entrance, item)
        if any(no.reason == "BUDGET_EXHAUSTED" for no in found):
            self.prizes[item.prize].stock.issued += 1
        return found


class _RecallTakesWhatThereIs(Model):
    def adjust_stock(self, prize: str, delta: int, request: str) -> tuple[Level, bool] | No:
        left = self.stock(prize).remaining
        return super().adjust_stock(prize, max(delta, -left) if left else delta, request)


class _LastUnitStays(Model):
    def refusals(self, promotion: str, entrance: str, item: Item) -> list[No]:
        prize = self.prizes.get(item.prize)
        if prize is None:
            return super().refusals(promotion, entrance, item)
        prize.stock.issued += 1
        found = super().refusals(promotion, entrance, item)
        prize.stock.issued -= 1
        return found


@pytest.mark.parametrize(
    "defective", [_LimitIsOneMore, _HalfGoesUp, _RefusedTakesStock, _RecallTakesWhatThereIs, _LastUnitStays]
)
async def test_a_defect_of_the_model_is_found(stage: Stage, defective: Callable[[], Model]) -> None:
    program = _first_that_shows(defective)

    async with stage.play(program.set_up, defective()) as play:
        with pytest.raises(Disagreement, match=r"server \d: "):
            await _take(play, program.steps)
    async with stage.play(program.set_up) as play:
        await _take(play, program.steps)


def _first_that_shows(defective: Callable[[], Model]) -> Program:
    """The first of the sequential machine's programs in which a sound model and the defective one differ."""
    shown = next((program for program in _tame_programs() if _differ(program, defective())), None)
    assert shown is not None, f"no program of {_PROGRAMS_MAX} shows it"
    return shown


@functools.cache
def _tame_programs() -> Sequence[Program]:
    """Programs of the machine, without steps that the servers' known defects need."""
    made: list[Program] = []

    @hypothesis_settings(
        max_examples=_PROGRAMS_MAX,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs)
    def make_one(program: Program) -> None:
        made.append(_tame(program))

    make_one()
    return made


def _tame(program: Program) -> Program:
    steps = [pair for pair in program.steps if not isinstance(pair[1], Pass | Batch)]
    return replace(program, steps=tuple(steps))


def _differ(program: Program, defective: Model) -> bool:
    stage = Stage((), None, None, Clock(0.0))  # type: ignore[arg-type]  # nothing is sent
    sound, other = Play(stage, Model(), "x"), Play(stage, defective, "x")
    for play in (sound, other):
        play.open_model(program.set_up)
    calls = (sound.call(step) for _, step in program.steps)
    return any(call is not None and _told_apart(make(sound.model, call), make(other.model, call)) for call in calls)


def _told_apart(one: Expected, other: Expected) -> bool:
    """Whether no answer agrees with both."""
    if isinstance(one, list) and isinstance(other, list):
        return any(map(_told_apart, one, other))
    if isinstance(one, tuple) and isinstance(other, tuple) and isinstance(one[0], No):
        return not set(one) & set(other)
    return one != other


async def _take(play: Play, steps: Sequence[tuple[int, Step]]) -> None:
    for server, step in steps:
        await play.take(server, step)
    await play.compare_books(play.stage.desks[0])


# --- in a server ------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="session")
async def own_stage(settings: Settings) -> AsyncIterator[Stage]:
    """Servers of this test alone: gate and ledger drift apart under what is done to them."""
    async with staged(settings) as stage:
        yield stage


_COUPON = NewPrize("COUPON", "", None, 3, 0, None)
_COINS = NewPrize("COIN", "COIN", Fixed(2), None, 0, None)
_PAST = NewPrize("COUPON", "", None, None, 0, Validity(until=-0.5))
_ANY = Amount(1)


def _submitting(change: Callable[[CommitItem], CommitItem]) -> Callable[[Committer, Sequence[CommitItem]], object]:
    original = Committer.submit

    def submit(self: Committer, items: Sequence[CommitItem]) -> object:
        return original(self, [change(item) for item in items])

    return submit


def _whoever(known: KnownRequest, entrance_id: str, item: IssueItem) -> str | None:
    assert known.issuance is not None
    return None if known.issuance.prize_id == item.prize_id else "prize_id"


async def test_a_server_that_replays_to_anybody_is_found(own_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "identity_difference", _whoever)
    steps: list[tuple[int, Step]] = [(0, Issue(Ask(0, 0, 0, _ANY))), (1, Again(0)), (1, Issue(Ask(0, 1, 0, _ANY)))]

    async with own_stage.play(SetUp((None, None), (_COUPON,))) as play:
        with pytest.raises(Disagreement):
            await _take(play, steps)


async def test_a_server_that_books_more_than_it_says_is_seen(own_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Committer, "submit", _submitting(lambda item: item._replace(value=item.value and item.value + 1))
    )

    async with own_stage.play(SetUp((9, 9), (_COINS,))) as play:
        with pytest.raises(Disagreement, match="the books differ"):
            await _take(play, [(0, Issue(Ask(0, 0, 0, _ANY)))])


async def test_a_server_that_tears_a_batch_apart_is_found(own_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Committer, "submit", _submitting(lambda item: item._replace(group=0)))
    batch = Batch((Ask(0, 0, 0, _ANY), Ask(1, 0, 1, _ANY)), together=True)

    async with own_stage.play(SetUp((None, None), (_COUPON, _PAST))) as play:
        with pytest.raises(Disagreement, match="the model refuses it"):
            await _take(play, [(0, batch)])


# --- in a history -----------------------------------------------------------------------------------------------------


_QUIET: tuple[Step, ...] = (
    *(Issue(Ask(0, user, user, _ANY)) for user in range(3)),
    Issue(Ask(0, 0, 4, _ANY)),
    AdjustStock(0, Amount(2), 0),
    Issue(Ask(0, 0, 5, _ANY)),
    Goes("PAUSED"),
    Issue(Ask(0, 1, 6, _ANY)),
)
_CROWD = Crowd(SetUp((None, None), (_COUPON,)), ((0, _QUIET),))
"""One client, so that everybody knows what should have been said: three grants, sold out, a fourth, a pause."""


def _sold_out_too_early(called: Called) -> Called:
    if not isinstance(called.call, IssueCall) or not _request(called.call).endswith("r5"):
        return called
    return replace(called, told=No("SOLD_OUT", f"prizes/{called.call.item.prize}/stock", "0", "1"))


def _request(call: Call) -> str:
    return call.item.request if isinstance(call, IssueCall) else ""


def _paused_before(called: Called) -> Called:
    told: Told = called.told
    if isinstance(called.call, GoCall) and isinstance(told, Done):
        return replace(called, told=replace(told, at=told.at - 60_000_000))
    return called


def _new_twice(called: Called) -> Called:
    if isinstance(called.told, Given) and called.told.replayed is False and _request(called.call).endswith("r5"):
        return replace(called, told=replace(called.told, replayed=True))
    return called


@pytest.mark.parametrize(
    ("falsify", "why"),
    [
        (_sold_out_too_early, "granted as new|not so at any moment"),
        (_paused_before, "not allowed where the ledger has it"),
        (_new_twice, "granted as new"),
    ],
)
async def test_a_history_that_is_false_is_found(stage: Stage, falsify: Callable[[Called], Called], why: str) -> None:
    async with stage.play(_CROWD.set_up) as play:
        history = await perform(play, _CROWD)
        false = History(play, [falsify(called) for called in history.calls], 0)
        await false.read()

        with pytest.raises(Disagreement, match=why):
            false.check()
        history.check()


async def test_a_grant_beyond_the_stock_is_found_in_a_history(stage: Stage) -> None:
    """As if there had been one unit less than there was."""
    async with stage.play(_CROWD.set_up) as play:
        history = await perform(play, _CROWD)
        play.model.prizes[play.prizes[0]].stock.added -= 1
        false = History(play, history.calls, 0)
        await false.read()

        with pytest.raises(Disagreement, match="not allowed where the ledger has it"):
            false.check()

"""Batched is one by one: the same items in one batch, one after the other, and as commits, with the same outcomes."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from hypothesis import given

from guerdon_server.core.ledger.model import CommitCode, CommitResult
from guerdon_server.platform import postgres
from tests.model.calls import BatchCall, Given, IssueCall, make, send
from tests.model.conftest import machine
from tests.model.direct import DirectPlay, agrees
from tests.model.model import Item, Model, Yes
from tests.model.programs import Issue, Mix, mixes
from tests.model.stage import Play, Stage

DOOR = "door-0"
_numbers = count(1)


async def _prepare(play: Play, mix: Mix) -> tuple[Item, ...]:
    for number, step in enumerate(mix.before):
        await play.take(number % 2, step)
    return tuple(replace(play.item(ask), reference="") for ask in mix.asks)


def _stripped(play: Play, thing: object) -> str:
    return repr(thing).replace(f"{play.name}-", "")


@machine(20)
@given(mix=mixes)
async def test_a_batch_is_its_items_one_by_one(stage: Stage, mix: Mix) -> None:
    async with stage.play(mix.set_up) as batched, stage.play(mix.set_up) as single:
        items = await _prepare(batched, mix)
        call = BatchCall(batched.promotion, DOOR, items, together=False)
        told = await send(stage.desks[0], call, stage.clock)
        batched.judge(0, call, make(batched.model, call), told)
        for number, item in enumerate(await _prepare(single, mix)):
            one, desk = IssueCall(single.promotion, DOOR, item), stage.desks[number % 2]
            single.judge(number % 2, one, make(single.model, one), await send(desk, one, stage.clock))

        books = await batched.books(stage.desks[1])
        assert books == batched.model_books()
        assert _stripped(batched, books) == _stripped(single, await single.books(stage.desks[0]))


@machine(20)
@given(mix=mixes)
async def test_all_or_nothing_is_granted_whole_exactly_when_all_would_pass_in_order(stage: Stage, mix: Mix) -> None:
    async with stage.play(mix.set_up) as play:
        items = await _prepare(play, mix)
        before = play.model_books()
        call = BatchCall(play.promotion, DOOR, items, together=True)
        expected = make(play.model, call)
        assert isinstance(expected, list)
        told = await send(stage.desks[0], call, stage.clock)
        play.judge(0, call, expected, told)
        await play.compare_books(stage.desks[1])

        assert isinstance(told, list)
        whole = all(isinstance(answer, Given) for answer in told)
        assert whole is all(isinstance(answer, Yes) for answer in expected)
        if not whole:
            assert await play.books(stage.desks[0]) == before


@machine(40)
@given(mix=mixes)
async def test_a_commit_of_many_is_the_commits_of_each(ledger_pool: postgres.Pool, mix: Mix) -> None:
    plays = []
    for name in ("many", "each", "group"):
        play = DirectPlay(ledger_pool, Model(), f"{next(_numbers)}{name}")
        await play.open(mix.set_up)
        for step in mix.before:
            if isinstance(step, Issue):
                item = play.item(step.ask)
                if play.decided(item):
                    await play.commit([item])
                    play.model.issue(play.promotion, DOOR, item)
            else:
                await play.cancel(f"{play.name}-r{step.request}")
        plays.append(play)
    many, each, group = plays
    batches = [[item for ask in mix.asks if play.decided(item := play.item(ask))] for play in plays]
    if not batches[0]:
        return

    known = [many.model.requests.get((many.promotion, item.request)) is not None for item in batches[0]]
    expected = many.model.issue_batch(many.promotion, DOOR, batches[0])
    assert isinstance(expected, list)
    at_once = await many.commit(batches[0])
    one_by_one = [(await each.commit([item]))[0] for item in batches[1]]

    shown = f"{mix.set_up}\n{batches[0]}\nmany:  {at_once}\neach:  {one_by_one}\nmodel: {expected}"
    assert [_seen(result) for result in at_once] == [_seen(result) for result in one_by_one], shown
    assert all(map(agrees, expected, at_once, known)), shown
    books = await many.ledger_books()
    assert books == many.model_books(), shown
    assert _stripped(many, sorted(books.items())) == _stripped(each, sorted((await each.ledger_books()).items())), shown

    before = await group.ledger_books()
    as_group = await group.commit(batches[2], together=True)
    codes = {CommitCode(result.code) for result in as_group}
    if all(isinstance(answer, Yes) for answer in expected) and not any(known):
        assert codes == {CommitCode.GRANTED}, shown
        assert _stripped(group, sorted((await group.ledger_books()).items())) == _stripped(many, sorted(books.items()))
    else:
        assert CommitCode.GRANTED not in codes, f"{shown}\ngroup: {as_group}"
        assert await group.ledger_books() == before, shown


def _seen(result: CommitResult) -> tuple[object, ...]:
    return CommitCode(result.code).name, result.observed, result.threshold

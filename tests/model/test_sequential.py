"""One call after the other, alternating over two servers: every answer is the model's, and so are the books."""

from __future__ import annotations

from hypothesis import given

from tests.model.conftest import machine
from tests.model.programs import Program, programs
from tests.model.stage import Stage

_BOOKS_EVERY = 8


@machine(40)
@given(program=programs)
async def test_two_servers_answer_as_one_model(stage: Stage, program: Program) -> None:
    async with stage.play(program.set_up) as play:
        for number, (server, step) in enumerate(program.steps, 1):
            await play.take(server, step)
            if number % _BOOKS_EVERY == 0:
                await play.compare_books(stage.desks[number % 2])
        await play.compare_books(stage.desks[0])

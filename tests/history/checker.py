"""Whether one object's steps can be put in an order that explains all answers and respects real time.

The search is that of Wing and Gong with Lowe's memory of (what was placed, state). Four things keep it short, and none
of them loses an order:

- What changes nothing and is right at this place is placed at once: that changes nothing for the others.
- Of steps that are alike only the one that returned first is tried: in any order that takes another, the two can be
  swapped.
- A counter that only grows (issued, spent, balance) never passes a number that a step still has to see.
- With `ranked`, steps that bear a rank are placed in that order: the ledger's own, tried first as a witness.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Generic, Protocol, TypeVar


class State(Protocol):
    """The object between two steps."""

    @property
    def level(self) -> int:
        """The counter that only grows."""
        ...

    def key(self) -> Hashable:
        """What the set of placed steps does not say already."""
        ...


S = TypeVar("S", bound=State)
S_contra = TypeVar("S_contra", bound=State, contravariant=True)


class Action(Protocol[S_contra]):
    """What a step does to the object; `undo` is called in reverse order."""

    def right(self, state: S_contra) -> bool:
        """Whether it may be here, with this answer."""
        ...

    def do(self, state: S_contra) -> None: ...

    def undo(self, state: S_contra) -> None: ...

    def why_not(self, state: S_contra) -> str:
        """Why it is not right here, for people."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Step(Generic[S]):
    """One operation's effect on one object. It takes effect in [invoked, returned], seconds; returned may be infinite.

    required: False for what may also never take effect. writes: whether it changes the state. raises: by how much it
    raises the state's level. level: where the level must be when it takes effect. alike: steps of the same key raise
    by the same and can be swapped wherever real time lets them.
    """

    action: Action[S]
    invoked: float
    returned: float
    source: object
    required: bool = True
    writes: bool = False
    raises: int = 0
    level: int | None = None
    rank: int | None = None
    alike: Hashable = None


class Answer(enum.StrEnum):
    """What a search found."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "undecided"


@dataclass(slots=True)
class Found(Generic[S]):
    """order: one that explains everything. dead_ends: what could not be placed where the search got furthest, and why;
    placed: how many steps came before."""

    answer: Answer
    order: list[Step[S]] = field(default_factory=list)
    dead_ends: list[tuple[Step[S], str]] = field(default_factory=list)
    placed: int = 0
    nodes: int = 0


@dataclass(slots=True)
class Window(Generic[S]):
    """The smallest part of a history that has no order. `culprit`: with its answer the violation is complete; `needed`:
    reads and refusals without which there would be an order; `around`: what else took effect meanwhile."""

    culprit: Step[S]
    needed: list[Step[S]]
    around: list[Step[S]]
    reasons: list[str]


def search(
    steps: Sequence[Step[S]], new_state: Callable[[], S], *, ranked: bool = False, nodes_max: int = 100_000
) -> Found[S]:
    """One order of all required steps, or that there is none, or (after `nodes_max` places) neither."""
    impossible = _out_of_bounds(steps, new_state().level)
    if impossible is not None:
        return Found(Answer.VIOLATION, [], [impossible])
    return _Search(steps, new_state(), ranked).run(nodes_max)


def smallest_window(
    steps: Sequence[Step[S]],
    new_state: Callable[[], S],
    *,
    ranked: bool = False,
    nodes_max: int = 20_000,
    searches_max: int = 80,
) -> Window[S] | None:
    """Explains a violation: the earliest answer with which there is no order, and the reads that it takes.

    None: no part could be shown to have no order within the bounds.
    """

    def fails(some: Sequence[Step[S]]) -> Found[S] | None:
        found = search(some, new_state, ranked=ranked, nodes_max=nodes_max)
        return found if found.answer is Answer.VIOLATION else None

    ends = sorted({step.returned for step in steps if step.required})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if fails(_until(steps, ends[middle])):
            high = middle
        else:
            low = middle + 1
    prefix = _until(steps, ends[low])
    found = fails(prefix)
    if found is None:
        return None
    culprit = next((step for step, _ in found.dead_ends if step.returned == ends[low]), None) or next(
        step for step in prefix if step.required and step.returned == ends[low]
    )
    prefix, found = _without_reads(prefix, culprit, found, fails, searches_max)
    needed = [step for step in prefix if step.required and not step.writes and step is not culprit]
    begin = min(step.invoked for step in (culprit, *needed))
    around = [
        step for step in prefix if step.writes and step is not culprit and (step.returned >= begin or not step.raises)
    ]
    reasons = list(dict.fromkeys(reason for _, reason in found.dead_ends))
    return Window(culprit, needed, around, reasons)


def _out_of_bounds(steps: Sequence[Step[S]], level: int) -> tuple[Step[S], str] | None:
    """A step that sees a level which no order gives: less than all that had returned before, or more than all that had
    been invoked. Decides at once what amounts of many sizes make long to search."""
    raising = [step for step in steps if step.raises]
    returned = Sums((step.returned, step.raises) for step in raising if step.required)
    invoked = Sums((step.invoked, step.raises) for step in raising)
    for step in steps:
        if step.level is None or not step.required:
            continue
        least, most = level + returned.before(step.invoked), level + invoked.until(step.returned)
        if not least <= step.level <= most:
            return step, f"it saw {step.level}, where it may have been {least} to {most}"
    return None


class Sums:
    """Sums of amounts up to a moment."""

    def __init__(self, timed: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(timed)
        self._times = [moment for moment, _ in ordered]
        self._sums = [0, *accumulate(amount for _, amount in ordered)]

    def until(self, moment: float) -> int:
        """The moment included."""
        return self._sums[bisect_right(self._times, moment)]

    def before(self, moment: float) -> int:
        """Without the moment."""
        return self._sums[bisect_left(self._times, moment)]


def _until(steps: Sequence[Step[S]], end: float) -> list[Step[S]]:
    """The history as it was known at that moment: what had not returned may have taken effect or not."""
    known = []
    for step in steps:
        if step.returned <= end:
            known.append(step)
        elif step.writes and step.invoked <= end:
            known.append(replace(step, required=False, returned=math.inf))
    return known


def _without_reads(
    steps: list[Step[S]],
    culprit: Step[S],
    found: Found[S],
    fails: Callable[[Sequence[Step[S]]], Found[S] | None],
    searches_left: int,
) -> tuple[list[Step[S]], Found[S]]:
    """Leave out reads, in ever smaller portions, as long as there is still no order. (Without a read there may be
    more orders, never fewer.)"""
    reads = [step for step in steps if not step.writes and step is not culprit]
    portion = len(reads)
    while portion and searches_left > 0:
        for start in range(0, len(reads), portion):
            dropped = set(map(id, reads[start : start + portion]))
            without = [step for step in steps if id(step) not in dropped]
            searches_left -= 1
            still = fails(without)
            if still is not None:
                steps, found = without, still
            if searches_left <= 0:
                break
        left = set(map(id, steps))
        reads = [step for step in reads if id(step) in left]
        portion = min(portion // 2, len(reads))
    return steps, found


class _Search(Generic[S]):
    """Steps not yet placed are a linked list in order of invocation; `_trail` is what was placed, and is undone."""

    def __init__(self, steps: Sequence[Step[S]], state: S, ranked: bool) -> None:
        self._steps = sorted(steps, key=lambda step: step.invoked)
        self._state = state
        count = len(self._steps)
        self._next = [*range(1, count + 1), 0]  # the last element is head and end of the list
        self._previous = [count, *range(count)]
        self._placed = bytearray(count)
        self._mask = 0
        self._trail: list[int] = []
        required = [i for i, step in enumerate(self._steps) if step.required]
        self._missing = len(required)
        self._ends = sorted(required, key=lambda i: self._steps[i].returned)
        self._place_of_end = {i: place for place, i in enumerate(self._ends)}
        self._first_end = 0
        self._levels = sorted(level for level in (self._steps[i].level for i in required) if level is not None)
        self._levels_seen = 0
        self._by_rank = _by_rank(self._steps) if ranked else []
        self._ranked = ranked
        self._ranks_seen = 0
        self._deepest = -1
        self._dead_ends: list[tuple[Step[S], str]] = []

    def run(self, nodes_max: int) -> Found[S]:
        nodes = 0
        seen: set[Hashable] = set()
        frames: list[tuple[int, list[int]]] = []
        while True:
            self._place_reads()
            if not self._missing:
                return Found(Answer.LINEARIZABLE, [self._steps[i] for i in self._trail], nodes=nodes)
            nodes += 1
            if nodes > nodes_max:
                return Found(Answer.UNDECIDED, [], self._dead_ends, self._deepest, nodes)
            first = self._next[-1]
            key = (first, self._mask >> first, self._state.key())
            choices: list[int] = []
            if key not in seen:
                seen.add(key)
                choices = self._choices()
                if not choices:
                    self._note_dead_end()
            frames.append((len(self._trail), choices))
            while frames:
                mark, choices = frames[-1]
                while len(self._trail) > mark:
                    self._take_back()
                if choices:
                    self._place(choices.pop())
                    break
                frames.pop()
            else:
                return Found(Answer.VIOLATION, [], self._dead_ends, self._deepest, nodes)

    def _limit(self) -> float:
        """The earliest return of what is required and not placed: what was invoked later must come later."""
        ends, placed = self._ends, self._placed
        while self._first_end < len(ends) and placed[ends[self._first_end]]:
            self._first_end += 1
        return self._steps[ends[self._first_end]].returned if self._first_end < len(ends) else math.inf

    def _place_reads(self) -> None:
        limit, steps, state = self._limit(), self._steps, self._state
        i = self._next[-1]
        while i < len(steps) and steps[i].invoked <= limit:
            after = self._next[i]
            step = steps[i]
            if not step.writes and (step.level is None or step.level == state.level) and step.action.right(state):
                self._place(i)
                limit = self._limit()
            i = after

    def _choices(self) -> list[int]:
        """The writes that may come next, the most urgent last."""
        limit, steps, state = self._limit(), self._steps, self._state
        alike: dict[Hashable, int] = {}
        i = self._next[-1]
        while i < len(steps) and steps[i].invoked <= limit:
            step = steps[i]
            if step.writes and self._may_come(i, step) and step.action.right(state):
                name = i if step.alike is None else (step.alike,)
                other = alike.get(name)
                if other is None or step.returned < steps[other].returned:
                    alike[name] = i
            i = self._next[i]
        return sorted(alike.values(), key=lambda i: (steps[i].level is None, steps[i].returned), reverse=True)

    def _may_come(self, i: int, step: Step[S]) -> bool:
        if self._ranked and step.rank is not None and self._by_rank[self._ranks_seen] != i:
            return False
        if step.level is not None and step.level != self._state.level:
            return False
        return not step.raises or self._next_level() >= self._state.level + step.raises

    def _next_level(self) -> float:
        """The lowest level that a required step still has to see."""
        return self._levels[self._levels_seen] if self._levels_seen < len(self._levels) else math.inf

    def _place(self, i: int) -> None:
        step = self._steps[i]
        step.action.do(self._state)
        before, after = self._previous[i], self._next[i]
        self._next[before], self._previous[after] = after, before
        self._placed[i] = 1
        self._mask |= 1 << i
        self._trail.append(i)
        self._count(step, 1)

    def _take_back(self) -> None:
        i = self._trail.pop()
        step = self._steps[i]
        step.action.undo(self._state)
        self._next[self._previous[i]] = self._previous[self._next[i]] = i
        self._placed[i] = 0
        self._mask ^= 1 << i
        self._count(step, -1)
        if step.required:
            self._first_end = min(self._first_end, self._place_of_end[i])

    def _count(self, step: Step[S], by: int) -> None:
        if step.required:
            self._missing -= by
            if step.level is not None:
                self._levels_seen += by
        if self._ranked and step.rank is not None:
            self._ranks_seen += by

    def _note_dead_end(self) -> None:
        """What returned first of what is missing could not be placed in time."""
        depth = len(self._trail)
        if depth < self._deepest or (depth == self._deepest and len(self._dead_ends) >= _DEAD_ENDS_KEPT):
            return
        if depth > self._deepest:
            self._deepest, self._dead_ends = depth, []
        limit = self._limit()
        step = self._steps[self._ends[self._first_end]]
        assert step.returned == limit
        self._dead_ends.append((step, self._why_not(self._ends[self._first_end], step)))

    def _why_not(self, i: int, step: Step[S]) -> str:
        level = self._state.level
        if not step.action.right(self._state):
            return step.action.why_not(self._state)
        if step.level is not None and step.level != level:
            return f"it saw {step.level}, and here it is {level}"
        if step.raises and self._next_level() < level + step.raises:
            return f"it goes from {level} to {level + step.raises}, and an answer still has to see {self._next_level()}"
        if not self._may_come(i, step):
            before = self._steps[self._by_rank[self._ranks_seen]]
            return f"the ledger has this before it: {before.source}"
        return "it is right here, and what follows from it is not"


_DEAD_ENDS_KEPT = 8


def _by_rank(steps: Sequence[Step[S]]) -> list[int]:
    ranked = [(step.rank, i) for i, step in enumerate(steps) if step.rank is not None]
    return [i for _, i in sorted(ranked)]

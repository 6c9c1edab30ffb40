"""Programs: what is set up, and the steps that clients then take. Values, so that Hypothesis can shrink and print them.

Names are small numbers (the first prize, the second user, ...), so that steps meet each other often. An amount is plain
or lies on an edge: so many units from what is left of the stock or budget at that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from hypothesis import strategies as st

from tests.model.model import UNITS_MAX, Fixed, Rate, Rule, Validity

ASSETS = ("COIN", "USD/2")
USERS, REQUESTS, ENTRANCES = 3, 12, 3
UNBOUND, UNKNOWN = 2, 3
"""Entrances: 0 and 1 are bound at first, 2 is not, 3 does not exist."""
ATTRIBUTE, OTHER_ATTRIBUTE = "order_cents", "cart_cents"


@dataclass(frozen=True)
class Amount:
    """Units; on an edge: from what is left (of a limited budget or stock)."""

    units: int
    edge: bool = False


@dataclass(frozen=True)
class NewPrize:
    kind: str
    asset: str
    rule: Rule | None
    stock: int | None
    limit: int
    validity: Validity | None


@dataclass(frozen=True)
class SetUp:
    """A promotion that is active, with budgets in all assets (None: unlimited)."""

    budgets: tuple[int | None, ...]
    prizes: tuple[NewPrize, ...]


@dataclass(frozen=True)
class Ask:
    """One reward. `flaw`: see FLAWS."""

    prize: int
    user: int
    request: int
    amount: Amount
    flaw: str = ""


@dataclass(frozen=True)
class Issue:
    ask: Ask
    entrance: int = 0


@dataclass(frozen=True)
class Batch:
    asks: tuple[Ask, ...]
    together: bool
    entrance: int = 0


@dataclass(frozen=True)
class Again:
    """An earlier issue or batch, word for word."""

    which: int


@dataclass(frozen=True)
class Resolve:
    request: int
    cancel: bool


@dataclass(frozen=True)
class AdjustStock:
    """`request`: adjustments have request ids of their own, few of them."""

    prize: int
    amount: Amount
    request: int


@dataclass(frozen=True)
class AdjustBudget:
    asset: int
    amount: Amount
    request: int


@dataclass(frozen=True)
class Goes:
    target: str


@dataclass(frozen=True)
class SetLimit:
    prize: int
    limit: int


@dataclass(frozen=True)
class SetRule:
    prize: int
    rule: Rule


@dataclass(frozen=True)
class SetValidity:
    prize: int
    validity: Validity | None


@dataclass(frozen=True)
class Bind:
    entrances: tuple[int, ...]


@dataclass(frozen=True)
class SetWindow:
    """Hours from now."""

    starts: float | None
    ends: float | None


@dataclass(frozen=True)
class Pass:
    """Hours go by."""

    hours: int


Step: TypeAlias = (
    Issue
    | Batch
    | Again
    | Resolve
    | AdjustStock
    | AdjustBudget
    | Goes
    | SetLimit
    | SetRule
    | SetValidity
    | Bind
    | SetWindow
    | Pass
)


@dataclass(frozen=True)
class Program:
    """Steps, each at one of two servers."""

    set_up: SetUp
    steps: tuple[tuple[int, Step], ...]


@dataclass(frozen=True)
class Crowd:
    """Clients at work at the same time, each at one of two servers, one step after the other."""

    set_up: SetUp
    clients: tuple[tuple[int, tuple[Step, ...]], ...]


FLAWS = ("user_id", "reference", "text", "boolean", "negative", "missing", "prize_unknown", "prize_elsewhere")
"""user_id and reference are malformed; the attribute is a text, a boolean, negative or missing; there is no such prize,
or another promotion has it."""

# Flat choices with weights: one_of would count the branches of its branches.
_UNITS = (0, 1, 2, 3, 5, 7, 15, 25, 30, 50, 99, 150, 5_000, 10_001)
_EDGES = tuple(Amount(units, edge=True) for units in (-2, -1, 0, 0, 1, 1))
amounts = st.sampled_from((*map(Amount, _UNITS), *_EDGES, *_EDGES, Amount(UNITS_MAX), Amount(2**63 - 1)))
deltas = st.sampled_from((*map(Amount, (-3, -2, -1, 1, 1, 2, 3, 40)), *_EDGES, Amount(UNITS_MAX)))
capacities = st.one_of(st.integers(0, 4), st.integers(0, 6), st.none())
budgets = st.one_of(st.none(), st.integers(0, 30), st.sampled_from((1, 100, 5_000, UNITS_MAX)))
roundings = st.sampled_from(("HALF_UP", "HALF_EVEN", "HALF_EVEN", "DOWN", "UP"))
fixed = st.builds(Fixed, st.sampled_from((1, 2, 3, 7, 10, 100, UNITS_MAX)))


@st.composite
def _rates(draw: st.DrawFn) -> Rate:
    low = draw(st.one_of(st.none(), st.none(), st.integers(1, 5)))
    high = draw(st.one_of(st.none(), st.none(), st.integers(low or 1, 40)))
    points = draw(st.sampled_from((10_000, 10_000, 5_000, 5_000, 15_000, 15_000, 2_500, 333, 1, 1_000_000)))
    name = draw(st.sampled_from((ATTRIBUTE, ATTRIBUTE, ATTRIBUTE, OTHER_ATTRIBUTE)))
    return Rate(name, points, draw(roundings), low, high)


rules: st.SearchStrategy[Rule] = st.one_of(fixed, _rates(), _rates())
validities = st.one_of(
    st.none(),
    st.none(),
    st.builds(Validity, days=st.integers(1, 3)),
    st.builds(Validity, until=st.sampled_from((1.5, 1.5, -0.5))),
)
limits = st.sampled_from((0, 0, 1, 1, 2, 3))


@st.composite
def _prizes(draw: st.DrawFn) -> NewPrize:
    kind = draw(st.sampled_from(("COUPON", "COIN", "CASHBACK", "GOODS")))
    valued = kind in ("COIN", "CASHBACK") or draw(st.booleans())
    return NewPrize(
        kind,
        draw(st.sampled_from(ASSETS)) if valued else "",
        draw(rules) if valued else None,
        draw(capacities),
        draw(limits),
        draw(validities),
    )


set_ups = st.builds(SetUp, st.tuples(budgets, budgets), st.lists(_prizes(), min_size=1, max_size=3).map(tuple))
_numbers = st.integers(0, 2)
_entrances = st.sampled_from((*(0,) * 12, 1, 1, UNBOUND, UNKNOWN))
_flaws = st.sampled_from((*("",) * 60, *FLAWS))
asks = st.builds(Ask, _numbers, st.integers(0, USERS - 1), st.integers(0, REQUESTS - 1), amounts, _flaws)
plain_asks = st.builds(Ask, _numbers, st.integers(0, USERS - 1), st.integers(0, REQUESTS - 1), amounts)
_issues = st.builds(Issue, asks, _entrances)


def batches(of: st.SearchStrategy[Ask], *, size_max: int, distinct: bool = True) -> st.SearchStrategy[tuple[Ask, ...]]:
    """Items of one batch; request ids are distinct, or perhaps not."""
    by: Callable[[Ask], int] | None = (lambda ask: ask.request) if distinct else None
    return st.lists(of, min_size=1, max_size=size_max, unique_by=by).map(tuple)


_batches = st.builds(Batch, batches(asks, size_max=6), st.booleans(), _entrances)
_loose_batches = st.builds(Batch, batches(asks, size_max=4, distinct=False), st.booleans(), st.just(0))
_again = st.builds(Again, st.integers(0, 7))
_goes = st.sampled_from((*("PAUSED", "ACTIVE", "ACTIVE") * 4, "SCHEDULED", "ENDED", "ARCHIVED")).map(Goes)
_changes: st.SearchStrategy[Step] = st.one_of(
    st.builds(SetLimit, _numbers, limits),
    st.builds(SetRule, _numbers, rules),
    st.builds(SetValidity, _numbers, validities),
    st.builds(Bind, st.lists(st.integers(0, ENTRANCES - 1), min_size=1, max_size=3, unique=True).map(tuple)),
)
_adjustments: st.SearchStrategy[Step] = st.one_of(
    st.builds(AdjustStock, _numbers, deltas, st.integers(0, 5)),
    st.builds(AdjustBudget, st.integers(0, 1), deltas, st.integers(0, 5)),
)
_windows = st.builds(SetWindow, st.sampled_from((None, -0.5, 0.5)), st.sampled_from((None, None, 0.5, 2.5)))
_resolves = st.builds(Resolve, st.integers(0, REQUESTS - 1), st.booleans())


def _weighted(*of: tuple[int, st.SearchStrategy[Step]]) -> st.SearchStrategy[Step]:
    """One of them, each as often as its weight says (one_of would count the branches of its branches)."""
    return st.sampled_from([strategy for weight, strategy in of for _ in range(weight)]).flatmap(lambda one: one)


_steps = _weighted(
    (8, _issues),
    (5, _batches),
    (1, _loose_batches),
    (2, _again),
    (2, _resolves),
    (4, _adjustments),
    (2, _goes),
    (4, _changes),
    (1, _windows),
    (1, st.builds(Pass, st.integers(1, 2))),
)
programs = st.builds(
    Program, set_ups, st.lists(st.tuples(st.integers(0, 1), _steps), min_size=10, max_size=30).map(tuple)
)

# Concurrently: no time passes, the promotion does not end, and amounts are plain (an edge moves under one's hands).
_plain = st.builds(
    Ask, _numbers, st.integers(0, 1), st.integers(0, 8), st.builds(Amount, st.sampled_from((1, 2, 3, 5, 10, 15, 25)))
)
_busy = _weighted(
    (9, st.builds(Issue, _plain, st.sampled_from((0, 0, 0, 0, 0, 1)))),
    (4, st.builds(Batch, batches(_plain, size_max=5), st.booleans())),
    (1, st.builds(Resolve, st.integers(0, 8), st.booleans())),
    (2, st.builds(AdjustStock, _numbers, st.sampled_from((-2, -1, 1, 2, 3)).map(Amount), st.integers(0, 3))),
    (1, st.builds(AdjustBudget, st.integers(0, 1), st.sampled_from((-5, -1, 1, 3, 10)).map(Amount), st.integers(0, 3))),
    (2, st.sampled_from(("ACTIVE", "ACTIVE", "ACTIVE", "PAUSED")).map(Goes)),
    (1, st.builds(SetLimit, _numbers, limits)),
    (1, st.builds(SetRule, _numbers, rules)),
)
_lasting = (
    _prizes()
    .filter(lambda new: new.validity is None or new.validity.until is None)
    .map(lambda new: new if new.stock is None else replace(new, stock=new.stock + 2))
)
_timeless = st.builds(SetUp, st.tuples(budgets, budgets), st.lists(_lasting, min_size=1, max_size=2).map(tuple))
crowds = st.builds(
    Crowd,
    _timeless,
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(_busy, min_size=2, max_size=6).map(tuple)), min_size=3, max_size=6
    ).map(tuple),
)


@dataclass(frozen=True)
class Mix:
    """A list of items that is given in every way there is, after the same steps."""

    set_up: SetUp
    before: tuple[Issue | Resolve, ...]
    asks: tuple[Ask, ...]


_cancels = st.builds(Resolve, st.integers(0, REQUESTS - 1), st.just(True))
mixes = st.builds(
    Mix,
    set_ups,
    st.lists(st.one_of(st.builds(Issue, plain_asks), st.builds(Issue, plain_asks), _cancels), max_size=4).map(tuple),
    batches(st.one_of(plain_asks, plain_asks, asks), size_max=10),
)

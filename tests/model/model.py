"""An executable issuer and ledger in plain Python: what Guerdon promises, in dicts and integers.

It is written from the promises (the protos and docs/ARCHITECTURE.md) and shares no code with the server or the client;
test_model.py asserts that it imports nothing of theirs. There is no concurrency and no failure here: one call after the
other, each whole. The machines beside it drive servers and model side by side, and compare.

Instants are hours (floats) on a clock of the model's own, `now`. Amounts are integers in minor units. States, kinds,
roundings and reasons go by their names on the wire, without prefixes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

UNITS_MAX = 2**53 - 1
ACCOUNT_MAX = 2**62
"""A balance stays below it, on either side of zero."""

Attribute: TypeAlias = int | str | bool
Account: TypeAlias = tuple[str, str, str]
"""Kind, owner (a user's or a promotion's id), item (a prize's id or an asset)."""

_NEXT = {
    "DRAFT": {"SCHEDULED", "ARCHIVED"},
    "SCHEDULED": {"ACTIVE", "ENDED"},
    "ACTIVE": {"PAUSED", "ENDED"},
    "PAUSED": {"ACTIVE", "ENDED"},
    "ENDED": {"ARCHIVED"},
    "ARCHIVED": set(),
}
_STATE_REASONS = {
    "DRAFT": "PROMOTION_NOT_STARTED",
    "SCHEDULED": "PROMOTION_NOT_STARTED",
    "PAUSED": "PROMOTION_PAUSED",
    "ENDED": "PROMOTION_ENDED",
    "ARCHIVED": "PROMOTION_ENDED",
}


@dataclass(frozen=True)
class Fixed:
    """The same value for every grant."""

    units: int


@dataclass(frozen=True)
class Rate:
    """round(attribute x basis_points / 10000), raised to floor where above zero, cut at cap."""

    attribute: str
    basis_points: int
    rounding: str
    floor: int | None = None
    cap: int | None = None


Rule: TypeAlias = Fixed | Rate


@dataclass(frozen=True)
class Validity:
    """When a grant expires: at the instant `until`, or so many times 24 hours after it was made."""

    until: float | None = None
    days: int | None = None


@dataclass(frozen=True)
class Item:
    """One reward that is asked for. `flawed`: the field that makes it unreadable, such as "user_id"."""

    prize: str
    user: str
    request: str
    reference: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    flawed: str = ""

    def __repr__(self) -> str:
        extra = f" {dict(self.attributes)}" if self.attributes else ""
        return f"{self.request}: {self.prize} to {self.user}{extra}{' bad ' + self.flawed if self.flawed else ''}"


@dataclass(frozen=True)
class Yes:
    """Granted. `replayed`: before this call."""

    promotion: str
    entrance: str
    prize: str
    user: str
    request: str
    reference: str
    kind: str
    asset: str
    value: int | None
    validity: Validity | None
    replayed: bool

    def __repr__(self) -> str:
        value = "" if self.value is None else f" worth {self.value} {self.asset}"
        return f"{'replayed' if self.replayed else 'granted'}: {self.prize} to {self.user}{value}"


@dataclass(frozen=True)
class No:
    """One reason that holds. A rejection with rule, observed and threshold, or an error with the field it names."""

    reason: str
    rule: str = ""
    observed: str = ""
    threshold: str = ""
    field: str = ""
    error: bool = False

    def __repr__(self) -> str:
        if self.error:
            return f"error {self.reason} {self.field}".rstrip()
        return f"{self.reason} ({self.rule}: {self.observed or '-'}, wanted {self.threshold or '-'})"


Answer: TypeAlias = Yes | tuple[No, ...]
"""Granted, or every reason that holds: which of several true ones is told is not promised."""

NOT_WHOLE = No("BATCH_NOT_GRANTED", "batch/all_or_nothing")


def failed(reason: str, field: str = "") -> No:
    """An error by its reason."""
    return No(reason, field=field, error=True)


@dataclass(frozen=True)
class CallRefused:
    """The whole call is refused, and changes nothing."""

    why: No


@dataclass(frozen=True)
class Level:
    """Of a stock or budget: capacity and remaining are None where unlimited."""

    capacity: int | None
    issued: int
    remaining: int | None


@dataclass
class Pot:
    """A stock or a budget: a pair of accounts, the source and itself."""

    limited: bool
    added: int
    recalled: int = 0
    issued: int = 0

    def level(self) -> Level:
        if not self.limited:
            return Level(None, self.issued, None)
        capacity = self.added - self.recalled
        return Level(capacity, self.issued, capacity - self.issued)

    def lacks(self, amount: int) -> bool:
        """Whether so much can't be taken any more."""
        return self.limited and self.added - self.recalled - self.issued < amount


@dataclass
class Promotion:
    state: str
    entrances: set[str]
    starts: float | None
    ends: float | None
    budgets: dict[str, Pot]


@dataclass
class Prize:
    promotion: str
    kind: str
    asset: str
    rule: Rule | None
    limit: int
    validity: Validity | None
    stock: Pot

    @property
    def pays_out(self) -> bool:
        """Into a wallet; else the value is what the promotion has outstanding."""
        return self.kind in ("COIN", "CASHBACK")


@dataclass
class Granted:
    """What a request id was granted, and what its value was computed from."""

    yes: Yes
    attribute: str = ""
    basis: int | None = None


class Model:
    """Every promise in one object; calls never overlap. Ids are the caller's."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.entrances: set[str] = set()
        self.promotions: dict[str, Promotion] = {}
        self.prizes: dict[str, Prize] = {}
        self.holdings: Counter[tuple[str, str]] = Counter()  # (user, prize): units
        self.wallets: Counter[tuple[str, str]] = Counter()  # (user, asset): units
        self.liabilities: dict[tuple[str, str], int] = {}  # (promotion, asset): units
        self.requests: dict[tuple[str, str], Granted | None] = {}  # (promotion, request); None: cancelled, for ever
        self.done: dict[tuple[str, str], Mapping[str, object]] = {}  # (method, request id): the content it was done for

    # --- catalogue ------------------------------------------------------------------------------------------------

    def create_promotion(self, promotion: str, entrances: Sequence[str], budgets: Mapping[str, int | None]) -> None:
        """A draft; budgets by asset, None for unlimited."""
        self.entrances |= set(entrances)
        pots = {asset: Pot(units is not None, units or 0) for asset, units in budgets.items()}
        self.promotions[promotion] = Promotion("DRAFT", set(entrances), None, None, pots)

    def create_prize(
        self,
        prize: str,
        promotion: str,
        *,
        kind: str,
        asset: str = "",
        rule: Rule | None = None,
        stock: int | None = None,
        limit: int = 0,
        validity: Validity | None = None,
    ) -> None:
        """`stock` None: unlimited."""
        made = Prize(promotion, kind, asset, rule, limit, validity, Pot(stock is not None, stock or 0))
        self.prizes[prize] = made
        if rule is not None and not made.pays_out:
            self.liabilities.setdefault((promotion, asset), 0)

    def state(self, promotion: str) -> str:
        """What a promotion is now: starts and ends have been applied."""
        it = self.promotions[promotion]
        if it.state in ("SCHEDULED", "ACTIVE", "PAUSED") and it.ends is not None and it.ends <= self.now:
            return "ENDED"
        if it.state == "SCHEDULED" and (it.starts is None or it.starts <= self.now):
            return "ACTIVE"
        return it.state

    def transition(self, promotion: str, target: str) -> No | None:
        """None: it is in that state now."""
        it, now = self.promotions[promotion], self.state(promotion)
        if target == now:
            return None
        if target not in _NEXT[now]:
            return failed("TRANSITION_NOT_ALLOWED")
        it.state = target
        if target == "ACTIVE" and it.starts is not None:
            it.starts = min(it.starts, self.now)
        return None

    def set_window(self, promotion: str, starts: float | None, ends: float | None) -> No | None:
        """Both ends of it."""
        it, now = self.promotions[promotion], self.state(promotion)
        if now in ("ENDED", "ARCHIVED"):
            return failed("PROMOTION_ENDED")
        if starts is not None and ends is not None and starts >= ends:
            return failed("INVALID_FIELD", "promotion.ends_at")
        if now in ("ACTIVE", "PAUSED") and starts is not None and starts > self.now:
            return failed("PROMOTION_STARTED")
        it.starts, it.ends = starts, ends
        return None

    def bind(self, promotion: str, entrances: Sequence[str]) -> No | None:
        """To these entrances and no others."""
        if self.state(promotion) in ("ENDED", "ARCHIVED"):
            return failed("PROMOTION_ENDED")
        if not set(entrances) <= self.entrances:
            return failed("ENTRANCE_NOT_FOUND")
        self.promotions[promotion].entrances = set(entrances)
        return None

    def set_limit(self, prize: str, limit: int) -> No | None:
        """At most so many for one user; 0: no limit."""
        self.prizes[prize].limit = limit
        return None

    def set_rule(self, prize: str, rule: Rule) -> No | None:
        """What a grant is worth from now on."""
        if self.prizes[prize].rule is None:
            return failed("INVALID_FIELD", f"prize.value.{'fixed_units' if isinstance(rule, Fixed) else 'rate'}")
        self.prizes[prize].rule = rule
        return None

    def set_validity(self, prize: str, validity: Validity | None) -> No | None:
        """When grants expire from now on."""
        self.prizes[prize].validity = validity
        return None

    # --- stock and budget -----------------------------------------------------------------------------------------

    def adjust_stock(self, prize: str, delta: int, request: str) -> tuple[Level, bool] | No:
        """The stock as it is now, and whether this had been done before."""
        stock = self.prizes[prize].stock
        return self._adjust("STOCK", stock, delta, request, {"prize_id": prize, "delta_units": delta})

    def adjust_budget(self, promotion: str, asset: str, delta: int, request: str) -> tuple[Level, bool] | No:
        """The same of a budget; a top-up opens one that there is not."""
        budgets = self.promotions[promotion].budgets
        pot = budgets.get(asset) or Pot(True, 0)
        content = {"promotion_id": promotion, "asset": asset, "delta_units": delta}
        answer = self._adjust("BUDGET", pot, delta, request, content)
        if not isinstance(answer, No):
            budgets[asset] = pot
        return answer

    def _adjust(
        self, name: str, pot: Pot, delta: int, request: str, content: Mapping[str, object]
    ) -> tuple[Level, bool] | No:
        if delta == 0 or abs(delta) > UNITS_MAX:
            return failed("INVALID_FIELD", "delta_units")
        before = self.done.get((name, request))
        if before is not None:
            differing = [key for key in content if content[key] != before[key]]
            return failed("REQUEST_ID_REUSED", differing[0]) if differing else (pot.level(), True)
        if not pot.limited:
            return failed("CAPACITY_UNLIMITED")
        if pot.lacks(-delta):
            return failed(f"{name}_INSUFFICIENT")
        if pot.added - pot.recalled + delta > UNITS_MAX:
            return failed("CAPACITY_LIMIT")
        if delta > 0:
            pot.added += delta
        else:
            pot.recalled -= delta
        self.done[name, request] = content
        return pot.level(), False

    def stock(self, prize: str) -> Level:
        """As the ledger has it."""
        return self.prizes[prize].stock.level()

    def budget(self, promotion: str, asset: str) -> Level:
        """As the ledger has it."""
        return self.promotions[promotion].budgets[asset].level()

    # --- issuing --------------------------------------------------------------------------------------------------

    def issue(self, promotion: str, entrance: str, item: Item) -> Answer | CallRefused:
        """One reward. A refusal changes nothing."""
        if item.flawed:
            return CallRefused(failed("INVALID_FIELD", item.flawed))
        answers = self.issue_batch(promotion, entrance, [item])
        return answers if isinstance(answers, CallRefused) else answers[0]

    def issue_batch(
        self, promotion: str, entrance: str, items: Sequence[Item], *, together: bool = False
    ) -> list[Answer] | CallRefused:
        """An answer for each, in order. `together`: all are granted (now or before), or none is now."""
        ids = [item.request for item in items]
        for index, request in enumerate(ids):
            if request in ids[:index]:
                return CallRefused(failed("INVALID_FIELD", f"items[{index}].request_id"))
        if all(item.flawed for item in items):
            return [self._flawed(index, item) for index, item in enumerate(items)]
        if promotion not in self.promotions:
            return CallRefused(failed("PROMOTION_NOT_FOUND"))
        if entrance not in self.entrances:
            return CallRefused(failed("ENTRANCE_NOT_FOUND"))
        before = copy.deepcopy(self.__dict__)
        answers = [
            self._flawed(index, item) if item.flawed else self._answer(promotion, entrance, item)
            for index, item in enumerate(items)
        ]
        refused = [index for index, answer in enumerate(answers) if not isinstance(answer, Yes)]
        if not together or not refused:
            return answers
        self.__dict__.update(before)
        return [self._not_whole(answer, refused != [index]) for index, answer in enumerate(answers)]

    def _has(self, promotion: str, prize: str) -> bool:
        return prize in self.prizes and self.prizes[prize].promotion == promotion

    @staticmethod
    def _flawed(index: int, item: Item) -> Answer:
        return (failed("INVALID_FIELD", f"items[{index}].{item.flawed}"),)

    @staticmethod
    def _not_whole(answer: Answer, others_failed: bool) -> Answer:
        """What an item of a batch that is not granted may be told: its own reason, or that another one failed."""
        if isinstance(answer, Yes):
            return answer if answer.replayed else (NOT_WHOLE,)
        own_only = not others_failed or any(why.error and why.reason == "REQUEST_ID_REUSED" for why in answer)
        return answer if own_only else (*answer, NOT_WHOLE)

    def _answer(self, promotion: str, entrance: str, item: Item) -> Answer:
        known = self.requests.get((promotion, item.request))
        if known is not None:
            return self._replayed(known, entrance, item)
        refusals = self.refusals(promotion, entrance, item)
        if refusals:
            return tuple(refusals)
        return self._grant(promotion, entrance, item)

    @staticmethod
    def _replayed(known: Granted, entrance: str, item: Item) -> Answer:
        yes = known.yes
        for name, was, asked in (
            ("user_id", yes.user, item.user),
            ("prize_id", yes.prize, item.prize),
            ("entrance_id", yes.entrance, entrance),
        ):
            if was != asked:
                return (failed("REQUEST_ID_REUSED", name),)
        if known.attribute:
            asked_basis = item.attributes.get(known.attribute)
            if isinstance(asked_basis, bool) or asked_basis != known.basis:
                return (failed("REQUEST_ID_REUSED", f"attributes[{known.attribute}]"),)
        return replace(yes, replayed=True)

    def refusals(self, promotion: str, entrance: str, item: Item) -> list[No]:
        """Every reason why a request that was not granted before can't be granted now."""
        found: list[No] = []
        if (promotion, item.request) in self.requests:
            found.append(No("CANCELLED", f"requests/{item.request}"))
        if not self._has(promotion, item.prize):
            found.append(failed("PRIZE_NOT_IN_PROMOTION" if item.prize in self.prizes else "PRIZE_NOT_FOUND"))
            return found
        if entrance not in self.promotions[promotion].entrances:
            found.append(failed("ENTRANCE_NOT_BOUND"))
        prize, where = self.prizes[item.prize], f"prizes/{item.prize}"
        state = self.state(promotion)
        if state != "ACTIVE":
            found.append(No(_STATE_REASONS[state], f"promotions/{promotion}/state", state, "ACTIVE"))
        if prize.validity is not None and prize.validity.until is not None and prize.validity.until <= self.now:
            found.append(No("VALIDITY_PASSED", f"{where}/validity"))
        held = self.holdings[item.user, item.prize]
        if 0 < prize.limit <= held:
            found.append(No("LIMIT_REACHED", f"{where}/limit_per_user", str(held), str(prize.limit)))
        if prize.stock.lacks(1):
            found.append(No("SOLD_OUT", f"{where}/stock", str(prize.stock.level().remaining), "1"))
        if prize.rule is not None:
            priced = self.priced(prize.rule, item)
            found += self._unaffordable(promotion, item, priced) if isinstance(priced, int) else [priced(where)]
        return found

    def priced(self, rule: Rule, item: Item) -> int | Unpriced:
        """The value of a grant, at least 1, or why it has none."""
        if isinstance(rule, Fixed):
            return rule.units
        basis = item.attributes.get(rule.attribute)
        if basis is None:
            return Unpriced("ATTRIBUTE_MISSING", "", rule.attribute)
        if isinstance(basis, bool) or not isinstance(basis, int) or basis < 0:
            return Unpriced("INVALID_FIELD", field=f"attributes[{rule.attribute}]")
        value = self.rounded(basis * rule.basis_points, rule.rounding)
        if value == 0:
            return Unpriced("VALUE_ZERO", str(basis), "1")
        if rule.floor is not None and value < rule.floor:
            value = rule.floor
        if rule.cap is not None and value > rule.cap:
            value = rule.cap
        if value > UNITS_MAX:
            return Unpriced("INVALID_FIELD", field=f"attributes[{rule.attribute}]")
        return value

    def rounded(self, parts: int, rounding: str) -> int:
        """Ten-thousandths of a unit to whole units."""
        if rounding == "DOWN":
            return parts // 10_000
        if rounding == "UP":
            return -(-parts // 10_000)
        nearest = (parts + 5_000) // 10_000
        if rounding == "HALF_EVEN" and parts % 10_000 == 5_000 and nearest % 2 == 1:
            nearest -= 1
        return nearest

    def _unaffordable(self, promotion: str, item: Item, value: int) -> list[No]:
        prize = self.prizes[item.prize]
        budget = self.promotions[promotion].budgets[prize.asset]
        if budget.lacks(value):
            rule = f"promotions/{promotion}/budgets/{prize.asset}"
            return [No("BUDGET_EXHAUSTED", rule, str(budget.level().remaining), str(value))]
        holds = self.liabilities.get((promotion, prize.asset), 0)
        if prize.pays_out:
            holds = self.wallets[item.user, prize.asset]
        if holds + value >= ACCOUNT_MAX or (not budget.limited and budget.issued + value >= ACCOUNT_MAX):
            return [No("ACCOUNT_LIMIT", f"prizes/{item.prize}/accounts")]
        return []

    def _grant(self, promotion: str, entrance: str, item: Item) -> Yes:
        prize = self.prizes[item.prize]
        value, attribute, basis = None, "", None
        prize.stock.issued += 1
        self.holdings[item.user, item.prize] += 1
        if prize.rule is not None:
            priced = self.priced(prize.rule, item)
            assert isinstance(priced, int), "what has no value was refused"
            value = priced
            self.promotions[promotion].budgets[prize.asset].issued += value
            if prize.pays_out:
                self.wallets[item.user, prize.asset] += value
            else:
                self.liabilities[promotion, prize.asset] += value
            if isinstance(prize.rule, Rate):
                given = item.attributes[prize.rule.attribute]
                assert isinstance(given, int)
                attribute, basis = prize.rule.attribute, given
        yes = Yes(
            promotion,
            entrance,
            item.prize,
            item.user,
            item.request,
            item.reference,
            prize.kind,
            prize.asset if value is not None else "",
            value,
            prize.validity,
            replayed=False,
        )
        self.requests[promotion, item.request] = Granted(yes, attribute, basis)
        return yes

    def get_issuance(self, promotion: str, request: str, *, cancel_if_absent: bool = False) -> Yes | str:
        """The grant, "absent" (not yet) or "cancelled" (never)."""
        if cancel_if_absent:
            self.requests.setdefault((promotion, request), None)
        known = self.requests.get((promotion, request), "absent")
        if known is None or isinstance(known, str):
            return known or "cancelled"
        return replace(known.yes, replayed=True)

    # --- the books ------------------------------------------------------------------------------------------------

    def balances(self) -> dict[Account, tuple[int, int]]:
        """Debits and credits of every account that there is."""
        books: dict[Account, tuple[int, int]] = {}
        pots = [("STOCK", prize.promotion, name, prize.stock) for name, prize in self.prizes.items()]
        for owner, promotion in self.promotions.items():
            pots += [("BUDGET", owner, asset, pot) for asset, pot in promotion.budgets.items()]
        for kind, owner, item, pot in pots:
            books[f"{kind}_SOURCE", owner, item] = (pot.added, pot.recalled)
            books[kind, owner, item] = (pot.recalled + pot.issued, pot.added)
        books |= {("HOLDING", user, prize): (0, units) for (user, prize), units in self.holdings.items() if units}
        books |= {("WALLET", user, asset): (0, units) for (user, asset), units in self.wallets.items() if units}
        books |= {("LIABILITY", owner, asset): (0, units) for (owner, asset), units in self.liabilities.items()}
        return books

    def trial_balance(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """By asset ("prize" for units of prizes) and kind: how many accounts, debits, credits."""
        lines: dict[tuple[str, str], tuple[int, int, int]] = {}
        for (kind, _, item), (debits, credits) in self.balances().items():
            asset = "prize" if kind in ("STOCK_SOURCE", "STOCK", "HOLDING") else item
            count, debit_sum, credit_sum = lines.get((asset, kind), (0, 0, 0))
            lines[asset, kind] = (count + 1, debit_sum + debits, credit_sum + credits)
        return lines


@dataclass(frozen=True)
class Unpriced:
    """Why a rate comes to no value; called with the prize's path it is a reason."""

    reason: str
    observed: str = ""
    threshold: str = ""
    field: str = ""

    def __call__(self, where: str) -> No:
        if self.reason == "INVALID_FIELD":
            return failed(self.reason, self.field)
        return No(self.reason, f"{where}/value/rate", self.observed, self.threshold)

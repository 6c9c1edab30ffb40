"""What `guerdon verify` proves: the promises about the books, and that the gate agrees with them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

VIOLATIONS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Invariant:
    """One promise. Its SQL is in postgres/queries/invariants/, under its name."""

    name: str
    promise: str
    what: str
    """The things compared, in the plural: "2,000 {what} compared"."""


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one invariant. `violations` are the first 20 of `violation_count`, each with its ids and both
    figures."""

    name: str
    promise: str
    compared: int
    what: str
    violation_count: int
    violations: Sequence[str]

    @property
    def ok(self) -> bool:
        return self.violation_count == 0


BOOKS: Sequence[Invariant] = (
    Invariant(
        "debits_equal_credits",
        "Nothing appears or vanishes: the debits of all accounts equal their credits.",
        "assets and prizes, over all their accounts",
    ),
    Invariant(
        "counters_equal_transfers",
        "The debits and credits of an account are the sums of its transfers.",
        "accounts",
    ),
    Invariant(
        "transfers_are_sound",
        "A transfer moves more than nothing between the two accounts that its kind is about.",
        "transfers",
    ),
    Invariant(
        "stock_equation",
        "No prize is over-issued: initial + top-ups - recalls = remaining + issued.",
        "prizes, issued counted from the grants",
    ),
    Invariant(
        "budget_equation",
        "No budget is overspent: initial + top-ups - recalls = remaining + granted = remaining + transferred.",
        "budgets, granted summed from the grants",
    ),
    Invariant(
        "floors",
        "Limited stock and budget, and what users have, never go below zero.",
        "accounts with a floor",
    ),
    Invariant(
        "grants_have_their_transfers",
        "A grant moves one unit to its user and its value to the wallet or liability, once, in its batch; nothing else"
        " moves as an issuance.",
        "grants",
    ),
    Invariant(
        "one_outcome_for_each_request",
        "A request id has one outcome in its promotion.",
        "request ids, read from the table and not from its index",
    ),
    Invariant("issuance_ids_are_unique", "An issuance id names one grant.", "issuance ids, likewise"),
    Invariant(
        "grants_are_whole",
        "A grant names a user, prize, entrance, principal and batch that exist, the prize is of its promotion, and it"
        " was issued when its batch was booked and before it expires.",
        "grants",
    ),
    Invariant(
        "holdings_equal_grants",
        "A user holds what the user was granted: no more and no less.",
        "pairs of user and prize",
    ),
    Invariant(
        "limits_per_user",
        "Nobody was granted more of a prize than the highest limit that it ever had.",
        "pairs of user and prize, of prizes that have had a limit all along",
    ),
    Invariant(
        "batches_are_complete",
        "A batch has as many grants and transfers as it says.",
        "batches",
    ),
    Invariant(
        "prizes_have_their_accounts",
        "A prize draws on the stock and budget of its own promotion.",
        "prizes",
    ),
)


# --- the gate -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GateResource:
    """One limited stock or budget as the gate has it, in units."""

    capacity: int
    used: int


@dataclass(frozen=True, slots=True)
class OpenAdmission:
    """An admission that has been neither settled nor given back. `takes`: units by account id."""

    request_id: str
    takes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class GateState:
    """The gate of one promotion at one moment (one script call). `resources` by account id, `open_admissions` by
    admission id; `run_id` is the one that the server it was read from has now (of each bucket, separated by commas)."""

    epoch: int
    run_id: str
    resources: Mapping[int, GateResource]
    open_admissions: Mapping[int, OpenAdmission]

    def open_units(self, account: int) -> int:
        """Units of this account that open admissions hold."""
        return sum(admission.takes.get(account, 0) for admission in self.open_admissions.values())


class GateView(Protocol):
    """How the gate is looked at; core/stock has the adapter."""

    async def state(self, promotion_sid: int, buckets: int) -> GateState | None:
        """All of one promotion's gate, at one moment; None if one of its buckets is not loaded, which is closed."""


@dataclass(frozen=True, slots=True)
class LedgerResource:
    """One limited stock or budget as the ledger has it, in units."""

    capacity: int
    issued: int


@dataclass(frozen=True, slots=True)
class LedgerSide:
    """What the ledger says of one promotion, in one snapshot. `granted`: those of the gate's open admissions that are
    committed already."""

    promotion_id: str
    epoch: int
    run_id: str
    resources: Mapping[int, LedgerResource]
    granted: frozenset[int]


@dataclass(frozen=True, slots=True)
class GateComparison:
    """`still`: the gate did not move around the look at the ledger, so the figures had to be equal; otherwise they
    had to be within what was in flight."""

    still: bool
    compared: int = 0
    violations: Sequence[str] = field(default_factory=tuple)


def compare_gate(before: GateState, ledger: LedgerSide, after: GateState) -> GateComparison:
    """Compare the ledger with the gate as it was before and after the look at the ledger.

    Used = issued + what open admissions hold that are not committed yet. While admissions come and go, this holds:
    what was closed before is issued now, and what is issued now is used after.
    """
    where = f"promotion {ledger.promotion_id}"
    if after.epoch != ledger.epoch:
        violation = f"{where}: epoch of the gate {after.epoch}, of the ledger {ledger.epoch}"
        return GateComparison(before == after, 1, (violation,))
    still = before == after
    violations = []
    for account, now in after.resources.items():
        truth = ledger.resources.get(account)
        was = before.resources.get(account)
        name = f"{where}, account {account}"
        if truth is None:
            violations.append(f"{name}: capacity of the gate {now.capacity}, none (or no limit) in the ledger")
        elif now.capacity != truth.capacity:
            violations.append(f"{name}: capacity of the gate {now.capacity}, of the ledger {truth.capacity}")
        elif still:
            expected = truth.issued + _held(before, account, ledger.granted)
            if now.used != expected:
                violations.append(
                    f"{name}: used at the gate {now.used}, issued {truth.issued} + admitted"
                    f" {expected - truth.issued} = {expected}"
                )
        elif was is not None and before.epoch == after.epoch:
            least = was.used - before.open_units(account)
            if not least <= truth.issued <= now.used:
                violations.append(
                    f"{name}: issued {truth.issued}, but settled at the gate {least} before and used {now.used} after"
                )
    return GateComparison(still, 1 + len(after.resources), tuple(violations))


def _held(state: GateState, account: int, granted: frozenset[int]) -> int:
    return sum(
        admission.takes.get(account, 0) for number, admission in state.open_admissions.items() if number not in granted
    )

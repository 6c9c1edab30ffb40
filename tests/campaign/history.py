"""The journal of a round as a history, checked for linearizability by prize, budget, wallet and request."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.campaign.callers import REFUSED
from tests.campaign.journal import Call, Journal
from tests.campaign.operator import Operator
from tests.campaign.promises import HISTORY, Findings
from tests.campaign.stage import CASHBACK, Stage
from tests.history.record import Budget, History, Kind, Operation, Outcome, Prize, Rules
from tests.history.report import check as check_history

# Of calls between engines that work: the lease, the age of an admission, and two rounds of the sweeper.
_CALM = Rules(held_seconds_max=6.0, rejected_held_seconds_max=2.0, capacity_lag_seconds_max=2.0)
# While Redis or a server is away nothing can be given back, and the gate can't be told of a top-up.
_STORMY = Rules(held_seconds_max=120.0, rejected_held_seconds_max=120.0, capacity_lag_seconds_max=120.0)
_KINDS = {
    "issue": Kind.ISSUE,
    "get": Kind.GET_ISSUANCE,
    "cancel": Kind.CANCEL,
    "adjust_stock": Kind.ADJUST_STOCK,
    "adjust_budget": Kind.ADJUST_BUDGET,
    "set_limit": Kind.SET_LIMIT,
    "pause": Kind.PAUSE,
    "resume": Kind.RESUME,
    "end": Kind.END,
    "read_stock": Kind.READ_STOCK,
    "read_balance": Kind.READ_BALANCE,
}
_NOTHING_DONE = REFUSED | {"REQUEST_ID_REUSED", "LEDGER_REFUSED"}


def check(journal: Journal, operator: Operator, findings: Findings, *, calm: bool, keep: Path | None) -> None:
    """`calm`: only callers and operators made trouble. A history that fails is written to `keep`."""
    history = _history(journal, operator.stage, calm=calm)
    report = check_history(history)
    findings.compared(HISTORY, len(history.operations))
    for verdict in report.failed:
        findings.add(HISTORY, str(verdict))
    if report.failed and keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        history.save(keep)


def _history(journal: Journal, stage: Stage, *, calm: bool) -> History:
    history = History(rules=_CALM if calm else _STORMY)
    history.prizes = [
        Prize(o.promotion_id, o.prize_id, o.stock, o.limit_at_first, o.asset, wallet=bool(o.asset))
        for o in stage.offers
    ]
    history.budgets = [Budget(promotion, asset, units) for (promotion, asset), units in stage.budgets.items()]
    worth = {offer.prize_id: max(offer.fixed) for offer in stage.offers if offer.kind != CASHBACK}
    calls = (call for call in journal.calls if not _is_of_a_lost_primary(call, journal))
    history.operations = list(_operations(calls, stage, worth))
    return history


def _is_of_a_lost_primary(call: Call, journal: Journal) -> bool:
    """Reads follow the primary, also where it shows what no standby has (docs/RELIABILITY.md). Answers about requests
    don't, and stay."""
    if call.kind not in {"read_stock", "read_balance"}:
        return False
    return any(call.returned > since and call.invoked < until for since, until in journal.unconfirmed)


def _operations(calls: Iterable[Call], stage: Stage, worth: dict[str, int]) -> Iterable[Operation]:
    for call in calls:
        kind = _KINDS.get(call.kind)
        if kind is None or call.promotion_id not in stage.promotion_ids:
            continue
        outcome = _outcome(call)
        if outcome is None:
            continue
        operation = Operation(
            kind,
            call.invoked,
            call.returned,
            outcome,
            call.reason if outcome is Outcome.REJECTED else "",
            call.promotion_id,
            call.prize_id,
            call.user_id,
            call.asset,
            call.request_id,
            call.amount,
            server=str(call.server),
        )
        if call.issuance is not None:
            operation.issuance_id = call.issuance.issuance_id
            operation.amount = call.issuance.value.units
        elif kind is Kind.ISSUE:
            operation.amount = worth.get(call.prize_id, (call.basis * 500 + 5_000) // 10_000)
        for name in ("capacity", "issued", "remaining", "balance"):
            if name in call.observed:
                setattr(operation, name, call.observed[name])
        yield operation


def _outcome(call: Call) -> Outcome | None:
    """None: a read or look-up that was not answered says nothing."""
    if call.outcome == "refused":
        return Outcome.REJECTED
    if call.outcome in {"granted", "replayed", "rejected", "pending", "absent", "cancelled", "ok"}:
        found = Outcome(call.outcome)
        return Outcome.GRANTED if call.kind in {"get", "cancel"} and found is Outcome.REPLAYED else found
    if call.kind in {"read_stock", "read_balance", "get"}:
        return None
    return Outcome.FAILED if call.outcome in _NOTHING_DONE else Outcome.UNKNOWN

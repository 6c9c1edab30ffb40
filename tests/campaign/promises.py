"""What must hold: the journal against the tables, in SQL of our own, straight from the primary."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncpg import Record

from guerdon_server import bootstrap
from guerdon_server.platform.postgres import Connection
from tests.campaign.journal import Journal, Key
from tests.campaign.operator import Operator
from tests.campaign.stage import Stage
from tests.cluster.cluster import Cluster

ACKNOWLEDGED = "acknowledged grants are durable"
ONE_GRANT = "one grant for each request id"
REPLAY = "a replay equals its original"
STOCK = "stock: initial + top-ups - recalls = remaining + issued"
BUDGET = "budgets: initial + top-ups - recalls = remaining + granted"
BALANCED = "debits equal credits"
LIMITS = "no user has more than the limit"
TERMS = "right user, prize and value"
VERIFY = "guerdon verify, the gate equal to the ledger"
AT_REST = "no admission left open beyond its limit"
RESOLVABLE = "every unknown outcome can be resolved"
HISTORY = "histories are linearizable"
ANSWERS = "no answer that no caller should see"
SERVICE = "service resumes by itself"
FAULT = "what this fault must not do"
PROMISES = (
    ACKNOWLEDGED, ONE_GRANT, REPLAY, STOCK, BUDGET, BALANCED, LIMITS, TERMS, VERIFY, AT_REST, RESOLVABLE, HISTORY,
    ANSWERS, SERVICE, FAULT,
)  # fmt: skip

_AT_REST_SECONDS_MAX = 20.0
# The cluster's admission_age_ms_max, and two rounds of the sweeper on a busy machine.
_ADMISSION_SECONDS_MAX = 3.0 + 3.0
_POLL_SECONDS = 0.05
_SHOWN_MAX = 5

_REQUESTS = """
SELECT p.promotion_id, r.request_id, r.outcome, r.issuance_id::text AS issuance_id, z.prize_id, s.user_id,
    coalesce(r.basis, 0) AS basis, coalesce(r.value, 0) AS value
FROM guerdon.request r JOIN guerdon.promotion p ON p.sid = r.promotion
LEFT JOIN guerdon.prize z ON z.sid = r.prize LEFT JOIN guerdon.subject s ON s.sid = r.subject
WHERE p.promotion_id = ANY ($1)
"""
_STOCKS = """
SELECT z.prize_id, s.debits - s.credits AS capacity, a.credits - a.debits AS remaining, a.floor IS NOT NULL AS limited,
    (SELECT count(*) FROM guerdon.request r
        WHERE r.promotion = z.promotion AND r.prize = z.sid AND r.outcome = 1) AS issued
FROM guerdon.prize z JOIN guerdon.promotion p ON p.sid = z.promotion
JOIN guerdon.account a ON a.id = z.stock_account JOIN guerdon.account s ON s.id = z.stock_source_account
WHERE p.promotion_id = ANY ($1)
"""
_BUDGETS = """
SELECT p.promotion_id, t.asset, s.debits - s.credits AS capacity, a.credits - a.debits AS remaining,
    a.floor IS NOT NULL AS limited,
    (SELECT coalesce(sum(r.value), 0)::bigint FROM guerdon.request r JOIN guerdon.prize z ON z.sid = r.prize
        WHERE r.promotion = p.sid AND r.outcome = 1 AND z.asset = t.sid) AS granted
FROM guerdon.promotion p JOIN guerdon.account a ON a.kind = 5 AND a.owner = p.sid
JOIN guerdon.account s ON s.kind = 4 AND s.owner = p.sid AND s.item = a.item JOIN guerdon.asset t ON t.sid = a.item
WHERE p.promotion_id = ANY ($1)
"""
_BALANCED = "SELECT coalesce(sum(debits), 0) = coalesce(sum(credits), 0) FROM guerdon.account"
_DURABLE = """
SELECT r.request_id, r.issuance_id::text FROM guerdon.request r JOIN guerdon.promotion p ON p.sid = r.promotion
WHERE p.promotion_id = ANY ($1) AND r.outcome = 1
"""
_COUNT = """
SELECT count(*) FROM guerdon.request r JOIN guerdon.promotion p ON p.sid = r.promotion
WHERE p.promotion_id = $1 AND r.outcome = 1
"""


@dataclass(slots=True)
class Findings:
    """Broken promises, with what was seen. `checked`: how much was compared, by promise."""

    broken: list[tuple[str, str]] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    def add(self, promise: str, text: str) -> None:
        """A promise is broken."""
        if sum(1 for known, _ in self.broken if known == promise) < _SHOWN_MAX:
            self.broken.append((promise, text))

    def compared(self, promise: str, count: int) -> None:
        """So much was looked at."""
        self.checked[promise] = self.checked.get(promise, 0) + count


async def acknowledged_so_far(session: Connection, journal: Journal, stage: Stage, findings: Findings) -> None:
    """At any moment: what was acknowledged before the look is in the tables, and the books balance."""
    before = {
        key: grant.issuance.issuance_id for key, grant in journal.granted.items() if key[0] in stage.promotion_ids
    }
    for promotion_id in stage.promotion_ids:
        durable = {row[0]: row[1] for row in await session.fetch(_DURABLE, [promotion_id])}
        for key, issuance_id in before.items():
            if key[0] == promotion_id and durable.get(key[1]) != issuance_id:
                findings.add(ACKNOWLEDGED, f"{key} was acknowledged as {issuance_id}, found {durable.get(key[1])}")
    findings.compared(ACKNOWLEDGED, len(before))
    if not await session.fetchval(_BALANCED):
        findings.add(BALANCED, "the debits of all accounts differ from their credits")


async def grants_of(session: Connection, promotion_id: str) -> int:
    """How many grants a promotion has."""
    return int(await session.fetchval(_COUNT, promotion_id))


async def books(session: Connection, journal: Journal, operator: Operator, findings: Findings) -> None:
    """After everything is answered or resolved: the journal and the tables agree in every number."""
    stage = operator.stage
    await _requests(session, journal, stage, findings)
    rows = await session.fetch(_STOCKS, stage.promotion_ids)
    for row in rows:
        expected = operator.stock.get(row["prize_id"], 0)
        if row["capacity"] != expected or row["capacity"] != row["remaining"] + row["issued"]:
            findings.add(STOCK, f"{dict(row)}, {expected} were put in")
        if row["limited"] and row["remaining"] < 0:
            findings.add(STOCK, f"over-issued: {dict(row)}")
    findings.compared(STOCK, len(rows))
    rows = await session.fetch(_BUDGETS, stage.promotion_ids)
    for row in rows:
        expected = operator.budgets.get((row["promotion_id"], row["asset"]), 0)
        if row["capacity"] != expected or row["capacity"] != row["remaining"] + row["granted"]:
            findings.add(BUDGET, f"{dict(row)}, {expected} were put in")
        if row["limited"] and row["remaining"] < 0:
            findings.add(BUDGET, f"overspent: {dict(row)}")
    findings.compared(BUDGET, len(rows))
    findings.compared(BALANCED, 1)
    if not await session.fetchval(_BALANCED):
        findings.add(BALANCED, "the debits of all accounts differ from their credits")


async def _requests(session: Connection, journal: Journal, stage: Stage, findings: Findings) -> None:
    rows = await session.fetch(_REQUESTS, stage.promotion_ids)
    granted = {(row["promotion_id"], row["request_id"]): row for row in rows if row["outcome"] == 1}
    cancelled = {(row["promotion_id"], row["request_id"]) for row in rows if row["outcome"] == 3}
    _durable_as_asked(granted, journal, stage, findings)
    _acknowledged_is_durable(granted, journal, stage, findings)
    findings.compared(ONE_GRANT, len(journal.asked))
    for key in journal.cancelled:
        if key[0] in stage.promotion_ids and (key in granted or key not in cancelled):
            findings.add(
                ONE_GRANT, f"{key} was ruled out for ever; granted: {key in granted}, tombstone: {key in cancelled}"
            )


def _durable_as_asked(granted: Mapping[Key, Record], journal: Journal, stage: Stage, findings: Findings) -> None:
    """What is in the tables was asked for, by the user who got it, at a value that was in force."""
    offers = {offer.prize_id: offer for offer in stage.offers}
    held: Counter[tuple[str, str]] = Counter()
    for key, row in granted.items():
        content = row["prize_id"], row["user_id"], row["basis"]
        held[content[:2]] += 1
        if content not in journal.asked.get(key, set()):
            findings.add(TERMS, f"{key}: {content} was never asked, {journal.asked.get(key)} was")
        elif row["value"] not in offers[row["prize_id"]].may_be_worth(row["basis"]):
            findings.add(
                TERMS, f"{key}: worth {row['value']}, not {offers[row['prize_id']].may_be_worth(row['basis'])}"
            )
    for (prize_id, user_id), count in held.items():
        highest = offers[prize_id].limit_highest
        if highest and count > highest:
            findings.add(LIMITS, f"{user_id} has {count} of {prize_id}, at most {highest}")
    findings.compared(TERMS, len(granted))
    findings.compared(LIMITS, len(held))


def _acknowledged_is_durable(granted: Mapping[Key, Record], journal: Journal, stage: Stage, findings: Findings) -> None:
    """What callers were told is what the tables say."""
    for key, grant in journal.granted.items():
        if key[0] not in stage.promotion_ids:
            continue
        told, row = grant.issuance, granted.get(key)
        found = None if row is None else (row["issuance_id"], row["prize_id"], row["user_id"], row["value"])
        if found != (told.issuance_id, told.prize_id, told.user_id, told.value.units):
            findings.add(ACKNOWLEDGED, f"{key}: {' '.join(str(told).split())} was acknowledged, {found} is there")
        findings.compared(ACKNOWLEDGED, 1)


async def verified(cluster: Cluster, findings: Findings) -> None:
    """Every invariant of `guerdon verify`, the gate's too."""
    for check in await bootstrap.verify(cluster.settings):
        findings.compared(VERIFY, 1)
        if not check.ok:
            findings.add(VERIFY, str(check)[:1000])


async def oldest_admission(cluster: Cluster, findings: Findings) -> None:
    """While nothing but callers and operators makes trouble: each open admission is younger than its limit."""
    client = cluster.valkey.client()
    try:
        seconds, microseconds = await client.time()
        for key in await client.keys("guerdon:*:admissions"):
            for admission, record in (await client.hgetall(key)).items():
                if admission == b"@":
                    continue
                age = seconds + microseconds / 1e6 - int(record.split()[0]) / 1000
                findings.compared(AT_REST, 1)
                if age > _ADMISSION_SECONDS_MAX:
                    findings.add(AT_REST, f"{record!r} has been open for {age:.1f} s")
    finally:
        await client.aclose()


async def at_rest(cluster: Cluster, findings: Findings) -> float:
    """Waits until no admission is open; the seconds that it took."""
    started = time.monotonic()
    client = cluster.valkey.client()
    try:
        while True:
            keys = await client.keys("guerdon:*:admissions")
            left = sum([await client.hlen(key) - 1 for key in keys])
            taken = time.monotonic() - started
            if not left:
                break
            if taken > _AT_REST_SECONDS_MAX:
                findings.add(AT_REST, f"{left} admissions are still open after {taken:.0f} s without load")
                break
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        await client.aclose()
    findings.compared(AT_REST, 1)
    return taken

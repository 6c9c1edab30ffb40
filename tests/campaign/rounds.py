"""One round: a stage, load, faults, recovery, resolution, and everything compared."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from tests.campaign import history, promises
from tests.campaign.callers import Caller, Crowd, Strange
from tests.campaign.faults import Ground
from tests.campaign.journal import Journal, Key
from tests.campaign.operator import Operator, Unanswered
from tests.campaign.plan import Round, Strike
from tests.campaign.promises import Findings
from tests.campaign.stage import Offer, Stage, set_up
from tests.cluster.cluster import Cluster
from tests.issuing.desk import Desk

# gRPC's own pauses between attempts to connect grow to two minutes, which would be taken for the servers'.
_CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # which is how long an attempt may take
    ("grpc.max_reconnect_backoff_ms", 300),
)
_log = logging.getLogger(__name__)
_CLERKS = 14
_SERVICE_SECONDS_MAX = 60.0
_RESOLVE_SECONDS_MAX = 45.0
_REPLAYS_MAX = 250
_LOOK_SECONDS = 1.5
_POLL_SECONDS = 0.02
_AT_ONCE = 16


@dataclass(slots=True)
class Played:
    """What came of a round. recovery_seconds: from the end of the last fault to new grants at every server."""

    round: Round
    findings: Findings = field(default_factory=Findings)
    recovery_seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    unknown: int = 0
    at_rest_seconds: float = 0.0
    seconds: float = 0.0
    error: str = ""


async def play(cluster: Cluster, planned: Round, *, scale: float, keep: Path | None) -> Played:
    """`keep`: where a history goes that can't be explained.

    Whatever is found is in the result; an exception here is a defect of the campaign itself, and is in it, too.
    """
    played, started = Played(planned), time.monotonic()
    try:
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(slot.target, options=_CHANNEL))
                for slot in cluster.servers
            ]
            desks = [Desk(channel) for channel in channels]
            await _Play(cluster, played, desks, scale, keep).run()
    except Exception as error:
        _log.exception("the campaign itself failed in round %d", planned.number)
        played.error = f"{type(error).__name__}: {error}"
    finally:
        played.seconds = time.monotonic() - started
    return played


class _Play:
    def __init__(
        self,
        cluster: Cluster,
        played: Played,
        desks: Sequence[Desk],
        scale: float,
        keep: Path | None,
    ) -> None:
        self.cluster = cluster
        self.planned = planned = played.round
        self.played = played
        self.findings = played.findings
        self.scale = scale
        self.keep = keep
        self.rng = random.Random(planned.seed)
        self.journal = Journal()
        self.strange = Strange()
        self.callers = [Caller(n, desk, self.journal, self.strange) for n, desk in enumerate(desks)]
        self.watching = True
        self.calm = all(strike.fault.touches in {"caller", "operator"} for strike in planned.strikes)
        self.offers: dict[str, Offer] = {}

    async def _divide(self, stage: Stage) -> None:
        """Some promotions have several stock buckets."""
        rng = random.Random(f"{self.planned.seed}-buckets")
        async with self.cluster.postgres.connection() as session:
            for promotion_id in stage.promotion_ids:
                buckets = rng.choice((1, 1, 2, 3))
                await session.execute("SELECT guerdon.set_gate_buckets($1, $2)", promotion_id, buckets)

    async def run(self) -> None:
        stage = await set_up(self.callers[0].desk, self.planned.number, self.rng)
        self.offers = {offer.prize_id: offer for offer in stage.offers}
        await self._divide(stage)
        operator = Operator(self.callers, self.journal, stage, self.rng)
        crowd = Crowd(self.callers, self.journal, stage, self.planned.seed)
        crowd.start(_CLERKS)
        watch = asyncio.create_task(self._watch(stage))
        try:
            await asyncio.gather(*(self._strike(strike, crowd, operator) for strike in self.planned.strikes))
        except Unanswered as error:
            self.findings.add(promises.SERVICE, str(error))
        finally:
            self.watching = False
            await crowd.stop()
            await watch
        await self._resolve()
        await self._replays(stage)
        self.played.at_rest_seconds = await promises.at_rest(self.cluster, self.findings)
        async with self.cluster.postgres.connection() as session:
            await promises.books(session, self.journal, operator, self.findings)
        await promises.verified(self.cluster, self.findings)
        self._judge()
        history.check(self.journal, operator, self.findings, calm=self.calm, keep=self.keep)
        for promotion_id in stage.promotion_ids:
            await operator.move(promotion_id, "ENDED")
        self.played.calls = len(self.journal.calls)
        self.played.counts = dict(self.journal.counts)

    # --- faults ---------------------------------------------------------------------------------------------------

    async def _strike(self, strike: Strike, crowd: Crowd, operator: Operator) -> None:
        await asyncio.sleep(strike.after_seconds)
        ground = Ground(
            self.cluster, crowd, self.callers, operator, self.journal, self.findings, random.Random(strike.seed),
            self.scale,
        )  # fmt: skip
        self.played.notes[strike.fault.name] = ground.notes
        await strike.fault.strike(ground)
        assert ground.mended_at, f"{strike.fault.name} does not say when it is mended"
        await self._recovered(strike, ground.mended_at)

    async def _recovered(self, strike: Strike, mended_at: float) -> None:
        """Every server answers with new grants again, by itself."""
        self.findings.compared(promises.SERVICE, 1)
        deadline = time.monotonic() + _SERVICE_SECONDS_MAX
        servers = range(len(self.callers))
        while any(self.journal.fresh_until.get(n, 0.0) <= mended_at for n in servers):
            if time.monotonic() > deadline:
                down = [n for n in servers if self.journal.fresh_until.get(n, 0.0) <= mended_at]
                last = [(c.server, c.outcome, c.reason[:200]) for c in self.journal.calls[-8:]]
                self.findings.add(
                    promises.SERVICE, f"no new grant at {down} in {_SERVICE_SECONDS_MAX:.0f} s after {strike}: {last}"
                )
                return
            await asyncio.sleep(_POLL_SECONDS)
        self.played.recovery_seconds[strike.fault.name] = time.monotonic() - mended_at

    async def _watch(self, stage: Stage) -> None:
        """All along, whenever PostgreSQL can be read."""
        while self.watching:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                async with asyncio.timeout(5), self.cluster.postgres.connection() as session:
                    await promises.acknowledged_so_far(session, self.journal, stage, self.findings)
                if self.calm:
                    await promises.oldest_admission(self.cluster, self.findings)
            except Exception:  # noqa: S112  it is being attacked; the look at the end can't be missed
                continue

    # --- afterwards -----------------------------------------------------------------------------------------------

    async def _resolve(self) -> None:
        """Every outcome that was left open: by asking again, or by ruling it out."""
        left = list(self.journal.open)
        self.played.unknown = len(left)
        self.findings.compared(promises.RESOLVABLE, len(left))
        queue = iter(left)

        async def worker() -> None:
            for key in queue:
                await self._resolve_one(key)

        await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))

    async def _resolve_one(self, key: Key) -> None:
        deadline = time.monotonic() + _RESOLVE_SECONDS_MAX
        by_asking = self.rng.random() < 0.5 and "poison" not in key[1]
        while key in self.journal.open:
            if time.monotonic() > deadline:
                last = [(c.kind, c.server, c.outcome, c.reason[:120]) for c in self.journal.calls if c.key == key][-4:]
                how = "asked" if by_asking else "ruled out"
                self.findings.add(
                    promises.RESOLVABLE, f"{key}, {how} for {_RESOLVE_SECONDS_MAX:.0f} s, is still open: {last}"
                )
                return
            caller = self.rng.choice(self.callers)
            prize_id, user_id, basis = self.journal.open[key]
            offer = self.offers.get(prize_id)
            if by_asking and offer is not None:
                await caller.issue(key, offer, user_id, basis)
            else:
                await caller.get(key, cancel=True)
            if key in self.journal.open:
                await asyncio.sleep(_POLL_SECONDS)

    async def _replays(self, stage: Stage) -> None:
        """Asked again, anywhere: the same answer, as a replay (the journal compares)."""
        keys = sorted(key for key in self.journal.granted if key[0] in stage.promotion_ids)
        chosen = self.rng.sample(keys, min(len(keys), _REPLAYS_MAX))
        self.findings.compared(promises.REPLAY, len(chosen))
        queue = iter(chosen)

        async def worker() -> None:
            for key in queue:
                grant = self.journal.granted[key].issuance
                basis = next(b for p, u, b in self.journal.asked[key] if (p, u) == (grant.prize_id, grant.user_id))
                offer = self.offers[grant.prize_id]
                for _ in range(20):
                    call = await self.rng.choice(self.callers).issue(key, offer, grant.user_id, basis)
                    if call.outcome == "replayed":
                        break
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    self.findings.add(promises.REPLAY, f"{key} is answered {call.outcome} {call.reason}")

        await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))

    def _judge(self) -> None:
        for text in self.journal.contradictions:
            self.findings.add(promises.ONE_GRANT, text)
        for text in self.strange.what:
            self.findings.add(promises.ANSWERS, text)
        self.findings.compared(promises.ANSWERS, len(self.journal.calls))

"""The table of faults: each strikes under load, is mended, and may add findings of its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.campaign import overload as overloads
from tests.campaign.callers import Caller, Crowd
from tests.campaign.journal import Call, Journal
from tests.campaign.operator import Operator
from tests.campaign.points import random_point, start_point
from tests.campaign.promises import FAULT, Findings, grants_of
from tests.campaign.stage import COINS, COUPON, OPEN
from tests.cluster.cluster import Cluster
from tests.cluster.servers import ServerSlot
from tests.cluster.waiting import NotInForce

_CLOCK_SECONDS = 300.0
_POISONED = 500
_STARTS_MAX = 10
_START_PAUSE_SECONDS = 0.5


@dataclass(slots=True)
class Ground:
    """Where a fault strikes. `mended`: call it when the fault is over; recovery is measured from there.

    `notes`: what the report shows beside the fault. `scale`: 1 for the durations of the table, less for a quick run.
    """

    cluster: Cluster
    crowd: Crowd
    callers: Sequence[Caller]
    operator: Operator
    journal: Journal
    findings: Findings
    rng: random.Random
    scale: float = 1.0
    mended_at: float = 0.0
    notes: list[str] = field(default_factory=list)

    def mended(self) -> None:
        """Now."""
        self.mended_at = time.monotonic()

    async def load(self, least: float, most: float) -> None:
        """Let the load run on for a while."""
        await asyncio.sleep(self.rng.uniform(least, most) * self.scale)

    def a_server(self) -> ServerSlot:
        """Any of them."""
        return self.rng.choice(list(self.cluster.servers))

    async def serves(self, slot: ServerSlot, *, clock_offset_seconds: float = 0) -> None:
        """Start a server as a supervisor does: again, when what else is broken at the moment keeps it from starting."""
        for attempt in range(_STARTS_MAX):
            try:
                await slot.start(clock_offset_seconds=clock_offset_seconds)
            except NotInForce:
                if attempt == _STARTS_MAX - 1:
                    raise
                await asyncio.sleep(_START_PAUSE_SECONDS)
            else:
                if attempt:
                    self.notes.append(f"served at start {attempt + 1}")
                return

    def broken(self, text: str) -> None:
        """What this fault must not do, it did."""
        self.findings.add(FAULT, text)

    def compared(self) -> None:
        """One property of this fault was looked at."""
        self.findings.compared(FAULT, 1)


Strike = Callable[[Ground], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`touches`: the engine that it is done to; `joins`: whether it may strike together with another."""

    name: str
    touches: str
    how: str
    strike: Strike
    joins: bool = True


FAULTS: list[Fault] = []


def _fault(name: str, touches: str, how: str, *, joins: bool = True) -> Callable[[Strike], Strike]:
    def register(strike: Strike) -> Strike:
        assert all(known.name != name for known in FAULTS), name
        FAULTS.append(Fault(name, touches, how, strike, joins))
        return strike

    return register


# --- servers ----------------------------------------------------------------------------------------------------------


@_fault("server-killed", "server", "SIGKILL at any moment, started again")
async def _server_killed(g: Ground) -> None:
    for _ in range(g.rng.randrange(1, 3)):
        slot = g.a_server()
        await slot.kill()
        await g.load(0, 1.5)
        await g.serves(slot)
        g.mended()
        await g.load(0.2, 0.8)


@_fault("all-servers-killed", "server", "SIGKILL to all at once, started again one after the other")
async def _all_servers_killed(g: Ground) -> None:
    await asyncio.gather(*(slot.kill() for slot in g.cluster.servers))
    await g.load(0, 1)
    for slot in g.cluster.servers:
        await g.serves(slot)
    g.mended()


@_fault("server-killed-in-start", "server", "SIGKILL while it starts, by time and at a point of its start")
async def _server_killed_in_start(g: Ground) -> None:
    slot = g.a_server()
    await slot.kill()
    starting = asyncio.create_task(_dies_starting(slot, ""))
    await asyncio.sleep(g.rng.uniform(0.3, 1.5))
    await slot.kill()
    await starting
    await _dies_starting(slot, f"{start_point(g.rng)}=kill")
    await slot.kill()
    await g.serves(slot)
    g.mended()


async def _dies_starting(slot: ServerSlot, failpoints: str) -> None:
    try:
        await slot.start(failpoints=failpoints)
    except NotInForce:
        return  # as it should


@_fault("server-killed-at-a-point", "server", "SIGKILL before or after any I/O (failpoints), recovery included")
async def _server_killed_at_a_point(g: Ground) -> None:
    slot = g.a_server()
    await slot.kill()
    for _ in range(2):
        point = random_point(g.rng)
        await _dies_starting(slot, f"{point}=kill@{g.rng.randrange(1, 40)}")
        for _ in range(30):
            if not slot.is_running:
                g.notes.append(f"died at {point}")
                break
            await g.load(0.1, 0.1)
        await slot.kill()
    await g.serves(slot)
    g.mended()


@_fault("server-errs-at-points", "server", "errors, delays beyond the deadline and cancellations at I/O (failpoints)")
async def _server_errs_at_points(g: Ground) -> None:
    slot = g.a_server()
    rules = []
    for _ in range(4):
        first = g.rng.randrange(1, 60)
        action = g.rng.choice(("error", "delay:2.5", "cancel", "error"))
        rules.append(f"{random_point(g.rng)}={action}@{first}-{first + g.rng.randrange(3)}")
    await slot.kill()
    await _dies_starting(slot, ";".join(rules))
    await g.load(2.5, 4)
    await slot.kill()
    await g.serves(slot)
    g.mended()


@_fault("server-frozen", "server", "SIGSTOP for longer than its lease, then it goes on with what it had")
async def _server_frozen(g: Ground) -> None:
    slot = g.a_server()
    await slot.freeze()
    await g.load(1.5, 4)
    await slot.thaw()
    g.mended()


@_fault("server-drained", "server", "SIGTERM: it finishes what is in flight; started again")
async def _server_drained(g: Ground) -> None:
    slot = g.a_server()
    status = await slot.stop()
    g.compared()
    if status != 0:
        g.broken(f"a server that was asked to stop ended with {status}: {slot.log_tail()[-500:]}")
    await g.serves(slot)
    g.mended()


@_fault("clock-off", "server", "one server's clock 5 minutes ahead or behind; killed with open admissions")
async def _clock_off(g: Ground) -> None:
    slot = g.a_server()
    await slot.kill()
    await g.serves(slot, clock_offset_seconds=g.rng.choice((-_CLOCK_SECONDS, _CLOCK_SECONDS)))
    await g.load(1.5, 3)
    await slot.kill()
    await g.serves(slot, clock_offset_seconds=g.rng.choice((-_CLOCK_SECONDS, 0, _CLOCK_SECONDS)))
    g.mended()


@_fault("dies-with-the-last-units", "server", "SIGKILL with open admissions when stock is nearly gone", joins=False)
async def _dies_with_the_last_units(g: Ground) -> None:
    offer = g.operator.stage.offer(g.operator.stage.promotion_ids[0], COUPON)
    left = await _remaining(g, offer.prize_id)
    if left > 12:
        await g.operator.adjust_stock(offer, 12 - left)  # may be refused: then others were faster
    await g.cluster.postgres.hold_account_locks(1.0)
    slot, other = g.rng.sample(list(g.cluster.servers), 2)
    caller = g.callers[list(g.cluster.servers).index(slot)]
    asked = [(offer.promotion_id, f"last-{n}") for n in range(12)]
    doomed = [asyncio.create_task(caller.issue(key, offer, g.operator.stage.users[0], 0)) for key in asked]
    await asyncio.sleep(0.4)
    await slot.kill()
    await g.cluster.postgres.release_account_locks()
    await asyncio.gather(*doomed)
    survivor = g.callers[list(g.cluster.servers).index(other)]
    await _sold_to_the_last(g, survivor, offer.prize_id)
    await g.serves(slot)
    g.mended()


async def _remaining(g: Ground, prize_id: str) -> int:
    async with g.cluster.postgres.connection() as session:
        return int(
            await session.fetchval(
                "SELECT a.credits - a.debits FROM guerdon.prize z JOIN guerdon.account a ON a.id = z.stock_account"
                " WHERE z.prize_id = $1",
                prize_id,
            )
        )


async def _sold_to_the_last(g: Ground, caller: Caller, prize_id: str) -> None:
    """What the dead one held comes free, and is sold: not one unit is lost."""
    offer = next(offer for offer in g.operator.stage.offers if offer.prize_id == prize_id)
    g.compared()
    async with asyncio.timeout(60):
        for number in range(10_000):
            await caller.issue((offer.promotion_id, f"rest-{number}"), offer, g.operator.stage.users[1], 0)
            if await _remaining(g, prize_id) == 0:
                return
            await asyncio.sleep(0.05)
    g.broken(f"{await _remaining(g, prize_id)} units of {prize_id} can't be sold")


# --- callers ----------------------------------------------------------------------------------------------------------


@_fault("replies-lost", "caller", "a proxy swallows answers to callers after the commit, who repeat elsewhere")
async def _replies_lost(g: Ground) -> None:
    for _ in range(g.rng.randrange(2, 5)):
        g.a_server().callers.lose_replies += g.rng.randrange(1, 6)
        await g.load(0.2, 0.6)
    for slot in g.cluster.servers:
        slot.callers.calm()
    g.mended()


@_fault("callers-cut", "caller", "all connections of callers are cut; silence; cut in the middle of calls")
async def _callers_cut(g: Ground) -> None:
    for _ in range(g.rng.randrange(2, 5)):
        proxy = g.a_server().callers
        if g.rng.random() < 0.5:
            proxy.cut()
        else:
            proxy.orphan()
        await g.load(0.2, 0.6)
    g.mended()


@_fault("twins-on-two-servers", "caller", "the same requests on all servers at the same moment, with other content too")
async def _twins(g: Ground) -> None:
    for burst in range(g.rng.randrange(2, 4)):
        asked = [g.crowd.fresh(g.rng) for _ in range(30)]
        await asyncio.gather(*(caller.issue(*one) for one in asked for caller in g.callers))
        users = g.operator.stage.users
        pairs = [g.crowd.fresh(g.rng) for _ in range(20)]
        await asyncio.gather(
            *(
                caller.issue(key, offer, users[(number + burst) % len(users)], basis)
                for key, offer, _, basis in pairs
                for number, caller in enumerate(g.callers)
            )
        )
    g.mended()


# --- Redis ------------------------------------------------------------------------------------------------------------


@_fault("redis-killed", "redis", "SIGKILL, restarted empty")
async def _redis_killed(g: Ground) -> None:
    await g.cluster.valkey.kill()
    await g.load(0, 2)
    await g.cluster.valkey.restart_empty()
    g.mended()


@_fault("redis-old-dump", "redis", "restarted with a dump of some seconds before, under the same epoch")
async def _redis_old_dump(g: Ground) -> None:
    await g.cluster.valkey.save_dump()
    await g.load(0.5, 2)
    await g.cluster.valkey.restart_with_dump()
    g.mended()


@_fault("redis-flushall", "redis", "FLUSHALL")
async def _redis_flushed(g: Ground) -> None:
    for _ in range(g.rng.randrange(1, 4)):
        await g.cluster.valkey.flush_all()
        g.mended()
        await g.load(0.1, 1)


@_fault("redis-script-flush", "redis", "SCRIPT FLUSH")
async def _redis_scripts_flushed(g: Ground) -> None:
    for _ in range(5):
        await g.cluster.valkey.script_flush()
        g.mended()
        await g.load(0.05, 0.3)


@_fault("redis-key-deleted", "redis", "any one key deleted")
async def _redis_key_deleted(g: Ground) -> None:
    for _ in range(g.rng.randrange(1, 4)):
        if key := await g.cluster.valkey.delete_any_key(g.rng):
            g.notes.append(key.rsplit(":", 1)[-1])
        g.mended()
        await g.load(0.1, 1)


@_fault("redis-full", "redis", "maxmemory reached, noeviction")
async def _redis_full(g: Ground) -> None:
    await g.cluster.valkey.limit_memory(headroom_bytes=g.rng.choice((-256 << 10, -256 << 10, 2_000, 50_000)))
    await g.load(1, 3)
    await g.cluster.valkey.unlimit_memory()
    g.mended()


@_fault("redis-replies-lost", "redis", "a proxy swallows answers of scripts that ran; the driver repeats them")
async def _redis_replies_lost(g: Ground) -> None:
    for _ in range(g.rng.randrange(3, 8)):
        g.a_server().to_redis.lose_replies += g.rng.randrange(1, 4)
        await g.load(0.1, 0.4)
    for slot in g.cluster.servers:
        slot.to_redis.calm()
    g.mended()


@_fault("redis-frozen", "redis", "SIGSTOP for 10 s")
async def _redis_frozen(g: Ground) -> None:
    await g.cluster.valkey.freeze()
    await asyncio.sleep(10 * g.scale)
    await g.cluster.valkey.thaw()
    g.mended()


@_fault("redis-away-for-one", "redis", "connections of one server to Redis refused; then silent")
async def _redis_away_for_one(g: Ground) -> None:
    proxy = g.a_server().to_redis
    proxy.away = True
    proxy.cut()
    await g.load(0.5, 2)
    proxy.calm()
    proxy.stall = True
    await g.load(0.5, 3)
    proxy.calm()
    proxy.cut()
    g.mended()


@_fault(
    "redis-fail-over",
    "redis",
    "to a replica that lacks the last writes, the old primary still reachable by one server",
    joins=False,
)
async def _redis_fail_over(g: Ground) -> None:
    await g.cluster.valkey.detach_replica()
    await g.load(0.3, 1.5)
    split = g.rng.random() < 0.75
    await g.cluster.valkey.fail_over(keep_old_for=[g.a_server().to_redis] if split else [])
    await g.load(1, 4)
    await g.cluster.valkey.heal()
    g.mended()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


async def _nothing_granted(g: Ground, since: float, until: float) -> None:
    g.compared()
    for call in g.journal.calls[-50_000:]:
        if call.outcome == "granted" and call.invoked > since and call.returned < until:
            g.broken(f"granted while PostgreSQL was away: {call.key}")


@_fault("postgres-killed", "postgres", "SIGKILL to the whole engine, restarted", joins=False)
async def _postgres_killed(g: Ground) -> None:
    for _ in range(g.rng.randrange(1, 3)):
        await g.cluster.postgres.kill()
        since = time.monotonic()
        await g.load(0, 2)
        until = time.monotonic()
        await g.cluster.postgres.restart()
        g.mended()
        await _nothing_granted(g, since, until)
        await g.load(0.5, 1)


@_fault("postgres-frozen", "postgres", "SIGSTOP to all its processes for 30 s", joins=False)
async def _postgres_frozen(g: Ground) -> None:
    await g.cluster.postgres.freeze()
    since = time.monotonic()
    await asyncio.sleep(30 * g.scale)
    queued = await _queued(g)
    until = time.monotonic()
    await g.cluster.postgres.thaw()
    g.mended()
    g.notes.append(f"at most {queued:.0f} queued")
    await _nothing_granted(g, since, until)


async def _queued(g: Ground) -> float:
    """The longest queue of all servers; it must stay below its maximum."""
    longest = 0.0
    for slot in g.cluster.servers:
        try:
            samples = await slot.metrics()
        except OSError:
            continue
        longest = max([longest, *(v for name, v in samples.items() if name.startswith("guerdon_queued_items"))])
    g.compared()
    if longest > 20_000:
        g.broken(f"{longest} items in a queue")
    return longest


@_fault("commit-cut-off", "postgres", "the connection cut in the middle of commits; the backend commits later")
async def _commit_cut_off(g: Ground) -> None:
    for _ in range(g.rng.randrange(1, 4)):
        await g.cluster.postgres.hold_account_locks(5.0)
        await g.load(0.1, 0.4)
        orphans = sum(slot.to_postgres.orphan() for slot in g.cluster.servers if g.rng.random() < 0.7)
        await g.load(0.05, 1.0)
        await g.cluster.postgres.release_account_locks()
        g.notes.append(f"{orphans} cut")
        g.mended()
        await g.load(0.2, 0.6)


@_fault("postgres-replies-lost", "postgres", "a proxy swallows answers of PostgreSQL after it acted")
async def _postgres_replies_lost(g: Ground) -> None:
    for _ in range(g.rng.randrange(3, 8)):
        g.a_server().to_postgres.lose_replies += g.rng.randrange(1, 4)
        await g.load(0.1, 0.4)
    for slot in g.cluster.servers:
        slot.to_postgres.calm()
    g.mended()


@_fault("postgres-silent-for-one", "postgres", "one server's connections to PostgreSQL carry nothing any more")
async def _postgres_silent_for_one(g: Ground) -> None:
    proxy = g.a_server().to_postgres
    proxy.stall = True
    await g.load(2, 5)
    proxy.calm()
    g.mended()


@_fault("sessions-terminated", "postgres", "pg_terminate_backend for every session, several times")
async def _sessions_terminated(g: Ground) -> None:
    for _ in range(4):
        async with g.cluster.postgres.connection() as session:
            await session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        g.mended()
        await g.load(0.1, 0.6)


@_fault("disk-full", "postgres", "no byte left on its file system", joins=False)
async def _disk_full(g: Ground) -> None:
    if not g.cluster.postgres.disk_full_possible:
        g.notes.append(f"NOT DONE: {g.cluster.postgres.disk_full_reason}")
        g.mended()
        return
    await g.cluster.postgres.fill_disk()
    await g.load(2, 4)
    await g.cluster.postgres.free_disk()
    g.mended()


@_fault("commits-raise", "postgres", "deadlock and serialization errors raised in a share of the commits")
async def _commits_raise(g: Ground) -> None:
    for sqlstate in g.rng.sample(["40P01", "40001", "53200", "58030", "XX000"], 3):
        await g.cluster.postgres.raise_in_commits(sqlstate, g.rng.uniform(0.2, 0.9), at_commit=g.rng.random() < 0.5)
        await g.load(0.5, 1.2)
    await g.cluster.postgres.stop_raising()
    g.mended()


@_fault("deadlocks", "postgres", "a session that locks accounts in the wrong order, again and again")
async def _deadlocks(g: Ground) -> None:
    await g.cluster.postgres.start_deadlocks()
    await g.load(2.5, 4)
    g.notes.append(f"{await g.cluster.postgres.stop_deadlocks()} deadlocks")
    g.mended()


@_fault("postgres-fail-over", "postgres", "the primary killed, the synchronous standby promoted", joins=False)
async def _postgres_fail_over(g: Ground) -> None:
    await g.cluster.postgres.set_synchronous(True)
    await g.load(1, 2)
    await g.cluster.postgres.fail_over()
    g.mended()
    await g.load(0.5, 2)
    await g.cluster.postgres.rebuild_standby()
    await g.cluster.postgres.set_synchronous(False)


@_fault(
    "standby-lost",
    "postgres",
    "the standby gone, waiting commits cut, then it returns - or what was cut is lost in a fail-over",
    joins=False,
)
async def _standby_lost(g: Ground) -> None:
    pair = g.cluster.postgres
    await pair.set_synchronous(True)
    await g.load(0.5, 1)
    await pair.lose_standby()
    since = time.monotonic()
    await g.load(0.3, 1)
    for _ in range(2):
        cut = await pair.cut_waiting_commits(terminate=g.rng.random() < 0.4)
        g.notes.append(f"{cut} cut")
        await g.load(0.3, 0.8)
    if g.rng.random() < 0.5:
        await pair.restart()  # the primary shows what no standby has
        await g.load(0.5, 1.5)
    until = time.monotonic()
    await _nothing_granted(g, since, until)
    if g.rng.random() < 0.5:
        await pair.fail_over()
        g.journal.unconfirmed.append((since, time.monotonic()))
        g.notes.append("failed over")
        g.mended()
        await g.load(0.3, 1)
        await pair.rebuild_standby()
    else:
        await pair.return_standby()
        g.mended()
    await pair.set_synchronous(False)


# --- operators --------------------------------------------------------------------------------------------------------


@_fault("paused", "operator", "pause while issuing: after it is acknowledged not one more grant")
async def _paused(g: Ground) -> None:
    for promotion_id in g.operator.stage.promotion_ids:
        paused = await g.operator.move(promotion_id, "PAUSED")
        before = await _grants(g, promotion_id)
        await g.load(0.3, 0.8)
        after = await _grants(g, promotion_id)
        resumed = await g.operator.move(promotion_id, "ACTIVE")
        g.mended()
        g.compared()
        if after != before:
            g.broken(f"{after - before} grants of {promotion_id} after its pause was acknowledged")
        late = [c for c in g.journal.for_promotion(promotion_id) if _granted_between(c, paused, resumed)]
        if late:
            g.broken(f"granted between pause and resume: {[call.key for call in late[:3]]}")


def _granted_between(call: Call, paused: Call, resumed: Call) -> bool:
    return call.outcome == "granted" and call.invoked > paused.returned and call.returned < resumed.invoked


async def _grants(g: Ground, promotion_id: str) -> int:
    """Also while PostgreSQL is being attacked by another fault."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with g.cluster.postgres.connection() as session:
                    return await grants_of(session, promotion_id)
            except Exception:
                await asyncio.sleep(0.1)


@_fault("recalled", "operator", "stock topped up and recalled while issuing")
async def _recalled(g: Ground) -> None:
    offers = [offer for offer in g.operator.stage.offers if offer.kind == COUPON]
    refused = 0
    for _ in range(10):
        delta = g.rng.choice((-40, -10, -3, 1, 5, 20, 60))
        refused += not await g.operator.adjust_stock(g.rng.choice(offers), delta)
        await g.load(0.05, 0.25)
    g.notes.append(f"{refused} of 10 refused")
    g.mended()


@_fault("budget-cut", "operator", "budgets cut and raised while issuing")
async def _budget_cut(g: Ground) -> None:
    refused = 0
    for _ in range(10):
        promotion_id, asset = g.rng.choice(sorted(g.operator.budgets))
        delta = g.rng.choice((-3_000, -500, -50, -7, 1, 30, 400, 5_000))
        refused += not await g.operator.adjust_budget(promotion_id, asset, delta)
        await g.load(0.05, 0.25)
    g.notes.append(f"{refused} of 10 refused")
    g.mended()


@_fault("rules-changed", "operator", "values and limits of prizes changed while issuing")
async def _rules_changed(g: Ground) -> None:
    offers = [offer for offer in g.operator.stage.offers if offer.kind == COINS]
    for _ in range(10):
        offer = g.rng.choice(offers)
        if g.rng.random() < 0.6:
            await g.operator.set_value(offer, g.rng.randrange(1, 15))
        else:
            await g.operator.set_limit(offer, g.rng.randrange(1, 8))
        await g.load(0.05, 0.25)
    g.mended()


@_fault("poison", "operator", "one item among 500 that PostgreSQL refuses", joins=False)
async def _poison(g: Ground) -> None:
    await g.cluster.postgres.poison("poison-")
    offer = g.operator.stage.offer(g.operator.stage.promotion_ids[0], OPEN)
    place = g.rng.randrange(_POISONED)
    names = [f"{'poison' if n == place else 'sound'}-{g.rng.randrange(1 << 30)}-{n}" for n in range(_POISONED)]
    users = g.operator.stage.users
    asked = [(name, offer, users[n % len(users)], 0) for n, name in enumerate(names)]
    caller = g.rng.choice(list(g.callers))
    started = len(g.journal.calls)
    for _ in range(8):
        await caller.batch(offer.promotion_id, asked, together=False)
        if all((offer.promotion_id, name) in g.journal.granted for name in names if name.startswith("sound")):
            break
    g.compared()
    missing = [n for n in names if n.startswith("sound") and (offer.promotion_id, n) not in g.journal.granted]
    if missing:
        g.broken(f"{len(missing)} of {_POISONED - 1} sound items were not granted beside one poison item")
    if (offer.promotion_id, names[place]) in g.journal.granted:
        g.broken("the poison item was granted")
    answers = {call.outcome for call in g.journal.calls[started:] if call.request_id == names[place]}
    g.notes.append("/".join(sorted(answers)))
    together = [
        (f"{'poison' if n == 7 else 'beside-poison'}-whole-{name}", offer, users[n % len(users)], 0)
        for n, name in enumerate(names[:20])
    ]
    await caller.batch(offer.promotion_id, together, together=True)
    if any((offer.promotion_id, one[0]) in g.journal.granted for one in together):
        g.broken("part of an all-or-nothing batch with a poison item was granted")
    await g.cluster.postgres.stop_poison()
    g.mended()


@_fault("overload", "load", "3 x capacity, open loop", joins=False)
async def _overload(g: Ground) -> None:
    await overloads.strike(g)
    g.mended()

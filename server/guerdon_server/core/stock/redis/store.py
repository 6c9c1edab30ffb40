"""The gate's scripts, typed: one method per Lua file. Knows the wire format of arguments and replies, no policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from guerdon_server.core.stock.model import (
    EXACT_MAX,
    AdmitCode,
    AdmitItem,
    Answer,
    GateState,
    OpenAdmission,
    ResourceState,
    SettleCode,
    Settlement,
    Share,
    Status,
    Tag,
)
from guerdon_server.core.stock.redis.pipeline import ScriptPipeline
from guerdon_server.platform.redis import AnyClient, RedisUnavailable, Script, Value, call

# Bounded by what a script may unpack on Lua's stack (prelude.lua): 2 fields for each of 3 claims an item.
ITEMS_MAX = 1000
# "Not now" answers that redis-py has no class for.
_NOT_NOW = ("NOREPLICAS", "MISCONF", "BUSY", "UNKILLABLE", "NOPERM", "CLUSTERDOWN")


class Page(NamedTuple):
    """Some of the open admissions. cursor: for the next page, "0" after the last."""

    cursor: str
    total: int
    admissions: Sequence[OpenAdmission]


def _script(name: str) -> Script:
    """A Lua file with the prelude put in after its first line, the shebang."""
    folder = files("guerdon_server.core.stock.redis").joinpath("lua")
    shebang, _, body = folder.joinpath(f"{name}.lua").read_text(encoding="utf-8").partition("\n")
    prelude = folder.joinpath("prelude.lua").read_text(encoding="utf-8")
    return Script(f"gate {name}", f"{shebang}\n{prelude}\n{body}")


class RedisGate:
    """Every method raises RedisUnavailable: no answer, or "not now". The script may have run, or may run yet.

    Where the answer is a `Status`, OPEN means done and everything else means that nothing was changed.
    """

    def __init__(self, client: AnyClient) -> None:
        self._client = client
        self._pipeline = ScriptPipeline(client)
        self._admit = _script("admit")
        self._settle = _script("settle")
        self._prepare = _script("prepare")
        self._load = _script("load")
        self._set_capacity = _script("set_capacity")
        self._give = _script("give")
        self._receive = _script("receive")
        self._mark_granted = _script("mark_granted")
        self._open_admissions = _script("open_admissions")
        self._inspect = _script("inspect")
        self._pending = _script("pending")

    async def admit(self, group: Tag, *, epoch: int, run_id: str, items: Sequence[AdmitItem]) -> list[Answer] | None:
        """One answer per item, in order; None: the group is not open under this epoch on this process."""
        assert len(items) <= ITEMS_MAX
        # One argument for the whole batch: redis-py spends more on each argument than all that we do for an item.
        words = []
        for item in items:
            claims = item.claims
            words.append(f"{item.admission} {item.request_id} {item.limit_key} {item.limit_max} {len(claims)}")
            for resource, amount in claims:
                words.append(f"{resource} {amount}")
        reply: bytes = await self._call(self._admit, group, (epoch, run_id, " ".join(words)))
        if not reply.startswith(b"0 "):
            return None
        return _answers(reply.split(), epoch)

    async def settle(self, group: Tag, *, epoch: int, run_id: str, settlements: Sequence[Settlement]) -> int | None:
        """How many admissions were open and are settled now; None: the group is not open under this epoch."""
        assert len(settlements) <= ITEMS_MAX
        reply = await self._call(self._settle, group, (epoch, run_id, " ".join(map(_settlement, settlements))))
        status, count = reply.split()
        return int(count) if int(status) == Status.OPEN else None

    async def prepare(self, group: Tag, *, epoch: int, run_id: str) -> Status:
        """Close the group and reserve it for `load` under this epoch."""
        return _status(await self._call(self._prepare, group, [epoch, run_id]))

    async def load(
        self, group: Tag, *, epoch: int, run_id: str, complete: bool, resources: Sequence[ResourceState]
    ) -> Status:
        """Open the prepared group. complete: no request of the group was granted before this epoch."""
        arguments: list[Value] = [epoch, run_id, int(complete)]
        for state in resources:
            arguments += (state.resource, state.capacity, state.version, state.used)
        return _status(await self._call(self._load, group, arguments))

    async def set_capacity(
        self, group: Tag, *, epoch: int, run_id: str, resources: Sequence[ResourceState], add: bool
    ) -> int | None:
        """How many were changed; None: not open under this epoch. A newer version overwrites the capacity.

        add: also add what the gate doesn't hold, with its `used`; only for states that were read after this epoch
        was opened (set_capacity.lua says why).
        """
        arguments: list[Value] = [epoch, run_id]
        for state in resources:
            arguments += (state.resource, state.capacity, state.version, state.used if add else "-")
        reply = await self._call(self._set_capacity, group, arguments)
        status, changed = reply.split()
        assert int(status) != Status.INEXACT, "ResourceState bounds its numbers"
        return int(changed) if int(status) == Status.OPEN else None

    async def give(
        self, group: Tag, *, epoch: int, run_id: str, buckets: int, target: int, wanted: Mapping[int, int]
    ) -> Mapping[int, Share] | None:
        """Give units of this bucket to the bucket `target`, by resource at least as many as wanted if there are (0:
        none); how this one stands then. None: not open under this epoch. Repeated, it may give again."""
        arguments: list[Value] = [epoch, run_id, buckets, target]
        for resource, units in wanted.items():
            arguments += (resource, units)
        reply = await self._call(self._give, group, arguments)
        if _status(reply[0]) is not Status.OPEN:
            return None
        backs, *numbers = map(int, reply[1:])
        shares = {}
        for place, resource in enumerate(wanted):
            at = place * (3 + 2 * buckets)
            capacity, version, used, *totals = numbers[at : at + 3 + 2 * buckets]
            shares[resource] = Share(backs, capacity, version, used, tuple(totals[:buckets]), tuple(totals[buckets:]))
        return shares

    async def receive(
        self, group: Tag, *, epoch: int, run_id: str, deliveries: Sequence[tuple[int, int, int]]
    ) -> int | None:
        """Add what other buckets gave to this one: (resource, source, total given to it). How many units were added;
        None: not open under this epoch. Idempotent."""
        arguments: list[Value] = [epoch, run_id]
        for delivery in deliveries:
            arguments += delivery
        status, units = (await self._call(self._receive, group, arguments)).split()
        assert int(status) != Status.INEXACT, "give.lua bounds its totals"
        return int(units) if int(status) == Status.OPEN else None

    async def mark_granted(
        self, group: Tag, *, epoch: int, run_id: str, request_ids: Sequence[str], complete: bool
    ) -> bool:
        """Whether the group is open under this epoch, and so the requests are marked. complete: this was the last."""
        assert len(request_ids) <= ITEMS_MAX
        reply = await self._call(self._mark_granted, group, [epoch, run_id, int(complete), *request_ids])
        return _status(reply) is Status.OPEN

    async def open_admissions(
        self, group: Tag, *, epoch: int, run_id: str, cursor: str, page_items: int
    ) -> Page | None:
        """One page of about `page_items` (cursor "0" begins); None: not open under this epoch."""
        reply = await self._call(self._open_admissions, group, [epoch, run_id, cursor, page_items])
        if _status(reply[0]) is not Status.OPEN:
            return None
        now_ms = int(reply[3])
        pairs = zip(reply[4::2], reply[5::2], strict=True)
        return Page(reply[1].decode(), int(reply[2]), [_open_admission(*pair, now_ms) for pair in pairs])

    async def inspect(self, group: Tag, *, resources: bool) -> GateState:
        """What this Redis process holds of the group, whatever its state."""
        reply = [field.decode() for field in await self._call(self._inspect, group, [int(resources)])]
        run_id, open_epoch, loading_epoch, complete, open_admissions, cursor, touched = reply[:7]
        numbers = [int(number) for number in reply[7:]]
        return GateState(
            run_id=run_id,
            open_epoch=int(open_epoch) if open_epoch else None,
            loading_epoch=int(loading_epoch) if loading_epoch else None,
            complete=complete == "1",
            open_admissions=int(open_admissions),
            backfill_cursor=cursor,
            backfill_age_ms=int(touched) if touched else None,
            resources=[ResourceState(*numbers[at : at + 5]) for at in range(0, len(numbers), 5)],
        )

    async def is_marked_open(self, group: Tag, *, epoch: int, run_id: str, request_id: str) -> bool | None:
        """Whether the request has an open admission; None: the group is not open under this epoch on this process."""
        reply = await self._call(self._pending, group, (epoch, run_id, request_id))
        return bool(reply.endswith(b" 1")) if _status(reply) is Status.OPEN else None

    async def forget(self, group: Tag) -> None:
        """Delete all that Redis holds of the group; it is closed until it is opened under a new epoch."""
        await call(self._client, "UNLINK", *keys(group))

    async def _call(self, script: Script, group: Tag, arguments: Sequence[Value]) -> Any:
        try:
            return await self._pipeline(script, keys(group), arguments)
        except ResponseError as error:
            if str(error).startswith(_NOT_NOW):
                raise RedisUnavailable(f"{script.name}: {error}") from error
            raise


def keys(group: Tag) -> tuple[str, str, str, str]:
    """The group's keys, in the order of the scripts' KEYS; one hash tag, so one slot of a cluster."""
    tag = f"guerdon:{{{group}}}:"
    return tag + "meta", tag + "markers", tag + "admissions", tag + "limits"


def _status(reply: bytes) -> Status:
    return Status(int(reply[:1]))


def _answers(reply: list[bytes], epoch: int) -> list[Answer]:
    """Equal tokens share one answer: in a flash crowd all are ADMITTED, or all REFUSED with nothing remaining."""
    sure = reply[1] == b"1"
    known: dict[bytes, Answer] = {}
    answers = []
    for token in reply[2:]:
        answer = known.get(token)
        if answer is None:
            answer = known[token] = _answer(token, epoch, sure)
        answers.append(answer)
    return answers


def _answer(token: bytes, epoch: int, sure: bool) -> Answer:
    code, *numbers = map(int, token.split(b":"))
    match AdmitCode(code):
        case AdmitCode.PENDING:
            return Answer(epoch, AdmitCode.PENDING, sure, twin=numbers[0])
        case AdmitCode.LIMIT_REACHED:
            return Answer(epoch, AdmitCode.LIMIT_REACHED, sure, observed=numbers[0])
        case AdmitCode.REFUSED:
            return Answer(epoch, AdmitCode.REFUSED, sure, resource=numbers[0], remaining=numbers[1])
        case AdmitCode.UNKNOWN_RESOURCE:
            return Answer(epoch, AdmitCode.UNKNOWN_RESOURCE, sure, resource=numbers[0])
        case bare:
            return Answer(epoch, bare, sure)


def _settlement(settlement: Settlement) -> str:
    if settlement.observed and settlement.code is SettleCode.GIVEN_BACK:
        assert 0 < settlement.observed <= EXACT_MAX
        return f"b{settlement.admission}:{settlement.observed}"
    return f"{settlement.code.value}{settlement.admission}"


def _open_admission(admission: bytes, record: bytes, now_ms: int) -> OpenAdmission:
    admitted_ms, request_id, limit_key, *claims = record.decode().split(" ")
    numbers = [int(number) for number in claims]
    return OpenAdmission(
        admission=int(admission),
        request_id=request_id,
        limit_key=limit_key,
        claims=tuple(zip(numbers[::2], numbers[1::2], strict=True)),
        age_ms=max(now_ms - int(admitted_ms), 0),
    )

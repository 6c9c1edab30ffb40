"""A round of everything that does I/O, by callers who repeat with the same id until they have a final answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from guerdon.v1 import entrance_pb2 as entrance
from guerdon.v1 import prize_pb2 as prize
from guerdon.v1 import promotion_pb2 as promotion
from guerdon_server.core.stock.buckets import bucket_of, tags
from guerdon_server.core.stock.model import NO_LIMIT, AdmitItem, Epoch
from guerdon_server.core.stock.redis.store import RedisGate, keys
from guerdon_server.platform import postgres, redis
from guerdon_server.settings import Settings
from tests.issuing.desk import WAIT_SECONDS_MAX, Desk, Refusal, ask, fresh, item

T = TypeVar("T")
_PAUSE_SECONDS = 0.01
_ASSET, _LATER_ASSET = "USD/2", "COIN"
_CENTS = 500
_BUCKETS = 2
_DEAD_SLOT = 0xFFFFF
"""The low bits of an admission that no living worker made."""

# What every caller has to expect: repeat with the same id.
EXPECTED = frozenset({"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
# What a call whose task was cancelled inside the server may end with as well.
CANCELLED = EXPECTED | {"CANCELLED", "UNKNOWN", "INTERNAL"}


@dataclass
class Round:
    """One promotion, from its creation to its pause, through `first` (which may break) and `second`.

    granted: what was acknowledged, by request id. offered: capacities, by prize id. refused: errors on the way.
    strange: those outside of `expected`, which are a defect.
    """

    settings: Settings
    first: Desk
    second: Desk
    first_seconds_max: float = 5.0
    expected: frozenset[str] = EXPECTED
    name: str = field(default_factory=lambda: fresh("round"))
    granted: dict[str, prize.Issuance] = field(default_factory=dict)
    rejected: set[str] = field(default_factory=set)
    asked: dict[str, prize.IssuePrizeRequest] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    strange: list[object] = field(default_factory=list)
    offered: dict[str, int] = field(default_factory=dict)

    @property
    def coupon(self) -> str:
        """A prize of limited stock."""
        return f"{self.name}-coupon"

    @property
    def cash(self) -> str:
        """A prize out of a limited budget."""
        return f"{self.name}-cash"

    @property
    def once(self) -> str:
        """A prize that a user gets once."""
        return f"{self.name}-once"

    @property
    def late(self) -> str:
        """One that is created when the gate is open already."""
        return f"{self.name}-late"

    async def run(self, *, enough: Callable[[], bool] = lambda: False) -> None:
        """All of it, or until it is enough."""
        for part in (
            self.opens,
            self.issues,
            self.changes,
            self.resolves,
            self.spreads,
            self.loses_the_gate,
            self.loses_a_worker,
            self.pauses,
        ):
            if enough():
                break
            await part()

    # --- what is done ---------------------------------------------------------------------------------------------

    async def opens(self) -> None:
        """Entrance, promotion with a budget, prizes; scheduled."""
        place = entrance.Entrance(entrance_id=self.name)
        await self._firmly(
            lambda d, t: d.entrances.CreateEntrance(
                entrance.CreateEntranceRequest(entrance=place, request_id=f"{self.name}-e"), timeout=t
            )
        )
        opened = promotion.Promotion(
            promotion_id=self.name,
            entrance_ids=[self.name],
            budgets=[promotion.Budget(asset=_ASSET, units=100 * _CENTS)],
        )
        await self._firmly(
            lambda d, t: d.promotions.CreatePromotion(
                promotion.CreatePromotionRequest(promotion=opened, request_id=f"{self.name}-p"), timeout=t
            )
        )
        await self._offers(self.coupon, stock=prize.Stock(units=4), kind=prize.PRIZE_KIND_COUPON, limit_per_user=3)
        value = prize.PrizeValue(asset=_ASSET, fixed_units=_CENTS)
        await self._offers(self.cash, stock=prize.Stock(units=50), kind=prize.PRIZE_KIND_COUPON, value=value)
        await self._offers(self.once, stock=prize.Stock(units=5), kind=prize.PRIZE_KIND_COUPON, limit_per_user=1)
        await self._goes("SCHEDULED")

    async def issues(self) -> None:
        """Single, twins at both servers, batches, more than there is, more than a user may have."""
        await self.issue(self.ask("single"))
        for n in range(2):
            await self.issue(self.ask(f"once-{n}", prize_id=self.once))
        same = self.ask("twin", prize_id=self.cash)
        answers = await asyncio.gather(
            self.issue(same),
            self.issue(same, desks=(self.second, self.first)),
            self.batch("each"),
            self.batch("whole", together=True),
            *(self.issue(self.ask(f"crowd-{n}", user_id=f"u-{n}")) for n in range(5)),
        )
        assert answers[0] == answers[1], "twins differ"

    async def changes(self) -> None:
        """Every change of the catalogue, and grants under it."""
        renamed = promotion.Promotion(promotion_id=self.name, display_name="Renamed")
        await self._firmly(
            lambda d, t: d.promotions.UpdatePromotion(
                promotion.UpdatePromotionRequest(
                    promotion=renamed, update_mask=FieldMask(paths=["display_name"]), request_id=f"{self.name}-pu"
                ),
                timeout=t,
            )
        )
        place = entrance.Entrance(entrance_id=self.name, display_name="Renamed")
        await self._firmly(
            lambda d, t: d.entrances.UpdateEntrance(
                entrance.UpdateEntranceRequest(
                    entrance=place, update_mask=FieldMask(paths=["display_name"]), request_id=f"{self.name}-eu"
                ),
                timeout=t,
            )
        )
        changed = prize.Prize(prize_id=self.coupon, display_name="Renamed")
        await self._firmly(
            lambda d, t: d.prizes.UpdatePrize(
                prize.UpdatePrizeRequest(
                    prize=changed, update_mask=FieldMask(paths=["display_name"]), request_id=f"{self.name}-zu"
                ),
                timeout=t,
            )
        )
        await self._offers(self.late, stock=prize.Stock(units=9), kind=prize.PRIZE_KIND_GOODS)
        await self.issue(self.ask("late", prize_id=self.late))
        more = prize.AdjustPrizeStockRequest(prize_id=self.coupon, delta_units=3, request_id=f"{self.name}-top-up")
        for _ in range(2):  # the second time it is recognised
            stock = (await self._firmly(lambda d, t: d.prizes.AdjustPrizeStock(more, timeout=t))).stock
            self.offered[self.coupon] = 7
            assert stock.units == 7, stock
        await self._raises_budget(_ASSET)
        await self._raises_budget(_LATER_ASSET)
        await self.issue(self.ask("topped-up", user_id="zoe"))

    async def resolves(self) -> None:
        """What became of a request; ruled out; unknown ids."""
        known = await self._became("single")
        assert known.granted == self.granted[self.id("single")]
        assert not (await self._became("nobody")).absent.cancelled
        ruled, answer = await asyncio.gather(
            self._became("ruled-out", cancel=True),
            self.issue(self.ask("ruled-out", prize_id=self.cash, user_id="roy")),
        )
        assert ruled.HasField("granted") == (answer is not None), (ruled, answer)
        assert answer is None or answer == ruled.granted
        assert (await self._became("never", cancel=True)).absent.cancelled
        assert await self.issue(self.ask("never")) is None
        for odd in (self.ask(prize_id=f"{self.name}-none"), self.ask(entrance_id=f"{self.name}-none")):
            refused = await self._refused(odd)
            assert refused.code == "NOT_FOUND", refused

    async def spreads(self) -> None:
        """Two buckets from now on; the second has nothing until the first gives."""
        connection = await postgres.connect(self.settings.postgres_dsn)
        try:
            await connection.execute("SELECT guerdon.set_gate_buckets($1, $2)", self.name, _BUCKETS)
        finally:
            await connection.close()
        await self.issue(self.ask(self._named("spread", bucket=1), prize_id=self.late, user_id="sue"))
        await self.issue(self.ask("single"))

    async def loses_the_gate(self) -> None:
        """Its keys and the scripts are deleted: a new epoch, and what was granted before is marked again."""
        client = redis.connect(self.settings.redis_url)
        try:
            await client.script_flush()
            await client.unlink(*keys(await self._sid()))
        finally:
            await client.aclose()
        await self.issue(self.ask(self._named("reopened", bucket=0), prize_id=self.late))
        await self.issue(self.ask("single"))

    async def loses_a_worker(self) -> None:
        """An admission whose worker died before it committed: the sweeper finds out."""
        sid = await self._sid()
        connection = await postgres.connect(self.settings.postgres_dsn)
        client = redis.connect(self.settings.redis_url)
        try:
            row = await connection.fetchrow("SELECT gate_epoch, gate_run_id FROM guerdon.promotion WHERE sid = $1", sid)
            assert row is not None
            epoch = Epoch(*row)
            abandoned = AdmitItem(_DEAD_SLOT | 1 << 40, f"{self.name}-abandoned", NO_LIMIT, 0, ())
            bucket = bucket_of(abandoned.request_id, epoch.buckets)
            # None: a rebuild came between, and there is nothing to abandon.
            await RedisGate(client).admit(
                tags(sid, epoch.buckets)[bucket], epoch=epoch.value, run_id=epoch.run_ids[bucket], items=[abandoned]
            )
        finally:
            await client.aclose()
            await connection.close()

    async def pauses(self) -> None:
        """Refused from now on; what was granted is replayed all the same."""
        await self._goes("ACTIVE")
        await self._goes("PAUSED")
        await self.issue(self.ask("single"))
        await self.issue(self.ask("too-late", user_id="tim"))
        assert self.id("too-late") in self.rejected

    # --- what must hold afterwards --------------------------------------------------------------------------------

    async def holds(self, *desks: Desk) -> None:
        """At the desks: acknowledged is durable, once, everywhere the same; the stock equation; refused is not granted.

        Every request has had its final answer by now.
        """
        assert not self.strange, self.strange[:3]

        async def again(request_id: str, desk: Desk) -> None:
            answer = await desk.issue(self.asked[request_id])
            assert answer.replayed, request_id
            assert answer.granted == self.granted[request_id], request_id

        await asyncio.gather(*(again(request_id, desk) for request_id in self.granted for desk in desks))
        assert len({grant.issuance_id for grant in self.granted.values()}) == len(self.granted)
        assert not self.rejected & self.granted.keys()
        for prize_id, units in self.offered.items():
            stock = await desks[0].stock(prize_id)
            grants = sum(grant.prize_id == prize_id for grant in self.granted.values())
            equation = (stock.units, stock.issued_units, stock.remaining_units)
            assert equation == (units, grants, units - grants), (prize_id, stock)

    def _named(self, prefix: str, *, bucket: int) -> str:
        """A name whose request belongs to this bucket."""
        names = (f"{prefix}-{number}" for number in itertools.count())
        return next(name for name in names if bucket_of(self.id(name), _BUCKETS) == bucket)

    # --- how ------------------------------------------------------------------------------------------------------

    async def issue(
        self, request: prize.IssuePrizeRequest, *, desks: Sequence[Desk] | None = None
    ) -> prize.Issuance | None:
        """The grant, or None if it was rejected."""

        async def call(desk: Desk, seconds_max: float) -> prize.IssuePrizeResponse | None:
            answer = await desk.issue(request, timeout=seconds_max, principal=self.name)
            return None if answer.HasField("pending") else answer

        return self.answered(request, await self._firmly(call, desks=desks))

    async def batch(self, name: str, *, together: bool = False) -> None:
        """Two prizes for one user; together: both or neither."""
        items = [
            item(self.id(f"{name}-{prize_id}"), user_id=f"{name}-user", prize_id=prize_id)
            for prize_id in (self.coupon, self.cash)
        ]
        for one in items:
            self.asked[one.request_id] = self.ask(
                one.request_id.removeprefix(f"{self.name}-"), user_id=one.user_id, prize_id=one.prize_id
            )

        async def call(desk: Desk, seconds_max: float) -> Sequence[prize.BatchItemResult] | None:
            results = await desk.batch(
                items, together=together, promotion_id=self.name, entrance_id=self.name, timeout=seconds_max
            )
            for result in results:
                if result.HasField("error"):
                    self._note(Refusal.of(result.error))
                elif result.HasField("granted"):
                    self.acknowledged(result.granted)
            open_ones = [r for r in results if r.HasField("error") or r.HasField("pending")]
            return None if open_ones else results

        results = await self._firmly(call)
        granted = [result.HasField("granted") for result in results]
        if together:
            assert len(set(granted)) == 1, results

    def answered(self, request: prize.IssuePrizeRequest, answer: prize.IssuePrizeResponse) -> prize.Issuance | None:
        """Notes a final answer. A grant that was there before its refusal shows that the refusal was no truth."""
        self.asked[request.request_id] = request
        if answer.HasField("rejected"):
            self.rejected.add(request.request_id)
            return None
        assert not (answer.replayed and request.request_id in self.rejected), f"refused, but granted: {answer}"
        self.rejected.discard(request.request_id)
        self.acknowledged(answer.granted)
        return answer.granted

    def acknowledged(self, grant: prize.Issuance) -> None:
        """Remembers a grant; there must not have been another for its request."""
        before = self.granted.setdefault(grant.request_id, grant)
        assert before == grant, f"two grants for {grant.request_id}"

    async def _firmly(
        self, call: Callable[[Desk, float], Awaitable[T | None]], *, desks: Sequence[Desk] | None = None
    ) -> T:
        """The final answer: asked first at the one that may break, then in turn. None of `call` is not final."""
        desks = desks or (self.first, self.second)
        loop = asyncio.get_running_loop()
        deadline, attempt = loop.time() + WAIT_SECONDS_MAX, 0
        while loop.time() < deadline:
            try:
                answer = await call(desks[attempt % 2], 5.0 if attempt else self.first_seconds_max)
            except grpc.aio.AioRpcError as error:
                answer = None
                self._note(Refusal.caught(error))
                if self.strange:
                    raise
            if answer is not None:
                return answer
            attempt += 1
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError(f"no final answer after {attempt} attempts: {self.refused[-3:]}")

    def _note(self, refused: Refusal) -> None:
        self.refused.append(refused)
        if refused.code not in self.expected:
            self.strange.append(refused)

    async def _refused(self, request: prize.IssuePrizeRequest) -> Refusal:
        async def call(desk: Desk, seconds_max: float) -> Refusal | None:
            try:
                answer = await desk.issue(request, timeout=seconds_max)
            except grpc.aio.AioRpcError as error:
                if Refusal.caught(error).code in self.expected:
                    raise
                return Refusal.caught(error)
            raise AssertionError(answer)

        return await self._firmly(call)

    async def _became(self, name: str, *, cancel: bool = False) -> prize.GetIssuanceResponse:
        key = prize.RequestKey(promotion_id=self.name, request_id=self.id(name))
        request = prize.GetIssuanceRequest(request=key, cancel_if_absent=cancel)

        async def call(desk: Desk, seconds_max: float) -> prize.GetIssuanceResponse | None:
            answer = await desk.prizes.GetIssuance(request, timeout=seconds_max)
            return None if answer.HasField("pending") else answer

        return await self._firmly(call)

    async def _offers(self, prize_id: str, **fields: Any) -> None:
        made = prize.Prize(prize_id=prize_id, promotion_id=self.name, **fields)
        request = prize.CreatePrizeRequest(prize=made, request_id=f"{prize_id}-z")
        await self._firmly(lambda d, t: d.prizes.CreatePrize(request, timeout=t))
        self.offered[prize_id] = made.stock.units

    async def _goes(self, state: str) -> None:
        request = promotion.TransitionPromotionRequest(
            promotion_id=self.name,
            target_state=promotion.PromotionState.Value(f"PROMOTION_STATE_{state}"),
            request_id=f"{self.name}-{state}",
        )
        await self._firmly(lambda d, t: d.promotions.TransitionPromotion(request, timeout=t))

    async def _raises_budget(self, asset: str) -> None:
        request = promotion.AdjustPromotionBudgetRequest(
            promotion_id=self.name, asset=asset, delta_units=_CENTS, request_id=f"{self.name}-{asset[:3]}"
        )
        await self._firmly(lambda d, t: d.promotions.AdjustPromotionBudget(request, timeout=t))

    async def _sid(self) -> int:
        connection = await postgres.connect(self.settings.postgres_dsn)
        try:
            sid: int = await connection.fetchval("SELECT sid FROM guerdon.promotion WHERE promotion_id = $1", self.name)
        finally:
            await connection.close()
        return sid

    def id(self, name: str) -> str:
        """The request id of a name in this round."""
        return f"{self.name}-{name}"

    def ask(
        self, name: str = "odd", *, user_id: str = "ann", prize_id: str = "", entrance_id: str = ""
    ) -> prize.IssuePrizeRequest:
        """A request of this round, for the coupon unless said."""
        return ask(
            self.id(name),
            user_id=user_id,
            prize_id=prize_id or self.coupon,
            promotion_id=self.name,
            entrance_id=entrance_id or self.name,
        )

"""Promotions: created, read, changed, listed, moved along their states."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.v1 import promotion_pb2
from guerdon_server.core.promotion.model import PromotionState
from guerdon_server.core.promotion.rules import effective_state
from guerdon_server.platform.errors import Code, ServiceError
from tests.catalogue.driver import Catalogue, fresh

DRAFT = promotion_pb2.PROMOTION_STATE_DRAFT
SCHEDULED = promotion_pb2.PROMOTION_STATE_SCHEDULED
ACTIVE = promotion_pb2.PROMOTION_STATE_ACTIVE
PAUSED = promotion_pb2.PROMOTION_STATE_PAUSED
ENDED = promotion_pb2.PROMOTION_STATE_ENDED
ARCHIVED = promotion_pb2.PROMOTION_STATE_ARCHIVED
HOUR = 3600


def from_now(seconds: int) -> Timestamp:
    return Timestamp(seconds=int(dt.datetime.now(dt.UTC).timestamp()) + seconds)


async def update(
    catalogue: Catalogue, promotion: promotion_pb2.Promotion, *paths: str, request_id: str = ""
) -> promotion_pb2.Promotion:
    request = promotion_pb2.UpdatePromotionRequest(
        promotion=promotion, update_mask=FieldMask(paths=paths), request_id=request_id or fresh()
    )
    return await catalogue.promotions.UpdatePromotion(request, "test")


async def get(catalogue: Catalogue, promotion_id: str = "spring") -> promotion_pb2.Promotion:
    return await catalogue.promotions.GetPromotion(promotion_pb2.GetPromotionRequest(promotion_id=promotion_id), "test")


# --- create ---------------------------------------------------------------------------------------------------------


async def test_a_promotion_is_a_draft_with_its_budgets(catalogue: Catalogue) -> None:
    await catalogue.entrance("home")
    await catalogue.entrance("checkout")
    created = await catalogue.promotion(
        entrance_ids=["home", "checkout"], budgets={"COIN": None, "USD": 1000, "EUR": 0}
    )
    assert created.state == DRAFT
    assert created.etag
    assert list(created.entrance_ids) == ["checkout", "home"]
    assert [
        (b.asset, b.WhichOneof("capacity"), b.units, b.spent_units, b.remaining_units) for b in created.budgets
    ] == [
        ("COIN", "unlimited", 0, 0, 0),
        ("EUR", "units", 0, 0, 0),
        ("USD", "units", 1000, 0, 1000),
    ]
    assert created == await get(catalogue)
    assert await catalogue.books_balance()


async def test_an_id_is_taken_once(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    with pytest.raises(ServiceError) as refused:
        await catalogue.promotion(budgets={"USD": 5})
    assert (refused.value.code, refused.value.reason) == (Code.ALREADY_EXISTS, "PROMOTION_EXISTS")


async def test_an_entrance_that_does_not_exist_is_named(catalogue: Catalogue) -> None:
    await catalogue.entrance("home")
    with pytest.raises(ServiceError) as refused:
        await catalogue.promotion(entrance_ids=["home", "nowhere"], budgets={"USD": 5})
    assert (refused.value.code, refused.value.reason) == (Code.NOT_FOUND, "ENTRANCE_NOT_FOUND")
    assert refused.value.metadata["entrance_id"] == "nowhere"
    with pytest.raises(ServiceError) as gone:
        await get(catalogue)
    assert gone.value.reason == "PROMOTION_NOT_FOUND"
    assert await catalogue.pool.fetchval("SELECT count(*) FROM guerdon.operation") == 1  # only the entrance's


async def test_a_repeated_create_answers_the_promotion_as_it_is_now(catalogue: Catalogue) -> None:
    request = promotion_pb2.CreatePromotionRequest(
        promotion=promotion_pb2.Promotion(
            promotion_id="spring", budgets=[promotion_pb2.Budget(asset="USD", units=7)], starts_at=from_now(-HOUR)
        ),
        request_id="once",
    )
    first, *others = await asyncio.gather(*(catalogue.promotions.CreatePromotion(request, "test") for _ in range(5)))
    assert all(other == first for other in others)
    await catalogue.transition("spring", "SCHEDULED")
    assert (await catalogue.promotions.CreatePromotion(request, "test")).state == ACTIVE
    assert await catalogue.books_balance()


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("promotion_id", {"promotion_id": "summer"}),
        ("display_name", {"display_name": "Other"}),
        ("starts_at", {"starts_at": Timestamp(seconds=1_800_000_000)}),
        ("budgets", {"budgets": [promotion_pb2.Budget(asset="USD", unlimited=True)]}),
    ],
)
async def test_a_reused_request_id_names_the_field(
    catalogue: Catalogue, field: str, changed: dict[str, object]
) -> None:
    content: dict[str, object] = {
        "promotion_id": "spring",
        "budgets": [promotion_pb2.Budget(asset="USD", units=7)],
    }
    for fields in (content, content | changed):
        request = promotion_pb2.CreatePromotionRequest(
            promotion=promotion_pb2.Promotion(**fields),  # type: ignore[arg-type]
            request_id="once",
        )
        if fields is content:
            await catalogue.promotions.CreatePromotion(request, "test")
            continue
        with pytest.raises(ServiceError) as refused:
            await catalogue.promotions.CreatePromotion(request, "test")
        assert (refused.value.code, refused.value.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert refused.value.metadata["field"] == field


# --- update ---------------------------------------------------------------------------------------------------------


async def test_an_update_changes_what_the_mask_names_and_the_version(catalogue: Catalogue) -> None:
    await catalogue.entrance("home")
    created = await catalogue.promotion()
    version = await catalogue.pool.fetchval("SELECT version FROM guerdon.promotion")
    wanted = promotion_pb2.Promotion(
        promotion_id="spring",
        etag=created.etag,
        display_name="Spring",
        ends_at=from_now(HOUR),
        entrance_ids=["home"],
    )
    changed = await update(catalogue, wanted, "ends_at", "entrance_ids")
    assert (changed.display_name, changed.ends_at, list(changed.entrance_ids)) == ("", wanted.ends_at, ["home"])
    assert changed.etag != created.etag
    assert await catalogue.pool.fetchval("SELECT version FROM guerdon.promotion") > version
    assert len(catalogue.told.promotions) == 1
    cleared = await update(catalogue, promotion_pb2.Promotion(promotion_id="spring"), "ends_at", "entrance_ids")
    assert not cleared.HasField("ends_at")
    assert not cleared.entrance_ids


async def test_a_stale_etag_is_refused_and_a_repetition_is_not(catalogue: Catalogue) -> None:
    created = await catalogue.promotion()
    first = promotion_pb2.Promotion(promotion_id="spring", etag=created.etag, display_name="first")
    changed = await update(catalogue, first, "display_name", request_id="u1")
    with pytest.raises(ServiceError) as refused:
        await update(catalogue, first, "display_name")
    assert (refused.value.code, refused.value.reason) == (Code.FAILED_PRECONDITION, "ETAG_MISMATCH")
    assert refused.value.metadata["etag"] == changed.etag
    assert await update(catalogue, first, "display_name", request_id="u1") == changed


async def test_of_two_updates_with_the_same_etag_one_wins(catalogue: Catalogue) -> None:
    created = await catalogue.promotion()
    outcomes = await asyncio.gather(
        *(
            update(
                catalogue,
                promotion_pb2.Promotion(promotion_id="spring", etag=created.etag, display_name=str(n)),
                "display_name",
            )
            for n in range(6)
        ),
        return_exceptions=True,
    )
    refusals = [outcome for outcome in outcomes if isinstance(outcome, ServiceError)]
    assert [refusal.reason for refusal in refusals] == ["ETAG_MISMATCH"] * 5


async def test_a_window_must_not_be_empty(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await update(catalogue, promotion_pb2.Promotion(promotion_id="spring", starts_at=from_now(2 * HOUR)), "starts_at")
    with pytest.raises(ServiceError) as refused:
        await update(catalogue, promotion_pb2.Promotion(promotion_id="spring", ends_at=from_now(HOUR)), "ends_at")
    assert refused.value.reason == "INVALID_FIELD"
    assert refused.value.violations[0].field == "promotion.ends_at"


async def test_the_start_of_what_has_begun_is_not_put_off(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.transition("spring", "SCHEDULED")
    with pytest.raises(ServiceError) as refused:
        await update(catalogue, promotion_pb2.Promotion(promotion_id="spring", starts_at=from_now(HOUR)), "starts_at")
    assert refused.value.reason == "PROMOTION_STARTED"


async def test_of_what_is_over_only_the_name_changes(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.transition("spring", "SCHEDULED")
    await catalogue.transition("spring", "ENDED")
    with pytest.raises(ServiceError) as refused:
        await update(catalogue, promotion_pb2.Promotion(promotion_id="spring", ends_at=from_now(HOUR)), "ends_at")
    assert refused.value.reason == "PROMOTION_ENDED"
    renamed = await update(
        catalogue, promotion_pb2.Promotion(promotion_id="spring", display_name="Past"), "display_name"
    )
    assert (renamed.state, renamed.display_name) == (ENDED, "Past")


# --- states ---------------------------------------------------------------------------------------------------------


async def test_every_transition_that_is_not_allowed_names_those_that_are(catalogue: Catalogue) -> None:
    paths = {
        "DRAFT": [],
        "SCHEDULED": ["SCHEDULED"],
        "ACTIVE": ["SCHEDULED", "ACTIVE"],
        "PAUSED": ["SCHEDULED", "ACTIVE", "PAUSED"],
        "ENDED": ["SCHEDULED", "ENDED"],
        "ARCHIVED": ["ARCHIVED"],
    }
    reachable = {
        "DRAFT": "SCHEDULED, ARCHIVED",
        "SCHEDULED": "ACTIVE, ENDED",
        "ACTIVE": "PAUSED, ENDED",
        "PAUSED": "ACTIVE, ENDED",
        "ENDED": "ARCHIVED",
        "ARCHIVED": "none",
    }
    for name, path in paths.items():
        promotion_id = f"p-{name}"
        await catalogue.promotion(promotion_id)
        later = promotion_pb2.Promotion(promotion_id=promotion_id, starts_at=from_now(HOUR))
        await update(catalogue, later, "starts_at")
        for state in path:
            await catalogue.transition(promotion_id, state)
        etag = (await get(catalogue, promotion_id)).etag
        for target in reachable:
            if target in reachable[name].split(", "):
                continue
            if target == name:
                assert (await catalogue.transition(promotion_id, target)).etag == etag
                continue
            with pytest.raises(ServiceError) as refused:
                await catalogue.transition(promotion_id, target)
            assert (refused.value.code, refused.value.reason) == (Code.FAILED_PRECONDITION, "TRANSITION_NOT_ALLOWED")
            assert refused.value.metadata["reachable_states"] == reachable[name]


async def test_start_and_end_act_by_themselves(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    window = promotion_pb2.Promotion(promotion_id="spring", starts_at=from_now(HOUR), ends_at=from_now(3 * HOUR))
    await update(catalogue, window, "starts_at", "ends_at")
    assert (await catalogue.transition("spring", "SCHEDULED")).state == SCHEDULED
    await catalogue.clock_ahead(2 * HOUR)
    assert (await get(catalogue)).state == ACTIVE
    assert (await catalogue.transition("spring", "ACTIVE")).starts_at == window.starts_at
    assert (await catalogue.transition("spring", "PAUSED")).state == PAUSED
    assert (await catalogue.transition("spring", "ACTIVE")).starts_at == window.starts_at
    await catalogue.clock_ahead(4 * HOUR)
    assert (await get(catalogue)).state == ENDED
    with pytest.raises(ServiceError):
        await catalogue.transition("spring", "PAUSED")
    assert (await catalogue.transition("spring", "ARCHIVED")).state == ARCHIVED


async def test_made_active_early_it_starts_at_once(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    later = promotion_pb2.Promotion(promotion_id="spring", starts_at=from_now(HOUR))
    await update(catalogue, later, "starts_at")
    await catalogue.transition("spring", "SCHEDULED")
    started = await catalogue.transition("spring", "ACTIVE")
    assert started.state == ACTIVE
    assert started.starts_at.seconds < later.starts_at.seconds
    assert started.starts_at.seconds <= from_now(0).seconds


async def test_what_has_its_end_behind_it_ends_when_it_is_scheduled(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await update(catalogue, promotion_pb2.Promotion(promotion_id="spring", ends_at=from_now(-HOUR)), "ends_at")
    assert (await catalogue.transition("spring", "SCHEDULED")).state == ENDED
    with pytest.raises(ServiceError) as refused:
        await catalogue.transition("spring", "ACTIVE")
    assert refused.value.metadata["reachable_states"] == "ARCHIVED"


async def test_the_rule_of_states_in_python_and_in_sql_agree(catalogue: Catalogue) -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    instants = [None, *(now + dt.timedelta(microseconds=n) for n in (-1, 0, 1))]
    for state in PromotionState:
        for starts_at in instants:
            for ends_at in instants:
                in_sql = await catalogue.pool.fetchval(
                    "SELECT guerdon.effective_state($1::smallint, $2, $3, $4)", state, starts_at, ends_at, now
                )
                assert effective_state(state, starts_at, ends_at, now) == in_sql


async def test_of_two_transitions_at_once_one_wins(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.transition("spring", "SCHEDULED")
    states = ["ARCHIVED", "ENDED", "PAUSED"] * 3
    outcomes = await asyncio.gather(*(catalogue.transition("spring", s) for s in states), return_exceptions=True)
    assert any(isinstance(outcome, promotion_pb2.Promotion) for outcome in outcomes)
    assert all(outcome.reason == "TRANSITION_NOT_ALLOWED" for outcome in outcomes if isinstance(outcome, ServiceError))


async def test_one_request_id_moves_it_once(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.transition("spring", "SCHEDULED")
    same = await asyncio.gather(*(catalogue.transition("spring", "PAUSED", request_id="pause") for _ in range(5)))
    assert {promotion.etag for promotion in same} == {same[0].etag}
    await catalogue.transition("spring", "ACTIVE")
    assert (await catalogue.transition("spring", "PAUSED", request_id="pause")).state == ACTIVE  # as it is now


async def test_a_pause_waits_for_commits_under_way_and_keeps_new_ones_out(catalogue: Catalogue) -> None:
    await catalogue.promotion()
    await catalogue.transition("spring", "SCHEDULED")
    sid = await catalogue.pool.fetchval("SELECT sid FROM guerdon.promotion")
    async with catalogue.pool.acquire() as commit, catalogue.pool.acquire() as later:
        transaction = commit.transaction()
        await transaction.start()
        await commit.execute("SELECT pg_advisory_xact_lock_shared($1)", sid)
        pause = asyncio.create_task(catalogue.transition("spring", "PAUSED"))
        await catalogue.until_waiting(1)
        assert not await later.fetchval("SELECT pg_try_advisory_xact_lock_shared($1)", sid)
        assert await later.fetchval("SELECT state FROM guerdon.promotion") == SCHEDULED
        await transaction.commit()
        assert (await pause).state == PAUSED


async def test_a_listener_that_fails_fails_no_call(catalogue: Catalogue) -> None:
    catalogue.told.fails = True
    await catalogue.promotion(budgets={"USD": 5})
    assert (await catalogue.transition("spring", "SCHEDULED")).state == ACTIVE
    assert (await catalogue.adjust_budget("spring", "USD", 5)).budget.units == 10
    assert catalogue.told.promotions
    assert catalogue.told.capacities


# --- list -----------------------------------------------------------------------------------------------------------


async def test_listing_pages_through_all_by_id(catalogue: Catalogue) -> None:
    ids = sorted(f"p{n}" for n in range(7))
    for promotion_id in reversed(ids):
        await catalogue.promotion(promotion_id)
    for size in (1, 3, 7, 100):
        found, token = list[str](), ""
        while True:
            request = promotion_pb2.ListPromotionsRequest(page_size=size, page_token=token)
            response = await catalogue.promotions.ListPromotions(request, "test")
            found += [promotion.promotion_id for promotion in response.promotions]
            assert len(response.promotions) <= size
            token = response.next_page_token
            if not token:
                break
        assert found == ids


async def test_listing_filters_by_the_state_of_now(catalogue: Catalogue) -> None:
    for promotion_id, state in (("a", ""), ("b", "SCHEDULED"), ("c", "SCHEDULED"), ("d", "ARCHIVED")):
        await catalogue.promotion(promotion_id)
        if state:
            await catalogue.transition(promotion_id, state)

    async def ids(*states: promotion_pb2.PromotionState.ValueType) -> list[str]:
        request = promotion_pb2.ListPromotionsRequest(states=states)
        return [p.promotion_id for p in (await catalogue.promotions.ListPromotions(request, "test")).promotions]

    assert await ids() == ["a", "b", "c"]
    assert await ids(ACTIVE) == ["b", "c"]
    assert await ids(ARCHIVED, DRAFT) == ["a", "d"]


async def test_a_token_is_good_for_its_list_only(catalogue: Catalogue) -> None:
    await catalogue.promotion("a")
    await catalogue.promotion("b")
    first = await catalogue.promotions.ListPromotions(promotion_pb2.ListPromotionsRequest(page_size=1), "test")
    token = first.next_page_token
    wrong = [token[:-3], "?" + token, "nonsense", "W" * 5000]
    requests = [promotion_pb2.ListPromotionsRequest(page_token=each) for each in wrong]
    requests.append(promotion_pb2.ListPromotionsRequest(page_token=token, states=[DRAFT]))
    for request in requests:
        with pytest.raises(ServiceError) as refused:
            await catalogue.promotions.ListPromotions(request, "test")
        assert [violation.field for violation in refused.value.violations] == ["page_token"]

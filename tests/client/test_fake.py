"""What only the fake does: its clock, its failures on demand, its synchronous client, its state shared by clients."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest

from guerdon import (
    UNLIMITED,
    Absent,
    Granted,
    HealthStatus,
    Issuance,
    IssueOutcome,
    NotFound,
    OutcomeUnknown,
    PrizeKind,
    PromotionState,
    Rejected,
    RejectionReason,
    Unavailable,
    ValidDays,
)
from guerdon.client import Client
from guerdon.fake import FakeAsyncClient, FakeClient, FakeGuerdon

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeGuerdon:
    """With one promotion that runs from START to a day later, and a coupon without limits."""
    fake = FakeGuerdon(clock=clock)
    with fake.client() as client:
        client.create_entrance(entrance_id="checkout", request_id="c1")
        client.create_promotion(
            promotion_id="spring",
            entrance_ids=["checkout"],
            starts_at=START,
            ends_at=START + timedelta(days=1),
            request_id="c2",
        )
        client.create_prize(
            prize_id="welcome",
            promotion_id="spring",
            kind=PrizeKind.COUPON,
            stock=UNLIMITED,
            validity=ValidDays(2),
            request_id="c3",
        )
        client.transition_promotion(promotion_id="spring", target_state=PromotionState.SCHEDULED, request_id="c4")
    return fake


def issue(client: Client, request_id: str = "r") -> IssueOutcome:
    return client.issue_prize(
        promotion_id="spring", entrance_id="checkout", prize_id="welcome", user_id="u", request_id=request_id
    )


def test_time_is_the_clock_that_was_given(fake: FakeGuerdon, clock: Clock) -> None:
    client = fake.client()
    clock.now = START - timedelta(seconds=1)
    early = issue(client)
    clock.now = START
    granted = issue(client)
    clock.now = START + timedelta(days=1)
    late = issue(client, "late")
    assert isinstance(early, Rejected)
    assert early.reason is RejectionReason.PROMOTION_NOT_STARTED
    assert isinstance(granted, Granted)
    assert granted.issuance.issued_at == START
    assert granted.issuance.expires_at == START + timedelta(days=2)
    assert isinstance(late, Rejected)
    assert late.reason is RejectionReason.PROMOTION_ENDED
    assert client.get_promotion(promotion_id="spring").state is PromotionState.ENDED
    assert issue(client) == Granted(granted.issuance, replayed=True)


async def test_clients_of_one_fake_see_one_state(fake: FakeGuerdon) -> None:
    granted = issue(fake.client(principal="shop"))
    assert isinstance(granted, Granted)
    assert granted.issuance.principal == "shop"
    async with fake.async_client() as client:
        assert await client.get_issuance(promotion_id="spring", request_id="r") == granted.issuance
    async with FakeAsyncClient() as stranger:
        with pytest.raises(NotFound):
            await stranger.get_issuance(promotion_id="spring", request_id="r")


def test_a_failure_on_demand_is_retried_like_a_real_one(fake: FakeGuerdon) -> None:
    fake.fail_next(grpc.StatusCode.UNAVAILABLE, attempts=2)
    outcome = issue(fake.client())
    assert isinstance(outcome, Granted)
    assert not outcome.replayed


def test_more_failures_than_attempts_are_raised(fake: FakeGuerdon) -> None:
    fake.fail_next(grpc.StatusCode.UNAVAILABLE, reason="GATE_UNAVAILABLE", attempts=5)
    with pytest.raises(Unavailable) as raised:
        issue(fake.client())
    assert raised.value.reason == "GATE_UNAVAILABLE"
    assert fake.client().get_issuance(promotion_id="spring", request_id="r") == Absent(cancelled=False)


def test_a_lost_answer_is_resolved_by_asking(fake: FakeGuerdon) -> None:
    client = fake.client()
    fake.fail_next(grpc.StatusCode.DEADLINE_EXCEEDED, applied=True)
    with pytest.raises(OutcomeUnknown):
        issue(client)
    assert isinstance(client.get_issuance(promotion_id="spring", request_id="r"), Issuance)
    outcome = issue(client)
    assert isinstance(outcome, Granted)
    assert outcome.replayed


def test_a_lost_answer_that_is_retried_is_a_replay(fake: FakeGuerdon) -> None:
    fake.fail_next(grpc.StatusCode.UNAVAILABLE, applied=True)
    outcome = issue(fake.client())
    assert isinstance(outcome, Granted)
    assert outcome.replayed


def test_the_fake_is_healthy() -> None:
    with FakeClient() as client:
        assert client.check_health() is HealthStatus.SERVING
        assert client.check_health(service="guerdon.v1.PrizeService") is HealthStatus.SERVING
        with pytest.raises(NotFound):
            client.check_health(service="nothing")

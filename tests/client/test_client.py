"""What the clients do on the wire: deadlines, retries, errors, connections. Against real sockets."""

import asyncio
import functools
import itertools
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypedDict

import grpc
import pytest
import pytest_asyncio

from guerdon import (
    Aborted,
    AlreadyExists,
    AsyncClient,
    AttributeInput,
    BatchItem,
    BatchMode,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Granted,
    GuerdonError,
    HealthStatus,
    InvalidArgument,
    IssueOutcome,
    ItemError,
    NotFound,
    OutcomeUnknown,
    PendingOutcome,
    PermissionDenied,
    Rejected,
    RejectionReason,
    RequestIdReused,
    ResourceExhausted,
    RetryPolicy,
    Unavailable,
)
from guerdon.v1 import prize_pb2
from tests.client.scripted import HANG, ScriptedServer, Step, scripted_server, status

AT_ONCE = RetryPolicy(base_delay_seconds=0.0, max_delay_seconds=0.0)
GRANT = prize_pb2.IssuePrizeResponse(granted=prize_pb2.Issuance(issuance_id="i-1", request_id="r"))
Issue = Callable[..., Awaitable[IssueOutcome]]


class Ids(TypedDict):
    promotion_id: str
    entrance_id: str
    prize_id: str
    user_id: str
    request_id: str


IDS: Ids = {"promotion_id": "p", "entrance_id": "e", "prize_id": "z", "user_id": "u", "request_id": "r"}


def pending(retry_after_ms: int) -> prize_pb2.IssuePrizeResponse:
    return prize_pb2.IssuePrizeResponse(pending=prize_pb2.Pending(retry_after_ms=retry_after_ms))


@pytest.fixture(params=["asyncio", "sync"])
def flavour(request: pytest.FixtureRequest) -> str:
    flavour: str = request.param
    return flavour


@pytest_asyncio.fixture(loop_scope="session")
async def issue(flavour: str, scripted: ScriptedServer) -> AsyncIterator[Issue]:
    """Issues a prize with a client made from the options given; the synchronous client waits in a thread."""
    async with AsyncExitStack() as opened:

        async def call(attributes: dict[str, AttributeInput] | None = None, **options: Any) -> IssueOutcome:
            options.setdefault("retry", AT_ONCE)
            options.setdefault("timeout", 20.0)
            if flavour == "asyncio":
                client = await opened.enter_async_context(AsyncClient(scripted.target, **options))
                return await client.issue_prize(**IDS, attributes=attributes)
            waiting = opened.enter_context(Client(scripted.target, **options))
            return await asyncio.to_thread(functools.partial(waiting.issue_prize, **IDS, attributes=attributes))

        yield call


# Outcomes


async def test_outcomes_are_values(issue: Issue, scripted: ScriptedServer) -> None:
    rejection = prize_pb2.Rejection(
        reason=prize_pb2.REJECTION_REASON_SOLD_OUT, rule="prizes/z/stock", observed="0", threshold="1", message="m"
    )
    scripted.answers(GRANT, prize_pb2.IssuePrizeResponse(rejected=rejection))
    granted = await issue()
    assert isinstance(granted, Granted)
    assert granted.issuance.issuance_id == "i-1"
    assert await issue() == Rejected(RejectionReason.SOLD_OUT, "prizes/z/stock", "0", "1", "m")


async def test_a_reason_of_a_newer_server_reads_as_unspecified(issue: Issue, scripted: ScriptedServer) -> None:
    newer = prize_pb2.IssuePrizeResponse()
    newer.MergeFromString(b"\x12\x05\x08\xe7\x07\x2a\x00")  # rejected { reason: 999, message: "" }
    scripted.answers(newer)
    outcome = await issue()
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectionReason.UNSPECIFIED


async def test_a_pending_outcome_is_asked_for_again_with_the_same_request(
    issue: Issue, scripted: ScriptedServer
) -> None:
    scripted.answers(pending(10), pending(10), GRANT)
    assert isinstance(await issue(), Granted)
    assert len(scripted.seen) == 3
    assert len({each.request for each in scripted.seen}) == 1


async def test_what_is_pending_beyond_the_deadline_is_returned(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(pending(60_000))
    assert await issue() == PendingOutcome(60_000)
    assert len(scripted.seen) == 1


async def test_what_was_pending_stays_so_when_the_server_goes_away(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(pending(1), status(grpc.StatusCode.UNAVAILABLE))
    assert await issue() == PendingOutcome(1)


async def test_an_overload_says_nothing_about_what_is_pending(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(pending(1), status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"))
    assert await issue() == PendingOutcome(1)


# Retries


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED], ids=str
)
async def test_lost_and_aborted_attempts_are_repeated_as_they_were(
    issue: Issue, scripted: ScriptedServer, code: grpc.StatusCode
) -> None:
    scripted.answers(status(code), status(code), GRANT)
    assert isinstance(await issue(), Granted)
    assert len(scripted.seen) == 3
    assert len({each.request for each in scripted.seen}) == 1


@pytest.mark.parametrize(
    ("code", "raised"), [(grpc.StatusCode.UNAVAILABLE, Unavailable), (grpc.StatusCode.ABORTED, Aborted)]
)
async def test_attempts_are_bounded(
    issue: Issue, scripted: ScriptedServer, code: grpc.StatusCode, raised: type[GuerdonError]
) -> None:
    scripted.answers(status(code))
    with pytest.raises(raised) as error:
        await issue(retry=RetryPolicy(max_attempts=3, base_delay_seconds=0.0))
    assert len(scripted.seen) == 3
    assert error.value.retryable
    assert error.value.outcome_unknown


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    ],
)
async def test_other_errors_are_not_repeated(issue: Issue, scripted: ScriptedServer, code: grpc.StatusCode) -> None:
    scripted.answers(status(code))
    with pytest.raises(GuerdonError) as error:
        await issue()
    assert len(scripted.seen) == 1
    assert error.value.code is code


async def test_backoff_doubles_with_full_jitter_up_to_its_cap(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(*[status(grpc.StatusCode.UNAVAILABLE)] * 4, GRANT)
    policy = RetryPolicy(base_delay_seconds=0.02, max_delay_seconds=0.05)
    await issue(retry=policy, random=lambda: 1.0)
    times = [each.at_seconds for each in scripted.seen]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    for gap, least in zip(gaps, [0.02, 0.04, 0.05, 0.05], strict=True):
        assert gap >= least
    assert [policy.backoff_seconds_max(n) for n in (1, 2, 3, 99)] == [0.02, 0.04, 0.05, 0.05]


async def test_the_server_can_ask_for_a_later_retry(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE, "GATE_UNAVAILABLE", retry_after_ms=60), GRANT)
    await issue()
    first, second = scripted.seen
    assert second.at_seconds - first.at_seconds >= 0.06


async def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for(
    issue: Issue, scripted: ScriptedServer
) -> None:
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE", retry_after_ms=60_000))
    with pytest.raises(Unavailable) as error:
        await issue()
    assert len(scripted.seen) == 1
    assert error.value.retry_after_seconds == 60.0


async def test_a_server_that_is_not_there_is_unavailable(flavour: str) -> None:
    policy = RetryPolicy(max_attempts=2, base_delay_seconds=0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        async with AsyncClient(target, retry=policy, timeout=20.0) as client:
            with Client(target, retry=policy, timeout=20.0) as waiting:
                reading = asyncio.to_thread(waiting.get_prize, prize_id="z")
                with pytest.raises(Unavailable) as error:
                    await (reading if flavour == "sync" else client.get_prize(prize_id="z"))
                reading.close()
    assert error.value.reason == ""
    assert not error.value.outcome_unknown, "a read leaves nothing open"


# Deadlines


async def test_one_deadline_covers_all_attempts(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(*[status(grpc.StatusCode.UNAVAILABLE)] * 2, pending(200), GRANT)
    policy = RetryPolicy(base_delay_seconds=0.2, max_delay_seconds=0.2)
    await issue(timeout=3.0, retry=policy, random=lambda: 1.0)
    # gRPC sends the deadline with an error of up to 5 %, so only the whole way is compared.
    assert 0 < scripted.seen[-1].time_remaining_seconds <= 3.0 - 0.6 + 0.15


async def test_no_answer_to_a_grant_is_an_unknown_outcome(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(HANG)
    with pytest.raises(OutcomeUnknown) as error:
        await issue(timeout=0.2)
    assert error.value.outcome_unknown
    assert error.value.retryable
    assert len(scripted.seen) == 1


async def test_no_answer_to_a_read_leaves_nothing_open(scripted: ScriptedServer) -> None:
    scripted.answers(HANG)
    async with AsyncClient(scripted.target, timeout=0.2) as client:
        with pytest.raises(DeadlineExceeded) as error:
            await client.get_issuance(promotion_id="p", request_id="r")
    assert not isinstance(error.value, OutcomeUnknown)
    assert not error.value.outcome_unknown


async def test_a_clock_that_jumps_ends_the_call(issue: Issue, scripted: ScriptedServer) -> None:
    times = iter([0.0, 0.0, 100.0, 100.0])
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(Unavailable):
        await issue(timeout=10.0, clock=lambda: next(times, 100.0))
    assert len(scripted.seen) == 1


async def test_options_make_another_client_over_the_same_connections(scripted: ScriptedServer) -> None:
    scripted.answers(GRANT)
    async with AsyncClient(scripted.target, timeout=20.0) as client:
        await client.with_options(timeout=5.0).issue_prize(**IDS)
        await client.issue_prize(**IDS)
    first, second = scripted.seen
    assert first.time_remaining_seconds <= 6.0 < second.time_remaining_seconds
    assert first.peer == second.peer


# Errors


@pytest.mark.parametrize(
    ("code", "reason", "raised"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, "PRIZE_NOT_FOUND", NotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, "ENTRANCE_NOT_BOUND", FailedPrecondition),
        (grpc.StatusCode.ALREADY_EXISTS, "PRIZE_EXISTS", AlreadyExists),
        (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", RequestIdReused),
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", PermissionDenied),
        (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", PermissionDenied),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", ResourceExhausted),
        (grpc.StatusCode.INTERNAL, "BUG", GuerdonError),
    ],
)
async def test_errors_are_decoded_from_their_details(
    issue: Issue, scripted: ScriptedServer, code: grpc.StatusCode, reason: str, raised: type[GuerdonError]
) -> None:
    violations = [("user_id", "is empty"), ("attributes[a]", "is odd")]
    scripted.answers(status(code, reason, metadata={"field": "user_id"}, violations=violations, retry_after_ms=1500))
    with pytest.raises(GuerdonError) as caught:
        await issue()
    error = caught.value
    assert type(error) is raised
    assert (error.code, error.reason, error.domain) == (code, reason, "guerdon.dev")
    assert error.metadata == {"field": "user_id"}
    assert error.field_violations == tuple(FieldViolation(*each) for each in violations)
    assert error.retry_after_seconds == 1.5
    assert str(error) == f"{code.name} / {reason}: for people; user_id: is empty; attributes[a]: is odd"


@pytest.mark.parametrize(
    ("steps", "unknown"),
    [
        ([grpc.StatusCode.RESOURCE_EXHAUSTED], False),
        ([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED], True),
        ([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED], True),
        ([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION], False),
        ([grpc.StatusCode.INTERNAL], True),
        ([grpc.StatusCode.INVALID_ARGUMENT], False),
    ],
)
async def test_an_earlier_attempt_can_leave_the_outcome_open(
    issue: Issue, scripted: ScriptedServer, steps: Sequence[grpc.StatusCode], unknown: bool
) -> None:
    scripted.answers(*[status(code) for code in steps])
    with pytest.raises(GuerdonError) as error:
        await issue()
    assert error.value.outcome_unknown is unknown
    assert len(scripted.seen) == len(steps)


async def test_an_error_without_details_still_has_its_code(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.NOT_FOUND))
    with pytest.raises(NotFound) as error:
        await issue()
    assert (error.value.reason, error.value.domain, error.value.message) == ("", "", "for people")


def test_errors_travel_between_processes() -> None:
    error = RequestIdReused(
        "m",
        code=grpc.StatusCode.ALREADY_EXISTS,
        reason="REQUEST_ID_REUSED",
        metadata={"field": "user_id"},
        field_violations=(FieldViolation("user_id", "differs"),),
        outcome_unknown=True,
    )
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copied) is RequestIdReused
    assert (str(copied), copied.field, copied.outcome_unknown) == (str(error), "user_id", True)


# Batches


def batch_answer(*words: str) -> prize_pb2.BatchIssuePrizesResponse:
    results = []
    for i, word in enumerate(words):
        result = prize_pb2.BatchItemResult()
        if word == "pending":
            result.pending.retry_after_ms = 1
        elif word == "unavailable":
            result.error.MergeFromString(status(grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE").SerializeToString())
        elif word == "error":
            result.error.MergeFromString(
                status(
                    grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", violations=[("items[1].user_id", "bad")]
                ).SerializeToString()
            )
        else:
            result.granted.issuance_id = f"{word}-{i}"
        results.append(result)
    return prize_pb2.BatchIssuePrizesResponse(results=results)


async def batch(scripted: ScriptedServer, mode: BatchMode, *steps: Step) -> list[str]:
    """Asks for three rewards; tells of each what came of it."""
    scripted.answers(*steps)
    items = [BatchItem("z", "u", f"r{i}") for i in range(3)]
    async with AsyncClient(scripted.target, retry=AT_ONCE, timeout=20.0) as client:
        outcomes = await client.batch_issue_prizes(promotion_id="p", entrance_id="e", items=items, mode=mode)
    return [each.issuance.issuance_id if isinstance(each, Granted) else type(each).__name__ for each in outcomes]


def asked(scripted: ScriptedServer) -> list[list[str]]:
    requests = [prize_pb2.BatchIssuePrizesRequest.FromString(each.request) for each in scripted.seen]
    return [[item.request_id for item in request.items] for request in requests]


async def test_only_what_is_pending_of_a_batch_is_asked_for_again(scripted: ScriptedServer) -> None:
    words = await batch(
        scripted,
        BatchMode.PER_ITEM,
        batch_answer("first", "pending", "pending"),
        batch_answer("second", "pending"),
        batch_answer("third"),
    )
    assert words == ["first-0", "second-0", "third-0"]
    assert asked(scripted) == [["r0", "r1", "r2"], ["r1", "r2"], ["r2"]]


async def test_items_that_were_unavailable_are_asked_for_again(scripted: ScriptedServer) -> None:
    words = await batch(
        scripted,
        BatchMode.PER_ITEM,
        batch_answer("unavailable", "first", "unavailable"),
        batch_answer("second", "unavailable"),
        batch_answer("third"),
    )
    assert words == ["second-0", "first-1", "third-0"]
    assert asked(scripted) == [["r0", "r1", "r2"], ["r0", "r2"], ["r2"]]


async def test_items_are_not_asked_for_without_end(scripted: ScriptedServer) -> None:
    words = await batch(
        scripted, BatchMode.PER_ITEM, batch_answer("first", "second", "unavailable"), batch_answer("unavailable")
    )
    assert words == ["first-0", "second-1", "ItemError"]
    assert len(scripted.seen) == AT_ONCE.max_attempts


async def test_an_all_or_nothing_batch_is_asked_for_whole(scripted: ScriptedServer) -> None:
    words = await batch(
        scripted,
        BatchMode.ALL_OR_NOTHING,
        batch_answer("pending", "pending", "pending"),
        batch_answer("again", "again", "again"),
    )
    assert words == ["again-0", "again-1", "again-2"]
    assert asked(scripted) == [["r0", "r1", "r2"]] * 2


async def test_grants_of_a_batch_survive_an_error_while_the_rest_is_pending(scripted: ScriptedServer) -> None:
    words = await batch(
        scripted,
        BatchMode.PER_ITEM,
        batch_answer("first", "pending", "third"),
        status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    )
    assert words == ["first-0", "PendingOutcome", "third-2"]


async def test_an_error_of_an_item_is_typed(scripted: ScriptedServer) -> None:
    scripted.answers(batch_answer("first", "error"))
    async with AsyncClient(scripted.target) as client:
        _, outcome = await client.batch_issue_prizes(
            promotion_id="p", entrance_id="e", items=[BatchItem("z", "u", "r0"), BatchItem("z", "u", "r1")]
        )
    assert isinstance(outcome, ItemError)
    assert isinstance(outcome.error, InvalidArgument)
    assert [each.field for each in outcome.error.field_violations] == ["items[1].user_id"]


# Requests


async def test_attributes_go_as_what_they_are(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(GRANT)
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    await issue({"flag": True, "cents": -7, "text": "x", "when": noon, "tags": ["a", "b"], "none": ()})
    sent = prize_pb2.IssuePrizeRequest.FromString(scripted.seen[0].request).attributes
    assert sent["flag"].WhichOneof("kind") == "boolean"
    assert sent["flag"].boolean is True
    assert (sent["cents"].integer, sent["text"].text) == (-7, "x")
    assert sent["when"].time.ToDatetime(UTC) == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert list(sent["tags"].list.values) == ["a", "b"]
    assert sent["none"].WhichOneof("kind") == "list"


@pytest.mark.parametrize(
    ("value", "raised", "says"),
    [
        (1.5, TypeError, "minor units"),
        (None, TypeError, "NoneType"),
        (["a", 1], TypeError, "list"),
        (datetime(2026, 1, 1), TypeError, "time zone"),
        (2**63, ValueError, "64 bits"),
    ],
)
async def test_what_is_no_attribute_is_refused_before_it_is_sent(
    issue: Issue, scripted: ScriptedServer, value: object, raised: type[Exception], says: str
) -> None:
    with pytest.raises(raised, match=rf"attributes\[cents\].*{says}"):
        await issue({"cents": value})
    assert scripted.seen == []


async def test_the_principal_goes_as_metadata(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(GRANT)
    await issue(principal="shop")
    await issue()
    assert scripted.seen[0].metadata["guerdon-principal"] == "shop"
    assert "guerdon-principal" not in scripted.seen[1].metadata


async def test_channels_are_connections_of_their_own(scripted: ScriptedServer) -> None:
    scripted.answers(GRANT)
    async with AsyncClient(scripted.target, channels=3, timeout=20.0) as client:
        for _ in range(6):
            await client.issue_prize(**IDS)
    peers = [each.peer for each in scripted.seen]
    assert len(set(peers)) == 3
    assert peers[:3] == peers[3:]


async def test_credentials_secure_the_connection(flavour: str) -> None:
    # Local credentials need no certificates; a plain-text client gets nowhere with such a server.
    async with scripted_server(grpc.local_server_credentials()) as secured:
        secured.answers(GRANT)
        credentials = grpc.local_channel_credentials()
        async with AsyncClient(secured.target, credentials=credentials, timeout=20.0) as client:
            with Client(secured.target, credentials=credentials, timeout=20.0) as waiting:
                if flavour == "asyncio":
                    assert isinstance(await client.issue_prize(**IDS), Granted)
                else:
                    assert isinstance(await asyncio.to_thread(waiting.issue_prize, **IDS), Granted)


async def test_threads_share_a_client(scripted: ScriptedServer) -> None:
    scripted.answers(GRANT)
    with Client(scripted.target, channels=2, timeout=20.0) as client:
        outcomes = await asyncio.gather(*(asyncio.to_thread(client.issue_prize, **IDS) for _ in range(50)))
    assert all(isinstance(each, Granted) for each in outcomes)
    assert len({each.peer for each in scripted.seen}) == 2


async def test_health_is_asked_of_the_standard_service(scripted: ScriptedServer) -> None:
    health = prize_pb2.Pending(retry_after_ms=1)  # field 1, value 1: what HealthCheckResponse says for SERVING
    scripted.answers(health, prize_pb2.Pending(retry_after_ms=2))
    async with AsyncClient(scripted.target) as client:
        assert await client.check_health() is HealthStatus.SERVING
        assert await client.check_health(service="guerdon.v1.PrizeService") is HealthStatus.NOT_SERVING
    assert scripted.seen[0].method == "/grpc.health.v1.Health/Check"
    assert scripted.seen[1].request == b"\x0a\x17guerdon.v1.PrizeService"


async def test_a_cancelled_call_is_cancelled(scripted: ScriptedServer) -> None:
    scripted.answers(HANG)
    async with AsyncClient(scripted.target, timeout=20.0) as client:
        call = asyncio.create_task(client.issue_prize(**IDS))
        async with asyncio.timeout(10):
            while not scripted.seen:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_wrong_options_are_refused() -> None:
    for wrong in ({"timeout": 0.0}, {"channels": 0}, {"channels": 257}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Client("127.0.0.1:1", **wrong)
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=0)
    with pytest.raises(ValueError, match="base_delay_seconds"):
        RetryPolicy(base_delay_seconds=2.0, max_delay_seconds=1.0)


async def test_calls_that_need_one_key_say_so(scripted: ScriptedServer) -> None:
    async with AsyncClient(scripted.target) as client:
        for wrong in (
            client.get_issuance(),
            client.get_issuance(promotion_id="p"),
            client.get_issuance(issuance_id="i", promotion_id="p", request_id="r"),
            client.list_issuances(),
            client.list_issuances(user_id="u", reference="r"),
            client.list_balances(),
        ):
            with pytest.raises(TypeError, match="takes"):
                await wrong
    assert scripted.seen == []

"""What the clients do on the wire: deadlines, retries, errors, connections. Against real sockets."""

import asyncio
import functools
import itertools
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta, timezone
from math import inf
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
    ItemOutcome,
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
from tests.client.scripted import HANG, Pushback, ScriptedServer, Step, scripted_server, status
from tests.cluster.proxy import Proxy, has_http2_message

AT_ONCE = RetryPolicy(base_delay_seconds=0.0, max_delay_seconds=0.0)
ONCE = RetryPolicy(max_attempts=1)
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


async def test_an_overload_is_repeated_when_the_server_said(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_ms=60), GRANT)
    await issue()
    first, second = scripted.seen
    assert second.at_seconds - first.at_seconds >= 0.06


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED], ids=str)
@pytest.mark.parametrize(("retry_after_ms", "pushback_ms"), [(None, 60), (1, 60), (60, 1)])
async def test_a_retry_comes_no_earlier_than_the_latest_that_the_server_says(
    issue: Issue, scripted: ScriptedServer, code: grpc.StatusCode, retry_after_ms: int | None, pushback_ms: int
) -> None:
    scripted.answers(Pushback(status(code, "BUSY", retry_after_ms=retry_after_ms), str(pushback_ms)), GRANT)
    await issue()
    first, second = scripted.seen
    assert second.at_seconds - first.at_seconds >= 0.06


@pytest.mark.parametrize("milliseconds", ["-1", "soon", ""])
async def test_a_server_can_ask_not_to_be_asked_again(
    issue: Issue, scripted: ScriptedServer, milliseconds: str
) -> None:
    scripted.answers(Pushback(status(grpc.StatusCode.UNAVAILABLE, "BUSY", retry_after_ms=1), milliseconds))
    with pytest.raises(Unavailable) as error:
        await issue()
    assert len(scripted.seen) == 1
    assert error.value.retry_refused
    assert not error.value.throttled


async def test_a_pushback_beyond_the_deadline_is_not_waited_for(issue: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(Pushback(status(grpc.StatusCode.UNAVAILABLE, "BUSY"), "60000"))
    with pytest.raises(Unavailable) as error:
        await issue()
    assert len(scripted.seen) == 1
    assert error.value.retry_after_seconds == 60.0


# The retry budget


@pytest_asyncio.fixture(loop_scope="session")
async def budgeted(flavour: str, scripted: ScriptedServer) -> AsyncIterator[Callable[..., Awaitable[IssueOutcome]]]:
    """Issues with one client of 10 tokens, of which a success gives half a one back; arguments: with_options."""
    policy = RetryPolicy(
        max_attempts=50, base_delay_seconds=0.0, max_delay_seconds=0.0, max_tokens=10.0, token_ratio=0.5
    )
    async with AsyncClient(scripted.target, retry=policy, timeout=20.0) as client:
        with Client(scripted.target, retry=policy, timeout=20.0) as waiting:

            async def call(**options: Any) -> IssueOutcome:
                if flavour == "asyncio":
                    return await client.with_options(**options).issue_prize(**IDS)
                return await asyncio.to_thread(functools.partial(waiting.with_options(**options).issue_prize, **IDS))

            yield call


async def test_while_half_of_the_budget_is_gone_nothing_is_repeated(budgeted: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE"))
    for attempts in (5, 1, 1):
        before = len(scripted.seen)
        with pytest.raises(Unavailable) as error:
            await budgeted()
        assert len(scripted.seen) - before == attempts
        assert error.value.throttled
        assert error.value.reason == "LEDGER_UNAVAILABLE", "what was last known is told"
        assert error.value.outcome_unknown
        assert str(error.value).endswith("not repeated: the retry budget is used up")


async def test_successes_fill_the_budget_again(budgeted: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(Unavailable):
        await budgeted()
    scripted.answers(GRANT)
    for _ in range(3):  # 6.5 tokens now; the next failure leaves 5.5
        await budgeted()
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE), GRANT)
    before = len(scripted.seen)
    assert isinstance(await budgeted(), Granted)
    assert len(scripted.seen) - before == 2


async def test_the_budget_never_holds_more_than_its_most(budgeted: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(GRANT)
    for _ in range(20):
        await budgeted()
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE))
    before = len(scripted.seen)
    with pytest.raises(Unavailable):
        await budgeted()
    assert len(scripted.seen) - before == 5


async def test_all_calls_of_a_client_share_one_budget(budgeted: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE))
    calls = [budgeted(timeout=float(10 + n)) for n in range(40)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, Unavailable) for error in errors)
    assert len(scripted.seen) == 40 + 4


async def test_answers_that_decide_take_nothing_from_the_budget(budgeted: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.NOT_FOUND))
    for _ in range(20):
        with pytest.raises(NotFound):
            await budgeted()
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE), GRANT)
    assert isinstance(await budgeted(), Granted)


async def test_without_a_budget_attempts_are_all_that_is_bounded(budgeted: Issue, scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(Unavailable) as error:
        await budgeted(retry=RetryPolicy(max_attempts=300, base_delay_seconds=0.0, max_tokens=inf))
    assert len(scripted.seen) == 300
    assert not error.value.throttled


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
        await issue(retry=ONCE)
    error = caught.value
    assert type(error) is raised
    assert (error.code, error.reason, error.domain) == (code, reason, "guerdon.dev")
    assert error.metadata == {"field": "user_id"}
    assert error.field_violations == tuple(FieldViolation(*each) for each in violations)
    assert error.retry_after_seconds == 1.5
    is_open = "; the outcome is open: repeat with the same request id, or ask" if error.outcome_unknown else ""
    assert str(error) == f"{code.name} / {reason}: for people; user_id: is empty; attributes[a]: is odd{is_open}"


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


OPENING = [
    status(grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN"),
    status(grpc.StatusCode.UNAVAILABLE),
    status(grpc.StatusCode.CANCELLED),
    status(grpc.StatusCode.ABORTED, "CONTENTION"),
]
NOTHING_DONE = [
    status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_ms=60_000),
    status(grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE", retry_after_ms=60_000),
    status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", retry_after_ms=60_000),
    status(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT"),
    status(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
]


@pytest.mark.parametrize("last", NOTHING_DONE, ids=lambda each: str(each.code))
@pytest.mark.parametrize("first", OPENING, ids=lambda each: str(each.code))
async def test_that_the_last_attempt_did_nothing_says_nothing_of_those_before(
    issue: Issue, scripted: ScriptedServer, first: Step, last: Step
) -> None:
    scripted.answers(first, last)
    with pytest.raises(GuerdonError) as error:
        await issue()
    assert len(scripted.seen) == 2
    assert error.value.outcome_unknown
    assert error.value.retryable
    assert "the outcome is open" in str(error.value)


async def test_an_attempt_whose_connection_broke_leaves_the_outcome_open(
    flavour: str, scripted: ScriptedServer
) -> None:
    """The answer to it was a grant, which was lost on its way."""
    overloaded = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_ms=60_000)
    scripted.answers(pending(1), GRANT, overloaded)
    host, _, port = scripted.target.rpartition(":")
    async with Proxy(host, int(port), counts=has_http2_message) as proxy:
        target = f"127.0.0.1:{proxy.port}"
        async with AsyncClient(target, timeout=20.0) as client:
            with Client(target, timeout=20.0) as waiting:

                async def issue() -> IssueOutcome:
                    if flavour == "asyncio":
                        return await client.issue_prize(**IDS)
                    return await asyncio.to_thread(functools.partial(waiting.issue_prize, **IDS))

                assert isinstance(await issue(), Granted)  # and so it is connected
                scripted.answers(GRANT, overloaded)
                proxy.lose_replies = 1
                with pytest.raises(ResourceExhausted) as error:
                    await issue()
    assert error.value.outcome_unknown
    assert len(scripted.seen) == 4


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
        elif word in ("overloaded", "busy"):
            later = {"overloaded": 60_000, "busy": 1}[word]
            shed = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_ms=later)
            result.error.MergeFromString(shed.SerializeToString())
        elif word == "rejected":
            result.rejected.reason = prize_pb2.REJECTION_REASON_BATCH_NOT_GRANTED
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
    outcomes = await batch_outcomes(scripted, mode)
    return [each.issuance.issuance_id if isinstance(each, Granted) else type(each).__name__ for each in outcomes]


async def batch_outcomes(scripted: ScriptedServer, mode: BatchMode) -> Sequence[ItemOutcome]:
    items = [BatchItem("z", "u", f"r{i}") for i in range(3)]
    async with AsyncClient(scripted.target, retry=AT_ONCE, timeout=20.0) as client:
        return await client.batch_issue_prizes(promotion_id="p", entrance_id="e", items=items, mode=mode)


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


async def test_a_round_for_items_that_failed_takes_from_the_budget(scripted: ScriptedServer) -> None:
    scripted.answers(batch_answer("unavailable", "unavailable", "unavailable"))
    policy = RetryPolicy(max_attempts=50, base_delay_seconds=0.0, max_tokens=10.0, token_ratio=0.0)
    items = [BatchItem("z", "u", f"r{i}") for i in range(3)]
    async with AsyncClient(scripted.target, retry=policy, timeout=20.0) as client:
        outcomes = await client.batch_issue_prizes(promotion_id="p", entrance_id="e", items=items)
    assert all(isinstance(each, ItemError) and each.error.throttled for each in outcomes)
    assert len(scripted.seen) == 5


async def test_what_a_lost_attempt_of_a_batch_may_have_done_is_said_of_its_items(scripted: ScriptedServer) -> None:
    scripted.answers(status(grpc.StatusCode.UNAVAILABLE), batch_answer("first", "overloaded", "error"))
    _, overloaded, wrong = await batch_outcomes(scripted, BatchMode.PER_ITEM)
    assert isinstance(overloaded, ItemError)
    assert isinstance(wrong, ItemError)
    assert overloaded.error.outcome_unknown
    assert not wrong.error.outcome_unknown


async def test_what_a_lost_repetition_of_a_batch_may_have_done_is_said_of_its_items(scripted: ScriptedServer) -> None:
    scripted.answers(batch_answer("first", "busy", "pending"), status(grpc.StatusCode.UNAVAILABLE))
    granted, busy, waits = await batch_outcomes(scripted, BatchMode.PER_ITEM)
    assert isinstance(granted, Granted)
    assert isinstance(busy, ItemError)
    assert busy.error.outcome_unknown
    assert waits == PendingOutcome(1)


async def test_a_rejection_of_a_batch_that_was_repeated_as_a_whole_and_lost_is_open(scripted: ScriptedServer) -> None:
    scripted.answers(batch_answer("rejected", "busy", "rejected"), status(grpc.StatusCode.UNAVAILABLE))
    for outcome in await batch_outcomes(scripted, BatchMode.ALL_OR_NOTHING):
        assert isinstance(outcome, ItemError)
        assert outcome.error.outcome_unknown


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
    with pytest.raises(ValueError, match="max_tokens"):
        RetryPolicy(max_tokens=0.0)
    with pytest.raises(ValueError, match="token_ratio"):
        RetryPolicy(token_ratio=-0.1)
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

"""A server from its start to its end, as a supervisor sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import urllib.request
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings
from tests.issuing.crowd import crowd
from tests.issuing.desk import Refusal, ask, eventually, item, opened, outcome
from tests.issuing.proof import at_rest, open_admissions, proven
from tests.running.processes import environment, refused, serving
from tests.transports import on_both_transports


@on_both_transports
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_finishes_what_is_in_flight_and_ends_with_status_0(settings: Settings, number: signal.Signals) -> None:
    async with serving(settings) as process, opened(process.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        await desk.grant(ask())
        connection = await postgres.connect(settings.postgres_dsn)
        # A commit that waits: its caller's answer is what the drain has to wait for.
        await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")
        waiting = asyncio.create_task(desk.issue(ask("r-waiting")))
        stub: Any = health_pb2_grpc.HealthStub(desk.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        states = aiter(watch)
        assert (await anext(states)).status == health_pb2.HealthCheckResponse.SERVING

        async def in_flight() -> bool:
            return await open_admissions(settings) == 1

        await eventually(in_flight)
        process.signal(number)
        assert (await anext(states)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        late = await outcome(desk.issue(ask("r-late")))
        assert isinstance(late, Refusal)
        assert (late.code, late.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert late.retry_after_ms
        assert not waiting.done()
        await connection.execute("ROLLBACK")
        assert (await waiting).HasField("granted")
        watch.cancel()
        await connection.close()
        ended = await process.ended()

    assert ended.status == 0, ended.stderr
    assert "Traceback" not in ended.told, ended.told
    assert await open_admissions(settings) == 0
    await proven(settings)


@on_both_transports
async def test_it_ends_under_load_without_losing_an_answer(settings: Settings) -> None:
    async with (
        serving(settings) as first,
        serving(settings) as second,
        opened(first.grpc) as one,
        opened(second.grpc) as two,
    ):
        await one.opens()
        await one.coupon()
        async with crowd([one, two]) as people:
            await people.more(200)
            first.signal(signal.SIGTERM)
            people.desks = [two]
            ended = await first.ended()
            await people.more(100)
        await people.replays_are_the_originals()
    assert ended.status == 0, ended.stderr
    await at_rest(settings)
    await proven(settings)


@on_both_transports
async def test_what_a_killed_server_had_admitted_is_given_back(settings: Settings) -> None:
    async with serving(settings) as process, opened(process.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=40)
        await desk.grant(ask())
        connection = await postgres.connect(settings.postgres_dsn)
        await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")
        calls = [asyncio.create_task(outcome(desk.issue(ask(f"held-{n}")))) for n in range(30)]

        async def in_flight() -> bool:
            return await open_admissions(settings) == 30

        await eventually(in_flight)
        process.signal(signal.SIGKILL)
        await process.ended()
        unanswered = await asyncio.gather(*calls)
        assert {answer.code for answer in unanswered} == {"UNAVAILABLE"}
        await connection.execute("ROLLBACK")
        await connection.close()

    async with bootstrap.running(settings) as endpoints, opened(endpoints.grpc) as desk:
        await at_rest(settings)
        issued = (await desk.stock()).issued_units
        results = await desk.batch([item(f"held-{n}") for n in range(39)])
        assert all(result.HasField("granted") for result in results)
        assert sum(result.replayed for result in results) == issued - 1
        assert (await desk.stock()).remaining_units == 0
    await proven(settings)


async def test_two_servers_and_one_is_killed_again_and_again(settings: Settings) -> None:
    async with serving(settings) as steady, opened(steady.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=100_000)
        granted = 0
        for _ in range(2):
            async with serving(settings) as doomed, opened(doomed.grpc) as other:
                async with crowd([desk, other]) as people:
                    await people.more(60)
                    doomed.signal(signal.SIGKILL)
                    people.desks = [desk]
                    await people.more(60)
                granted += len(people.granted)
                await people.replays_are_the_originals()
        assert (await desk.stock()).issued_units == granted
        await at_rest(settings)
    await proven(settings)


async def test_calls_that_grpc_itself_aborts_lock_nobody_out(settings: Settings) -> None:
    """They leave cycles behind, and a server that has nothing to do allocates nothing that would call the collector."""
    async with (
        serving(settings, GUERDON_CALLS_PER_CONNECTION_MAX="16") as process,
        grpc.aio.insecure_channel(process.grpc) as channel,
    ):
        check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for _ in range(40):
            with pytest.raises(grpc.aio.AioRpcError):
                await check(health_pb2.HealthCheckRequest(service="guerdon.v1.NoService"), timeout=5)

        async def serves() -> bool:
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await eventually(serves)


async def test_it_does_not_start_on_a_database_that_was_not_migrated(settings: Settings, empty_database: str) -> None:
    ended = await refused(environment(dataclasses.replace(settings, postgres_dsn=empty_database)))

    assert ended.status not in (0, None)
    assert "guerdon migrate" in ended.told
    assert "Traceback" not in ended.told


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("GUERDON_POSTGRES_DSN", "postgresql://guerdon:wrong-secret@127.0.0.1:{port}/guerdon", "password"),
        ("GUERDON_POSTGRES_DSN", "postgresql://guerdon:wrong-secret@127.0.0.1:1/guerdon", "PostgreSQL at 127.0.0.1:1"),
        ("GUERDON_POSTGRES_DSN", "nonsense", "postgres_dsn"),
        ("GUERDON_REDIS_URL", "nonsense", "redis_url"),
        ("GUERDON_GRPC_PORT", "seven", "grpc_port"),
        ("GUERDON_REQUESTS_IN_FLIGHT_MAX", "0", "requests_in_flight_max"),
    ],
    ids=["password", "nobody there", "no address", "no Redis address", "no number", "too small"],
)
async def test_it_does_not_start_with_wrong_settings(
    settings: Settings, engines: Engines, variable: str, value: str, told: str
) -> None:
    wrong = value.format(port=engines.postgres.port)

    ended = await refused(environment(settings, **{variable: wrong}))

    assert ended.status not in (0, None)
    assert told in ended.told, ended.told
    assert "wrong-secret" not in ended.told
    assert "Traceback" not in ended.told, ended.told


async def test_it_does_not_start_where_an_acknowledged_grant_could_be_lost(settings: Settings) -> None:
    ended = await refused(environment(settings, GUERDON_TEST_MODE="false"))

    assert ended.status not in (0, None)
    assert "fsync" in ended.told
    assert "Traceback" not in ended.told


@on_both_transports
async def test_a_taken_port_is_told(settings: Settings, server_target: str) -> None:
    port = server_target.rsplit(":", 1)[1]

    ended = await refused(environment(settings, GUERDON_GRPC_PORT=port))

    assert ended.status not in (0, None)
    assert port in ended.told
    assert "Traceback" not in ended.told


async def test_a_server_stops_at_whatever_moment_it_is_told_to(settings: Settings) -> None:
    for moment in range(12):  # in the middle of what its background does at the start
        async with bootstrap.running(settings):
            for _ in range(moment):
                await asyncio.sleep(0)


_PROMISED = {
    *("guerdon_outcomes", "guerdon_queued_items", "guerdon_batches_in_flight", "guerdon_batch_items"),
    *("guerdon_batch_seconds", "guerdon_open_admissions", "guerdon_open_admission_age_seconds"),
    *("guerdon_invariant_violations", "guerdon_calls_in_flight", "guerdon_calls_shed", "grpc_server_handled"),
    *("grpc_server_handling_seconds", "grpc_server_started", "guerdon_queue_age_seconds", "guerdon_queue_refusals"),
    *("guerdon_over_issued_units", "guerdon_gate_drift_units", "guerdon_gate_moved_units", "guerdon_capacity_units"),
    *("guerdon_capacity_issued_units", "guerdon_engine_silent_seconds", "guerdon_engine_answer_seconds"),
    *(
        "guerdon_pool_connections",
        "guerdon_pool_waiting",
        "guerdon_pool_wait_seconds",
        "guerdon_event_loop_lag_seconds",
    ),
}
_BOUNDED = {
    *("stage", "outcome", "event", "result", "found", "grpc_code", "grpc_method", "grpc_service", "grpc_type"),
    *("engine", "pool", "state", "priority", "le"),
    *("promotion", "kind", "item"),  # the fullest promotions only: core/issuance/postgres/capacity_watch.py
}


def scraped(endpoint: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by family."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        family.name: [(dict(sample.labels), sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(text)
    }


@on_both_transports
async def test_metrics_tell_what_is_promised_and_their_labels_are_bounded(
    settings: Settings, endpoints: bootstrap.Endpoints
) -> None:
    async with opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=1)
        request = ask()
        await desk.grant(request)
        await desk.grant(request, replayed=True)
        await desk.rejection(ask())
        before = await asyncio.to_thread(scraped, endpoints.metrics)
        for number in range(50):  # whatever callers make up
            await outcome(desk.issue(ask(promotion_id=f"p-{number}"), principal=f"who-{number}"))
            await outcome(desk.issue(ask(user_id=f"u-{number}", prize_id=f"z-{number}")))
            unheard: Any = desk.channel.unary_unary(f"/guerdon.v1.PrizeService/M{number}")
            await outcome(unheard(b""))
        await outcome(desk.batch([item(user_id=f"v-{number}") for number in range(50)]))
        after = await asyncio.to_thread(scraped, endpoints.metrics)

    assert set(after) >= _PROMISED, _PROMISED - set(after)
    grown = {
        name: len(samples) - len(before[name]) for name, samples in after.items() if len(samples) > len(before[name])
    }
    assert all(name.startswith("grpc_server") for name in grown), grown
    ours = {name: samples for name, samples in after.items() if name.startswith(("guerdon_", "grpc_"))}
    ours.pop("guerdon_build_info")
    assert {label for samples in ours.values() for labels, _ in samples for label in labels} <= _BOUNDED
    values = {name: {str(labels): value for labels, value in samples} for name, samples in after.items()}
    text = str(values)
    assert not any(made_up in text for made_up in ("p-7", "z-7", "u-7", "v-7", "who-7", "M7"))
    outcomes = {labels["outcome"]: value for labels, value in after["guerdon_outcomes"] if "outcome" in labels}
    assert (outcomes["granted"], outcomes["replayed"]) == (1, 1)
    assert outcomes["sold_out"] >= 51

"""Telemetry on its way out: real exporters, a real collector, and hosts in processes of their own."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from api import telemetry_sdk
from resilience.attempt import Attempt, Entering
from resilience.record import RequestRecord
from resilience.telemetry import Telemetry
from tests.support.azurite import AzuriteServer
from tests.support.collector import Collector, attributes_of, collecting
from tests.support.servers import body, deployment, eventually
from tests.support.telemetry import PARENT, TRACE, TRACEPARENT

CANARY = "secret-canary-of-the-client"

UNHINDERED = 20.0
"""Seconds of which a busy machine may take many; fifty exports that each waited for their time-out would take 50."""

QUIET = {
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED": "true",
}
"""What the exporter of Application Insights would otherwise tell its makers, and ask them."""


def tell(telemetry: Telemetry) -> None:
    """One handler entry's worth of telemetry."""
    record = RequestRecord(
        response_id="resp_x",
        created_at=7,
        principal="somebody",
        request={"input": CANARY},
        client_headers={},
        query_parameters={},
        agent_reference=None,
        trace_context=telemetry.accept({"traceparent": TRACEPARENT}),
    )
    with Attempt(telemetry, record, Entering(disposition="foreground", model="m")) as attempt:
        attempt.started()
        attempt.begun()
        snapshot = {"status": "completed", "usage": {"input_tokens": 3, "output_tokens": 4}}
        attempt.decided(snapshot)
        attempt.terminal(snapshot)


async def test_one_trace_crosses_http_and_queue_and_the_log_names_it(azurite: AzuriteServer) -> None:
    """Neither host sends anything before it is asked to leave: both intervals are longer than the test."""
    settings = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_METRIC_EXPORT_INTERVAL": "600000"}
    settings["RESPONSES_LOG_FORMAT"] = "json"
    with collecting() as collector, deployment(azurite, **settings, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as made:
        web, runner = await asyncio.gather(
            made.start("--only", "http", "--grace", "10"),
            made.start("--only", "queue", "--grace", "10", OTEL_SERVICE_NAME="runner"),
        )
        done, failed = await _ask(web.base_url)
        for host in (web, runner):
            host.terminate()
        await asyncio.gather(web.wait_ended(30), runner.wait_ended(30))
        assert {span.name for span in collector.spans} == {"invoke_agent test-model"}
        spans = {attributes_of(span)["gen_ai.response.id"]: span for span in collector.spans}
        run = spans[done]
        assert (run.trace_id.hex(), run.parent_span_id.hex()) == (TRACE, PARENT)
        assert [event.name for event in run.events] == ["accepted", "started", "first event", "terminal"]
        assert attributes_of(run)["responses.status"] == "completed"
        assert collector.services == {"runner", "resilient-responses"}
        assert collector.metrics >= {"responses.attempts", "responses.queue.delay", "responses.storage.operations"}
        assert not [name for name in collector.metrics if not name.startswith(("responses.", "gen_ai."))]
        lines = [json.loads(line) for line in made.logs().splitlines() if line.startswith("{")]
        (line,) = [each for each in lines if failed in each["message"] and "the handler failed" in each["message"]]
        assert line["request_id"] == "request-of-mine"
        assert line["response_id"] == failed
        assert line["attempt_id"].startswith("1")
        assert (line["trace_id"], line["span_id"]) == (TRACE, spans[failed].span_id.hex())
        assert "ScriptedError" in line["exception"]
        assert CANARY not in made.logs()
        assert CANARY not in str(collector.spans)
        assert collector.unknown == []


async def _ask(url: str) -> tuple[str, str]:
    """The ids of a background response that completed, and of a foreground one that failed; both of one trace."""
    headers = {"traceparent": TRACEPARENT, "x-request-id": "request-of-mine"}
    async with httpx.AsyncClient(base_url=url, timeout=30, headers=headers) as client:
        request = body({"count": 3, "note": CANARY}, background=True)
        done = str((await client.post("/v1/responses", json=request)).json()["id"])

        async def is_completed() -> bool:
            return bool((await client.get(f"/v1/responses/{done}")).json()["status"] == "completed")

        await eventually(is_completed, "the end of the background response")
        failing = body({"count": 1, "end": "raise", "note": CANARY})
        failed = (await client.post("/v1/responses", json=failing)).json()
        assert failed["status"] == "failed"
        return done, str(failed["id"])


async def test_what_is_not_sent_yet_is_sent_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "600000")
    with collecting() as collector:
        made = telemetry_sdk.make({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/"})
        try:
            tell(Telemetry(made.tracers, made.meters))
            assert not collector.spans
            await made.flush(60)
            assert [span.name for span in collector.spans] == ["invoke_agent m"]
            assert {"responses.ended", "gen_ai.client.token.usage"} <= collector.metrics
        finally:
            made.stop()


async def test_a_collector_that_is_away_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with collecting() as collector:
        url = collector.url
    made = telemetry_sdk.make({"OTEL_EXPORTER_OTLP_ENDPOINT": url})
    try:
        telemetry = Telemetry(made.tracers, made.meters)
        began = time.monotonic()
        for _ in range(50):
            tell(telemetry)
        assert time.monotonic() - began < UNHINDERED
        began = time.monotonic()
        await made.flush(0.5)
        assert time.monotonic() - began < UNHINDERED
    finally:
        await asyncio.to_thread(made.stop)


async def test_application_insights_gets_run_outcome_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    with collecting() as collector:
        key = "00000000-0000-0000-0000-00000000abcd"
        connection = f"InstrumentationKey={key};IngestionEndpoint={collector.url}"
        settings = {"APPLICATIONINSIGHTS_CONNECTION_STRING": connection, "WEBSITE_SITE_NAME": "my-server"}
        made = telemetry_sdk.make(settings)
        try:
            tell(Telemetry(made.tracers, made.meters))
            await made.flush(60)
            run = _data(collector, "RemoteDependencyData")[0]
            assert run["tags"]["ai.operation.id"] == TRACE
            assert run["tags"]["ai.cloud.role"] == "my-server"
            found = run["data"]["baseData"]
            assert (found["name"], found["success"]) == ("invoke_agent m", True)
            assert found["properties"]["responses.status"] == "completed"
            assert found["properties"]["gen_ai.usage.input_tokens"] == "3"
            events = {each["data"]["baseData"]["message"] for each in _data(collector, "MessageData")}
            assert events == {"accepted", "started", "first event", "terminal"}
            numbers = {each["data"]["baseData"]["metrics"][0]["name"] for each in _data(collector, "MetricData")}
            assert {"responses.ended", "responses.attempts", "responses.queue.delay"} <= numbers
        finally:
            made.stop()


def _data(collector: Collector, kind: str) -> list[dict[str, Any]]:
    return [each for each in collector.envelopes if each["data"]["baseType"] == kind]

"""Traces of requests, ids in log lines, and what is exported by which settings."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from api import exporting, logs, telemetry_sdk
from resilience import log_context
from resilience.attempt import Attempt, Entering
from resilience.record import MalformedRecord, RequestRecord
from resilience.telemetry import ACCEPTED, Telemetry, accepted_at, outcome_of, shared
from tests.support.telemetry import TRACEPARENT, Recorder, attributes_of

ROOT = Path(__file__).resolve().parents[2]

# -- the trace of a request -------------------------------------------------------------------------------------------


def test_the_trace_of_the_accepting_request_is_kept_as_it_came() -> None:
    told = Recorder()
    telemetry = Telemetry(told.tracers, clock=lambda: 1_700_000_000.25)
    kept = telemetry.accept({"traceparent": TRACEPARENT, "tracestate": "a=1,b=2"})
    assert kept == {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2", ACCEPTED: "1700000000250"}
    assert accepted_at(kept, 7) == 1_700_000_000.25
    assert not told.spans


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_trace_that_the_caller_does_not_sample_is_kept_all_the_same(flags: str) -> None:
    given_trace = f"{TRACEPARENT[:-2]}{flags}"
    assert shared().accept({"traceparent": given_trace})["traceparent"] == given_trace


@given(st.text(max_size=80))
def test_what_is_no_trace_counts_as_none(text: str) -> None:
    assert set(shared().accept({"traceparent": text, "tracestate": "a=1"})) == {ACCEPTED}


def test_a_tracestate_beyond_the_standard_is_left_out() -> None:
    kept = shared().accept({"traceparent": TRACEPARENT, "tracestate": f"a={'x' * 600}"})
    assert set(kept) == {"traceparent", ACCEPTED}


def test_without_an_sdk_nothing_is_made_up_for_a_request_without_a_trace() -> None:
    assert set(shared().accept({})) == {ACCEPTED}


def test_a_record_without_a_trace_is_stored_as_before_and_read_from_older_versions() -> None:
    record = RequestRecord(
        response_id="resp_x",
        created_at=7,
        principal="somebody",
        request={},
        client_headers={},
        query_parameters={},
        agent_reference=None,
    )
    assert b"trace_context" not in record.to_bytes()
    assert RequestRecord.from_bytes(record.to_bytes()).trace_context == {}
    assert accepted_at({}, record.created_at) == 7.0
    assert accepted_at({ACCEPTED: "soon"}, record.created_at) == 7.0


def test_the_trace_is_read_back_equal_by_every_attempt() -> None:
    record = RequestRecord(
        response_id="resp_x",
        created_at=7,
        principal="somebody",
        request={},
        client_headers={},
        query_parameters={},
        agent_reference=None,
        trace_context={"traceparent": TRACEPARENT, ACCEPTED: "7000"},
    )
    assert RequestRecord.from_bytes(record.to_bytes()) == record


def test_attempts_to_link_to_are_remembered_for_a_while_only() -> None:
    telemetry = Recorder().telemetry
    span = telemetry.tracer.start_span("x").get_span_context()
    for number in range(2_000):
        telemetry.remember_attempt(f"resp_{number}", span)
    assert telemetry.earlier_attempt("resp_0") is None
    assert telemetry.earlier_attempt("resp_1999") == span
    telemetry.remember_attempt("resp_y", INVALID_SPAN_CONTEXT)
    assert telemetry.earlier_attempt("resp_y") is None


def test_an_outcome_names_its_error_and_the_reason_of_the_shutdown() -> None:
    error = {"code": "server_error", "message": "x", "additionalInfo": {"shutdown_reason": "attempts_exhausted"}}
    assert outcome_of({"status": "failed", "error": error}) == {
        "responses.status": "failed",
        "error.type": "server_error",
        "responses.shutdown_reason": "attempts_exhausted",
    }
    assert outcome_of({"status": "completed", "error": None}) == {"responses.status": "completed"}


def test_a_run_that_breaks_off_says_of_what_kind_and_nothing_of_what_was_said() -> None:
    told = Recorder()
    record = RequestRecord(
        response_id="resp_x",
        created_at=7,
        principal="secret-canary",
        request={"input": "secret-canary"},
        client_headers={"x-client-a": "secret-canary"},
        query_parameters={},
        agent_reference=None,
    )
    with (
        pytest.raises(RuntimeError),
        Attempt(told.telemetry, record, Entering(disposition="resilient", worker_id="w1", model="m")),
    ):
        raise RuntimeError("secret-canary")
    (span,) = told.runs()
    assert attributes_of(span)["error.type"] == "RuntimeError"
    assert "secret-canary" not in span.to_json()


# -- what is documented -----------------------------------------------------------------------------------------------

DOCUMENT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    made = {str(each.name) for each in vars(Recorder().telemetry).values() if hasattr(each, "name")}
    section = DOCUMENT.split("## Metrics")[1].split("## Logs")[0]
    assert made == set(re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE))


def test_every_attribute_of_a_span_is_documented() -> None:
    told = Recorder()
    record = RequestRecord(
        response_id="resp_x",
        created_at=7,
        principal="somebody",
        request={"conversation": "conv_x"},
        client_headers={},
        query_parameters={},
        agent_reference={"name": "a", "version": "1"},
        trace_context=told.telemetry.accept({"traceparent": TRACEPARENT}),
    )
    error = {"code": "server_error", "additionalInfo": {"shutdown_reason": "crash_recovery"}}
    snapshot = {"status": "failed", "model": "m", "error": error, "usage": {"input_tokens": 1, "output_tokens": 2}}
    with Attempt(told.telemetry, record, Entering(disposition="resilient", worker_id="w1", model="m")) as attempt:
        attempt.terminal(snapshot)
        attempt.left("ended")
    section = DOCUMENT.split("## Traces")[1].split("## Metrics")[0]
    documented = set(re.findall(r"`((?:gen_ai|responses|error)\.[a-z_.]+)`", section))
    assert set(attributes_of(told.runs()[0])) == documented


def test_a_record_that_cannot_be_read_is_logged_without_what_it_says(root: logging.Logger) -> None:
    stream = writing_to(root, {"RESPONSES_LOG_FORMAT": "json"})
    stored = b'{"v": 1, "principal": 7, "request": ["secret-canary"]}'
    try:
        RequestRecord.from_bytes(stored)
    except MalformedRecord:
        root.exception("its record cannot be read")
    assert "ValidationError" in stream.getvalue()
    assert "secret-canary" not in stream.getvalue()


# -- logs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root() -> logging.Logger:
    """A root of its own: pytest's is left alone."""
    return logging.RootLogger(logging.INFO)


def writing_to(root: logging.Logger, environment: dict[str, str]) -> io.StringIO:
    stream = io.StringIO()
    root.addHandler(logging.StreamHandler(stream))
    logs.configure(environment, root)
    return stream


def test_a_line_of_json_has_the_ids_of_its_task(root: logging.Logger) -> None:
    stream = writing_to(root, {"RESPONSES_LOG_FORMAT": "JSON"})
    with log_context.bound(request_id="r1"), log_context.bound(response_id="resp_x", attempt_id=""):
        root.warning("two\nlines of %s", "text")
    root.info("outside")
    inside, outside = (json.loads(line) for line in stream.getvalue().splitlines())
    assert inside.pop("time").endswith("+00:00")
    assert inside == {
        "level": "WARNING",
        "logger": "root",
        "message": "two\nlines of text",
        "request_id": "r1",
        "response_id": "resp_x",
    }
    assert "request_id" not in outside


def test_a_line_of_json_names_the_span_that_it_was_logged_in(root: logging.Logger) -> None:
    stream = writing_to(root, {"RESPONSES_LOG_FORMAT": "json"})
    with Recorder().telemetry.tracer.start_as_current_span("x") as span:
        root.info("inside")
    line = json.loads(stream.getvalue())
    context = span.get_span_context()
    assert (line["trace_id"], line["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


def test_an_exception_stays_on_the_line(root: logging.Logger) -> None:
    stream = writing_to(root, {"RESPONSES_LOG_FORMAT": "json"})
    try:
        raise RuntimeError("broken \ud800")
    except RuntimeError:
        root.exception("it failed")
    (line,) = stream.getvalue().splitlines()
    assert "RuntimeError: broken" in json.loads(line)["exception"]


@pytest.mark.parametrize("environment", [{}, {"RESPONSES_LOG_FORMAT": ""}, {"RESPONSES_LOG_FORMAT": "text"}])
def test_the_hosts_own_format_is_left_alone(root: logging.Logger, environment: dict[str, str]) -> None:
    stream = writing_to(root, environment)
    root.info("plain")
    assert stream.getvalue() == "plain\n"


def test_a_handler_that_paints_is_replaced_and_keeps_its_level(root: logging.Logger) -> None:
    from rich.logging import RichHandler

    root.addHandler(RichHandler(logging.ERROR))
    logs.configure({"RESPONSES_LOG_FORMAT": "json"}, root)
    (handler,) = root.handlers
    assert type(handler) is logging.StreamHandler
    assert handler.level == logging.ERROR
    assert isinstance(handler.formatter, logs.JsonFormatter)


def test_a_root_without_handlers_gets_one(root: logging.Logger) -> None:
    logs.configure({"RESPONSES_LOG_FORMAT": "json"}, root)
    assert [type(handler) for handler in root.handlers] == [logging.StreamHandler]


def test_another_format_is_refused() -> None:
    with pytest.raises(logs.UnknownLogFormat, match="'xml' is neither of text, json"):
        logs.configure({"RESPONSES_LOG_FORMAT": "xml"})


async def test_a_task_has_the_ids_of_its_maker_until_it_starts_anew() -> None:
    async def look(*, anew: bool) -> dict[str, str]:
        if anew:
            log_context.start_anew(response_id="resp_y")
        return dict(log_context.fields())

    with log_context.bound(request_id="r1"):
        inherited, own = await asyncio.gather(look(anew=False), look(anew=True))
        assert inherited == log_context.fields() == {"request_id": "r1"}
    assert own == {"response_id": "resp_y"}
    assert log_context.fields() == {}


# -- exporting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"APPLICATIONINSIGHTS_CONNECTION_STRING": " "}, False),
        ({"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_something_is_exported_only_where_there_is_somewhere_to_send_it(
    environment: dict[str, str], expected: bool
) -> None:
    assert exporting.is_configured(environment) is expected


def test_a_setting_that_cannot_be_used_is_logged_and_the_server_serves(caplog: pytest.LogCaptureFixture) -> None:
    settings = {
        "APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=00000000-0000-0000-0000-00000000abcd",
        "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": "AAD",
    }
    assert exporting.start(settings) is None
    assert "telemetry is configured, but cannot be exported" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("Authorization=Key", None),
        ("Authorization=AAD", ""),
        ("ClientId=abc;Authorization=AAD", "abc"),
        (" authorization = aad ; clientid = abc ;", "abc"),
    ],
)
def test_an_identity_stands_in_for_the_key_where_it_is_asked_for(text: str, expected: str | None) -> None:
    assert telemetry_sdk.identity({"APPLICATIONINSIGHTS_AUTHENTICATION_STRING": text}) == expected


def test_who_sends_is_what_the_operator_says_or_else_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    def service(**environment: str) -> Any:
        made = telemetry_sdk.make(environment)
        made.stop()
        return made.tracers.resource.attributes["service.name"]

    assert service() == "resilient-responses"
    assert service(WEBSITE_SITE_NAME="func-x") == "func-x"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    assert service(WEBSITE_SITE_NAME="func-x") == "mine"


_ALONE = """
import sys
from api import exporting
from api.process import Process
from resilience.telemetry import shared
assert exporting.start({}) is None
shared().accept({})
sdk = ("opentelemetry.sdk", "opentelemetry.exporter", "azure.monitor")
heavy = [name for name in sys.modules if name.startswith(sdk)]
assert not heavy, heavy
"""

_APPS_OWN = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from api import exporting
own = TracerProvider()
trace.set_tracer_provider(own)
assert exporting.start({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) is None
assert trace.get_tracer_provider() is own
"""


@pytest.mark.parametrize("script", [_ALONE, _APPS_OWN], ids=["nothing configured", "the app has its own"])
def test_in_a_process_of_its_own(script: str) -> None:
    """Nothing of the SDK is imported unless configured; what an app installed itself stays."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

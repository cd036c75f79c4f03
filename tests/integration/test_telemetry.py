"""What the engine tells OpenTelemetry: spans and numbers of real runs, across processes, crashes and hand-overs."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from protocol.requests import parse_create
from resilience import ResponseContext, TextResponse, log_context
from resilience.engine import Call
from resilience.options import ResponsesServerOptions
from resilience.storage_meter import metered
from storage.connection import memory_storage
from storage.errors import NotFound, StorageUnavailable
from storage.seam import Fault
from tests.support.engines import PRINCIPAL, Fleet, Host, background, fleet, until
from tests.support.handlers import Teller
from tests.support.telemetry import PARENT, TRACE, TRACEPARENT, Recorder, attributes_of, parent_of, told_by, trace_of
from tests.support.virtual_time import LoopClock, VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

STORY = ["accepted", "started", "first event", "terminal"]

type Json = dict[str, Any]


def recorded(host: Host) -> Recorder:
    """Read the telemetry of a host from here on."""
    recorder = Recorder()
    host.engine.runtime.telemetry = recorder.telemetry
    return recorder


async def ask(host: Host, body: Json, headers: Mapping[str, str] | None = None) -> Json:
    """`POST /responses` as a caller that is traced does it."""
    call = Call(
        request=parse_create(json.dumps(body).encode()),
        principal=PRINCIPAL,
        client_headers={},
        query_parameters={},
        trace_headers=headers if headers is not None else {"traceparent": TRACEPARENT, "tracestate": "vendor=1"},
    )

    async def endpoint() -> Json:
        with log_context.bound(request_id="r1"):
            return await host.engine.create(call, _stays)

    return await host.inside(endpoint())


async def _stays() -> bool:
    return False


async def ended(hosts: Fleet, response_id: str) -> None:
    await hosts.finished(response_id)
    await hosts.quiet()


@pytest.mark.parametrize("store", [True, False])
async def test_a_foreground_response_is_one_span_that_tells_its_story(store: bool) -> None:
    async with fleet(Teller(3)) as hosts:
        host = hosts.host()
        told = recorded(host)
        agent = {"type": "agent_reference", "name": "helper", "version": "7"}
        made = await ask(host, {"model": "m", "input": "hi", "store": store, "agent_reference": agent})
        await until(told.runs)
        (span,) = told.runs()
        assert (span.name, span.kind) == ("invoke_agent helper", SpanKind.INTERNAL)
        assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)
        assert told_by(span) == STORY
        assert span.status.status_code is StatusCode.UNSET
        said = dict(attributes_of(span))
        worker = said.pop("responses.worker.id", None)
        assert bool(worker) == store
        assert said == {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "resilient_responses",
            "gen_ai.request.model": "m",
            "gen_ai.request.stream": False,
            "gen_ai.response.id": made["id"],
            "gen_ai.response.model": "m",
            "gen_ai.agent.name": "helper",
            "gen_ai.agent.version": "7",
            "gen_ai.usage.input_tokens": 1,
            "gen_ai.usage.output_tokens": 3,
            "responses.disposition": "foreground" if store else "transient",
            "responses.generation": 1,
            "responses.attempt": 1,
            "responses.recovery": False,
            "responses.steered": False,
            "responses.status": "completed",
        }


async def test_a_span_is_named_by_its_model_and_has_its_conversation() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host()
        told = recorded(host)
        await ask(host, {"model": "m", "input": "hi", "conversation": "conv_abc"})
        await until(told.runs)
        (span,) = told.runs()
        assert span.name == "invoke_agent m"
        assert attributes_of(span)["gen_ai.conversation.id"] == "conv_abc"
        assert told.total("responses.chain.pending") == 1


async def test_the_span_of_a_queued_run_is_a_child_of_the_request_that_another_process_accepted() -> None:
    async with fleet(Teller(3)) as hosts:
        api, runner = hosts.host(queues=False), hosts.host()
        asked, ran = recorded(api), recorded(runner)
        made = await ask(api, background())
        await ended(hosts, made["id"])
        (span,) = ran.runs()
        assert not asked.spans
        assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)
        assert told_by(span) == STORY
        assert attributes_of(span)["responses.left"] == "ended"
        assert span.context is not None
        assert span.context.trace_state.get("vendor") == "1"
        assert ran.total("responses.queue.delay", disposition="resilient") == 1
        assert ran.total("responses.time_to_first_event") == 1


async def test_a_request_that_brings_no_trace_gets_one_that_its_run_belongs_to() -> None:
    async with fleet(Teller(3)) as hosts:
        api, runner = hosts.host(queues=False), hosts.host()
        asked, ran = recorded(api), recorded(runner)
        made = await ask(api, background(), {})
        await ended(hosts, made["id"])
        (root,) = asked.spans
        (span,) = ran.runs()
        assert (root.name, root.kind, root.parent) == ("accept_response", SpanKind.SERVER, None)
        assert root.context is not None
        assert trace_of(span) == trace_of(root)
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id


async def test_a_recovered_attempt_belongs_to_the_same_trace_and_says_that_it_is_one() -> None:
    async with fleet(Teller(5, pause=0.5)) as hosts:
        first = hosts.host(eager_start=True)
        recorded(first)
        made = await ask(first, background(stream=True))
        await until(lambda: hosts.entries[made["id"]])
        await first.crash()
        second = hosts.host()
        told = recorded(second)
        await ended(hosts, made["id"])
        (span,) = told.runs()
        assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)
        assert told_by(span) == STORY
        said = attributes_of(span)
        assert (said["responses.recovery"], said["responses.attempt"], said["responses.generation"]) == (True, 2, 2)
        assert told.total("responses.attempts", recovery=True) == 1
        assert told.total("responses.recoveries", disposition="resilient") == 1
        assert told.total("responses.workers.adopted") == 1
        assert told.total("responses.ended", status="completed") == 1
        assert told.total("responses.queue.delay") == 0


async def test_an_attempt_in_the_same_process_is_linked_to_the_one_before() -> None:
    async with fleet(Teller(8, pause=0.5)) as hosts:
        host = hosts.host(eager_start=True)
        told = recorded(host)
        made = await ask(host, background(stream=True))
        await until(lambda: hosts.entries[made["id"]])
        row = await hosts.row(made["id"])
        assert row is not None
        await hosts.storage.log.break_lease(row.segments[-1].name)
        await ended(hosts, made["id"])
        first, second = told.runs()
        assert trace_of(first) == trace_of(second) == TRACE
        assert [link.context.span_id for link in second.links] == [first.context.span_id if first.context else None]
        assert first.links == ()
        assert attributes_of(first)["responses.left"] == "reclaim"


async def test_a_run_that_is_handed_over_says_so_and_counts_as_one_response() -> None:
    async with fleet(Teller(400, pause=0.5)) as hosts:
        options = ResponsesServerOptions(resilient_background=True, shutdown_grace_period_seconds=1)
        first = hosts.host(eager_start=True, options=options)
        told = recorded(first)
        made = await ask(first, background())
        await until(lambda: hosts.entries[made["id"]])
        second = hosts.host()
        continued = recorded(second)
        await first.inside(first.engine.drain())
        await hosts.finished(made["id"], seconds=1_000)
        await until(continued.runs)
        (left,), (span,) = told.runs(), continued.runs()
        assert attributes_of(left)["responses.left"] == "handed_over"
        assert told_by(left) == ["accepted", "started", "first event"]
        said = attributes_of(span)
        assert (said["responses.generation"], said["responses.attempt"], said["responses.recovery"]) == (2, 1, True)
        assert told.total("responses.ended") + continued.total("responses.ended") == 1


async def test_a_run_that_was_taken_away_counts_as_lost() -> None:
    async with fleet(Teller(20, pause=0.5)) as hosts:
        zombie = hosts.host(eager_start=True)
        told = recorded(zombie)
        made = await ask(zombie, background(stream=True))
        await until(lambda: hosts.entries[made["id"]])
        zombie.pause()
        hosts.host()
        await until(lambda: len(hosts.entries[made["id"]]) == 2)
        zombie.resume()
        await until(told.runs)
        assert attributes_of(told.runs()[0])["responses.left"] == "lost"
        assert told.total("responses.ownership.lost", disposition="resilient") == 1
        assert told.total("responses.ended") == 0
        await ended(hosts, made["id"])


async def test_the_span_is_open_as_long_as_the_stream_and_not_only_as_the_handler_function() -> None:
    returned = asyncio.Event()
    go_on = asyncio.Event()

    async def words() -> AsyncIterator[str]:
        yield "first "
        await go_on.wait()
        yield "last"

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> Any:
        returned.set()
        return TextResponse(context, request, text=words())

    async with fleet(handler) as hosts:
        host = hosts.host()
        told = recorded(host)
        reader = await host.stream({"input": "hi"})
        await returned.wait()
        await reader.until(4)
        await asyncio.sleep(1)
        assert not told.runs()
        go_on.set()
        await reader.whole()
        await until(told.runs)
        (span,) = told.runs()
        assert told_by(span) == STORY


async def test_what_a_handler_traces_lies_inside_its_span() -> None:
    own = Recorder().telemetry.tracer

    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> Any:
        seen.append(trace.get_current_span().get_span_context().span_id)
        with own.start_as_current_span("mine"):
            return TextResponse(context, request, text="hi")

    seen: list[int] = []
    for body in ({"input": "hi"}, background()):
        async with fleet(handler) as hosts:
            host = hosts.host()
            told = recorded(host)
            await ask(host, body)
            await until(told.runs)
            (span,) = told.runs()
            assert span.context is not None
            assert seen.pop() == span.context.span_id


async def test_what_serves_all_runs_belongs_to_none_of_them() -> None:
    async with fleet(Teller(20, pause=0.5)) as hosts:
        host = hosts.host(eager_start=True)
        recorded(host)
        made = await ask(host, background())
        await until(lambda: hosts.entries[made["id"]])
        await asyncio.sleep(1)
        tasks = {task.get_name(): task.get_context() for task in asyncio.all_tasks()}
        for name in ("ledger-committer", "run-watch"):
            assert tasks[name].run(log_context.fields) == {}
            assert not tasks[name].run(trace.get_current_span).get_span_context().is_valid
        handler = tasks[f"handler-{made['id']}"]
        found = dict(handler.run(log_context.fields))
        assert found.pop("attempt_id").startswith("1-w")
        assert found == {"request_id": "r1", "response_id": made["id"]}


@pytest.mark.parametrize("body", [{"input": "hi"}, background()], ids=["foreground", "background"])
async def test_the_apps_hook_sees_the_attributes_before_the_span_begins_and_may_change_them(body: Json) -> None:
    given: list[Json] = []

    def hook(attributes: Json) -> None:
        given.append(dict(attributes))
        attributes["gen_ai.provider.name"] = "openai"
        attributes["team"] = "blue"

    async with fleet(Teller(1)) as hosts:
        host = hosts.host(options=ResponsesServerOptions(resilient_background=True, create_span_hook=hook))
        told = recorded(host)
        made = await ask(host, body)
        await until(told.runs)
        (span,) = told.runs()
        assert [each["gen_ai.response.id"] for each in given] == [made["id"]]
        assert "team" not in given[0]
        assert attributes_of(span)["gen_ai.provider.name"] == "openai"
        assert attributes_of(span)["team"] == "blue"


async def test_a_hook_that_fails_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def hook(attributes: Json) -> None:
        attributes.clear()
        raise RuntimeError("broken hook")

    async with fleet(Teller(1)) as hosts:
        host = hosts.host(options=ResponsesServerOptions(create_span_hook=hook))
        told = recorded(host)
        made = await ask(host, {"model": "m", "input": "hi"})
        assert made["status"] == "completed"
        await until(told.runs)
        assert attributes_of(told.runs()[0])["gen_ai.request.model"] == "m"
    assert "create_span_hook failed" in caplog.text


async def test_a_cancelled_response_counts_once_whoever_writes_its_end() -> None:
    async with fleet(Teller(100, pause=0.5)) as hosts:
        api, runner = hosts.host(queues=False), hosts.host()
        asked, ran = recorded(api), recorded(runner)
        made = await ask(api, background(stream=True))
        await until(lambda: hosts.entries[made["id"]])
        await api.cancel(made["id"])
        await ended(hosts, made["id"])
        assert asked.total("responses.ended", status="cancelled") == 1
        assert ran.total("responses.ended") == 0
        (span,) = ran.runs()
        assert told_by(span) == STORY
        assert attributes_of(span)["responses.status"] == "cancelled"
        assert span.status.status_code is StatusCode.UNSET


async def test_a_foreground_run_whose_worker_died_counts_as_failed_by_its_crash() -> None:
    async with fleet(Teller(100, pause=0.5)) as hosts:
        first = hosts.host()
        reader = await first.stream({"input": "hi"})
        await reader.response_id()
        await first.crash()
        told = recorded(hosts.host())
        await until(lambda: told.total("responses.ended"))
        (attributes, point) = told.points()["responses.ended"][0]
        assert point.value == 1
        assert attributes == {
            "responses.disposition": "foreground",
            "responses.status": "failed",
            "error.type": "server_error",
            "responses.shutdown_reason": "crash_recovery",
        }


@pytest.mark.parametrize("body", [{"input": "secret-canary"}, background("secret-canary")], ids=["fore", "back"])
async def test_a_failure_is_an_error_without_a_word_of_what_was_said(body: Json) -> None:
    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> Any:
        async for event in TextResponse(context, request, text=["secret-canary "]):
            if event["type"] == "response.completed":
                raise RuntimeError("secret-canary")
            yield event

    async with fleet(handler) as hosts:
        host = hosts.host()
        told = recorded(host)
        await ask(host, {**body, "instructions": "secret-canary", "metadata": {"a": "secret-canary"}})
        await until(told.runs)
        (span,) = told.runs()
        assert span.status.status_code is StatusCode.ERROR
        assert attributes_of(span)["error.type"] == "server_error"
        assert told_by(span) == STORY
        assert "secret-canary" not in span.to_json()
        assert "secret-canary" not in repr(told.points())


async def test_a_refused_request_has_an_error_and_no_outcome() -> None:
    async def handler(request: Json, context: ResponseContext, signal: asyncio.Event) -> Any:
        raise ValueError("not this")

    async with fleet(handler) as hosts:
        host = hosts.host()
        told = recorded(host)
        with pytest.raises(Exception, match="not this"):
            await ask(host, {"input": "hi"})
        await until(told.runs)
        (span,) = told.runs()
        assert attributes_of(span)["error.type"] == "HandlerRefused"
        assert told_by(span) == ["accepted", "started"]
        assert told.total("responses.ended") == 0


async def test_the_numbers_of_a_run() -> None:
    async with fleet(Teller(50, pause=0.05)) as hosts:
        host = hosts.host(eager_start=True)
        told = recorded(host)
        made = await ask(host, background(stream=True))
        await until(lambda: hosts.entries[made["id"]])
        assert told.total("responses.runs.open", disposition="resilient") == 1
        await ended(hosts, made["id"])
        assert told.total("responses.runs.open", disposition="resilient") == 0
        assert told.total("responses.attempts", recovery=False, steered=False) == 1
        assert told.total("gen_ai.client.operation.duration") == 1
        assert sorted(
            (attributes["gen_ai.token.type"], point.sum)
            for attributes, point in told.points()["gen_ai.client.token.usage"]
        ) == [("input", 1), ("output", 50)]
        (_, frames), (_, size) = told.points()["responses.append.frames"][0], told.points()["responses.append.size"][0]
        assert frames.count == size.count == Counted(host).appends - 1  # the terminal frame is appended by itself
        assert 50 < frames.sum < 70
        assert frames.count < frames.sum


class Counted:
    """What a host's seam has seen."""

    def __init__(self, host: Host) -> None:
        self.appends = host.calls.count("log.append")


async def test_turns_that_wait_are_counted_when_they_join() -> None:
    async with fleet(Teller(20, pause=0.5)) as hosts:
        options = ResponsesServerOptions(resilient_background=True, steerable_conversations=True)
        host = hosts.host(options=options)
        told = recorded(host)
        for _ in range(3):
            await ask(host, background(conversation="conv_abc"))
        (_, point) = told.points()["responses.chain.pending"][0]
        assert (point.count, point.sum, point.max) == (3, 0 + 1 + 2, 2)


async def test_a_message_that_failed_too_often_is_counted() -> None:
    async with fleet(Teller(1)) as hosts:
        host = hosts.host(queues=False)
        told = recorded(host)
        await host.inside(host.engine.poison_message("no message"))
        assert told.total("responses.messages.poisoned", queue="work") == 1


async def test_every_storage_call_is_counted_with_its_outcome() -> None:
    told = Recorder()
    storage = metered(memory_storage(LoopClock()), told.telemetry)
    await storage.ping()
    with pytest.raises(NotFound):
        await storage.rows.read("p", "resp_x")
    storage.seam.inject(Fault(operation="storage.ping", kind="before"))
    with pytest.raises(StorageUnavailable):
        await storage.ping()
    found = {
        (a["responses.storage.operation"], a["responses.storage.outcome"]): point.value
        for a, point in told.points()["responses.storage.operations"]
    }
    assert found == {("storage.ping", "ok"): 1, ("row.read", "not_found"): 1, ("storage.ping", "unavailable"): 1}
    assert storage.seam.counts == {"storage.ping": 2, "row.read": 1}

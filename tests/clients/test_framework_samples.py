"""The samples with agents of other frameworks: in every mode, over turns, and killed at every step they take."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.process import load_app
from samples.frameworks import agents_session, langgraph_agent
from tests.samples.killed import Stage, stage, texts_in
from tests.samples.test_every_sample import MODES, comparable
from tests.support import api_server
from tests.support.api_server import ApiServer, until
from tests.support.azurite import AzuriteServer
from tests.support.host import ROOT
from tests.support.stream_oracle import assert_whole

GRAPH = "samples.frameworks.langgraph_agent"
AGENT = "samples.frameworks.agents_session"
QUESTIONS = ("tea", "coffee", "milk")
README = ROOT / "samples" / "frameworks" / "README.md"


@pytest.fixture(autouse=True)
def _frameworks_stay_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LANGGRAPH_CHECKPOINTS", str(tmp_path / "graph.sqlite"))
    monkeypatch.setenv("OPENAI_MODEL", "")
    monkeypatch.setattr(langgraph_agent, "SECONDS_PER_NODE", 0.001)


@asynccontextmanager
async def serving(module: str) -> AsyncIterator[ApiServer]:
    async with api_server.serving(app=load_app(f"{module}:app")) as server:
        yield server


def graph_says(*questions: str) -> list[list[str]]:
    """What the graph says in the turns of a chain that nothing happens to."""
    turns = []
    for turn, question in enumerate(questions):
        first = 3 * turn + 1
        turns.append(
            [
                f"{first}. Let me think about {question!r}.",
                f"{first + 1}. There were {first} remarks before this one.",
                f"{first + 2}. That is all about {question!r}.",
            ]
        )
    return turns


@pytest.mark.parametrize("name", ["langgraph_agent", "agents_session"])
async def test_documented_requests_give_the_same_responses_in_every_mode(name: str) -> None:
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", README.read_text(), re.MULTILINE | re.DOTALL)
    assert f"RESPONSES_AGENT=samples.frameworks.{name}:app make start" in section
    inputs = re.findall(r'"input": "([^"]*)"', section)
    assert len(inputs) == 2
    given: list[list[dict[str, Any]]] = [[] for _ in MODES]
    async with serving(f"samples.frameworks.{name}") as server:
        for number, mode in enumerate(MODES):
            for text in inputs:
                response = await mode(server, {"input": text, "conversation": f"conv_{number}"})
                assert response["status"] == "completed"
                given[number].append(comparable(response))
    assert given[1:] == [given[0]] * (len(MODES) - 1)


def test_documented_packages_are_those_that_are_tested() -> None:
    pins = (ROOT / "requirements-clients.txt").read_text().splitlines()
    named = re.findall(r"[\w-]+==[\w.]+", README.read_text())
    assert len(named) == 3
    assert [pin for pin in named if pin not in pins] == []


async def test_graph_keeps_its_state_over_the_turns_of_a_chain() -> None:
    async with serving(GRAPH) as server:
        link: dict[str, str] = {}
        for question, said in zip(("tea", "coffee"), graph_says("tea", "coffee"), strict=True):
            response = assert_whole(await server.events(input=question, **link))
            assert texts_in(response) == said
            link = {"previous_response_id": response["id"]}
        assert texts_in(assert_whole(await server.events(input="tea"))) == graph_says("tea")[0]


async def test_newer_turn_stops_the_graph_after_a_node_and_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(GRAPH) as server:
        posted = asyncio.Event()
        monkeypatch.setattr(langgraph_agent, "think", posted.wait)
        first = (await server.post(input="tea", background=True)).json()
        second = (await server.post(input="coffee", background=True, previous_response_id=first["id"])).json()
        posted.set()
        stopped = await server.get_ended(first["id"])
        done = len(texts_in(stopped))
        assert (stopped["status"], texts_in(stopped)) == ("incomplete", graph_says("tea")[0][:done])
        assert 1 <= done < 3
        answer = await server.get_ended(second["id"])
        assert texts_in(answer)[1] == f"{done + 2}. There were {done + 1} remarks before this one."


async def test_cancelled_turn_leaves_nothing_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(GRAPH) as server:
        first = assert_whole(await server.events(input="tea"))
        cancelled, nodes = asyncio.Event(), itertools.count()

        async def think() -> None:
            if next(nodes) > 0:  # the first one is done before the cancel, the second not
                await cancelled.wait()

        monkeypatch.setattr(langgraph_agent, "think", think)
        second = (await server.post(input="milk", background=True, previous_response_id=first["id"])).json()

        async def a_node_is_done() -> bool:
            return len((await server.get(second["id"])).json()["output"]) > 0

        await until(a_node_is_done)
        answer = await server.client.post(f"/v1/responses/{second['id']}/cancel")
        assert answer.json()["status"] == "cancelled", answer.text
        cancelled.set()
        await until(lambda: not server.engine.runtime.running)
        third = await server.events(input="coffee", previous_response_id=second["id"])
        assert texts_in(assert_whole(third)) == graph_says("tea", "coffee")[1]


async def test_graph_whose_checkpoint_is_gone_fails_and_does_not_begin_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serving(GRAPH) as server:
        first = (await server.post(input="tea")).json()
        monkeypatch.setenv("LANGGRAPH_CHECKPOINTS", str(tmp_path / "another.sqlite"))
        second = (await server.post(input="coffee", previous_response_id=first["id"])).json()
        assert second["status"] == "failed"


async def test_agent_calls_its_tool_and_tells_what_it_gave() -> None:
    async with serving(AGENT) as server:
        events = await server.events(input="How warm is it in Turin and in Oslo?", background=True)
        final = assert_whole(events)
        assert [item["type"] for item in final["output"]] == ["function_call", "function_call_output"] * 2 + ["message"]
        assert texts_in(final) == ["Question 1. Turin: 21 degrees. Oslo: 9 degrees."]
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert deltas == ["Question 1.", " Turin: 21 degrees.", " Oslo: 9 degrees."]


async def test_session_is_the_history_and_each_turn_is_in_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []
    answering = agents_session.Script.stream_response

    def listening(self: Any, instructions: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(given)
        return answering(self, instructions, given, *args, **kwargs)

    monkeypatch.setattr(agents_session.Script, "stream_response", listening)
    async with serving(AGENT) as server:
        link: dict[str, str] = {}
        for number, city in enumerate(("Turin", "Rome", "Oslo"), 1):
            response = (await server.post(input=f"And {city}?", **link)).json()
            assert texts_in(response) == [f"Question {number}. {city}: {agents_session.TEMPERATURES[city]} degrees."]
            link = {"previous_response_id": response["id"]}
    turn = ["message", "function_call", "function_call_output"]
    assert [item["type"] for item in asked[-1]] == [*turn, "message", *turn, "message", *turn]
    said = [item["content"][0]["text"] for item in asked[-1] if item.get("role") == "user"]
    assert said == ["And Turin?", "And Rome?", "And Oslo?"]


@pytest.mark.timeout(300)
async def test_killed_agents_end_as_if_nothing_had_happened(azurite: AzuriteServer, tmp_path: Path) -> None:
    """One kill catches many responses, each at a step of its own."""
    async with stage(azurite, tmp_path, GRAPH, AGENT, OPENAI_MODEL="") as made:
        graphs = await asyncio.gather(
            *(graph_held_at(made, turn, point) for turn, points in GRAPH_POINTS.items() for point in points)
        )
        tools = await asyncio.gather(*(tools_held_at(made, point) for point in TOOL_POINTS))
        await made.staying(len(graphs) + len(tools))
        await made.replace()
        await asyncio.gather(*(graph_is_whole(made, *held) for held in graphs))
        await asyncio.gather(*(persisted_tools_are_called_once(made, *held) for held in tools))


# A node's message is six events, the first of them the third of the response.
GRAPH_POINTS = {
    0: ("checkpoint:1:before", "checkpoint:1:after"),
    1: (
        *("event:3:before", "checkpoint:1:before", "checkpoint:1:after"),
        *("node:2", "event:9:before", "checkpoint:2:before", "event:21:before"),
    ),
}
"""Where the worker dies in the first turn of a chain, and where in the second, which begins from the first's end."""


async def graph_held_at(made: Stage, turn: int, point: str) -> tuple[str, int, str, str]:
    name = f"{turn}_{point.replace(':', '_')}"
    conversation = f"conv_{name}"
    for question, said in zip(QUESTIONS[:turn], graph_says(*QUESTIONS), strict=False):
        assert texts_in(await made.post(GRAPH, question, conversation=conversation)) == said
    response = await made.post(GRAPH, QUESTIONS[turn], point, conversation=conversation, background=True)
    return name, turn, conversation, response["id"]


async def graph_is_whole(made: Stage, name: str, turn: int, conversation: str, response_id: str) -> None:
    said = graph_says(*QUESTIONS)
    response = await made.ended(response_id)
    assert response["status"] == "completed", name
    assert texts_in(response) == said[turn], name
    following = await made.post(GRAPH, QUESTIONS[turn + 1], conversation=conversation)
    assert texts_in(following) == said[turn + 1], name


# A call is four events and what it gave two.
TOOL_POINTS: dict[str, set[str]] = {
    "checkpoint:1:before": set(),
    "checkpoint:1:after": {"Turin"},
    "checkpoint:2:after": {"Turin", "Oslo"},
    "event:17:before": {"Turin", "Oslo"},
}
"""Where the agent dies, and for which cities its tool must not be called again, because the output is persisted."""


async def tools_held_at(made: Stage, point: str) -> tuple[str, str]:
    response = await made.post(AGENT, "How warm is it in Turin and in Oslo?", point, background=True)
    return point, response["id"]


async def persisted_tools_are_called_once(made: Stage, point: str, response_id: str) -> None:
    response = await made.ended(response_id)
    assert texts_in(response) == ["Question 1. Turin: 21 degrees. Oslo: 9 degrees."], point
    calls = [item["call_id"] for item in response["output"] if item["type"] == "function_call"]
    outputs = [item["call_id"] for item in response["output"] if item["type"] == "function_call_output"]
    assert len(set(calls)) == 2, point
    assert calls == outputs, point
    called = [line["key"] for line in made.journal.lines("called") if line["response_id"] == response_id]
    assert {"Turin", "Oslo"} == set(called), point
    assert all(called.count(city) == 1 for city in TOOL_POINTS[point]), point

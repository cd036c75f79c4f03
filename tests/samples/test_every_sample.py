"""What holds for each sample: it is served by its name, in every mode, with the requests of its documentation."""

import asyncio
import re
from typing import Any

import pytest

from api.process import load_app
from tests.samples.documented import NAMES, README, bodies, commands, section
from tests.samples.serving import any_sample, deltas_in
from tests.support.api_server import ApiServer, events_in
from tests.support.azurite import AzuriteServer
from tests.support.servers import deployment, events_of
from tests.support.stream_oracle import assert_response, assert_whole


def comparable(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs from run to run and from mode to mode."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        differing = ("id", "call_id", "response_id", "created_at", "completed_at", "background", "conversation")
        return {key: bare(entry) for key, entry in value.items() if key not in differing}

    return dict(bare(response))


async def plain(server: ApiServer, body: dict[str, Any]) -> dict[str, Any]:
    answer = await server.post(**body)
    assert answer.status_code == 200, answer.text
    response: dict[str, Any] = answer.json()
    assert_response(response)
    return response


async def streamed(server: ApiServer, body: dict[str, Any]) -> dict[str, Any]:
    answer = await server.post(stream=True, **body)
    assert answer.status_code == 200, answer.text
    return assert_whole(events_in(answer.content))


async def in_the_background(server: ApiServer, body: dict[str, Any]) -> dict[str, Any]:
    accepted = (await server.post(background=True, **body)).json()
    assert accepted["status"] in ("queued", "in_progress"), accepted
    response = await server.get_ended(accepted["id"])
    assert_response(response)
    return response


async def in_the_background_streamed(server: ApiServer, body: dict[str, Any]) -> dict[str, Any]:
    answer = await server.post(stream=True, background=True, **body)
    assert answer.status_code == 200, answer.text
    response = assert_whole(events_in(answer.content))
    assert (await server.get(response["id"], stream="true")).content == answer.content
    return response


MODES = (plain, streamed, in_the_background, in_the_background_streamed)


@pytest.mark.parametrize("name", NAMES)
async def test_documented_requests_give_the_same_responses_in_every_mode(name: str) -> None:
    given: list[list[dict[str, Any]]] = []
    async with any_sample(name) as server:
        for number, mode in enumerate(MODES):
            given.append([])
            for body in bodies(name):
                # What one mode said to a conversation must not be the history of the next.
                asked = {**body, "conversation": f"{body['conversation']}{number}"} if "conversation" in body else body
                response = await mode(server, asked)
                assert response["status"] in ("completed", "incomplete")
                assert (await server.get(response["id"])).json() == response
                given[-1].append(comparable(response))
    assert given[1:] == [given[0]] * (len(MODES) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_sample_is_documented_where_it_is_found(name: str) -> None:
    assert f"RESPONSES_AGENT=samples.{name}:app make start" in section(name)
    assert f"| [{name}](#{name}) |" in README.read_text()
    module = load_app(f"samples.{name}:app").handler.__globals__
    assert f"RESPONSES_AGENT=samples.{name}:app make start" in module["__doc__"]


def test_documentation_names_no_other_sample() -> None:
    assert sorted(re.findall(r"^## (\w+)$", README.read_text(), re.MULTILINE)) == NAMES


def test_links_of_the_documentation_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


async def test_documented_command_streams_from_the_real_host(azurite: AzuriteServer) -> None:
    with deployment(azurite, agent="samples.streaming_deltas:app") as made:
        host = await made.start()
        (command,) = commands("streaming_deltas")
        local = command.replace("http://127.0.0.1:7071", host.base_url)
        assert local != command
        process = await asyncio.create_subprocess_exec("bash", "-c", local, stdout=asyncio.subprocess.PIPE)
        printed, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, made.logs()
        events = events_of(printed)
        assert_whole(events)
        assert deltas_in(events) == ["You", " said:", " Hello", " out", " there"]

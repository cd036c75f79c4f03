"""What holds for each sample: it is served by its name, in every mode, with the requests of its documentation."""

import asyncio
import re
from typing import Any

import pytest

from api.process import load_app
from tests.samples.documented import NAMES, README, bodies, commands, section
from tests.samples.serving import any_sample, deltas_in
from tests.support.api_server import events_in
from tests.support.azurite import AzuriteServer
from tests.support.servers import deployment, events_of
from tests.support.stream_oracle import assert_response, assert_whole

ENDED_WELL = ("completed", "incomplete")


def comparable(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs from run to run and from mode to mode."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        differing = ("id", "call_id", "response_id", "created_at", "completed_at", "background")
        return {key: bare(entry) for key, entry in value.items() if key not in differing}

    return dict(bare(response))


async def asked_plainly(name: str) -> list[dict[str, Any]]:
    async with any_sample(name) as server:
        answers = [await server.post(**body) for body in bodies(name)]
        responses = [answer.json() for answer in answers]
        for answer, response in zip(answers, responses, strict=True):
            assert answer.status_code == 200, response
            assert_response(response)
            assert response["status"] in ENDED_WELL
            assert (await server.get(response["id"])).json() == response
        return responses


async def asked_in_the_background(name: str) -> list[dict[str, Any]]:
    async with any_sample(name) as server:
        responses = []
        for body in bodies(name):
            accepted = (await server.post(background=True, **body)).json()
            assert accepted["status"] in ("queued", "in_progress"), accepted
            responses.append(await server.get_ended(accepted["id"]))
            assert_response(responses[-1])
        return responses


async def streamed(name: str, *, background: bool) -> list[dict[str, Any]]:
    async with any_sample(name) as server:
        responses = []
        for body in bodies(name):
            answer = await server.post(stream=True, background=background, **body)
            assert answer.status_code == 200, answer.text
            responses.append(assert_whole(events_in(answer.content)))
            assert (await server.get(responses[-1]["id"])).json() == responses[-1]
            if background:
                assert (await server.get(responses[-1]["id"], stream="true")).content == answer.content
        return responses


@pytest.mark.parametrize("name", NAMES)
async def test_documented_requests_give_the_same_responses_in_every_mode(name: str) -> None:
    plain = [comparable(response) for response in await asked_plainly(name)]
    for others in (
        await streamed(name, background=False),
        await streamed(name, background=True),
        await asked_in_the_background(name),
    ):
        assert [comparable(response) for response in others] == plain


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

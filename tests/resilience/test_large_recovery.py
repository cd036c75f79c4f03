"""R3 at its full size: a killed worker's successor is given a large request exactly as the first entry was.

The record of it is too large for the row, its input holds an image and references, its headers and query are of the
kinds that are easily lost on the way through storage.
"""

import asyncio
import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol import sse
from storage.payloads import INLINE_LIMIT
from tests.support.azurite import AzuriteServer
from tests.support.invariants import View, check_response
from tests.support.paths import AGENT, BEFORE_SIGNAL, Journal, assert_each_phase_once, lifetime_of
from tests.support.servers import Deployment, body, deployment, frames_from, reached

PATIENCE_SECONDS = 60.0
MEGABYTE = 1 << 20

AGENT_REFERENCE = {"type": "agent_reference", "name": "poet", "version": "7", "tone": "dry"}
HEADERS = {"X-Client-Trace": "of the first entry", "x-client-version": "2.3; beta", "x-client-empty": ""}
QUERY = [("deployment", "blue"), ("deployment", "green"), ("note", "ä & b"), ("empty", ""), ("deployment", "red")]

type Json = dict[str, Any]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def cluster(azurite: AzuriteServer, journal: Journal) -> Iterator[Deployment]:
    """No process yet."""
    with deployment(azurite, AGENT, PHASES_JOURNAL=str(journal.path)) as made:
        yield made


async def a_tools_output(http: httpx.AsyncClient) -> Json:
    """An input item of an earlier response, to be referred to."""
    script = {"role": "user", "content": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "forty-two"}
    earlier = await http.post("/responses", json={"model": "test-model", "input": [script, output]})
    assert earlier.json()["status"] == "completed", earlier.text
    items = (await http.get(f"/responses/{earlier.json()['id']}/input_items")).json()["data"]
    (item,) = (each for each in items if each["type"] == "function_call_output")
    return dict(item)


def large_request(known: Json) -> Json:
    """More than two megabytes, half of them an image, the other half text of all kinds."""
    image = base64.b64encode(random.Random(3).randbytes(MEGABYTE * 3 // 4)).decode()
    filler = 'äß€😀\\"\n\u2028 ' * (MEGABYTE // 20)
    script = {"checkpoints": True, "stay_in": 2, "filler": filler}
    parts = [
        {"type": "input_text", "text": json.dumps(script, ensure_ascii=False)},
        {"type": "input_image", "image_url": f"data:image/png;base64,{image}"},
    ]
    return body(
        background=True,
        stream=True,
        agent_reference=AGENT_REFERENCE,
        metadata={"ä key": "v" * 512},
        temperature=0.25,
    ) | {
        "input": [
            {"type": "message", "role": "user", "content": parts},
            {"type": "item_reference", "id": known["id"]},
            {"type": "item_reference", "id": "msg_of_nobody"},
        ],
        "a_field_of_newer_clients": {"nested": [1, None, 2.5, {"deep": "ü"}]},
    }


async def test_recovered_entry_is_given_a_large_request_exactly_as_the_first_one(
    cluster: Deployment, journal: Journal
) -> None:
    front, first = await asyncio.gather(cluster.start("--only", "http"), cluster.start("--only", "queue"))
    frames: list[bytes] = []
    async with httpx.AsyncClient(base_url=front.base_url, timeout=90) as http:
        known = await a_tools_output(http)
        request = large_request(known)
        assert len(json.dumps(request, ensure_ascii=False).encode()) > 2 * MEGABYTE

        async def follow() -> None:
            sent = {"json": request, "params": QUERY, "headers": HEADERS}
            async with http.stream("POST", "/responses", **sent) as answer:  # type: ignore[arg-type]
                async for frame in frames_from(answer):
                    frames.append(frame)

        client = asyncio.create_task(follow())
        await reached(lambda: len(frames) >= len(BEFORE_SIGNAL), "the last phase", [client], PATIENCE_SECONDS)
        first.kill()
        successor = await cluster.start("--only", "queue")
        await asyncio.wait_for(client, PATIENCE_SECONDS)
        final = sse.decode(frames[-1])["response"]
        listed = await http.get(f"/responses/{final['id']}/input_items", params={"order": "asc"})

    before, after = entries_of(journal, final["id"])
    assert (before["pid"], after["pid"]) == (first.pid, successor.pid)
    assert (before["is_recovery"], after["is_recovery"]) == (False, True)
    given = before["given"]
    assert_same(after["given"], given)
    assert_same(given["request"], request)
    assert given["client_headers"] == {name.lower(): value for name, value in HEADERS.items()}
    assert given["query_parameters"] == dict(QUERY), "of a repeated one, the last"
    assert given["principal"] == "local"
    assert given["created_at"] == final["created_at"]
    assert_references(given, known)
    assert_same(listed.json()["data"], given["items"])
    assert set(assert_each_phase_once(final, 3)) == {0, 1}
    assert_agent_reference_everywhere(frames)
    async with cluster.storage() as storage:
        stored = await check_response(
            storage,
            "local",
            final["id"],
            seen=[View(frames, ended=True)],
            entries=2,
            crashes=1,
            generation_of=lifetime_of,
        )
        assert stored.row.request.blob is not None, f"it fits into {INLINE_LIMIT} bytes"
    assert (stored.row.generation, stored.row.attempt) == (2, 2)


def entries_of(journal: Journal, response_id: str) -> list[Json]:
    return [entry for entry in journal.lines("entered") if entry["response_id"] == response_id]


def assert_same(one: Any, other: Any) -> None:
    """Equal, without megabytes in the message."""
    same = one == other
    if not same and isinstance(one, dict) and isinstance(other, dict):
        different = [name for name in {*one, *other} if one.get(name) != other.get(name)]
        raise AssertionError(f"different: {different}")
    assert same, f"{str(one)[:200]} is not {str(other)[:200]}"


def assert_references(given: Json, known: Json) -> None:
    """What is known is put in the place of its reference; what nobody knows stays one."""
    message, found, nowhere = given["items"]
    assert message["content"][1]["type"] == "input_image"
    assert found == known
    assert nowhere == {"type": "item_reference", "id": "msg_of_nobody"}
    assert_same(given["unresolved_items"], [message, {"type": "item_reference", "id": known["id"]}, nowhere])


def assert_agent_reference_everywhere(frames: list[bytes]) -> None:
    """B21: on the response and every item, in every event of either entry."""
    events = [sse.decode(frame) for frame in frames]
    responses = [event["response"] for event in events if "response" in event]
    items = [event["item"] for event in events if "item" in event]
    items += [item for response in responses for item in response["output"]]
    assert len(responses) == 4, "created, in progress, the reset, the end"
    assert {json.dumps(each.get("agent_reference"), sort_keys=True) for each in responses + items} == {
        json.dumps(AGENT_REFERENCE, sort_keys=True)
    }

"""The official JavaScript client, unmodified: Node runs the sessions of `js/`, one of them after a kill."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.clients.conftest import NO_MODEL
from tests.support import stream_oracle
from tests.support.azurite import AzuriteServer
from tests.support.servers import Deployment, deployment

STAYING = "tests.clients.staying:app"
FOLDER = Path(__file__).parent / "js"
SESSION_SECONDS = 90
RECOVERY_SECONDS = 60


async def run_node(session: str, base_url: str, **environment: str) -> int:
    """Run one file of tests to its end; how many passed. Any that did not fails here, with what Node printed."""
    process = await asyncio.create_subprocess_exec(
        *("node", "--test", "--test-reporter", "tap", session),
        cwd=FOLDER,
        env={**os.environ, "RESPONSES_BASE_URL": base_url, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), SESSION_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = printed.decode(errors="replace")
    assert process.returncode == 0, text
    counts = dict(re.findall(r"^# (tests|pass|skipped) (\d+)$", text, re.MULTILINE))
    assert counts["pass"] == counts["tests"], text
    return int(counts["pass"])


async def test_a_whole_session_passes(base_url: str) -> None:
    assert await run_node("session.test.mjs", base_url) == 13


@pytest.fixture
def cluster(azurite: AzuriteServer) -> Iterator[Deployment]:
    """HTTP in a process of its own; the test adds the workers."""
    with deployment(azurite, agent=STAYING, **NO_MODEL) as made:
        made.start_blocking("--only", "http")
        yield made


@pytest.mark.timeout(300)
async def test_a_stream_of_two_attempts_is_one_response_to_the_streaming_helper(cluster: Deployment) -> None:
    first = await cluster.start("--only", "queue")
    base_url = f"{cluster.hosts[0].base_url}/v1"
    cursor = -1
    async with AsyncOpenAI(base_url=base_url, api_key="local", max_retries=0) as client:
        events = []
        async with asyncio.timeout(RECOVERY_SECONDS):
            stream = await client.responses.create(model="m", input="count to 10", background=True, stream=True)
            async for event in stream:
                events.append(event.model_dump(mode="json", exclude_unset=True, by_alias=True))
                if cursor < 0 and event.type == "response.output_text.delta" and event.output_index == 1:
                    cursor = event.sequence_number
                    first.kill()
                    await cluster.start("--only", "queue")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events].count("response.in_progress") == 2, cluster.logs()
    stream_oracle.assert_valid(events)
    response_id = events[0]["response"]["id"]
    assert await run_node("resume.test.mjs", base_url, RESPONSE_ID=response_id, CURSOR=str(cursor)) == 2

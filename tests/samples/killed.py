"""A real host with held samples (`tests.samples.held`), to be killed and replaced."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from protocol.response import TERMINAL_STATUSES
from storage.connection import Storage
from tests.support.azurite import AzuriteServer
from tests.support.invariants import check_response
from tests.support.paths import Journal
from tests.support.servers import Deployment, deployment
from tests.support.stream_oracle import assert_response

HELD_SECONDS = 90.0
END_SECONDS = 60.0
POLL_SECONDS = 0.5

type Json = dict[str, Any]


class Stage:
    """One host at a time, and what its handlers say of themselves."""

    def __init__(self, cluster: Deployment, storage: Storage, journal: Journal) -> None:
        self.journal = journal
        self._storage = storage
        self._cluster = cluster
        self._kills = 0
        self._http = httpx.AsyncClient()

    async def start(self) -> None:
        """A host; the one before it is gone."""
        host = await self._cluster.start()
        await self._http.aclose()
        self._http = httpx.AsyncClient(base_url=host.base_url, timeout=60)

    async def post(self, sample: str, text: str, hold: str = "", **body: Any) -> Json:
        """The answer to a request whose first entry is held at this point."""
        body = {"model": sample, "input": text, "metadata": {"hold": hold}, **body}
        answer = await self._http.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        response: Json = answer.json()
        return response

    async def get(self, response_id: str) -> Json:
        """The response as it is now."""
        response: Json = (await self._http.get(f"/v1/responses/{response_id}")).json()
        return response

    async def staying(self, count: int) -> None:
        """Wait until so many entries stay where they should, since the beginning."""
        await self.journal.reached("staying", count, HELD_SECONDS)

    async def replace(self) -> None:
        """Kill the host; another one comes."""
        self._cluster.hosts[-1].kill()
        self._kills += 1
        await self.start()

    async def ended(self, response_id: str) -> Json:
        """The response when it has ended, with all that is stored of it in order."""
        deadline = time.monotonic() + END_SECONDS
        while (found := await self.get(response_id))["status"] not in TERMINAL_STATUSES:
            assert time.monotonic() < deadline, f"{response_id} is still {found['status']}\n{self._cluster.logs()}"
            await asyncio.sleep(POLL_SECONDS)
        assert_response(found)
        entries = len(self.entries(response_id))
        await check_response(self._storage, "local", response_id, entries=entries, crashes=self._kills)
        return found

    def entries(self, response_id: str) -> list[Json]:
        """The entries of the handler for a response."""
        return [line for line in self.journal.lines("entered") if line["response_id"] == response_id]

    async def aclose(self) -> None:
        """Close the client."""
        await self._http.aclose()


@asynccontextmanager
async def stage(azurite: AzuriteServer, folder: Path, *samples: str, **settings: str) -> AsyncIterator[Stage]:
    """A host that serves these samples, started."""
    journal = Journal(folder / "journal")
    held = {"HELD_SAMPLES": ",".join(samples), "HELD_JOURNAL": str(journal.path), "RESPONSES_EAGER_START": "true"}
    with deployment(azurite, "tests.samples.held:app", **held, **settings) as cluster:
        async with cluster.storage() as storage:
            made = Stage(cluster, storage, journal)
            try:
                await made.start()
                yield made
            finally:
                await made.aclose()


def texts_in(response: Json) -> list[str]:
    """The text of each message."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return ["".join(part["text"] for part in item["content"]) for item in messages]

"""The local host's queue and timer triggers, on the storage emulator."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.queue import TextBase64EncodePolicy
from azure.storage.queue.aio import QueueClient

from devhost.exits import TIMEOUT_EXIT
from tests.support.azurite import AzuriteServer
from tests.support.host import APPS, POLL_SECONDS, FunctionHost, until

JOBS = APPS / "jobs"
NEVER = "0 0 0 1 1 *"


class Jobs:
    """One test's queue, the trace of its hosts, and the hosts themselves."""

    def __init__(self, azurite: AzuriteServer, folder: Path) -> None:
        self.name = f"t{uuid.uuid4().hex[:12]}"
        self.trace = folder / "trace"
        self.trace.touch()
        self._connection = azurite.connection_string
        self._stack = contextlib.AsyncExitStack()
        self.queue = self._client(self.name)
        self.poison = self._client(f"{self.name}-poison")

    def _client(self, name: str) -> QueueClient:
        return QueueClient.from_connection_string(
            self._connection, name, message_encode_policy=TextBase64EncodePolicy()
        )

    async def host(
        self, *arguments: str, schedule: str = NEVER, supervised: bool = False, **environment: str
    ) -> FunctionHost:
        settings = {
            "JobsStorage": self._connection,
            "AzureWebJobsStorage": self._connection,
            "JOBS_QUEUE": self.name,
            "JOBS_SCHEDULE": schedule,
            "TRACE_FILE": str(self.trace),
        }
        host = await FunctionHost.start(JOBS, {**settings, **environment}, *arguments, supervised=supervised)
        return await self._stack.enter_async_context(host)

    async def send(self, name: str, do: str = "pass", seconds: float = 0) -> None:
        # A host on a slow machine may call itself ready before its queue is there.
        with contextlib.suppress(ResourceExistsError):
            await self.queue.create_queue()
        await self.queue.send_message(json.dumps({"name": name, "do": do, "seconds": seconds}))

    async def send_raw(self, text: str) -> None:
        """A message without its encoding."""
        async with QueueClient.from_connection_string(self._connection, self.name, message_encode_policy=None) as queue:
            await queue.send_message(text)

    def lines(self) -> list[str]:
        return self.trace.read_text().splitlines()

    async def until(self, condition: Callable[[list[str]], object], seconds: float = 30.0) -> None:
        if not await until(lambda: condition(self.lines()), seconds):
            pytest.fail(f"The trace shows only {self.lines()}")

    async def until_empty(self, queue: QueueClient, seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while (await queue.get_queue_properties()).approximate_message_count:  # noqa: ASYNC110 - not ours to signal
                await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        await self._stack.aclose()
        for queue in (self.queue, self.poison):
            with contextlib.suppress(ResourceNotFoundError):
                await queue.delete_queue()
            await queue.close()


@pytest.fixture
async def jobs(azurite: AzuriteServer, tmp_path: Path) -> AsyncIterator[Jobs]:
    each = Jobs(azurite, tmp_path)
    try:
        yield each
    finally:
        await each.close()


async def test_a_message_that_succeeds_is_run_once_and_deleted(jobs: Jobs) -> None:
    await jobs.host()
    await jobs.send("a")
    await jobs.until(lambda lines: "host end a 1" in lines)
    await jobs.until_empty(jobs.queue)
    assert jobs.lines() == ["host begin a 1", "host end a 1"]


async def test_a_failing_message_is_retried_at_once_and_then_moves_to_the_poison_queue(jobs: Jobs) -> None:
    host = await jobs.host()
    await jobs.send("bad", "fail")
    await jobs.until(lambda lines: "host poison bad 1" in lines)
    await jobs.until_empty(jobs.queue)
    await jobs.until_empty(jobs.poison)
    assert jobs.lines() == ["host begin bad 1", "host begin bad 2", "host begin bad 3", "host poison bad 1"]
    # At the last failure itself, not at one more receipt.
    assert "received 3 times, moves to the poison queue" in host.log()


async def test_a_message_received_too_often_is_not_run_again(jobs: Jobs) -> None:
    await jobs.queue.create_queue()
    await jobs.send("worn")
    for _ in range(3):
        message = await jobs.queue.receive_message(visibility_timeout=30)
        assert message is not None
        await jobs.queue.update_message(str(message.id), message.pop_receipt, visibility_timeout=0)
    await jobs.host()
    await jobs.until(lambda lines: "host poison worn 1" in lines)
    assert jobs.lines() == ["host poison worn 1"]


async def test_a_message_that_cannot_be_decoded_moves_without_a_run(jobs: Jobs) -> None:
    host = await jobs.host("--setting", "AzureWebJobs.lost.Disabled=true")
    await jobs.send_raw("not base64!")
    await host.wait_for_log("moves to the poison queue")
    await jobs.until_empty(jobs.queue)
    assert (await jobs.poison.get_queue_properties()).approximate_message_count == 1
    assert jobs.lines() == []


async def test_no_more_messages_run_at_once_than_batch_and_threshold_allow(jobs: Jobs) -> None:
    # All are there when the host begins: it finds more than it may run, however slowly messages are sent here.
    await jobs.queue.create_queue()
    for name in "abcdefgh":
        await jobs.send(name, "hang", 0.2 if name < "d" else 0.4)
    await jobs.host()
    await jobs.until(lambda lines: sum(" end " in line for line in lines) == 8)
    running = highest = 0
    for line in jobs.lines():
        running += 1 if " begin " in line else -1
        highest = max(highest, running)
    assert highest in {2, 3}


async def test_two_hosts_share_a_queue_and_run_each_message_once(jobs: Jobs) -> None:
    await asyncio.gather(jobs.host(HOST_NAME="one"), jobs.host(HOST_NAME="two"))
    names: list[str] = []
    async with asyncio.timeout(30):
        # Either may come late to its first message, and one alone runs thirty in a second.
        while len(names) < 20 or {line.split()[0] for line in jobs.lines()} != {"one", "two"}:
            names.append(f"m{len(names)}")
            await jobs.send(names[-1], "hang", 0.1)
    await jobs.until(lambda lines: sum(" end " in line for line in lines) == len(names))
    begun = [line.split()[2] for line in jobs.lines() if " begin " in line]
    assert sorted(begun) == sorted(names)


async def test_the_message_of_a_killed_host_returns_when_its_time_is_over(jobs: Jobs) -> None:
    first = await jobs.host("--visibility", "3", HOST_NAME="first")
    await jobs.send("a", "hang", 5)
    await jobs.until(lambda lines: "first begin a 1" in lines)
    first.kill()
    await jobs.host("--visibility", "30", HOST_NAME="second")
    await jobs.until(lambda lines: "second end a 2" in lines)
    assert "first end a 1" not in jobs.lines()


async def test_a_message_is_renewed_while_its_function_runs(jobs: Jobs) -> None:
    # Renewed at half of it: three seconds in which a busy machine may be late.
    await asyncio.gather(jobs.host("--visibility", "6"), jobs.host("--visibility", "6"))
    await jobs.send("long", "hang", 8)
    await jobs.until(lambda lines: "host end long 1" in lines)
    await jobs.until_empty(jobs.queue)
    assert jobs.lines() == ["host begin long 1", "host end long 1"]


async def test_a_frozen_host_loses_its_message_to_another(jobs: Jobs) -> None:
    frozen = await jobs.host("--visibility", "2", HOST_NAME="frozen")
    await jobs.send("a", "hang", 3)
    await jobs.until(lambda lines: "frozen begin a 1" in lines)
    frozen.freeze()
    await jobs.host(HOST_NAME="other")
    await jobs.until(lambda lines: "other end a 2" in lines)
    await jobs.until_empty(jobs.queue)
    frozen.thaw()
    await frozen.wait_for_log("taken over or removed")


@pytest.mark.timeout(240)  # it starts a host four times
async def test_a_time_limit_gives_the_messages_back_and_the_host_starts_again(jobs: Jobs) -> None:
    await jobs.host("--function-timeout", "3", supervised=True)
    await jobs.send("slow", "hang", 60)
    await jobs.until(lambda lines: "host poison slow 1" in lines, 150)
    assert [line for line in jobs.lines() if "begin" in line] == [f"host begin slow {n}" for n in (1, 2, 3)]


async def test_a_function_that_blocks_the_loop_is_ended_by_the_time_limit(jobs: Jobs) -> None:
    host = await jobs.host("--function-timeout", "1")
    await jobs.send("stuck", "block", 60)
    assert await host.wait_ended(30) == TIMEOUT_EXIT
    assert "Messages were not given back" in host.log()


async def test_grace_finishes_the_message_and_takes_no_other(jobs: Jobs) -> None:
    host = await jobs.host("--grace", "20")
    await jobs.send("a", "hang", 4)
    await jobs.until(lambda lines: "host begin a 1" in lines)
    host.terminate()
    await jobs.until(lambda lines: "host on_shutdown 20.0" in lines)
    # A poll that was under way may still bring a message.
    await host.wait_for_log("No trigger starts anything any more.")
    await jobs.send("b")
    assert await host.wait_ended(20) == 0
    assert jobs.lines() == ["host begin a 1", "host on_shutdown 20.0", "host end a 1"]
    assert (await jobs.queue.get_queue_properties()).approximate_message_count == 1


async def test_only_queue_serves_no_http_but_admin(jobs: Jobs) -> None:
    host = await jobs.host("--only", "queue")
    async with httpx.AsyncClient(base_url=host.base_url, timeout=30) as client:
        assert (await client.get("/api/ping")).status_code == 404
        assert (await client.get("/admin/host/status")).status_code == 200
        order = json.dumps({"name": "by-hand", "do": "pass"})
        # No insertion time is known of a message that never was in a queue: the function sees that and fails.
        assert (await client.post("/admin/functions/JOB", json={"input": order})).status_code == 202
        assert (await client.post("/admin/functions/tick", json={"input": ""})).status_code == 202
    await jobs.until(lambda lines: "host tick False" in lines)
    await jobs.send("a")
    await jobs.until(lambda lines: "host end a 1" in lines)


async def test_admin_gives_a_queue_function_its_input(jobs: Jobs) -> None:
    host = await jobs.host()
    async with httpx.AsyncClient(base_url=host.base_url, timeout=30) as client:
        order = json.dumps({"name": "by-hand"})
        assert (await client.post("/admin/functions/lost", json={"input": order})).status_code == 202
    await jobs.until(lambda lines: "host poison by-hand 1" in lines)


async def test_a_due_timer_runs_on_one_host_and_on_the_next_when_that_is_gone(jobs: Jobs) -> None:
    schedule = "* * * * * *"
    hosts = {name: await jobs.host(schedule=schedule, HOST_NAME=name) for name in ("one", "two")}
    await jobs.until(lambda lines: len(lines) >= 3)
    owner = jobs.lines()[0].split()[0]
    assert set(jobs.lines()) == {f"{owner} tick False"}
    hosts[owner].kill()
    other = "two" if owner == "one" else "one"
    await jobs.until(lambda lines: f"{other} tick False" in lines)


async def test_timers_can_be_switched_off(jobs: Jobs) -> None:
    await jobs.host("--no-timers", schedule="* * * * * *")
    # A message that takes longer than the timer's period.
    await jobs.send("long", "hang", 2)
    await jobs.until(lambda lines: "host end long 1" in lines)
    assert "host tick False" not in jobs.lines()

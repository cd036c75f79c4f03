"""How the local host starts, which functions it serves with which settings, and how it ends."""

import asyncio
import json
import os
import shutil
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from devhost.exits import TIMEOUT_EXIT
from devhost.supervisor import MIN_LIFE_SECONDS
from tests.support.host import APPS, FunctionHost, HostFailed, until

WEB, JOBS = APPS / "web", APPS / "jobs"
HTTP = ("--only", "http")
DEATH_SECONDS = 20.0


async def get(host: FunctionHost, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=host.base_url, timeout=30) as client:
        return await client.get(path)


async def setting(host: FunctionHost, name: str) -> str | None:
    value: str | None = (await get(host, f"/settings/{name}")).json()["value"]
    return value


def traced(trace: Path) -> list[str]:
    return trace.read_text().splitlines()


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A copy of the web app that a test may change."""
    return Path(shutil.copytree(WEB, tmp_path / "app"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace"
    path.touch()
    return path


async def test_given_settings_win_over_the_environment_and_that_over_the_file(web: Path) -> None:
    values = {"A": "file", "B": "file", "C": "file", "FLAG": True}
    (web / "local.settings.json").write_text(json.dumps({"Values": values}))
    async with await FunctionHost.start(web, {"B": "env", "C": "env"}, *HTTP, "--setting", "C=given=x") as host:
        assert [await setting(host, name) for name in ("A", "B", "C", "FLAG")] == ["file", "env", "given=x", "true"]
        assert await setting(host, "FILE_ONLY") is None


async def test_the_example_stands_in_for_missing_settings_and_the_log_says_so(web: Path) -> None:
    async with await FunctionHost.start(web, {}, *HTTP) as host:
        assert await setting(host, "FILE_ONLY") == "file"
        assert "local.settings.json.example is used" in host.log()


@pytest.mark.parametrize("name", ["AzureWebJobs.plain.Disabled", "AzureWebJobs_plain_Disabled"])
async def test_a_disabled_function_is_not_served(name: str) -> None:
    async with await FunctionHost.start(WEB, {name: "true"}, *HTTP) as host:
        assert (await get(host, "/plain")).status_code == 404
        assert (await get(host, "/items/a")).status_code == 200


async def test_only_http_tells_the_app_that_the_rest_is_disabled() -> None:
    # No storage is reachable: nothing of the queue side may be touched.
    async with await FunctionHost.start(JOBS, {"JobsStorage": "none"}, *HTTP) as host:
        seen = (await get(host, "/api/ping")).json()
    assert seen == {"job": "true", "lost": "true", "tick": "true", "ping": None}


async def test_an_app_that_cannot_be_imported_fails_with_its_own_error(web: Path) -> None:
    (web / "function_app.py").write_text("import a_module_that_is_missing\n")
    with pytest.raises(HostFailed, match="a_module_that_is_missing") as failed:
        await FunctionHost.start(web)
    assert "ended with 1" in str(failed.value)


async def test_a_binding_that_this_host_lacks_is_named(web: Path) -> None:
    with (web / "function_app.py").open("a") as file:
        file.write(
            '\n\n@app.route(route="out")\n@app.queue_output(arg_name="out", queue_name="q", connection="S")\n'
            "async def sender(req: Request, out: func.Out[str]) -> Response:\n    return Response()\n"
        )
    with pytest.raises(HostFailed, match="sender: the local host has no 'queue' binding"):
        await FunctionHost.start(web)


async def test_a_missing_setting_in_an_expression_is_named(web: Path) -> None:
    source = (web / "function_app.py").read_text()
    (web / "function_app.py").write_text(source.replace('queue_name="web-unused"', 'queue_name="%NO_SUCH%"'))
    with pytest.raises(HostFailed, match="%NO_SUCH%"):
        await FunctionHost.start(web, {"AzureWebJobsStorage": "UseDevelopmentStorage=true"})


async def test_sigterm_ends_the_process_at_once_without_grace(trace: Path) -> None:
    async with await FunctionHost.start(WEB, {"TRACE_FILE": str(trace)}, *HTTP) as host:
        waiting = asyncio.create_task(get(host, "/wait?seconds=20"))
        await host.until(lambda: "waiting" in trace.read_text(), 20, "to wait")
        host.terminate()
        assert await host.wait_ended() == 0
        with pytest.raises(httpx.HTTPError):
            await waiting
    assert traced(trace) == ["waiting"]


async def test_grace_calls_the_app_and_lets_what_runs_finish(trace: Path) -> None:
    async with await FunctionHost.start(WEB, {"TRACE_FILE": str(trace)}, *HTTP, "--grace", "20") as host:
        waiting = asyncio.create_task(get(host, "/wait?seconds=1"))
        await host.until(lambda: "waiting" in trace.read_text(), 20, "to wait")
        host.terminate()
        await host.until(lambda: "on_shutdown 20.0" in trace.read_text(), 20, "to call the app")
        with pytest.raises(httpx.ConnectError):
            await get(host, "/plain")
        assert (await waiting).json() == {"waited": True}
        assert await host.wait_ended() == 0


async def test_exhausted_grace_ends_what_still_runs(trace: Path) -> None:
    async with await FunctionHost.start(WEB, {"TRACE_FILE": str(trace)}, *HTTP, "--grace", "0.5") as host:
        waiting = asyncio.create_task(get(host, "/wait?seconds=20"))
        await host.until(lambda: "waiting" in trace.read_text(), 20, "to wait")
        host.terminate()
        assert await host.wait_ended() == 0
        with pytest.raises(httpx.HTTPError):
            await waiting
        assert "1 invocations end with the process" in host.log() or "2 invocations" in host.log()


async def test_an_upload_that_ends_early_leaves_nothing_running() -> None:
    async with await FunctionHost.start(WEB, {}, *HTTP, "--grace", "60") as host:
        _, writer = await asyncio.open_connection("127.0.0.1", host.port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly a part")
        await writer.drain()
        assert (await get(host, "/plain")).text == "ok"
        writer.close()
        await writer.wait_closed()
        host.terminate()
        assert await host.wait_ended() == 0
        assert "end with the process" not in host.log()


@pytest.mark.parametrize("path", ["/wait?seconds=20", "/block?seconds=20", "/ticks/1000/50"])
async def test_an_invocation_past_its_time_ends_the_whole_process(path: str, trace: Path) -> None:
    environment = {"TRACE_FILE": str(trace)}
    async with await FunctionHost.start(WEB, environment, *HTTP, "--function-timeout", "1") as host:
        with pytest.raises(httpx.HTTPError):
            await get(host, path)
        assert await host.wait_ended() == TIMEOUT_EXIT


async def test_the_supervisor_starts_the_host_again_on_the_same_port() -> None:
    # A limit that the first answer of a fresh process keeps on a busy machine too.
    arguments = (*HTTP, "--function-timeout", "3")
    async with await FunctionHost.start(WEB, {}, *arguments, supervised=True) as host:
        port = host.port
        with pytest.raises(httpx.HTTPError):
            await get(host, "/wait?seconds=20")
        # Nobody waits for the restart here: the port is the supervisor's, and the request waits in its backlog.
        assert (await get(host, "/plain")).text == "ok"
        await host.wait_for_restart()
        assert host.port == port


async def test_a_killed_host_is_started_again_and_a_killed_supervisor_takes_it_along() -> None:
    async with await FunctionHost.start(WEB, {}, *HTTP, supervised=True) as host:
        # The supervisor takes an earlier death for an app that cannot start. It counts from before the host was ready;
        # when the process was made, the system tells to a second only.
        ready_at = time.monotonic()
        assert await until(lambda: time.monotonic() - ready_at > MIN_LIFE_SECONDS, MIN_LIFE_SECONDS + 5)
        os.kill(host.pid, signal.SIGKILL)
        await host.wait_for_restart()
        assert (await get(host, "/plain")).text == "ok"
        host.kill()
        assert await until(lambda: _dead(host.pid), DEATH_SECONDS)


async def test_the_supervisor_passes_sigterm_on() -> None:
    async with await FunctionHost.start(WEB, {}, *HTTP, supervised=True) as host:
        host.terminate()
        assert await host.wait_ended() == 0
        assert await until(lambda: _dead(host.pid), DEATH_SECONDS)


async def test_a_frozen_host_answers_after_the_thaw() -> None:
    async with await FunctionHost.start(WEB, {}, *HTTP) as host:
        host.freeze()
        waiting = asyncio.create_task(get(host, "/plain"))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        host.thaw()
        assert (await waiting).text == "ok"


def _dead(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True

"""The page is there where it is wanted, holds the browser to its policy, and its timeline is served beside it."""

import importlib
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from api import page
from api.endpoints import Endpoints
from protocol import ids
from resilience.options import SettingError
from tests.support.api_server import ApiServer, serving
from tests.support.azurite import AzuriteServer
from tests.support.servers import deployment, frames_of

STATIC = Path(page.__file__).parent / "static"
LOCAL = {"AZURE_FUNCTIONS_ENVIRONMENT": "Development", "WEBSITE_HOSTNAME": "localhost:7071"}
ROUTES = ["/", "/page/{name}", "/v1/responses/{response_id}/timeline", "/responses/{response_id}/timeline"]


# -- where it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "there"),
    [
        (LOCAL, True),
        ({}, False),
        ({**LOCAL, "WEBSITE_INSTANCE_ID": "one"}, False),
        ({**LOCAL, "WEBSITE_POD_NAME": "one"}, False),
        ({"WEBSITE_INSTANCE_ID": "one", "RESPONSES_PAGE": "true"}, True),
        ({**LOCAL, "RESPONSES_PAGE": "false"}, False),
        ({**LOCAL, "RESPONSES_PAGE": " "}, True),
    ],
    ids=["local", "unknown", "dedicated", "flex", "wanted", "unwanted", "empty"],
)
def test_the_page_is_on_locally_and_off_in_the_cloud_unless_wanted(environment: Mapping[str, str], there: bool) -> None:
    assert page.is_enabled(environment) is there


def test_a_setting_that_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(SettingError):
        page.is_enabled({"RESPONSES_PAGE": "perhaps"})


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def load(wanted: str) -> ModuleType:
        monkeypatch.setenv("AzureWebJobsStorage", "UseDevelopmentStorage=true")
        monkeypatch.setenv("RESPONSES_PAGE", wanted)
        sys.modules.pop("function_app", None)
        return importlib.import_module("function_app")

    yield load
    sys.modules.pop("function_app", None)


def routes_of(module: ModuleType) -> set[str]:
    triggers = [function.get_trigger().get_dict_repr() for function in module.app.get_functions()]
    return {"/" + trigger["route"].strip("/") for trigger in triggers if trigger["type"] == "httpTrigger"}


@pytest.mark.parametrize(("wanted", "expected"), [("true", set(ROUTES)), ("false", set())])
def test_the_function_app_has_its_routes_only_where_it_is_on(load: Any, wanted: str, expected: set[str]) -> None:
    assert routes_of(load(wanted)) & set(ROUTES) == expected


async def test_a_local_host_serves_it(azurite: AzuriteServer) -> None:
    """Under the real host: at the root, with its files, and the timeline behind the API's access rules."""
    with deployment(azurite) as made:
        host = await made.start()
        async with httpx.AsyncClient(base_url=host.base_url, timeout=30) as client:
            index = await client.get("/")
            script = await client.get("/page/main.js")
            body = {"model": "m", "input": "{}", "background": True, "stream": True}
            events = frames_of((await client.post("/v1/responses", json=body)).content)
            response_id = ids_in(events[0])
            lines = [await client.get(f"{prefix}/responses/{response_id}/timeline") for prefix in ("/v1", "")]
    assert (index.status_code, index.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert index.headers["content-security-policy"] == page.POLICY
    assert (script.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert [line.status_code for line in lines] == [200, 200]
    assert lines[0].json()["log"]["events"] == len(events)


def ids_in(frame: bytes) -> str:
    found = re.search(rb'"id":"(resp_\w+)"', frame)
    assert found is not None
    return found[1].decode()


# -- what is served -------------------------------------------------------------------------------------------------


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[Route("/", page.index), Route("/page/{name}", page.file)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as made:
        yield made


def policy_of(answer: httpx.Response) -> dict[str, list[str]]:
    directives = [directive.split() for directive in answer.headers["content-security-policy"].split(";")]
    return {name: values for name, *values in directives}


async def test_the_policy_allows_nothing_but_files_of_this_origin(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    policy = policy_of(answer)
    assert policy.pop("default-src") == ["'none'"]
    allowed = {source for values in policy.values() for source in values} - {"'script'"}
    assert allowed == {"'self'", "'none'"}
    assert policy["script-src"] == ["'self'"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert policy["require-trusted-types-for"] == ["'script'"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("file", sorted(path.name for path in STATIC.iterdir()))
async def test_every_file_is_served_as_what_it_is(client: httpx.AsyncClient, file: str) -> None:
    answer = await client.get(f"/page/{file}")
    assert (answer.status_code, answer.content) == (200, (STATIC / file).read_bytes())
    kind = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kind[Path(file).suffix])
    assert answer.headers["content-security-policy"] == page.POLICY


@pytest.mark.parametrize(
    "name",
    [
        "nothing.js",
        "page.py",
        "%2e%2e%2fpage.py",
        "..%5cpage.py",
        "%00",
        "index.html%00.js",
        "__pycache__",
        "MAIN.JS",
    ],
)
async def test_another_name_is_no_file(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/page/{name}")
    assert answer.status_code == 404
    assert b"def " not in answer.content


def test_everything_the_page_refers_to_is_its_own() -> None:
    """No other origin, no inline script or style, and no way from text to markup."""
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", index)
    referred = re.findall(r'(?:src|href)="(page/[^"]+)"', index)
    imported = [name for path in STATIC.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', path.read_text())]
    assert {name.removeprefix("page/") for name in referred} | set(imported) == {
        path.name for path in STATIC.iterdir() if path.name != "index.html"
    }


# -- the timeline ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with serving() as made:
        yield made


@pytest.fixture
async def timelines(server: ApiServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the timeline alone; no judge of the Responses API knows it."""
    endpoints = Endpoints(lambda: server.engine)
    app = Starlette(routes=[Route("/v1/responses/{response_id}/timeline", endpoints.get_timeline)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as made:
        yield made


async def test_the_timeline_of_a_background_stream_is_json(server: ApiServer, timelines: httpx.AsyncClient) -> None:
    events = await server.events(input="hello", background=True)
    response = events[0]["response"]
    answer = await timelines.get(f"/v1/responses/{response['id']}/timeline", headers={"x-request-id": "mine"})
    line = answer.json()
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
    assert (line["object"], line["response_id"], line["status"]) == ("response.timeline", response["id"], "completed")
    assert (line["background"], line["stream"], line["created_at"]) == (True, True, response["created_at"])
    assert line["log"]["events"] == len(events)
    assert [mark["what"] for mark in line["marks"]] == ["created", "started", "ended"]
    assert "hello" not in answer.text


@pytest.mark.parametrize(
    ("response_id", "status"),
    [(ids.new_response_id(ids.new_partition()), 404), ("resp_nonsense", 400)],
    ids=["unknown", "malformed"],
)
async def test_an_unknown_or_malformed_id_is_refused_as_by_the_api(
    timelines: httpx.AsyncClient, response_id: str, status: int
) -> None:
    assert (await timelines.get(f"/v1/responses/{response_id}/timeline")).status_code == status


async def test_a_deleted_response_has_no_timeline(server: ApiServer, timelines: httpx.AsyncClient) -> None:
    response_id = (await server.events(input="hello", background=True))[0]["response"]["id"]
    await server.get_ended(response_id)
    assert (await server.client.delete(f"/v1/responses/{response_id}")).status_code == 200
    answer = await timelines.get(f"/v1/responses/{response_id}/timeline")
    assert answer.status_code == 400
    assert "deleted" in answer.json()["error"]["message"]

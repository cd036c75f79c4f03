"""Who may come in, over HTTP: every endpoint of a server with keys, of one without, and of a real host."""

import asyncio
import base64
import json
from collections.abc import Iterator

import httpx
import pytest

from api.access import Closed
from api.entra import EntraId
from api.keys import ApiKeys, hash_of
from api.settings import ApiSettings
from protocol import ids
from tests.support.api_server import ApiServer, serving
from tests.support.azurite import AzuriteServer
from tests.support.described import check, find
from tests.support.servers import SCRIPTED, Deployment, body, deployment

KEY, OTHER = "key-of-ann", "key-of-bob"
ENTRIES = f"ann:{hash_of(KEY)},bob:{hash_of(OTHER)}"
WITH_KEYS = ApiSettings(access=ApiKeys.parse(ENTRIES))
UNKNOWN = ids.new_response_id(ids.new_partition())
ENDPOINTS = [
    ("POST", "/v1/responses"),
    ("POST", "/responses"),
    ("GET", f"/v1/responses/{UNKNOWN}"),
    ("GET", f"/v1/responses/{UNKNOWN}?stream=true"),
    ("GET", "/v1/responses/malformed"),
    ("DELETE", f"/v1/responses/{UNKNOWN}"),
    ("POST", f"/v1/responses/{UNKNOWN}/cancel"),
    ("GET", f"/v1/responses/{UNKNOWN}/input_items"),
    ("GET", "/v1/openapi.json"),
    ("GET", "/readyz"),
]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(server: ApiServer, method: str, path: str, **headers: str) -> httpx.Response:
    answer = await server.client.request(
        method, path, headers=headers, json={"input": "x"} if method == "POST" else None
    )
    operation = find(method, path.partition("?")[0])
    assert operation is not None
    check(operation, answer.status_code, answer.headers, answer.content)
    return answer


@pytest.mark.parametrize("key", [None, "wrong", KEY[:-1]])
async def test_without_a_key_every_endpoint_but_one_refuses_before_anything_else(key: str | None) -> None:
    async with serving(api=WITH_KEYS) as server:
        for method, path in ENDPOINTS:
            answer = await ask(server, method, path, **(bearer(key) if key else {}))
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            error = answer.json()["error"]
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
            assert str(key) not in answer.text
        assert (await ask(server, "GET", "/healthz")).json() == {"status": "ok"}
        assert server.storage.seam.total() == 0
        assert server.runs == []


async def test_a_server_that_is_not_told_whom_to_serve_answers_nobody() -> None:
    async with serving(api=ApiSettings(access=Closed("RESPONSES_API_KEYS", "is not set"))) as server:
        for method, path in ENDPOINTS:
            answer = await ask(server, method, path, **bearer(KEY))
            assert answer.status_code == 503, path
            assert answer.json()["error"]["code"] == "access_not_configured"
            assert "RESPONSES_API_KEYS" in answer.json()["error"]["message"]
        assert (await ask(server, "GET", "/healthz")).status_code == 200
        assert server.storage.seam.total() == 0


async def test_a_key_opens_what_its_principal_stored_and_nothing_else() -> None:
    async with serving(api=WITH_KEYS) as server:
        made = (await server.client.post("/v1/responses", json={"input": "mine"}, headers=bearer(KEY))).json()
        path = f"/v1/responses/{made['id']}"
        assert (await ask(server, "GET", path, **bearer(KEY))).json()["id"] == made["id"]
        assert (await ask(server, "GET", path, **bearer(OTHER))).status_code == 404
        assert (await ask(server, "DELETE", path, **bearer(OTHER))).status_code == 404
        assert (await ask(server, "DELETE", path, **bearer(KEY))).status_code == 200


async def test_an_old_and_a_new_key_of_a_principal_work_at_the_same_time() -> None:
    both = ApiSettings(access=ApiKeys.parse(f"ann:{hash_of('old')},ann:{hash_of('new')}"))
    async with serving(api=both) as server:
        made = (await server.client.post("/v1/responses", json={"input": "mine"}, headers=bearer("old"))).json()
        assert (await ask(server, "GET", f"/v1/responses/{made['id']}", **bearer("new"))).status_code == 200


async def test_claims_of_the_platform_are_believed_where_it_enforces_them_and_nowhere_else() -> None:
    claims = [
        {"typ": "tid", "val": "11111111-2222-3333-4444-555555555555"},
        {"typ": "oid", "val": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"},
    ]
    text = json.dumps({"auth_typ": "aad", "claims": claims})
    principal = {"x-ms-client-principal": base64.b64encode(text.encode()).decode()}
    path = f"/v1/responses/{UNKNOWN}"
    async with serving(api=ApiSettings(access=EntraId())) as server:
        assert (await ask(server, "GET", path, **principal)).status_code == 404
        assert (await ask(server, "GET", path, **bearer(KEY))).status_code == 401
    async with serving(api=WITH_KEYS) as server:
        assert (await ask(server, "GET", path, **principal)).status_code == 401


async def test_an_open_server_takes_no_requests_from_foreign_pages_or_for_foreign_names() -> None:
    async with serving() as server:
        for headers in ({"origin": "https://example.com"}, {"host": "rebound.example.com"}):
            for method, path in ENDPOINTS:
                answer = await ask(server, method, path, **headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), path
        assert server.storage.seam.total() == 0
        assert server.runs == []


# -- a real host ------------------------------------------------------------------------------------------------------

PAGE = "https://app.example.com"
# How each of the hosts refuses a request without credentials.
BY_KEY, CLOSED = "didn't provide an API key", "RESPONSES_API_KEYS is not set"


@pytest.fixture(scope="module")
def guarded(azurite: AzuriteServer) -> Iterator[Deployment]:
    """A host with keys, for one web page; and one that nobody told that it is local."""
    settings = {"RESPONSES_EAGER_START": "true", "RESPONSES_AUTH": "", "RESPONSES_PAGE": "false"}
    with deployment(azurite, SCRIPTED, **settings) as made:

        async def start() -> None:
            await asyncio.gather(
                made.start("--no-timers", RESPONSES_API_KEYS=ENTRIES, RESPONSES_CORS_ORIGINS=PAGE),
                made.start("--only", "http", AZURE_FUNCTIONS_ENVIRONMENT="Production"),
            )

        asyncio.run(start())
        yield made


def host_named(made: Deployment, sign: str) -> str:
    """The base URL of the host whose requests without credentials are answered so."""
    for host in made.hosts:
        if sign in httpx.get(f"{host.base_url}/readyz", timeout=20).text:
            return host.base_url
    raise AssertionError(f"no host answers {sign}")


def routes_of(made: Deployment) -> set[tuple[str, str]]:
    """Method and path of every HTTP function, as the hosts log them at their start."""
    found = set()
    for line in made.logs().splitlines():
        method, _, path = line.rpartition(": ")[2].partition(" ")
        if path.startswith("/") and method in ("GET", "POST", "DELETE", "PUT", "PATCH"):
            found.add((method, path.replace("{response_id}", UNKNOWN)))
    return found


def test_no_route_of_the_app_is_open(guarded: Deployment) -> None:
    routes = routes_of(guarded)
    assert {("POST", "/v1/responses"), ("GET", f"/responses/{UNKNOWN}"), ("GET", "/healthz")} <= routes
    for sign, status in [(BY_KEY, 401), (CLOSED, 503)]:
        url = host_named(guarded, sign)
        with httpx.Client(base_url=url, timeout=20) as client:
            answers = {(method, path): client.request(method, path).status_code for method, path in sorted(routes)}
        assert answers == {route: 200 if route == ("GET", "/healthz") else status for route in routes}, sign


def test_a_key_opens_the_real_host_and_the_host_header_does_not(guarded: Deployment) -> None:
    with httpx.Client(base_url=host_named(guarded, BY_KEY), timeout=30) as client:
        made = client.post("/v1/responses", json=body(), headers=bearer(KEY))
        assert made.status_code == 200
        assert client.get(f"/v1/responses/{made.json()['id']}", headers=bearer(OTHER)).status_code == 404
    url = host_named(guarded, CLOSED)
    lies = [{"host": "localhost:7071"}, {"x-forwarded-for": "127.0.0.1"}, {"x-ms-client-principal": "x"}, bearer(KEY)]
    assert [httpx.get(f"{url}/readyz", headers=lie, timeout=20).status_code for lie in lies] == [503] * 4


def test_a_large_body_without_a_key_is_answered(guarded: Deployment) -> None:
    url = host_named(guarded, BY_KEY)
    assert httpx.post(f"{url}/v1/responses", content=b"x" * (8 << 20), timeout=60).status_code == 401


def test_a_web_page_that_is_named_may_ask_and_others_may_not(guarded: Deployment) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with httpx.Client(base_url=host_named(guarded, BY_KEY), timeout=20) as client:
        for path in ("/v1/responses", "/responses", f"/v1/responses/{UNKNOWN}/cancel", f"/responses/{UNKNOWN}"):
            allowed = client.options(path, headers={"origin": PAGE, **asked})
            assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
            assert allowed.headers["access-control-allow-headers"] == "authorization,content-type"
            assert "access-control-allow-credentials" not in allowed.headers
            refused = client.options(path, headers={"origin": "https://example.com", **asked})
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers
        for stream in (False, True):
            answer = client.post("/v1/responses", json=body(stream=stream), headers={"origin": PAGE, **bearer(KEY)})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        denied = client.get(f"/v1/responses/{UNKNOWN}", headers={"origin": PAGE})
        assert (denied.status_code, denied.headers["access-control-allow-origin"]) == (401, PAGE)


def test_without_the_setting_preflights_have_no_route(guarded: Deployment) -> None:
    url = host_named(guarded, CLOSED)
    answer = httpx.options(f"{url}/v1/responses", headers={"origin": PAGE}, timeout=20)
    assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (405, False)


def test_a_closed_host_says_so_once_in_its_log(guarded: Deployment) -> None:
    assert guarded.logs().count("answers nobody: the setting RESPONSES_API_KEYS is not set") == 1

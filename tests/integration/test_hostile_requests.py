"""No request makes the server answer 5xx, hang, or keep something of what it refused (B29, W8).

A small share of what `make fuzz` sends; the seed is fixed, so that a failure repeats.
"""

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.support import hostile
from tests.support.api_server import serving
from tests.support.azurite import AzuriteServer
from tests.support.described import DOCUMENT
from tests.support.fuzzing import (
    Tally,
    ThreadedServer,
    Unacceptable,
    attack_endpoints,
    attack_host,
    judge,
    left_behind,
    seeds_at,
    serving_in_thread,
    shipped,
)
from tests.support.raw_http import Framing, NoAnswerInTime, RawAnswer, RawRequest, exchange
from tests.support.servers import Deployment

IN_PROCESS = 500
HOSTED = 60
SEED = 20_261_123
SECONDS = 15.0
CREATE = b"/v1/responses"


@pytest.fixture(scope="module")
def served() -> Iterator[ThreadedServer]:
    with serving_in_thread() as made:
        yield made


@pytest.fixture
def address(served: ThreadedServer) -> tuple[str, int]:
    url = served.server.client.base_url
    return url.host, url.port or 80


def test_hostile_requests_get_an_answer_as_documented_and_leave_nothing() -> None:
    tally = attack_endpoints(IN_PROCESS, SEED)
    assert tally.total >= IN_PROCESS
    # Both what is refused and what is accepted has to be among them, or they prove little.
    assert tally.answers[200] > IN_PROCESS / 20
    assert tally.answers[400] > IN_PROCESS / 10


@pytest.fixture(scope="module")
def hosted(azurite: AzuriteServer) -> Iterator[Deployment]:
    with shipped(azurite) as made:
        yield made


def test_hostile_requests_to_the_local_host_do_so_too(hosted: Deployment) -> None:
    assert attack_host(hosted, HOSTED, SEED).total >= HOSTED
    assert hosted.hosts[0].running


def test_the_local_host_serves_the_description(hosted: Deployment) -> None:
    assert httpx.get(f"{hosted.hosts[0].base_url}/v1/openapi.json", timeout=SECONDS).json() == DOCUMENT


@pytest.mark.parametrize("depth", hostile.DEPTHS)
@pytest.mark.parametrize("shape", [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"])
@pytest.mark.parametrize("field", ["input", "tools", "metadata", "text", "of_a_newer_client"])
def test_no_depth_is_too_much(address: tuple[str, int], field: str, shape: tuple[bytes, bytes], depth: int) -> None:
    for wrapped in (b"%b", b'[{"type": "newer", "x": %b}]'):
        value = wrapped % hostile.nested(*shape, depth).text
        for flags in (b'"store": false', b'"background": true, "stream": true'):
            request = RawRequest("POST", CREATE, body=b'{"%b": %b, %b}' % (field.encode(), value, flags))
            judge(request, exchange(address, request, SECONDS))


MANY = 120_000
CROWDED = {
    "items": b'{"input": [%b]}' % b",".join([b'{"type": "newer"}'] * MANY),
    "parts": b'{"input": [{"role": "user", "content": [%b]}]}' % b",".join([b'{"type": "newer"}'] * 3 * MANY),
    "tools": b'{"tools": [%b]}' % b",".join([b'{"type": "newer"}'] * MANY),
    "numbers": b'{"of_a_newer_client": [%b]}' % b",".join([b"0"] * 20 * MANY),
    "faults": b'{"input": [%b]}' % b",".join([b"0"] * 9_000),
}


@pytest.mark.parametrize("body", CROWDED.values(), ids=CROWDED)
def test_a_crowded_body_is_refused_before_it_costs_much(address: tuple[str, int], body: bytes) -> None:
    answer = exchange(address, RawRequest("POST", CREATE, body=body), SECONDS)
    assert answer.status == 400
    assert len(answer.body) < 20_000


@pytest.mark.parametrize(
    "number", [b"9" * 5000, b"-" + b"9" * 5000, b"0" * 5000 + b"1", b"%D9%A3", b"%00", b"1.0", b""]
)
@pytest.mark.parametrize("query", [b"?stream=true&starting_after=", b"/input_items?limit=", b"/input_items?after="])
def test_any_number_in_a_query_is_read_or_refused(address: tuple[str, int], query: bytes, number: bytes) -> None:
    request = RawRequest("GET", CREATE + b"/" + hostile.UNKNOWN_ID.encode() + query + number)
    answer = exchange(address, request, SECONDS)
    judge(request, answer)
    assert answer.status in (400, 404)


def test_half_a_request_whose_client_stays_holds_up_nobody(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as waiting:
        waiting.sendall(b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        request = RawRequest("POST", CREATE, body=b'{"input": "x", "store": false}')
        assert exchange(address, request, SECONDS).status == 200


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_either_framing_of_a_body_is_read(address: tuple[str, int], framing: Framing) -> None:
    request = RawRequest("POST", CREATE, body=b'{"input": "x", "store": false}', framing=framing)
    assert exchange(address, request, SECONDS).status == 200


async def test_what_validation_refuses_costs_no_storage_operation() -> None:
    refused = [
        b"",
        b"[]",
        b'{"input": 1e999}',
        b'{"input": "\\ud800"}',
        b'{"temperature": 9}',
        b'{"background": true, "store": false}',
        b'{"previous_response_id": "x"}',
        b'{"agent_reference": {"name": "a", "version": 1}}',
        hostile.written({"tools": [{"type": "newer"}] * 2000}),
        hostile.written({"input": hostile.nested(b"[", b"]", 300)}),
    ]
    async with serving() as server:
        for body in refused:
            for extra in ({}, {"idempotency-key": "k", "x-client-a": "b"}):
                answer = await server.client.post("/v1/responses", content=body, headers=extra)
                assert answer.status_code == 400, body
        assert server.storage.seam.total() == 0
        assert server.runs == []


# -- the judge itself -------------------------------------------------------------------------------------------------


ASKED = RawRequest("GET", b"/v1/responses/resp_x")
ERROR = b'{"error": {"message": "m", "type": "invalid_request_error", "param": null, "code": null%b}}'
HEADERS = {"content-type": "application/json", "x-request-id": "r", "x-platform-server": "s"}
NAMED = ERROR % b', "additionalInfo": {"request_id": "r"}'


def test_an_error_as_documented_is_acceptable() -> None:
    judge(ASKED, RawAnswer(404, HEADERS, NAMED))


@pytest.mark.parametrize(
    "answer",
    [
        RawAnswer(500, HEADERS, NAMED),
        RawAnswer(503, HEADERS, NAMED),
        RawAnswer(418, HEADERS, NAMED),
        RawAnswer(404, HEADERS, ERROR % b""),
        RawAnswer(404, HEADERS, b"Not Found"),
        RawAnswer(404, {**HEADERS, "content-type": "text/plain"}, NAMED),
        RawAnswer(404, {**HEADERS, "x-request-id": "another"}, NAMED),
        RawAnswer(200, HEADERS, b"{}"),
        RawAnswer(0),
    ],
    ids=lambda answer: f"{answer.status} {answer.body[-30:]!r}",
)
def test_a_wrong_answer_is_noticed(answer: RawAnswer) -> None:
    with pytest.raises(Unacceptable):
        judge(ASKED, answer)


def test_a_server_that_says_nothing_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NoAnswerInTime):
        exchange(silent.getsockname(), ASKED, 0.3)


async def test_a_response_that_no_answer_named_is_noticed() -> None:
    async with serving() as server:
        made = (await server.post(input="x", background=True)).json()["id"]
        assert await left_behind(server.storage, Tally()) == {made}
        assert await left_behind(server.storage, Tally(named={made})) == set()


def test_a_tally_says_what_failed() -> None:
    tally = Tally()
    tally.answers.update([200, 200, 400, 503, 0])
    assert str(tally).startswith("5 requests, 1 of them 5xx, 0 hung")


def test_the_attacked_server_does_its_work(address: tuple[str, int]) -> None:
    assert len(seeds_at(f"http://{address[0]}:{address[1]}")) == 4

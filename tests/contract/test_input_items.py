"""The input of a response, listed: `GET /responses/{id}/input_items`."""

import base64
from typing import Any

import pytest

from tests.contract.modes import EVERY_MODE, MODES, STORED, ask
from tests.support.api_server import ApiServer

type Json = dict[str, Any]

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANY = 257
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(32)).decode()
PAPER = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7\n" + bytes(range(256))).decode()


async def page_of(server: ApiServer, response_id: str, **query: Any) -> Json:
    answer = await server.client.get(f"/v1/responses/{response_id}/input_items", params=query)
    assert answer.status_code == 200, answer.text
    page: Json = answer.json()
    return page


async def walk(server: ApiServer, response_id: str, *, by: str, **query: Any) -> list[Json]:
    """All pages one after the other, in the order in which they came."""
    pages = [await page_of(server, response_id, **query)]
    while pages[-1]["has_more"]:
        cursor = pages[-1]["last_id" if by == "after" else "first_id"]
        pages.append(await page_of(server, response_id, **{**query, by: cursor}))
    return pages


def texts(page: Json) -> list[str]:
    return [item["content"][0]["text"] for item in page["data"]]


@EVERY_MODE
async def test_string_input_is_one_message_of_the_user(server: ApiServer, mode: str) -> None:
    told = await ask(server, mode, input="Hello")
    url = f"/v1/responses/{told.response['id']}/input_items"
    if not MODES[mode].get("store", True):
        assert (await server.client.get(url)).status_code == 404
        return
    (item,) = (await page_of(server, told.response["id"]))["data"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "Hello"}],
    }


@pytest.mark.parametrize("limit", [1, 20, 100])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_give_every_item_once_whichever_way_they_are_walked(
    server: ApiServer, limit: int, order: str
) -> None:
    count = MANY if limit > 1 else 12
    messages = [{"role": "user", "content": f"{number}"} for number in range(count)]
    response_id = (await server.post(input=messages)).json()["id"]
    expected = [f"{number}" for number in range(count)]
    if order == "desc":
        expected.reverse()

    forwards = await walk(server, response_id, by="after", limit=limit, order=order)
    assert [text for page in forwards for text in texts(page)] == expected
    assert all(len(page["data"]) == limit for page in forwards[:-1])

    last = forwards[-1]["last_id"]
    backwards = await walk(server, response_id, by="before", limit=limit, order=order, before=last)
    assert [text for page in reversed(backwards) for text in texts(page)] == expected[:-1]


async def test_page_without_a_query_is_the_newest_twenty_newest_first(server: ApiServer) -> None:
    messages = [{"role": "user", "content": f"{number}"} for number in range(30)]
    response_id = (await server.post(input=messages)).json()["id"]
    page = await page_of(server, response_id)
    assert texts(page) == [f"{number}" for number in range(29, 9, -1)]
    assert page["has_more"]


async def test_window_between_two_items_holds_what_is_between_them(server: ApiServer) -> None:
    messages = [{"role": "user", "content": f"{number}"} for number in range(9)]
    response_id = (await server.post(input=messages)).json()["id"]
    ids = [item["id"] for item in (await page_of(server, response_id, order="asc"))["data"]]
    page = await page_of(server, response_id, order="asc", after=ids[2], before=ids[6])
    assert (texts(page), page["has_more"]) == (["3", "4", "5"], False)
    page = await page_of(server, response_id, order="asc", after=ids[-1])
    assert (page["data"], page["first_id"], page["last_id"], page["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=1.5", "limit=", "order=up"])
async def test_query_outside_its_range_is_refused_by_its_name(server: ApiServer, query: str) -> None:
    response_id = (await server.post(input="Hello")).json()["id"]
    answer = await server.client.get(f"/v1/responses/{response_id}/input_items?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


CONTENT: list[Any] = [
    "plain",
    [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
    [{"type": "input_image", "image_url": "https://example.com/cat.png", "detail": "low"}],
    [{"type": "input_image", "image_url": PIXEL, "detail": "high"}, {"type": "input_text", "text": "What is it?"}],
    [{"type": "input_image", "file_id": "file_1", "detail": "auto"}],
    [{"type": "input_file", "file_id": "file_2"}],
    [{"type": "input_file", "filename": "paper.pdf", "file_data": PAPER}],
    [{"type": "input_file", "file_url": "https://example.com/paper.pdf"}],
]


@STORED
async def test_parts_of_every_kind_come_back_as_they_were_sent(server: ApiServer, mode: str) -> None:
    body = [{"role": "user", "content": content} for content in CONTENT]
    told = await ask(server, mode, input=body)
    listed = (await page_of(server, told.response["id"], order="asc"))["data"]
    assert [item["content"] for item in listed] == [[{"type": "input_text", "text": "plain"}], *CONTENT[1:]]
    assert len({item["id"] for item in listed}) == len(CONTENT)
    assert {(item["type"], item["role"], item["status"]) for item in listed} == {("message", "user", "completed")}
    seen = await server.runs[-1].get_input_items()
    assert seen == listed


async def test_image_without_a_detail_gets_the_usual_one(server: ApiServer) -> None:
    body = [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL}]}]
    response_id = (await server.post(input=body)).json()["id"]
    (item,) = (await page_of(server, response_id))["data"]
    assert item["content"] == [{"type": "input_image", "image_url": PIXEL, "detail": "auto"}]


OTHER_ITEMS: list[Json] = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "21 degrees"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "21 degrees"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "y"},
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
]


async def test_items_of_other_kinds_get_an_id_and_keep_what_they_say(server: ApiServer) -> None:
    """Typed clients read them: the judge of this server holds every list to their types."""
    response_id = (await server.post(input=OTHER_ITEMS)).json()["id"]
    listed = (await page_of(server, response_id, order="asc"))["data"]
    assert [item["type"] for item in listed] == [item["type"] for item in OTHER_ITEMS]
    assert all(item["id"] for item in listed)
    for sent, got in zip(OTHER_ITEMS[2:], listed[2:], strict=True):
        assert {name: got[name] for name in sent} == sent


async def test_item_of_an_unknown_kind_is_listed_too(server: ApiServer) -> None:
    response_id = (await server.post(input=[{"type": "hologram", "light": [1]}])).json()["id"]
    (item,) = (await page_of(server, response_id))["data"]
    assert (item["type"], item["light"]) == ("hologram", [1])


@STORED
async def test_reference_into_the_chain_is_listed_as_what_it_refers_to(server: ApiServer, mode: str) -> None:
    first = (await server.post(input="One")).json()
    (asked,) = (await page_of(server, first["id"]))["data"]
    body = [
        {"type": "item_reference", "id": asked["id"]},
        {"id": first["output"][0]["id"]},
        {"role": "user", "content": "Two"},
    ]
    told = await ask(server, mode, input=body, previous_response_id=first["id"])
    listed = (await page_of(server, told.response["id"], order="asc"))["data"]
    assert listed[:2] == [asked, first["output"][0]]
    assert listed[2]["content"][0]["text"] == "Two"
    assert await server.runs[-1].get_input_items() == listed
    unresolved = await server.runs[-1].get_input_items(resolve_references=False)
    assert [item["type"] for item in unresolved] == ["item_reference", "item_reference", "message"]


async def test_reference_without_a_chain_is_resolved_by_its_id(server: ApiServer) -> None:
    """Some clients send references and no `previous_response_id`."""
    first = (await server.post(input="One")).json()
    body = [{"type": "item_reference", "id": first["output"][0]["id"]}, {"role": "user", "content": "Two"}]
    second = (await server.post(input=body)).json()
    listed = (await page_of(server, second["id"], order="asc"))["data"]
    assert listed[0] == first["output"][0]


async def test_reference_that_leads_nowhere_stays_a_reference(server: ApiServer) -> None:
    body = [{"type": "item_reference", "id": "msg_of_nobody"}, {"role": "user", "content": "Hello"}]
    second = (await server.post(input=body)).json()
    listed = (await page_of(server, second["id"], order="asc"))["data"]
    assert listed[0] == {"type": "item_reference", "id": "msg_of_nobody"}


async def test_response_without_input_has_an_empty_list(server: ApiServer) -> None:
    response_id = (await server.post(instructions="Say something.")).json()["id"]
    page = await page_of(server, response_id)
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

"""The conversations resource over HTTP: made, shown, changed, deleted; items of turns and items that were put in."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItemList
from openai.types.responses import CompactedResponse, InputTokenCountResponse

from protocol import ids
from protocol.compaction import fold
from resilience import ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions
from resilience.placement import tenant_of
from storage.driver import PAYLOADS, RESPONSES
from storage.seam import Fault
from tests.support.api_server import SETTINGS, ApiServer, serving, until

type Json = dict[str, Any]

UNKNOWN = ids.new_conversation_id()


async def ask(server: ApiServer, method: str, path: str, status: int = 200, **options: Any) -> Json:
    """An answer that has to have that status; a refusal has the form of the API."""
    answer = await server.client.request(method, f"/v1{path}", **options)
    assert answer.status_code == status, answer.text
    content: Json = answer.json()
    if status != 200:
        assert {"message", "type", "param", "code"} <= set(content["error"])
        assert content["error"]["additionalInfo"]["request_id"] == answer.headers["x-request-id"]
    return content


async def created(server: ApiServer, *texts: str, **fields: Any) -> str:
    """A new conversation with these messages."""
    body = {"items": [user(text) for text in texts], **fields}
    answer = await ask(server, "POST", "/conversations", json=body)
    Conversation.model_validate(answer, strict=True)
    return str(answer["id"])


async def listed(server: ApiServer, conversation: str, **query: Any) -> Json:
    page = await ask(server, "GET", f"/conversations/{conversation}/items", params=query)
    ends = {} if page["data"] else {"first_id": "", "last_id": ""}
    ConversationItemList.model_validate({**page, **ends}, strict=True)
    return page


async def texts_of(server: ApiServer, conversation: str) -> list[str]:
    """What was said, oldest first."""
    page = await listed(server, conversation, order="asc", limit=100)
    return [item["content"][0]["text"] for item in page["data"]]


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


def operations(server: ApiServer) -> dict[str, int]:
    counts = dict(server.storage.seam.counts)
    server.storage.seam.reset()
    return counts


def history_app(seen: list[list[Json]], **options: Any) -> ResponsesApp:
    """An app that answers with the number of items it was shown, and waits when told to."""
    app = ResponsesApp(ResponsesServerOptions(resilient_background=True, **options))

    @app.response_handler
    async def handler(request: Any, context: ResponseContext, signal: asyncio.Event) -> AsyncGenerator[Any]:
        history = await context.get_history()
        seen.append([*history, *await context.get_input_items()])
        stream = ResponseEventStream(response_id=context.response_id, request=request)
        yield stream.emit_created()
        yield stream.emit_in_progress()
        if "wait" in await context.get_input_text():
            await signal.wait()
        for event in stream.output_item_message(f"answer {len(history)}"):
            yield event
        yield stream.emit_completed()

    return app


# -- the conversation itself ------------------------------------------------------------------------------------------


async def test_a_conversation_is_made_shown_changed_and_deleted() -> None:
    async with serving() as server:
        made = await ask(server, "POST", "/conversations", json={"metadata": {"a": "1"}})
        Conversation.model_validate(made, strict=True)
        assert ids.is_well_formed(made["id"], ids.CONVERSATION_PREFIX)
        path = f"/conversations/{made['id']}"
        assert await ask(server, "GET", path) == made
        changed = await ask(server, "POST", path, json={"metadata": {"b": "2"}})
        assert changed == {**made, "metadata": {"b": "2"}}
        assert await ask(server, "GET", path) == changed
        assert (await ask(server, "POST", path, json={"metadata": None}))["metadata"] == {}
        gone = await ask(server, "DELETE", path)
        ConversationDeletedResource.model_validate(gone, strict=True)
        assert (gone["id"], gone["deleted"]) == (made["id"], True)


async def test_costs_are_as_documented() -> None:
    async with serving() as server:
        server.storage.seam.reset()
        conversation = await created(server)
        assert operations(server) == {"conversation.insert": 1}
        full = await created(server, "one", "two")
        assert operations(server) == {"conversation.append": 1}
        await ask(server, "GET", f"/conversations/{conversation}")
        assert operations(server) == {"conversation.read": 1}
        await ask(server, "POST", f"/conversations/{full}", json={"metadata": {}})
        assert operations(server) == {"conversation.read": 1, "conversation.replace": 1}
        await ask(server, "POST", f"/conversations/{full}/items", json={"items": [user("three")]})
        assert operations(server) == {"conversation.read": 1, "conversation.append": 1}
        page = await listed(server, full)
        assert operations(server) == {"row.list": 1}
        item = f"/conversations/{full}/items/{page['data'][0]['id']}"
        await ask(server, "GET", item)
        assert operations(server) == {"row.list": 1}
        await ask(server, "DELETE", item)
        assert operations(server) == {"row.list": 1, "conversation.remove": 1}
        large = await created(server, "x" * 40_000)
        beside_the_row = {"queue.send_start": 1, "payload.put": 1}
        assert operations(server) == {**beside_the_row, "conversation.append": 1}
        await ask(server, "POST", f"/conversations/{large}/items", json={"items": [user("x" * 40_000)]})
        assert operations(server) == {**beside_the_row, "conversation.read": 1, "conversation.append": 1}
        await server.post(input="x", conversation="named")
        await server.engine.runtime.worker.stop()
        operations(server)
        await ask(server, "GET", "/conversations/named")
        assert operations(server) == {"conversation.read": 1, "row.list": 1}
        await server.post(input="x", conversation="named", store=False)
        assert operations(server) == {"conversation.read": 1}
        await tokens(server, input="x")
        assert operations(server) == {}
        await tokens(server, input="x", conversation=full)
        assert operations(server) == {"conversation.read": 1, "row.list": 1}


@pytest.mark.parametrize("how", ["unknown", "malformed", "deleted", "stranger"])
async def test_what_is_not_there_is_not_found_in_any_way(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with serving() as server:
        conversation = {"unknown": UNKNOWN, "malformed": "conv_%20%C3%BC.."}.get(how) or await created(server, "x")
        item = ids.new_item_id("msg", ids.new_response_id(ids.new_partition()))
        if how in ("deleted", "stranger"):
            item = (await listed(server, conversation))["data"][0]["id"]
        if how == "deleted":
            await ask(server, "DELETE", f"/conversations/{conversation}")
        if how == "stranger":
            monkeypatch.setattr("api.conversations.principal_of", lambda request: "stranger")
        path = f"/conversations/{conversation}"
        for method, where, options in (
            ("GET", path, {}),
            ("POST", path, {"json": {"metadata": {}}}),
            ("DELETE", path, {}),
            ("GET", f"{path}/items", {}),
            ("POST", f"{path}/items", {"json": {"items": [user("x")]}}),
            ("GET", f"{path}/items/{item}", {}),
            ("DELETE", f"{path}/items/{item}", {}),
        ):
            refused = await ask(server, method, where, 404, **options)
            assert refused["error"]["type"] == "invalid_request_error"
        if how == "stranger":
            monkeypatch.undo()
            assert await texts_of(server, conversation) == ["x"]


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"background": True}, {"store": False}], ids=str)
async def test_nothing_is_asked_in_a_deleted_conversation(fields: Json) -> None:
    async with serving() as server:
        conversation = await created(server, "x")
        await server.post(input="turn", conversation=conversation)
        await ask(server, "DELETE", f"/conversations/{conversation}")
        body = {"input": "again", "conversation": conversation, **fields}
        refused = await ask(server, "POST", "/responses", 404, json=body)
        assert refused["error"]["param"] == "conversation"
        assert len(server.runs) == 1
        for path in ("/responses/input_tokens", "/responses/compact"):
            await ask(server, "POST", path, 404, json=body | {"background": False})


async def test_responses_of_a_deleted_conversation_stay_and_can_be_deleted() -> None:
    async with serving() as server:
        conversation = await created(server, "x")
        response = (await server.post(input="turn", conversation=conversation)).json()
        await ask(server, "DELETE", f"/conversations/{conversation}")
        assert (await server.get(response["id"])).json() == response
        assert (await server.client.delete(f"/v1/responses/{response['id']}")).status_code == 200
        await ask(server, "POST", "/responses", 404, json={"input": "again", "conversation": conversation})
        await ask(server, "GET", f"/conversations/{conversation}", 404)


async def test_a_conversation_begins_when_a_response_names_it() -> None:
    async with serving() as server:
        await ask(server, "GET", "/conversations/my-own-name", 404)
        response = (await server.post(input="hello", conversation="my-own-name")).json()
        shown = await ask(server, "GET", "/conversations/my-own-name")
        Conversation.model_validate(shown, strict=True)
        assert shown == {
            "id": "my-own-name",
            "object": "conversation",
            "created_at": response["created_at"],
            "metadata": {},
        }
        assert await texts_of(server, "my-own-name") == ["hello", "hello"]
        changed = await ask(server, "POST", "/conversations/my-own-name", json={"metadata": {"k": "v"}})
        assert changed == {**shown, "metadata": {"k": "v"}}
        assert await ask(server, "GET", "/conversations/my-own-name") == changed
        await ask(server, "POST", "/conversations/my-own-name/items", json={"items": [user("more")]})
        assert await texts_of(server, "my-own-name") == ["hello", "hello", "more"]
        await ask(server, "DELETE", "/conversations/my-own-name")
        await ask(server, "GET", "/conversations/my-own-name", 404)


async def test_a_conversation_whose_turn_runs_is_locked_against_deletion() -> None:
    seen: list[list[Json]] = []
    async with serving(app=history_app(seen)) as server:
        conversation = await created(server)
        running = (await server.post(input="wait", conversation=conversation, background=True)).json()
        await until(lambda: bool(seen))
        refused = await ask(server, "DELETE", f"/conversations/{conversation}", 409)
        assert refused["error"]["code"] == "conversation_locked"
        assert (await listed(server, conversation))["data"] == []
        await server.client.post(f"/v1/responses/{running['id']}/cancel")
        await server.get_ended(running["id"])
        await ask(server, "DELETE", f"/conversations/{conversation}")


async def test_a_deleted_conversation_leaves_one_marker() -> None:
    async with serving() as server:
        conversation = await created(server, "x" * 40_000, metadata={"k": "v"})
        for number in range(3):
            await ask(server, "POST", f"/conversations/{conversation}/items", json={"items": [user("y" * 40_000)] * 2})
            await ask(server, "POST", f"/conversations/{conversation}", json={"metadata": {"k": str(number)}})
        first = (await listed(server, conversation))["data"][0]["id"]
        await ask(server, "DELETE", f"/conversations/{conversation}/items/{first}")
        await ask(server, "DELETE", f"/conversations/{conversation}")
        left = await server.storage.driver.query_entities(RESPONSES)
        assert [entity.row_key for entity in left] == ["chain"]
        assert left[0].properties["metadata"] == b""
        assert await server.storage.driver.list_blobs(PAYLOADS, tenant_of("local")) == []


async def test_every_route_answers_without_the_version_too() -> None:
    async with serving() as server:
        client = server.client
        made = (await client.post("/conversations", json={"items": [user("x")]})).json()
        path = f"/conversations/{made['id']}"
        (item,) = (await client.get(f"{path}/items")).json()["data"]
        assert (await client.get(f"{path}/items/{item['id']}")).json() == item
        assert (await client.post(f"{path}/items", json={"items": [user("y")]})).status_code == 200
        assert (await client.post(path, json={"metadata": {}})).json() == made
        assert (await client.delete(f"{path}/items/{item['id']}")).json() == made
        assert (await client.get(path)).json() == made
        assert (await client.delete(path)).json()["deleted"] is True
        assert (await client.post("/responses/input_tokens", json={})).json()["input_tokens"] == 0
        assert (await client.post("/responses/compact", json={})).json()["object"] == "response.compaction"


# -- items ------------------------------------------------------------------------------------------------------------


async def test_items_and_turns_stand_in_the_order_of_their_coming() -> None:
    seen: list[list[Json]] = []
    async with serving(app=history_app(seen)) as server:
        conversation = await created(server, "one", "two")
        await server.post(input="three", conversation=conversation)
        page = await ask(
            server, "POST", f"/conversations/{conversation}/items", json={"items": [user("four"), user("five")]}
        )
        assert [item["content"][0]["text"] for item in page["data"]] == ["four", "five"]
        await server.post(input="six", conversation={"id": conversation}, background=True)
        await until(lambda: len(seen) == 2)

        async def ended() -> bool:
            return len(await texts_of(server, conversation)) == 8

        await until(ended)
        expected = ["one", "two", "three", "answer 2", "four", "five", "six", "answer 6"]
        assert await texts_of(server, conversation) == expected
        # What a handler is shown is what the list shows.
        assert [item["content"][0]["text"] for item in seen[1]] == expected[:-1]
        whole = (await listed(server, conversation, order="asc", limit=100))["data"]
        assert [item["id"] for item in seen[1]] == [item["id"] for item in whole[:-1]]
        for item in whole:
            shown = await ask(server, "GET", f"/conversations/{conversation}/items/{item['id']}")
            assert shown == item


async def test_items_are_paged_in_both_orders() -> None:
    async with serving() as server:
        conversation = await created(server, *(f"{number}" for number in range(20)))
        await ask(
            server,
            "POST",
            f"/conversations/{conversation}/items",
            json={"items": [user(f"{number}") for number in range(20, 25)]},
        )
        assert len((await listed(server, conversation))["data"]) == 20
        for order, expected in (("asc", range(25)), ("desc", range(24, -1, -1)), (None, range(24, -1, -1))):
            texts: list[str] = []
            query: Json = {"limit": 7, "include": "message.input_image.image_url"} | ({"order": order} if order else {})
            while True:
                page = await listed(server, conversation, **query)
                texts += [item["content"][0]["text"] for item in page["data"]]
                if not page["has_more"]:
                    break
                query["after"] = page["last_id"]
            assert texts == [str(number) for number in expected]
        for bad in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}):
            refused = await ask(server, "GET", f"/conversations/{conversation}/items", 400, params=bad)
            assert refused["error"]["param"] == next(iter(bad))


@pytest.mark.parametrize("kind", ["put in", "large", "input", "output"])
async def test_an_item_that_is_taken_out_is_gone_for_list_and_handlers(kind: str) -> None:
    seen: list[list[Json]] = []
    async with serving(app=history_app(seen)) as server:
        conversation = await created(server, "x" * 40_000 if kind == "large" else "one", "two")
        response = (await server.post(input="three", conversation=conversation)).json()
        items = (await listed(server, conversation, order="asc"))["data"]
        assert len(items) == 4
        taken = items[{"put in": 0, "large": 0, "input": 2, "output": 3}[kind]]
        path = f"/conversations/{conversation}/items/{taken['id']}"
        answer = await ask(server, "DELETE", path)
        assert answer == await ask(server, "GET", f"/conversations/{conversation}")
        assert [item for item in items if item != taken] == (await listed(server, conversation, order="asc"))["data"]
        await ask(server, "GET", path, 404)
        await ask(server, "DELETE", path, 404)
        await server.post(input="next", conversation=conversation)
        assert [item["id"] for item in seen[-1][:-1]] == [item["id"] for item in items if item != taken]
        assert (await server.get(response["id"])).json() == response
        if kind == "large":
            assert await server.storage.driver.list_blobs(PAYLOADS, tenant_of("local")) == []


async def test_an_item_that_was_sent_again_under_its_id_stands_once_and_is_taken_out_for_good() -> None:
    async with serving() as server:
        conversation = await created(server, "one")
        (item,) = (await listed(server, conversation))["data"]
        await server.post(input=[item, user("two")], conversation=conversation)
        assert (await texts_of(server, conversation))[:2] == ["one", "two"]
        assert len(await texts_of(server, conversation)) == 3
        await ask(server, "DELETE", f"/conversations/{conversation}/items/{item['id']}")
        assert (await texts_of(server, conversation))[0] == "two"
        await ask(server, "GET", f"/conversations/{conversation}/items/{item['id']}", 404)


async def test_references_are_put_in_as_what_they_refer_to() -> None:
    async with serving() as server:
        response = (await server.post(input="hello")).json()
        conversation = await created(server, "one")
        (item,) = (await listed(server, conversation))["data"]
        references = [{"type": "item_reference", "id": response["output"][0]["id"]}, {"id": item["id"]}]
        page = await ask(server, "POST", f"/conversations/{conversation}/items", json={"items": references})
        assert [(each["role"], each["content"][0]["text"]) for each in page["data"]] == [
            ("assistant", "hello"),
            ("user", "one"),
        ]
        assert len({each["id"] for each in (await listed(server, conversation))["data"]}) == 3
        for path in (f"/conversations/{conversation}/items", "/conversations"):
            body = {"items": [{"type": "item_reference", "id": "msg_nowhere"}]}
            refused = await ask(server, "POST", path, 404, json=body)
            assert refused["error"]["param"] == "items"
        # A response may refer to what was put in, from anywhere.
        answer = await server.post(input=[{"type": "item_reference", "id": item["id"]}])
        assert answer.json()["output"][0]["content"][0]["text"] == "one"


async def test_internal_metadata_neither_come_in_nor_out() -> None:
    async with serving() as server:
        body = {"items": [{**user("one"), "internal_metadata": {"canary": "1"}}]}
        made = await ask(server, "POST", "/conversations", json=body)
        text = (await server.client.get(f"/v1/conversations/{made['id']}/items")).text
        assert "canary" not in text
        assert "internal_metadata" not in text


async def test_many_items_put_in_at_once_all_land_in_their_batches() -> None:
    async with serving() as server:
        conversation = await created(server)

        async def put(number: int) -> None:
            items = [user(f"{number}a"), user(f"{number}b")]
            await ask(server, "POST", f"/conversations/{conversation}/items", json={"items": items})

        async def turn(number: int) -> None:
            answer = await server.post(input=f"turn {number}", conversation=conversation)
            assert answer.status_code in (200, 409)

        await asyncio.gather(*map(put, range(12)), *map(turn, range(3)))
        texts = await texts_of(server, conversation)
        assert {text for text in texts if "turn" not in text} == {f"{n}{part}" for n in range(12) for part in "ab"}
        for number in range(12):
            place = texts.index(f"{number}a")
            assert texts[place + 1] == f"{number}b"


async def test_of_metadata_changed_at_once_one_stands() -> None:
    async with serving() as server:
        await server.post(input="x", conversation="named")

        async def change(number: int) -> None:
            await ask(server, "POST", "/conversations/named", json={"metadata": {"number": str(number)}})

        await asyncio.gather(*map(change, range(8)))
        shown = await ask(server, "GET", "/conversations/named")
        assert shown["metadata"]["number"] in map(str, range(8))


@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_write_that_storage_did_not_answer_is_made_once(kind: Any) -> None:
    async with serving(settings=replace(SETTINGS, finish_patience=10)) as server:
        conversation = await created(server)
        for operation in ("conversation.append", "conversation.replace", "conversation.remove", "conversation.delete"):
            server.storage.seam.inject(Fault(operation=operation, kind=kind, times=1))
        path = f"/conversations/{conversation}"
        await ask(server, "POST", f"{path}/items", json={"items": [user("one"), user("two")]})
        assert await texts_of(server, conversation) == ["one", "two"]
        await ask(server, "POST", path, json={"metadata": {"a": "b"}})
        await ask(server, "DELETE", f"{path}/items/{(await listed(server, conversation))['data'][0]['id']}")
        assert await texts_of(server, conversation) == ["one"]
        await ask(server, "DELETE", path)
        await ask(server, "GET", path, 404)


async def test_storage_that_does_not_answer_is_a_503() -> None:
    async with serving(settings=replace(SETTINGS, finish_patience=0.1)) as server:
        conversation = await created(server)
        server.storage.seam.inject(Fault(operation="conversation.*", kind="before"))
        refused = await ask(server, "GET", f"/conversations/{conversation}", 503)
        assert refused["error"]["code"] == "service_unavailable"
        await ask(server, "POST", "/conversations", 503, json={})


# -- requests that no handler runs ------------------------------------------------------------------------------------


async def tokens(server: ApiServer, **body: Any) -> int:
    answer = await ask(server, "POST", "/responses/input_tokens", json=body)
    return InputTokenCountResponse.model_validate(answer, strict=True).input_tokens


async def test_tokens_are_estimated_from_all_that_would_be_read() -> None:
    async with serving() as server:
        assert await tokens(server, input="x" * 400) == 100
        assert await tokens(server, input="x" * 400, instructions="y" * 40, model="m") == 110
        conversation = await created(server, "z" * 400)
        assert await tokens(server, input="x" * 400, conversation=conversation) == 200
        first = (await server.post(input="w" * 400)).json()
        assert await tokens(server, input="", previous_response_id=first["id"]) == 200
        assert await tokens(server, input="x", conversation="never heard of") == 1
        unknown = ids.new_response_id(ids.new_partition())
        body = {"input": "x", "previous_response_id": unknown}
        assert (await ask(server, "POST", "/responses/input_tokens", 404, json=body))["error"]["param"]
        await ask(server, "POST", "/responses/input_tokens", 400, json={"input": 5})


def hooked(counter: Callable[..., Any] | None = None, compactor: Callable[..., Any] | None = None) -> ResponsesApp:
    app = history_app([])
    if counter is not None:
        app.input_token_counter(counter)
    if compactor is not None:
        app.compactor(compactor)
    return app


async def test_the_apps_own_counter_is_asked() -> None:
    async def counter(request: Any, context: ResponseContext) -> int:
        if request["input"] == "refuse":
            raise ValueError("as asked")
        if request["input"] == "fail":
            raise RuntimeError("secret")
        if request["input"] == "lie":
            return -1
        return 1000 * len(await context.get_history()) + len(await context.get_input_text())

    async with serving(app=hooked(counter)) as server:
        conversation = await created(server, "one", "two")
        assert await tokens(server, input="12345", conversation=conversation) == 2005
        refused = await ask(server, "POST", "/responses/input_tokens", 400, json={"input": "refuse"})
        assert refused["error"]["message"] == "as asked"
        for text in ("fail", "lie"):
            failed = await ask(server, "POST", "/responses/input_tokens", 500, json={"input": text})
            assert "secret" not in failed["error"]["message"]


def strictly(answer: Json) -> CompactedResponse:
    """The package's own type says that messages are the assistant's, though its text says that users' are there."""
    others = [item for item in answer["output"] if item.get("role", "assistant") == "assistant"]
    return CompactedResponse.model_validate({**answer, "output": others}, strict=True)


async def test_a_compacted_history_is_as_good_as_the_whole() -> None:
    seen: list[list[Json]] = []
    async with serving(app=history_app(seen)) as server:
        first = (await server.post(input="one")).json()
        second = (await server.post(input="two", previous_response_id=first["id"])).json()
        body = {"model": "m", "input": "three", "previous_response_id": second["id"]}
        answer = await ask(server, "POST", "/responses/compact", json=body)
        strictly(answer)
        assert [item["type"] for item in answer["output"]] == ["compaction", "message"]
        assert answer["usage"]["input_tokens"] > 0
        third = (await server.post(input=answer["output"])).json()
        assert [item["content"][0]["text"] for item in seen[-1]] == ["one", "answer 0", "two", "answer 2", "three"]
        await server.post(input="four", previous_response_id=third["id"])
        assert [item["content"][0]["text"] for item in seen[-1]][:5] == [
            "one",
            "answer 0",
            "two",
            "answer 2",
            "three",
        ]
        again = await ask(server, "POST", "/responses/compact", json={"input": [*answer["output"], user("more")]})
        assert [item["type"] for item in again["output"]] == ["compaction", "message"]
        await server.post(input=again["output"])
        assert [item["content"][0]["text"] for item in seen[-1]][-2:] == ["three", "more"]


async def test_a_compaction_item_in_a_conversation_is_shown_as_it_is_and_expanded_for_handlers() -> None:
    seen: list[list[Json]] = []
    async with serving(app=history_app(seen)) as server:
        folded = fold(
            [{"type": "message", "role": "user", "id": "m", "content": [{"type": "input_text", "text": "long ago"}]}],
            ids.new_response_id(ids.new_partition()),
        )
        conversation = str((await ask(server, "POST", "/conversations", json={"items": [folded]}))["id"])
        (item,) = (await listed(server, conversation))["data"]
        assert item["type"] == "compaction"
        await server.post(input="now", conversation=conversation)
        assert [item["content"][0]["text"] for item in seen[-1]] == ["long ago", "now"]


async def test_the_apps_own_compactor_is_asked() -> None:
    async def compactor(request: Any, context: ResponseContext) -> Any:
        text = await context.get_input_text()
        if text == "refuse":
            raise ValueError("as asked")
        if text == "nothing":
            return None
        if text == "broken":
            return [{"type": "function_call"}]
        summary = {"type": "compaction", "encrypted_content": f"about {text}", "internal_metadata": {"canary": 1}}
        return [user(text), summary]

    async with serving(app=hooked(compactor=compactor)) as server:
        answer = await ask(server, "POST", "/responses/compact", json={"input": "all of it"})
        strictly(answer)
        message, summary = answer["output"]
        assert (message["role"], message["content"][0]["text"]) == ("user", "all of it")
        assert summary["encrypted_content"] == "about all of it"
        assert "internal_metadata" not in summary
        assert message["id"].startswith("msg_")
        refused = await ask(server, "POST", "/responses/compact", 400, json={"input": "refuse"})
        assert refused["error"]["message"] == "as asked"
        for text in ("nothing", "broken"):
            await ask(server, "POST", "/responses/compact", 500, json={"input": text})


async def test_a_request_that_is_only_looked_at_leaves_nothing() -> None:
    async with serving() as server:
        for path in ("/responses/input_tokens", "/responses/compact"):
            await ask(server, "POST", path, json={"input": "x", "conversation": "never heard of"})
        assert await server.storage.driver.query_entities(RESPONSES) == []
        await ask(server, "GET", "/conversations/never%20heard%20of", 404)


async def test_a_body_that_is_none_is_refused() -> None:
    async with serving() as server:
        conversation = await created(server)
        for path in ("/conversations", f"/conversations/{conversation}", f"/conversations/{conversation}/items"):
            for content in (b"", b"{", b"[]"):
                answer: httpx.Response = await server.client.post(f"/v1{path}", content=content)
                assert answer.status_code == 400
                assert answer.json()["error"]["details"]

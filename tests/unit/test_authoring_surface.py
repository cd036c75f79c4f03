"""The names and parameters that handlers written for the ecosystem's other server rely on (§5).

Ours may take more, by keyword only; what more is written down here as well.
"""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from protocol import aio, builders, data_url, event_stream
from protocol.builders import BuilderLifecycleState
from resilience import ExitForRecovery, ResponseContext, ResponseModeFlags, ResponsesServerOptions
from resilience.text_response import TextResponse

SURFACE: dict[str, dict[str, str]] = {
    "ResponseEventStream": {
        "__init__": "(*, response_id=None, agent_reference=None, model=None, request=None, response=None)",
        "add_output_item": "(item_id)",
        "add_output_item_apply_patch_call": "()",
        "add_output_item_apply_patch_call_output": "()",
        "add_output_item_code_interpreter_call": "()",
        "add_output_item_compaction": "()",
        "add_output_item_computer_call": "()",
        "add_output_item_computer_call_output": "()",
        "add_output_item_custom_tool_call": "(call_id, name)",
        "add_output_item_custom_tool_call_output": "()",
        "add_output_item_file_search_call": "()",
        "add_output_item_function_call": "(name, call_id)",
        "add_output_item_function_call_output": "(call_id)",
        "add_output_item_function_shell_call": "()",
        "add_output_item_function_shell_call_output": "()",
        "add_output_item_image_gen_call": "()",
        "add_output_item_local_shell_call": "()",
        "add_output_item_local_shell_call_output": "()",
        "add_output_item_mcp_approval_request": "()",
        "add_output_item_mcp_approval_response": "()",
        "add_output_item_mcp_call": "(server_label, name, *, item_id=None)",
        "add_output_item_mcp_list_tools": "(server_label)",
        "add_output_item_message": "()",
        "add_output_item_reasoning_item": "()",
        "add_output_item_structured_outputs": "()",
        "add_output_item_web_search_call": "()",
        "checkpoint": "()",
        "emit_completed": "(*, usage=None)",
        "emit_created": "(*, status='in_progress')",
        "emit_failed": (
            "(*, code='server_error', message='An internal server error occurred.', metadata=None, usage=None)"
        ),
        "emit_in_progress": "()",
        "emit_incomplete": "(*, reason=None, usage=None)",
        "emit_queued": "()",
        "events": "()",
        "internal_metadata": "property",
        "output_item_apply_patch_call": "generator (call_id, operation, *, status='completed')",
        "output_item_apply_patch_call_output": "generator (call_id, *, status='completed', output=None)",
        "output_item_compaction": "generator (encrypted_content)",
        "output_item_computer_call": "generator (call_id, action, *, pending_safety_checks=None, status='completed')",
        "output_item_computer_call_output": "generator (call_id, output, *, acknowledged_safety_checks=None)",
        "output_item_custom_tool_call_output": "generator (call_id, output)",
        "output_item_function_call": "generator (name, call_id, arguments)",
        "output_item_function_call_output": "generator (call_id, output)",
        "output_item_function_shell_call": "generator (call_id, action, environment, *, status='completed')",
        "output_item_function_shell_call_output": (
            "generator (call_id, output, *, status='completed', max_output_length=None)"
        ),
        "output_item_image_gen_call": "generator (result_base64)",
        "output_item_local_shell_call": "generator (call_id, action, *, status='completed')",
        "output_item_local_shell_call_output": "generator (output)",
        "output_item_mcp_approval_request": "generator (server_label, name, arguments)",
        "output_item_mcp_approval_response": "generator (approval_request_id, approve, *, reason=None)",
        "output_item_message": "generator (text, *, annotations=None)",
        "output_item_reasoning_item": "generator (summary_text)",
        "output_item_structured_outputs": "generator (output)",
        "response": "property",
    },
    "TextResponse": {
        "__init__": "(context, request, *, text, configure=None)",
    },
    "ResponseContext": {
        "__init__": (
            "(*, response_id, mode_flags, request=None, created_at=None, provider=None, input_items=None, "
            "previous_response_id=None, conversation_id=None, history_limit=-1, client_headers=None, "
            "query_parameters=None, platform_context=None, prefetched_history_ids=None, steerable=False, "
            "agent_name='', session_id='')"
        ),
        "conversation_chain_id": "property",
        "exit_for_recovery": "()",
        "get_history": "()",
        "get_input_items": "(*, resolve_references=True)",
        "get_input_text": "(*, resolve_references=True)",
    },
    "ResponsesServerOptions": {
        "__init__": (
            "(*, additional_server_version=None, default_model=None, default_fetch_history_count=-1, "
            "sse_keep_alive_interval_seconds=None, shutdown_grace_period_seconds=10, create_span_hook=None, "
            "resilient_background=False, steerable_conversations=False)"
        ),
        "sse_keep_alive_enabled": "property",
    },
    "BaseOutputItemBuilder": {
        "__init__": "(stream, output_index, item_id)",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
    },
    "OutputItemBuilder": {
        "__init__": "(stream, output_index, item_id, *, default_type=None)",
        "emit_added": "(item)",
        "emit_done": "(item)",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
    },
    "OutputItemCodeInterpreterCallBuilder": {
        "__init__": "(stream, output_index, item_id)",
        "code": "generator (code_text)",
        "emit_added": "()",
        "emit_code_delta": "(delta)",
        "emit_code_done": "(code)",
        "emit_completed": "()",
        "emit_done": "()",
        "emit_in_progress": "()",
        "emit_interpreting": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
    },
    "OutputItemCustomToolCallBuilder": {
        "__init__": "(stream, output_index, item_id, call_id, name)",
        "call_id": "property",
        "emit_added": "()",
        "emit_done": "()",
        "emit_input_delta": "(delta)",
        "emit_input_done": "(input_text)",
        "input": "generator (input_text)",
        "internal_metadata": "property",
        "item_id": "property",
        "name": "property",
        "output_index": "property",
    },
    "OutputItemFileSearchCallBuilder": {
        "__init__": "(stream, output_index, item_id)",
        "emit_added": "()",
        "emit_completed": "()",
        "emit_done": "()",
        "emit_in_progress": "()",
        "emit_searching": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
    },
    "OutputItemFunctionCallBuilder": {
        "__init__": "(stream, output_index, item_id, name, call_id)",
        "arguments": "generator (args)",
        "call_id": "property",
        "emit_added": "()",
        "emit_arguments_delta": "(delta)",
        "emit_arguments_done": "(arguments)",
        "emit_done": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "name": "property",
        "output_index": "property",
    },
    "OutputItemFunctionCallOutputBuilder": {
        "__init__": "(stream, output_index, item_id, call_id)",
        "call_id": "property",
        "emit_added": "(output=None)",
        "emit_done": "(output=None)",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
    },
    "OutputItemImageGenCallBuilder": {
        "__init__": "(stream, output_index, item_id)",
        "emit_added": "()",
        "emit_completed": "()",
        "emit_done": "(result)",
        "emit_generating": "()",
        "emit_in_progress": "()",
        "emit_partial_image": "(partial_image_b64)",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
    },
    "OutputItemMcpCallBuilder": {
        "__init__": "(stream, output_index, item_id, server_label, name)",
        "arguments": "generator (args)",
        "emit_added": "()",
        "emit_arguments_delta": "(delta)",
        "emit_arguments_done": "(arguments)",
        "emit_completed": "()",
        "emit_done": "(*, output=None, error=None)",
        "emit_failed": "()",
        "emit_in_progress": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "name": "property",
        "output_index": "property",
        "server_label": "property",
    },
    "OutputItemMcpListToolsBuilder": {
        "__init__": "(stream, output_index, item_id, server_label)",
        "emit_added": "()",
        "emit_completed": "()",
        "emit_done": "()",
        "emit_failed": "()",
        "emit_in_progress": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
        "server_label": "property",
    },
    "OutputItemMessageBuilder": {
        "__init__": "(stream, output_index, item_id)",
        "add_refusal_content": "()",
        "add_text_content": "()",
        "emit_added": "()",
        "emit_done": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
        "refusal_content": "generator (text)",
        "text_content": "generator (text)",
    },
    "OutputItemReasoningItemBuilder": {
        "__init__": "(stream, output_index, item_id)",
        "add_summary_part": "()",
        "emit_added": "()",
        "emit_done": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
        "summary_part": "generator (text)",
    },
    "OutputItemWebSearchCallBuilder": {
        "__init__": "(stream, output_index, item_id)",
        "emit_added": "()",
        "emit_completed": "()",
        "emit_done": "()",
        "emit_in_progress": "()",
        "emit_searching": "()",
        "internal_metadata": "property",
        "item_id": "property",
        "output_index": "property",
    },
    "ReasoningSummaryPartBuilder": {
        "__init__": "(stream, output_index, summary_index, item_id)",
        "emit_added": "()",
        "emit_done": "()",
        "emit_text_delta": "(text)",
        "emit_text_done": "(final_text)",
        "final_text": "property",
        "summary_index": "property",
    },
    "RefusalContentBuilder": {
        "__init__": "(stream, output_index, content_index, item_id)",
        "content_index": "property",
        "emit_added": "()",
        "emit_delta": "(text)",
        "emit_done": "()",
        "emit_refusal_done": "(final_refusal)",
        "final_refusal": "property",
    },
    "TextContentBuilder": {
        "__init__": "(stream, output_index, content_index, item_id)",
        "content_index": "property",
        "emit_added": "()",
        "emit_annotation_added": "(annotation)",
        "emit_delta": "(text)",
        "emit_done": "()",
        "emit_text_done": "(final_text=None)",
        "final_text": "property",
    },
}
"""Class → member → `(parameters)`, `generator (parameters)` or `property`."""

ASYNC_STREAM: dict[str, str] = {
    "output_item_apply_patch_call": "async generator (call_id, operation, *, status='completed')",
    "output_item_apply_patch_call_output": "async generator (call_id, *, status='completed', output=None)",
    "output_item_compaction": "async generator (encrypted_content)",
    "output_item_computer_call": "async generator (call_id, action, *, pending_safety_checks=None, status='completed')",
    "output_item_computer_call_output": "async generator (call_id, output, *, acknowledged_safety_checks=None)",
    "output_item_custom_tool_call_output": "async generator (call_id, output)",
    "output_item_function_call": "async generator (name, call_id, arguments)",
    "output_item_function_call_output": "async generator (call_id, output)",
    "output_item_function_shell_call": "async generator (call_id, action, environment, *, status='completed')",
    "output_item_function_shell_call_output": (
        "async generator (call_id, output, *, status='completed', max_output_length=None)"
    ),
    "output_item_image_gen_call": "async generator (result_base64, *, partials=None)",
    "output_item_local_shell_call": "async generator (call_id, action, *, status='completed')",
    "output_item_local_shell_call_output": "async generator (output)",
    "output_item_mcp_approval_request": "async generator (server_label, name, arguments)",
    "output_item_mcp_approval_response": "async generator (approval_request_id, approve, *, reason=None)",
    "output_item_message": "async generator (text, *, annotations=None)",
    "output_item_reasoning_item": "async generator (summary_text)",
    "output_item_structured_outputs": "async generator (output)",
}

DATA_URL: dict[str, str] = {
    "decode_bytes": "(data_url_str)",
    "get_media_type": "(data_url_str)",
    "is_data_url": "(value)",
    "try_decode_bytes": "(data_url_str)",
}

EXTENSIONS: dict[tuple[str, str], set[str]] = {
    ("ResponseEventStream", "__init__"): {"created_at"},
    ("ResponseEventStream", "output_item_image_gen_call"): {"partials"},
    ("OutputItemCodeInterpreterCallBuilder", "emit_added"): {"container_id"},
    ("OutputItemCodeInterpreterCallBuilder", "emit_done"): {"outputs"},
    ("OutputItemFileSearchCallBuilder", "emit_done"): {"queries", "results"},
    ("OutputItemMcpListToolsBuilder", "emit_done"): {"tools", "error"},
    ("OutputItemReasoningItemBuilder", "emit_done"): {"encrypted_content"},
    ("OutputItemWebSearchCallBuilder", "emit_done"): {"action"},
    ("TextContentBuilder", "emit_delta"): {"logprobs"},
}

MEMBERS = [(name, member) for name, members in SURFACE.items() for member in members]
RESPONSE_ID = "resp_" + "p" * 18 + "r" * 32


def ours(name: str) -> Any:
    for module in (event_stream, builders):
        if hasattr(module, name):
            return getattr(module, name)
    return {
        "TextResponse": TextResponse,
        "ResponseContext": ResponseContext,
        "ResponsesServerOptions": ResponsesServerOptions,
    }[name]


def parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    found.pop("self", None)
    return MappingProxyType(found)


def expected_parameters(text: str) -> Mapping[str, inspect.Parameter]:
    written = text[text.index("(") :]
    namespace: dict[str, Any] = {}
    exec(f"def f{written}: ...", namespace)
    return parameters(namespace["f"])


def assert_same_parameters(function: Any, written: str, extensions: set[str]) -> None:
    found, expected = parameters(function), expected_parameters(written)
    assert [name for name in found if name not in extensions] == list(expected)
    for name, parameter in expected.items():
        assert (found[name].kind, found[name].default) == (parameter.kind, parameter.default), name
    for name in extensions:
        assert found[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[name].default is not inspect.Parameter.empty


@pytest.mark.parametrize(("name", "member"), MEMBERS, ids=[f"{name}.{member}" for name, member in MEMBERS])
def test_member_has_the_parameters_that_ported_handlers_use(name: str, member: str) -> None:
    written = SURFACE[name][member]
    attribute = getattr(ours(name), member)
    if written == "property":
        assert isinstance(attribute, property)
    else:
        assert_same_parameters(attribute, written, EXTENSIONS.get((name, member), set()))


@pytest.mark.parametrize("member", ASYNC_STREAM)
def test_async_generator_has_the_same_parameters(member: str) -> None:
    assert_same_parameters(getattr(aio.ResponseEventStream, member), ASYNC_STREAM[member], set())


@pytest.mark.parametrize("member", SURFACE["ResponseEventStream"])
def test_async_stream_has_every_member_of_the_sync_one(member: str) -> None:
    assert hasattr(aio.ResponseEventStream, member)


def test_generators_are_plain_on_the_sync_stream_and_async_on_the_other() -> None:
    plain = event_stream.ResponseEventStream(response_id=RESPONSE_ID).output_item_message("x")
    asynchronous = aio.ResponseEventStream(response_id=RESPONSE_ID).output_item_message("x")
    assert inspect.isgenerator(plain)
    assert inspect.isasyncgen(asynchronous)


@pytest.mark.parametrize("member", DATA_URL)
def test_data_url_function_has_its_parameters(member: str) -> None:
    assert_same_parameters(getattr(data_url, member), DATA_URL[member], set())


def test_lifecycle_states_have_their_names() -> None:
    assert [state.value for state in BuilderLifecycleState] == ["not_started", "added", "done"]


BACKGROUND = ResponseModeFlags(stream=True, store=True, background=True)


async def test_a_context_made_by_hand_serves_a_handler_in_a_test_of_its_own() -> None:
    context = ResponseContext(
        response_id=RESPONSE_ID, mode_flags=BACKGROUND, request={"input": "Hello"}, platform_context="somebody"
    )
    assert await context.get_input_text() == "Hello"
    assert await context.get_history() == []
    assert (context.principal, context.conversation_chain_id) == ("somebody", RESPONSE_ID)
    assert not context.is_recovery
    assert not context.is_steered_turn
    assert not context.shutdown.is_set()
    context.conversation_chain_metadata["turns"] = 1
    await context.conversation_chain_metadata.flush()
    with pytest.raises(ExitForRecovery):
        await context.exit_for_recovery()


async def test_a_context_made_by_hand_takes_items_and_a_provider() -> None:
    class Provider:
        async def items(self, limit: int = -1) -> list[dict[str, Any]]:
            return [{"type": "message", "id": "earlier", "limit": limit}]

        async def resolve(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**item, "resolved": True} for item in items]

    context = ResponseContext(
        response_id=RESPONSE_ID,
        mode_flags=ResponseModeFlags(stream=False, store=True, background=False),
        provider=Provider(),
        input_items=[{"type": "item_reference", "id": "earlier"}],
        previous_response_id="resp_before",
        history_limit=5,
        steerable=True,
    )
    assert await context.get_history() == [{"type": "message", "id": "earlier", "limit": 5}]
    assert (await context.get_input_items())[0]["resolved"]
    assert "resolved" not in (await context.get_input_items(resolve_references=False))[0]
    assert context.conversation_chain_id == "resp_before"
    with pytest.raises(RuntimeError):
        await context.exit_for_recovery()


def test_modules_can_be_imported_from_as_ported_handlers_do() -> None:
    from resilience.aio import ResponseEventStream
    from resilience.data_url import is_data_url
    from resilience.models import CreateResponse

    assert ResponseEventStream is aio.ResponseEventStream
    assert is_data_url is data_url.is_data_url
    assert CreateResponse.__name__ == "CreateResponse"

"""Input items as a request may hold them: which fields each known type needs (B29). Unknown types pass (W10).

Ids and statuses may be left out, as some clients do that send a conversation back; fields not named here pass.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict, Union

from pydantic import AfterValidator, Field, Tag
from pydantic.config import JsonDict

from protocol.items import type_of_input
from protocol.request_faults import Integer, by_json_type, by_type

MAX_ITEMS = 10_000
"""Items in `input`."""

_Object = dict[str, Any]
_Other = Annotated[_Object, Tag("<other>")]
_Status = Literal["in_progress", "completed", "incomplete"] | None
_SearchStatus = Literal["in_progress", "searching", "completed", "incomplete", "failed"] | None
_Filled = Annotated[str, Field(min_length=1)]


class _InputText(TypedDict):
    text: str


class _OutputText(TypedDict):
    text: str
    annotations: NotRequired[list[_Object] | None]
    logprobs: NotRequired[list[_Object] | None]


class _Refusal(TypedDict):
    refusal: str


class _InputImage(TypedDict):
    detail: NotRequired[Literal["low", "high", "auto", "original"] | None]
    image_url: NotRequired[str | None]
    file_id: NotRequired[str | None]


class _InputFile(TypedDict):
    detail: NotRequired[Literal["auto", "low", "high"] | None]
    file_data: NotRequired[str | None]
    file_id: NotRequired[str | None]
    file_url: NotRequired[str | None]
    filename: NotRequired[str | None]


class _InputAudio(TypedDict):
    input_audio: _Object


_PartUnion = Union[  # noqa: UP007 - tags need the subscript form to stay readable
    Annotated[_InputText, Tag("<input_text>")],
    Annotated[_InputText, Tag("<text>")],
    Annotated[_InputText, Tag("<summary_text>")],
    Annotated[_InputText, Tag("<reasoning_text>")],
    Annotated[_OutputText, Tag("<output_text>")],
    Annotated[_Refusal, Tag("<refusal>")],
    Annotated[_InputImage, Tag("<input_image>")],
    Annotated[_InputFile, Tag("<input_file>")],
    Annotated[_InputAudio, Tag("<input_audio>")],
    _Other,
]
_PARTS = (
    "input_text",
    "text",
    "summary_text",
    "reasoning_text",
    "output_text",
    "refusal",
    "input_image",
    "input_file",
    "input_audio",
)
type _Part = Annotated[_PartUnion, by_type(_PARTS)]
_Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[_Part], Tag("<array>")], by_json_type(string=str, array=list)
]


class _Message(TypedDict):
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content
    id: NotRequired[str | None]
    status: NotRequired[_Status]
    phase: NotRequired[str | None]


class _FunctionCall(TypedDict):
    call_id: _Filled
    name: _Filled
    arguments: str
    status: NotRequired[_Status]


class _FunctionCallOutput(TypedDict):
    output: _Content
    call_id: NotRequired[_Filled | None]
    name: NotRequired[_Filled | None]
    status: NotRequired[_Status]


def _with_text(field: str) -> JsonDict:
    return {"required": [field], "properties": {field: {"type": "string"}}}


def _answers_a_call(item: _FunctionCallOutput) -> _FunctionCallOutput:
    if not item.get("call_id") and not item.get("name"):
        raise ValueError("an output needs the `call_id` of its call")
    return item


_AnsweringOutput = Annotated[
    _FunctionCallOutput,
    AfterValidator(_answers_a_call),
    Field(json_schema_extra={"anyOf": [_with_text("call_id"), _with_text("name")]}),
]


class _CustomToolCall(TypedDict):
    call_id: _Filled
    name: _Filled
    input: str


class _CustomToolCallOutput(TypedDict):
    call_id: _Filled
    output: _Content


class _Reasoning(TypedDict):
    summary: list[_Part]
    content: NotRequired[list[_Part] | None]
    encrypted_content: NotRequired[str | None]
    status: NotRequired[_Status]


class _ItemReference(TypedDict):
    id: _Filled


class _FileSearchCall(TypedDict):
    queries: list[str]
    results: NotRequired[list[_Object] | None]
    status: NotRequired[_SearchStatus]


class _WebSearchCall(TypedDict):
    action: NotRequired[_Object | None]
    status: NotRequired[_SearchStatus]


class _ComputerCall(TypedDict):
    call_id: _Filled
    pending_safety_checks: NotRequired[list[_Object] | None]
    action: NotRequired[_Object | None]
    actions: NotRequired[list[_Object] | None]
    status: NotRequired[_Status]


class _ComputerCallOutput(TypedDict):
    call_id: _Filled
    output: _Object
    acknowledged_safety_checks: NotRequired[list[_Object] | None]
    status: NotRequired[_Status]


class _ImageGenerationCall(TypedDict):
    result: str | None
    status: NotRequired[Literal["in_progress", "completed", "generating", "failed"] | None]


class _CodeInterpreterCall(TypedDict):
    container_id: str
    code: NotRequired[str | None]
    outputs: NotRequired[list[_Object] | None]
    status: NotRequired[Literal["in_progress", "completed", "incomplete", "interpreting", "failed"] | None]


class _LocalShellCall(TypedDict):
    action: _Object
    call_id: NotRequired[str | None]
    status: NotRequired[_Status]


class _LocalShellCallOutput(TypedDict):
    output: str
    status: NotRequired[_Status]


class _ShellCall(TypedDict):
    call_id: _Filled
    action: _Object
    status: NotRequired[_Status]


class _ShellCallOutput(TypedDict):
    call_id: _Filled
    output: list[_Object]
    max_output_length: NotRequired[Integer | None]
    status: NotRequired[_Status]


class _ApplyPatchCall(TypedDict):
    call_id: _Filled
    operation: _Object
    status: NotRequired[_Status]


class _ApplyPatchCallOutput(TypedDict):
    call_id: _Filled
    status: Literal["completed", "failed"]
    output: NotRequired[str | None]


class _McpCall(TypedDict):
    server_label: _Filled
    name: _Filled
    arguments: str
    output: NotRequired[str | None]
    status: NotRequired[Literal["in_progress", "completed", "incomplete", "calling", "failed"] | None]


class _McpListTools(TypedDict):
    server_label: _Filled
    tools: list[_Object]


class _McpApprovalRequest(TypedDict):
    server_label: _Filled
    name: _Filled
    arguments: str


class _McpApprovalResponse(TypedDict):
    approval_request_id: _Filled
    approve: bool
    reason: NotRequired[str | None]


class _Compaction(TypedDict):
    encrypted_content: str


class _AdditionalTools(TypedDict):
    tools: list[_Object]


class _ToolSearchOutput(TypedDict):
    tools: list[_Object]
    status: NotRequired[_Status]


class _Program(TypedDict):
    call_id: _Filled
    code: str


class _ProgramOutput(TypedDict):
    call_id: _Filled
    result: str


_ItemUnion = Union[  # noqa: UP007
    Annotated[_Message, Tag("<message>")],
    Annotated[_FunctionCall, Tag("<function_call>")],
    Annotated[_AnsweringOutput, Tag("<function_call_output>")],
    Annotated[_CustomToolCall, Tag("<custom_tool_call>")],
    Annotated[_CustomToolCallOutput, Tag("<custom_tool_call_output>")],
    Annotated[_Reasoning, Tag("<reasoning>")],
    Annotated[_ItemReference, Tag("<item_reference>")],
    Annotated[_FileSearchCall, Tag("<file_search_call>")],
    Annotated[_WebSearchCall, Tag("<web_search_call>")],
    Annotated[_ComputerCall, Tag("<computer_call>")],
    Annotated[_ComputerCallOutput, Tag("<computer_call_output>")],
    Annotated[_ImageGenerationCall, Tag("<image_generation_call>")],
    Annotated[_CodeInterpreterCall, Tag("<code_interpreter_call>")],
    Annotated[_LocalShellCall, Tag("<local_shell_call>")],
    Annotated[_LocalShellCallOutput, Tag("<local_shell_call_output>")],
    Annotated[_ShellCall, Tag("<shell_call>")],
    Annotated[_ShellCallOutput, Tag("<shell_call_output>")],
    Annotated[_ApplyPatchCall, Tag("<apply_patch_call>")],
    Annotated[_ApplyPatchCallOutput, Tag("<apply_patch_call_output>")],
    Annotated[_McpCall, Tag("<mcp_call>")],
    Annotated[_McpListTools, Tag("<mcp_list_tools>")],
    Annotated[_McpApprovalRequest, Tag("<mcp_approval_request>")],
    Annotated[_McpApprovalResponse, Tag("<mcp_approval_response>")],
    Annotated[_Compaction, Tag("<compaction>")],
    Annotated[_AdditionalTools, Tag("<additional_tools>")],
    Annotated[_ToolSearchOutput, Tag("<tool_search_output>")],
    Annotated[_Program, Tag("<program>")],
    Annotated[_ProgramOutput, Tag("<program_output>")],
    _Other,
]
KNOWN_ITEMS = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "reasoning",
    "item_reference",
    "file_search_call",
    "web_search_call",
    "computer_call",
    "computer_call_output",
    "image_generation_call",
    "code_interpreter_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "compaction",
    "additional_tools",
    "tool_search_output",
    "program",
    "program_output",
)
"""Item types whose fields are checked."""

type Item = Annotated[_ItemUnion, by_type(KNOWN_ITEMS, type_of_input)]
"""An item of a request's `input`."""

Input = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Item], Field(max_length=MAX_ITEMS), Tag("<array>")],
    by_json_type(string=str, array=list),
]
"""The `input` of a request."""

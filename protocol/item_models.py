"""Typed names for items: what goes into a response and what comes out of it.

At run time these are plain dicts; further keys are allowed.
"""

from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["user", "assistant", "system", "developer"]
JsonObject = dict[str, Any]


class AgentReference(TypedDict):
    """Which agent a request is for."""

    type: Literal["agent_reference"]
    name: str
    version: NotRequired[str]


class ContentPart(TypedDict, total=False):
    """A part of a message: `type` decides which of the other keys there are."""

    type: str
    text: str
    refusal: str
    annotations: list[JsonObject]
    logprobs: list[JsonObject]
    image_url: str | None
    file_id: str | None
    file_data: str
    file_url: str
    filename: str
    detail: str


class _Item(TypedDict):
    id: str
    status: NotRequired[str]
    response_id: NotRequired[str]
    agent_reference: NotRequired[AgentReference]
    internal_metadata: NotRequired[JsonObject]


class Message(_Item):
    """A message, in or out."""

    type: Literal["message"]
    role: Role
    content: list[ContentPart]
    phase: NotRequired[str | None]


class FunctionCall(_Item):
    """A call of one of the request's functions; `arguments` is a JSON text."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: NotRequired[str]


class FunctionCallOutput(_Item):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[JsonObject]


class SummaryPart(TypedDict):
    """A part of a reasoning summary."""

    type: Literal["summary_text"]
    text: str


class Reasoning(_Item):
    """Reasoning: its summary, and its text when it is shown."""

    type: Literal["reasoning"]
    summary: list[SummaryPart]
    content: NotRequired[list[JsonObject]]
    encrypted_content: NotRequired[str | None]


class FileSearchCall(_Item):
    """A search in files."""

    type: Literal["file_search_call"]
    queries: list[str]
    results: NotRequired[list[JsonObject] | None]


class WebSearchCall(_Item):
    """A search in the web."""

    type: Literal["web_search_call"]
    action: JsonObject


class CodeInterpreterCall(_Item):
    """A run of code."""

    type: Literal["code_interpreter_call"]
    container_id: str
    code: str | None
    outputs: list[JsonObject] | None


class ImageGenerationCall(_Item):
    """An image; `result` is base64."""

    type: Literal["image_generation_call"]
    result: str | None


class McpCall(_Item):
    """A call of a tool of an MCP server."""

    type: Literal["mcp_call"]
    server_label: str
    name: str
    arguments: str
    output: NotRequired[str | None]
    error: NotRequired[Any]


class McpListTools(_Item):
    """The tools of an MCP server."""

    type: Literal["mcp_list_tools"]
    server_label: str
    tools: list[JsonObject]
    error: NotRequired[str | None]


class McpApprovalRequest(_Item):
    """A call of an MCP tool that waits for a yes."""

    type: Literal["mcp_approval_request"]
    server_label: str
    name: str
    arguments: str


class McpApprovalResponse(_Item):
    """The yes or no."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str
    approve: bool
    reason: NotRequired[str | None]


class CustomToolCall(_Item):
    """A call of a custom tool; `input` is free text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str


class CustomToolCallOutput(_Item):
    """What a custom tool gave."""

    type: Literal["custom_tool_call_output"]
    call_id: str
    output: str | list[JsonObject]


class ComputerCall(_Item):
    """An action on a computer."""

    type: Literal["computer_call"]
    call_id: str
    pending_safety_checks: list[JsonObject]
    action: NotRequired[JsonObject]
    actions: NotRequired[list[JsonObject]]


class ComputerCallOutput(_Item):
    """What the computer showed."""

    type: Literal["computer_call_output"]
    call_id: str
    output: JsonObject
    acknowledged_safety_checks: NotRequired[list[JsonObject] | None]


class LocalShellCall(_Item):
    """A command for the client's shell."""

    type: Literal["local_shell_call"]
    call_id: str
    action: JsonObject


class LocalShellCallOutput(_Item):
    """What the client's shell gave; a JSON text."""

    type: Literal["local_shell_call_output"]
    output: str


class ShellCall(_Item):
    """Commands for a shell."""

    type: Literal["shell_call"]
    call_id: str
    action: JsonObject
    environment: NotRequired[JsonObject | None]


class ShellCallOutput(_Item):
    """What the shell gave, per command."""

    type: Literal["shell_call_output"]
    call_id: str
    output: list[JsonObject]
    max_output_length: NotRequired[int | None]


class ApplyPatchCall(_Item):
    """A change to a file."""

    type: Literal["apply_patch_call"]
    call_id: str
    operation: JsonObject


class ApplyPatchCallOutput(_Item):
    """What became of the change."""

    type: Literal["apply_patch_call_output"]
    call_id: str
    output: NotRequired[str | None]


class Compaction(_Item):
    """Earlier items, compacted by the model's side."""

    type: Literal["compaction"]
    encrypted_content: str


class StructuredOutputs(_Item):
    """An output that is an object of its own."""

    type: Literal["structured_outputs"]
    output: Any


class ItemReference(TypedDict):
    """An earlier item, by its id."""

    type: Literal["item_reference"]
    id: str


OutputItem = (
    Message
    | FunctionCall
    | FunctionCallOutput
    | Reasoning
    | FileSearchCall
    | WebSearchCall
    | CodeInterpreterCall
    | ImageGenerationCall
    | McpCall
    | McpListTools
    | McpApprovalRequest
    | McpApprovalResponse
    | CustomToolCall
    | CustomToolCallOutput
    | ComputerCall
    | ComputerCallOutput
    | LocalShellCall
    | LocalShellCallOutput
    | ShellCall
    | ShellCallOutput
    | ApplyPatchCall
    | ApplyPatchCallOutput
    | Compaction
    | StructuredOutputs
)
InputItem = OutputItem | ItemReference

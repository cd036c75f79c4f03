"""Typed names for the JSON objects of the wire: requests, responses, items, events.

At run time all of these are plain dicts. They say which keys there are, for editors and type checkers; they do not
validate (`protocol.requests` does) and they do not forbid further keys, which newer clients send.
"""

from typing import Literal, NotRequired, TypedDict

from protocol.item_models import (
    AgentReference,
    ApplyPatchCall,
    ApplyPatchCallOutput,
    CodeInterpreterCall,
    Compaction,
    ComputerCall,
    ComputerCallOutput,
    ContentPart,
    CustomToolCall,
    CustomToolCallOutput,
    FileSearchCall,
    FunctionCall,
    FunctionCallOutput,
    ImageGenerationCall,
    InputItem,
    ItemReference,
    JsonObject,
    LocalShellCall,
    LocalShellCallOutput,
    McpApprovalRequest,
    McpApprovalResponse,
    McpCall,
    McpListTools,
    Message,
    OutputItem,
    Reasoning,
    Role,
    ShellCall,
    ShellCallOutput,
    StructuredOutputs,
    SummaryPart,
    WebSearchCall,
)

__all__ = [
    "AgentReference",
    "ApplyPatchCall",
    "ApplyPatchCallOutput",
    "CodeInterpreterCall",
    "Compaction",
    "ComputerCall",
    "ComputerCallOutput",
    "ContentPart",
    "ConversationReference",
    "CreateResponse",
    "CustomToolCall",
    "CustomToolCallOutput",
    "FileSearchCall",
    "FunctionCall",
    "FunctionCallOutput",
    "ImageGenerationCall",
    "IncompleteDetails",
    "InputItem",
    "InputTokensDetails",
    "ItemReference",
    "JsonObject",
    "LocalShellCall",
    "LocalShellCallOutput",
    "McpApprovalRequest",
    "McpApprovalResponse",
    "McpCall",
    "McpListTools",
    "Message",
    "OutputItem",
    "OutputTokensDetails",
    "Reasoning",
    "Response",
    "ResponseError",
    "ResponseStatus",
    "ResponseStreamEvent",
    "Role",
    "ShellCall",
    "ShellCallOutput",
    "StructuredOutputs",
    "SummaryPart",
    "Tool",
    "Usage",
    "WebSearchCall",
]

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class ConversationReference(TypedDict):
    """A conversation, by its id."""

    id: str


class Tool(TypedDict, total=False):
    """A tool of the request: `type` decides which further keys there are."""

    type: str
    name: str
    description: str | None
    parameters: JsonObject | None
    strict: bool | None
    server_label: str
    vector_store_ids: list[str]


class InputTokensDetails(TypedDict):
    """Of the input tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    """Of the output tokens."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Token counts (W2)."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(TypedDict):
    """Why a response failed."""

    code: str
    message: str
    additionalInfo: NotRequired[JsonObject]


class IncompleteDetails(TypedDict, total=False):
    """Why a response is incomplete."""

    reason: str | None


class CreateResponse(TypedDict, total=False):
    """The body of `POST /responses`, as the client sent it: nothing filled in, unknown keys kept."""

    access_programs: JsonObject | None
    agent_reference: AgentReference
    background: bool | None
    background_options: JsonObject | None
    context_management: list[JsonObject] | None
    conversation: str | ConversationReference | None
    frequency_penalty: float | None
    image: JsonObject | None
    include: list[str] | None
    input: str | list[JsonObject] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str] | None
    model: str | None
    moderation: JsonObject | None
    parallel_tool_calls: bool | None
    presence_penalty: float | None
    previous_response_id: str | None
    prompt: JsonObject | None
    prompt_cache_key: str | None
    prompt_cache_options: JsonObject | None
    prompt_cache_retention: str | None
    reasoning: JsonObject | None
    safety_identifier: str | None
    service_tier: str | None
    store: bool | None
    stream: bool | None
    stream_options: JsonObject | None
    temperature: float | None
    text: JsonObject | None
    tool_choice: str | JsonObject | None
    tools: list[Tool] | None
    top_logprobs: int | None
    top_p: float | None
    truncation: str | None
    user: str | None


class Response(TypedDict):
    """The response object; no key is ever left out but the last two (W1)."""

    id: str
    object: Literal["response"]
    created_at: int
    status: ResponseStatus
    completed_at: int | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[JsonObject]
    usage: Usage | None
    conversation: ConversationReference | None
    background: bool
    frequency_penalty: float
    metadata: dict[str, str]
    parallel_tool_calls: bool
    presence_penalty: float
    reasoning: JsonObject
    service_tier: str
    store: bool
    temperature: float
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[Tool]
    top_logprobs: int
    top_p: float
    truncation: str
    access_programs: JsonObject | None
    image: JsonObject | None
    input_transformations: list[JsonObject] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    moderation: JsonObject | None
    previous_response_id: str | None
    prompt: JsonObject | None
    prompt_cache_diagnostics: JsonObject | None
    prompt_cache_key: str | None
    prompt_cache_options: JsonObject | None
    prompt_cache_retention: str | None
    safety_identifier: str | None
    tool_usage: JsonObject | None
    user: str | None
    agent_reference: NotRequired[AgentReference]
    internal_metadata: NotRequired[JsonObject]


class ResponseStreamEvent(TypedDict, total=False):
    """An event of a stream: `type` decides which of the other keys there are."""

    type: str
    sequence_number: int
    response: JsonObject
    item: JsonObject
    part: JsonObject
    item_id: str
    output_index: int
    content_index: int
    summary_index: int
    annotation_index: int
    delta: str
    text: str
    refusal: str
    arguments: str
    code: str | None
    input: str
    annotation: JsonObject
    logprobs: list[JsonObject]
    message: str
    param: str | None

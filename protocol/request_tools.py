"""Tools, the choice among them, and the text format, as a request may hold them (B29). Unknown types pass (W10)."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict, Union

from pydantic import Field, Tag

from protocol.request_faults import WHOLE, Integer, by_json_type, by_type

MAX_TOOLS = 1024
"""Entries of `tools`; they are repeated in every snapshot."""

_Object = dict[str, Any]
_Other = Annotated[_Object, Tag("<other>")]
_Filled = Annotated[str, Field(min_length=1)]


class _Function(TypedDict):
    name: _Filled
    description: NotRequired[str | None]
    parameters: NotRequired[_Object | None]
    strict: NotRequired[bool | None]


class _Custom(TypedDict):
    name: _Filled
    description: NotRequired[str | None]
    format: NotRequired[_Object | None]


class _FileSearch(TypedDict):
    vector_store_ids: list[str]
    filters: NotRequired[_Object | None]
    max_num_results: NotRequired[Integer | None]
    ranking_options: NotRequired[_Object | None]


class _WebSearch(TypedDict):
    filters: NotRequired[_Object | None]
    search_context_size: NotRequired[Literal["low", "medium", "high"] | None]
    user_location: NotRequired[_Object | None]


class _ComputerUse(TypedDict):
    display_height: Integer
    display_width: Integer
    environment: Literal["windows", "mac", "linux", "ubuntu", "browser"]


_Names = Annotated[list[str], Tag("<array>")] | Annotated[_Object, Tag("<object>")] | Annotated[None, Tag("<null>")]
_Approval = (
    Annotated[Literal["always", "never"], Tag("<string>")]
    | Annotated[_Object, Tag("<object>")]
    | Annotated[None, Tag("<null>")]
)


class _Mcp(TypedDict):
    server_label: _Filled
    server_url: NotRequired[str | None]
    connector_id: NotRequired[str | None]
    authorization: NotRequired[str | None]
    headers: NotRequired[dict[str, str] | None]
    allowed_tools: NotRequired[Annotated[_Names, by_json_type(array=list, object=dict, null=type(None))]]
    require_approval: NotRequired[Annotated[_Approval, by_json_type(string=str, object=dict, null=type(None))]]


_Container = Annotated[_Filled, Tag("<string>")] | Annotated[_Object, Tag("<object>")]


class _CodeInterpreter(TypedDict):
    container: Annotated[_Container, by_json_type(string=str, object=dict)]


class _ImageGeneration(TypedDict):
    background: NotRequired[Literal["transparent", "opaque", "auto"] | None]
    input_fidelity: NotRequired[Literal["high", "low"] | None]
    output_format: NotRequired[Literal["png", "webp", "jpeg", "gif", "svg"] | None]
    quality: NotRequired[Literal["low", "medium", "high", "xhigh", "max", "auto"] | None]
    size: NotRequired[str | None]
    model: NotRequired[str | None]
    output_compression: NotRequired[Annotated[int, Field(ge=0, le=100), WHOLE] | None]
    partial_images: NotRequired[Annotated[int, Field(ge=0, le=3), WHOLE] | None]


class _Namespace(TypedDict):
    name: _Filled
    description: NotRequired[str | None]
    tools: list[_Object]


_ToolUnion = Union[  # noqa: UP007 - tags need the subscript form to stay readable
    Annotated[_Function, Tag("<function>")],
    Annotated[_Custom, Tag("<custom>")],
    Annotated[_FileSearch, Tag("<file_search>")],
    Annotated[_WebSearch, Tag("<web_search>")],
    Annotated[_WebSearch, Tag("<web_search_2025_08_26>")],
    Annotated[_WebSearch, Tag("<web_search_preview>")],
    Annotated[_WebSearch, Tag("<web_search_preview_2025_03_11>")],
    Annotated[_ComputerUse, Tag("<computer_use_preview>")],
    Annotated[_Mcp, Tag("<mcp>")],
    Annotated[_CodeInterpreter, Tag("<code_interpreter>")],
    Annotated[_ImageGeneration, Tag("<image_generation>")],
    Annotated[_Namespace, Tag("<namespace>")],
    _Other,
]
KNOWN_TOOLS = (
    "function",
    "custom",
    "file_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "computer_use_preview",
    "mcp",
    "code_interpreter",
    "image_generation",
    "namespace",
)
"""Tool types whose fields are checked."""

type Tool = Annotated[_ToolUnion, by_type(KNOWN_TOOLS)]
"""An entry of `tools`."""


class _ChosenName(TypedDict):
    name: _Filled


class _ChosenServer(TypedDict):
    server_label: _Filled
    name: NotRequired[str | None]


class _Allowed(TypedDict):
    mode: Literal["auto", "required"]
    tools: list[_Object]


_ChoiceUnion = (
    Annotated[_ChosenName, Tag("<function>")]
    | Annotated[_ChosenName, Tag("<custom>")]
    | Annotated[_ChosenServer, Tag("<mcp>")]
    | Annotated[_Allowed, Tag("<allowed_tools>")]
    | _Other
)
_Choice = Annotated[_ChoiceUnion, by_type(("function", "custom", "mcp", "allowed_tools"))]
type ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[_Choice, Tag("<object>")]
    | Annotated[None, Tag("<null>")],
    by_json_type(string=str, object=dict, null=type(None)),
]
"""The `tool_choice` of a request."""


class _JsonSchema(TypedDict):
    name: _Filled
    schema: _Object
    description: NotRequired[str | None]
    strict: NotRequired[bool | None]


_FormatUnion = Annotated[_JsonSchema, Tag("<json_schema>")] | _Other
_Format = Annotated[
    Annotated[Annotated[_FormatUnion, by_type(("json_schema",))], Tag("<object>")] | Annotated[None, Tag("<null>")],
    by_json_type(object=dict, null=type(None)),
]


class Text(TypedDict, total=False):
    """The `text` of a request."""

    format: _Format
    verbosity: Literal["low", "medium", "high"] | None

"""The JSON schemas of the API description, made from what the server itself works with.

Requests: from the types that validate them; their names end in `Param`. Answers: from the typed definitions of
`protocol.models`. Events: from the table of `protocol.events`. So a schema changes when the server does.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core import core_schema

from protocol import ids
from protocol.conversations import CREATE, CREATE_ITEMS, UPDATE
from protocol.errors import INVALID_REQUEST, SERVER_ERROR
from protocol.events import REQUIRED
from protocol.item_models import OutputItem
from protocol.items import INTERNAL_METADATA, type_of_input
from protocol.models import Response, ResponseError
from protocol.request_faults import OTHER, ByJsonType, ByType, fault
from protocol.request_items import Item
from protocol.requests import VALIDATOR

type Schema = dict[str, Any]

RESPONSE_ID = rf"^{ids.RESPONSE_PREFIX}_[0-9A-Za-z]{{{ids.PARTITION_LENGTH + ids.RANDOM_LENGTH}}}$"
"""Pattern of a response id (B40)."""

_PREFIX = "#/components/schemas/"
_KINDS: dict[type, Schema] = {
    int: {"type": "integer", "minimum": 0},
    str: {"type": "string"},
    dict: {"type": "object"},
    list: {"type": "array"},
}
_ECHOED_FROM_REQUEST = ("reasoning", "text", "tool_choice", "tools")
"""Of these the response's own types say less than the request's."""


class _Generator(GenerateJsonSchema):
    """Writes out what our discriminators look at; pydantic cannot see into them."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """No titles: they would repeat the names."""
        return False

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> Schema:
        """A union by type or by JSON type."""
        look = schema["discriminator"]
        choices = {str(tag): self.generate_inner(choice) for tag, choice in schema["choices"].items()}
        if isinstance(look, ByType):
            return {"anyOf": [_typed(tag, choice, look) for tag, choice in choices.items()]}
        assert isinstance(look, ByJsonType), "a union that the description cannot tell apart"
        return {"anyOf": list(choices.values())}


def reference(name: str) -> Schema:
    """A reference to a schema of `components`."""
    return {"$ref": _PREFIX + name}


def components() -> dict[str, Schema]:
    """All schemas, by their names."""
    requests = _requests()
    return dict(sorted({**requests, **_answers(requests), **_events(), **_errors()}.items()))


def _requests() -> dict[str, Schema]:
    kinds: dict[str, TypeAdapter[Any]] = {
        "CreateResponse": VALIDATOR,
        "Item": TypeAdapter(Item),
        "CreateConversation": CREATE,
        "UpdateConversation": UPDATE,
        "CreateItems": CREATE_ITEMS,
    }
    made = _definitions(kinds, _param_name)
    create = made["CreateResponseParam"]
    create["description"] = "What to answer, and how. Fields that are not listed here pass."
    create["properties"]["previous_response_id"] = _or_null({"type": "string", "pattern": RESPONSE_ID})
    create["not"] = {
        "anyOf": [
            {"required": ["conversation_id"]},
            _all_of(background={"const": True}, store={"const": False}),
            _all_of(previous_response_id={"type": "string"}, conversation={"type": ["string", "object"]}),
        ]
    }
    return made


def _answers(requests: Mapping[str, Schema]) -> dict[str, Schema]:
    items = {kind.__name__: TypeAdapter(kind) for kind in get_args(OutputItem)}
    made = _definitions({"Response": TypeAdapter(Response), "ResponseError": TypeAdapter(ResponseError), **items})
    for schema in made.values():
        # A handler's notes are stored, never sent (R12).
        schema.get("properties", {}).pop(INTERNAL_METADATA, None)
    del made["Tool"]  # the request's says more
    made["Response"]["description"] = "A response. Fields that have no value are null."
    response = made["Response"]["properties"]
    response["id"] = {"type": "string", "pattern": RESPONSE_ID}
    response["output"] = {"type": "array", "items": reference("OutputItem")}
    for field in _ECHOED_FROM_REQUEST:
        wanted = requests["CreateResponseParam"]["properties"][field]
        response[field] = {"allOf": [wanted, {"not": {"type": "null"}}]}
    known = [made[name]["properties"]["type"]["const"] for name in items]
    made["OutputItem"] = {"anyOf": [*(reference(name) for name in items), _other("id", known=known)]}
    made["InputItem"] = {"allOf": [reference("ItemParam"), {"required": ["id", "type"], **_string_field("id")}]}
    made["InputItemList"] = _list_of("InputItem")
    made |= _conversation_answers(requests)
    made["DeletedResponse"] = {
        "type": "object",
        "required": ["id", "object", "deleted"],
        "properties": {
            "id": {"type": "string", "pattern": RESPONSE_ID},
            "object": {"const": "response.deleted"},
            "deleted": {"const": True},
        },
    }
    made["Health"] = {"type": "object", "required": ["status"], **_string_field("status")}
    return made


def _conversation_answers(requests: Mapping[str, Schema]) -> dict[str, Schema]:
    metadata = requests["CreateConversationParam"]["properties"]["metadata"]
    return {
        "Conversation": _object(
            id=_KINDS[str],
            object={"const": "conversation"},
            created_at=_KINDS[int],
            metadata={"allOf": [metadata, {"type": "object"}]},
        ),
        "DeletedConversation": _object(
            id=_KINDS[str], object={"const": "conversation.deleted"}, deleted={"const": True}
        ),
        "ConversationItem": {"anyOf": [reference("InputItem"), reference("OutputItem")]},
        "ConversationItemList": _list_of("ConversationItem"),
        "InputTokens": _object(object={"const": "response.input_tokens"}, input_tokens=_KINDS[int]),
        "CompactedResponse": _object(
            id={"type": "string", "pattern": RESPONSE_ID},
            object={"const": "response.compaction"},
            created_at=_KINDS[int],
            output={"type": "array", "items": reference("ConversationItem")},
            usage=reference("Usage"),
        ),
    }


def _list_of(name: str) -> Schema:
    """A page of a list."""
    return _object(
        object={"const": "list"},
        data={"type": "array", "items": reference(name)},
        first_id={"type": ["string", "null"]},
        last_id={"type": ["string", "null"]},
        has_more={"type": "boolean"},
    )


def _object(**fields: Schema) -> Schema:
    return {"type": "object", **_all_of(**fields)}


def _events() -> dict[str, Schema]:
    made = {_event_name(name): _event(name, fields) for name, fields in REQUIRED.items()}
    newer = {
        "type": "object",
        "description": "An event of a newer kind, that a handler sent.",
        "required": ["type", "sequence_number"],
        "properties": {
            "type": {"type": "string", "pattern": r"^response\.", "not": {"enum": list(REQUIRED)}},
            "sequence_number": _KINDS[int],
        },
    }
    made["ServerSentEvent"] = {
        "type": "object",
        "description": "One event of the stream: its name, and its data as JSON.",
        "required": ["event", "data"],
        "properties": {
            "event": {"type": "string"},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": reference("ResponseStreamEvent"),
            },
        },
    }
    made["ResponseStreamEvent"] = {"anyOf": [*(reference(_event_name(name)) for name in REQUIRED), newer]}
    return made


def _event(name: str, fields: Mapping[str, type]) -> Schema:
    properties: dict[str, Schema] = {"type": {"const": name}, "sequence_number": _KINDS[int]}
    for field, kind in fields.items():
        properties[field] = {"response": reference("Response"), "item": reference("OutputItem")}.get(
            field, _KINDS[kind]
        )
    if name == "error":
        properties |= {field: {"type": ["string", "null"]} for field in ("code", "param")}
        properties["error"] = reference("ErrorDetails")
    return {"type": "object", "required": list(properties), "properties": properties}


def _errors() -> dict[str, Schema]:
    one_fault = fault("")
    details = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"},
            "type": {"enum": [INVALID_REQUEST, SERVER_ERROR]},
            "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
            "details": {
                "type": "array",
                "description": "Every fault that was found in the request.",
                "items": {"type": "object", "required": list(one_fault), **_string_field(*one_fault)},
            },
            "additionalInfo": {"type": "object", "required": ["request_id"], **_string_field("request_id")},
        },
    }
    error = {"allOf": [reference("ErrorDetails"), {"required": ["additionalInfo"]}]}
    return {
        "ErrorDetails": details,
        "Error": {"type": "object", "required": ["error"], "properties": {"error": error}},
    }


def _definitions(adapters: Mapping[str, TypeAdapter[Any]], name: Callable[[str], str] = str) -> dict[str, Schema]:
    mode: JsonSchemaMode = "validation"
    tops, rest = TypeAdapter.json_schemas(
        [(key, mode, adapter) for key, adapter in adapters.items()],
        schema_generator=_Generator,
        ref_template=_PREFIX + "{model}",
    )
    schemas = dict(rest["$defs"])
    for (key, _), schema in tops.items():
        # A type that is used elsewhere too stands among the definitions already.
        if "$ref" not in schema:
            schemas[key] = schema
    own = {old: name(old) for old in schemas}
    for schema in schemas.values():
        schema.pop("title", None)
    return {own[old]: _renamed(schema, own) for old, schema in schemas.items()}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(part, names) for part in value]
    if not isinstance(value, dict):
        return value
    target = value.get("$ref")
    changed = {key: _renamed(part, names) for key, part in value.items()}
    return {**changed, **reference(names[target.removeprefix(_PREFIX)])} if isinstance(target, str) else changed


def _param_name(name: str) -> str:
    return name.removeprefix("_") + "Param"


def _event_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.replace(".", "_").split("_")) + "Event"


def _typed(tag: str, schema: Schema, look: ByType) -> Schema:
    """One choice of a union, with the type that leads to it."""
    if tag == OTHER:
        return _other(known=look.known)
    kind = tag.strip("<>")
    said = {"required": ["type"], "properties": {"type": {"const": kind}}}
    forms = [said, *_unsaid(kind)] if look.type_of is type_of_input else [said]
    return {"allOf": [schema, forms[0] if len(forms) == 1 else {"anyOf": forms}]}


def _unsaid(kind: str) -> list[Schema]:
    """The forms in which an input item need not say that it is of this kind."""
    untyped: Schema = {"properties": {"type": {"type": "null"}}}
    if kind == "message":
        return [untyped]
    if kind == "item_reference":
        return [{"properties": {**untyped["properties"], "id": {}}, "additionalProperties": False}]
    return []


def _other(*required: str, known: Any) -> Schema:
    return {
        "type": "object",
        "description": "Of a kind that is not checked.",
        "required": ["type", *required],
        "properties": {
            "type": {"type": "string", "minLength": 1, "not": {"enum": list(known)}},
            **{field: {"type": "string"} for field in required},
        },
    }


def _all_of(**fields: Schema) -> Schema:
    return {"required": list(fields), "properties": fields}


def _string_field(*names: str) -> Schema:
    return {"properties": {name: {"type": "string"} for name in names}}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}

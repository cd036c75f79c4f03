"""Identifiers: `PREFIX_` + 18 characters of partition + 32 random characters, base-62.

The partition says where a response's records lie. A response, its items and every later response of its chain carry
the same one, so that an id alone is enough to address storage. Ids hold `[A-Za-z0-9_]` only and are safe as keys and
path segments.
"""

import hashlib
import re
import secrets
import string

from protocol.errors import MalformedId

PARTITION_LENGTH = 18
RANDOM_LENGTH = 32
RESPONSE_PREFIX = "resp"
CONVERSATION_PREFIX = "conv"
REQUEST_PREFIX = "req"
UNKNOWN_ITEM_PREFIX = "item"

ITEM_PREFIXES: dict[str, str] = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "file_search_call": "fs",
    "web_search_call": "ws",
    "code_interpreter_call": "ci",
    "image_generation_call": "ig",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "computer_call": "cu",
    "computer_call_output": "cuo",
    "local_shell_call": "lsh",
    "local_shell_call_output": "lsho",
    "shell_call": "sh",
    "shell_call_output": "sho",
    "apply_patch_call": "apc",
    "apply_patch_call_output": "apco",
    "structured_outputs": "fo",
    "compaction": "cmp",
    "compaction_trigger": "cmpt",
    "item_reference": "ref",
    "program": "prg",
    "program_output": "prgo",
    "tool_search_call": "tsc",
    "tool_search_output": "tso",
    "additional_tools": "adt",
    "configuration_update": "cfg",
}
"""Item type → id prefix; a type that is not here gets `UNKNOWN_ITEM_PREFIX`."""

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BASE = len(_ALPHABET)
_BODY = re.compile(rf"[0-9A-Za-z]{{{PARTITION_LENGTH + RANDOM_LENGTH}}}", re.ASCII)


def new_partition() -> str:
    """A random partition, for the first response of a chain."""
    return _random(PARTITION_LENGTH)


def derived_partition(text: str) -> str:
    """The partition that belongs to a text, always the same one (a conversation's id, for instance)."""
    return _digest(text, PARTITION_LENGTH)


def new_response_id(partition: str) -> str:
    """A new response id in a partition."""
    return f"{RESPONSE_PREFIX}_{partition}{_random(RANDOM_LENGTH)}"


def new_item_id(prefix: str, response_id: str) -> str:
    """A new item id in the partition of a response. `prefix` has no underscore at its end."""
    return f"{prefix}_{_partition_or_derived(response_id)}{_random(RANDOM_LENGTH)}"


def derived_item_id(prefix: str, response_id: str, key: str) -> str:
    """The item id that belongs to a response and a key: a second attempt gives the same id."""
    return f"{prefix}_{_partition_or_derived(response_id)}{_digest(f'{response_id}/{key}', RANDOM_LENGTH)}"


def item_prefix(item_type: object) -> str:
    """The id prefix for items of a type."""
    return ITEM_PREFIXES.get(item_type, UNKNOWN_ITEM_PREFIX) if isinstance(item_type, str) else UNKNOWN_ITEM_PREFIX


def new_conversation_id() -> str:
    """A new conversation id."""
    return f"{CONVERSATION_PREFIX}_{new_partition()}{_random(RANDOM_LENGTH)}"


def new_request_id() -> str:
    """A new request id, for `x-request-id`."""
    return f"{REQUEST_PREFIX}_{_random(RANDOM_LENGTH)}"


def partition_of(identifier: str) -> str:
    """The partition inside a well-formed id of any kind.

    Raises:
        ValueError: the id has no partition.
    """
    body = identifier.rpartition("_")[2]
    if not _BODY.fullmatch(body):
        raise ValueError(f"no partition in {identifier!r}")
    return body[:PARTITION_LENGTH]


def is_well_formed(identifier: object, prefix: str = RESPONSE_PREFIX) -> bool:
    """Whether a value is an id with this prefix, a partition and a random part."""
    if not isinstance(identifier, str):
        return False
    head, separator, body = identifier.partition("_")
    return head == prefix and separator == "_" and _BODY.fullmatch(body) is not None


def check_response_id(value: object, param: str = "responseId") -> str:
    """The value, when it is a well-formed response id (B40).

    Args:
        value: what the client sent.
        param: `responseId` for an id of the path, otherwise the name of the body's field.

    Raises:
        MalformedId: it is not.
    """
    if not isinstance(value, str) or not is_well_formed(value):
        raise MalformedId(str(value), param)
    return value


def _partition_or_derived(response_id: str) -> str:
    # Handlers in tests and in ported code make up ids like "resp_1"; their items must still get ids.
    try:
        return partition_of(response_id)
    except ValueError:
        return derived_partition(response_id)


def _random(length: int) -> str:
    return _base62(secrets.randbelow(_BASE**length), length)


def _digest(text: str, length: int) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return _base62(int.from_bytes(digest) % _BASE**length, length)


def _base62(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        number, remainder = divmod(number, _BASE)
        characters.append(_ALPHABET[remainder])
    return "".join(characters)

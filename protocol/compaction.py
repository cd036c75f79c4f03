"""Compaction items that carry what they stand for.

Format of `encrypted_content`: `rr1.` and, base64url without padding, the JSON array of the items, oldest first. It is
neither encrypted nor smaller than the items; it is one item instead of many, and nothing is lost. Content of another
form was made by somebody else, a model's provider for instance, and means something to them only.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from protocol import ids, jsonio
from protocol.items import INTERNAL_METADATA, input_items
from protocol.jsonio import MAX_VALUES
from protocol.request_items import MAX_ITEMS, Item

COMPACTION = "compaction"
PREFIX = "rr1."

_ITEMS: TypeAdapter[list[Any]] = TypeAdapter(Annotated[list[Item], Field(max_length=MAX_ITEMS)])


def fold(items: Iterable[Mapping[str, Any]], response_id: str) -> dict[str, Any]:
    """One compaction item for these items, in the partition of a response.

    Raises:
        jsonio.NotJson: An item cannot be written as JSON.
    """
    kept = [{name: part for name, part in item.items() if name != INTERNAL_METADATA} for item in items]
    text = base64.urlsafe_b64encode(jsonio.dumps(kept)).decode().rstrip("=")
    item_id = ids.new_item_id(ids.item_prefix(COMPACTION), response_id)
    return {"id": item_id, "type": COMPACTION, "encrypted_content": PREFIX + text}


def expand(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items with those that `fold` made replaced by what they stand for.

    They stand for as much, all together, as a request may have openly; what goes beyond that stays folded.
    """
    room = _Room()
    expanded: list[dict[str, Any]] = []
    for item in items:
        folded = _folded(item, room) if item.get("type") == COMPACTION else None
        expanded += [item] if folded is None else folded
    return expanded


@dataclass(slots=True)
class _Room:
    """What may still be unfolded."""

    items: int = MAX_ITEMS
    values: int = MAX_VALUES


def _folded(item: Mapping[str, Any], room: _Room) -> list[dict[str, Any]] | None:
    """What a compaction item stands for; None if `fold` did not make it, or not like this, or there is no room."""
    content = item.get("encrypted_content")
    if not isinstance(content, str) or not content.startswith(PREFIX):
        return None
    text = content.removeprefix(PREFIX)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        values = sum(map(data.count, (b",", b"[", b"{")))
        if values > room.values:
            return None
        room.values -= values  # whatever comes of it: to find that out takes its time
        found = jsonio.loads(data)
        # It comes from a client: what is in it has to be as good as items that it sends openly.
        _ITEMS.validate_python(found, strict=True)
    except (ValueError, binascii.Error, ValidationError):
        return None
    if len(found) > room.items or not jsonio.fits(found):
        return None
    room.items -= len(found)
    for folded in found:
        folded.pop(INTERNAL_METADATA, None)
    return input_items({"input": found}, str(item.get("id") or content[:64]))

"""How far the references among a request's items reach: each partition that they lead to is read as a whole."""

from collections.abc import Sequence
from typing import Any

from protocol import ids
from protocol.compaction import expand
from protocol.items import type_of_input

MAX_PARTITIONS = 500
"""Of one request; it is also how many turns a client may refer to that each were a chain of their own."""


def partitions(items: Sequence[dict[str, Any]]) -> set[str]:
    """The partitions that the references lead to, those in folded items too; an id that is no id leads nowhere."""
    found = set()
    for item in expand(items):
        if type_of_input(item) == "item_reference":
            try:
                found.add(ids.partition_of(str(item.get("id"))))
            except ValueError:
                continue
    return found

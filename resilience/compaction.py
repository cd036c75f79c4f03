"""Making few items of many: what the app's compactor returns, else the older items folded into one.

The default keeps the newest turn as it is: the items from the last user message on, `MOST_KEPT` of them at most.
Everything before becomes one compaction item in front of them (see `protocol.compaction`): `context.get_input_items()`
of a request that sends it back, and `context.get_history()` after it, show the items that it was made of. So nothing is
lost, and nothing is shorter for a model either: an app whose model needs that registers a compactor that summarises.
"""

import logging
from collections.abc import Sequence
from typing import Any

from protocol import jsonio
from protocol.compaction import expand, fold
from protocol.errors import ServerError
from protocol.items import InvalidItem, complete_item
from protocol.response import strip_internal, usage
from resilience.context import ResponseContext
from resilience.creation import Call
from resilience.handler_entry import answer_to
from resilience.runtime import Runtime
from resilience.token_count import estimate
from resilience.unrun import context_for

_log = logging.getLogger("resilience.compaction")

MOST_KEPT = 20
"""Items that stay as they are, at most."""

type Items = list[dict[str, Any]]


async def compact(runtime: Runtime, call: Call) -> dict[str, Any]:
    """The answer with the items to go on with; it is not stored.

    Raises:
        ApiError: The request is refused, by its compactor too; a compactor that fails is a `ServerError`.
    """
    context = await context_for(runtime, call)
    before = expand([*await context.get_history(), *await context.get_input_items()])
    response_id = context.response_id
    if runtime.app.folder is None:
        after = default_compaction(before, response_id)
    else:
        after = await _compacted(runtime, call, context)
    return {
        "id": response_id,
        "object": "response.compaction",
        "created_at": runtime.now(),
        "output": [strip_internal(item) for item in after],
        "usage": usage(
            {"input_tokens": estimate(call.request, before), "output_tokens": estimate({}, after)},
        ),
    }


def default_compaction(items: Sequence[dict[str, Any]], response_id: str) -> Items:
    """One compaction item and the newest items."""
    last_user = max((index for index, item in enumerate(items) if item.get("role") == "user"), default=0)
    start = max(last_user, len(items) - MOST_KEPT)
    folded = complete_item(fold(items[:start], response_id), response_id)
    return [folded, *items[start:]]


async def _compacted(runtime: Runtime, call: Call, context: ResponseContext) -> Items:
    assert runtime.app.folder is not None
    try:
        made: Any = await runtime.app.folder(jsonio.copy(call.request), context)
    except Exception as error:
        _log.exception("the compactor failed")
        raise answer_to(error) from error
    try:
        return [complete_item(jsonio.copy(item), context.response_id) for item in made]
    except (InvalidItem, jsonio.NotJson, TypeError, AttributeError) as error:
        _log.exception("the compactor returned something that is no list of items")
        raise ServerError from error

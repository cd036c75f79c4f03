"""How many input tokens a request has: what the app's counter says, else an estimate.

The estimate is a quarter of the bytes (UTF-8) of all text that a model would read, rounded up: instructions, history,
input, and the definitions of tools and of the answer's format as JSON. Ids, encrypted content, and images, sound and
files given as data count nothing. It knows no tokenizer: for English prose it is near, for code or other scripts it may
be half or twice the truth.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from protocol import jsonio
from protocol.errors import ServerError
from resilience.creation import Call
from resilience.handler_entry import answer_to
from resilience.runtime import Runtime
from resilience.unrun import context_for

_log = logging.getLogger("resilience.tokens")

BYTES_PER_TOKEN = 4

_UNREAD = frozenset(
    {
        *("id", "type", "role", "status", "call_id", "response_id", "agent_reference", "internal_metadata", "phase"),
        *("annotations", "logprobs", "encrypted_content", "fingerprint", "detail", "acknowledged_safety_checks"),
        *("image_url", "file_id", "file_data", "file_url", "input_audio", "result", "partial_image_b64"),
    }
)
"""Fields of items that hold no text for a model."""


async def count_input_tokens(runtime: Runtime, call: Call) -> dict[str, Any]:
    """The answer to a request that only asks for its length.

    Raises:
        ApiError: The request is refused, by its counter too; a counter that fails is a `ServerError`.
    """
    context = await context_for(runtime, call)
    counter = runtime.app.token_counter
    if counter is None:
        number = estimate(call.request, [*await context.get_history(), *await context.get_input_items()])
    else:
        number = await _counted(counter(jsonio.copy(call.request), context))
    return {"object": "response.input_tokens", "input_tokens": number}


def estimate(request: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> int:
    """The estimated tokens of a request with these items."""
    size = len(str(request.get("instructions") or "").encode())
    for field in ("tools", "text"):
        if request.get(field):
            size += len(jsonio.dumps(request[field]))
    size += sum(_text_bytes(item) for item in items)
    return -(-size // BYTES_PER_TOKEN)


async def _counted(counting: Any) -> int:
    try:
        number = await counting
    except Exception as error:
        _log.exception("the input token counter failed")
        raise answer_to(error) from error
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        _log.error("the input token counter returned %r, which is no number of tokens", number)
        raise ServerError
    return number


def _text_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return sum(_text_bytes(part) for name, part in value.items() if name not in _UNREAD)
    return sum(map(_text_bytes, value)) if isinstance(value, list) else 0

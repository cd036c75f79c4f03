"""What a reader of a stream ends up with, in the plainest way there is: a second opinion beside `protocol.fold`.

Written from the wire's description, not from that module, and as simple as it can be: whole objects are replaced,
deltas are added to the text at once, whatever that costs. Events of newer servers change nothing.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

type Json = dict[str, Any]

LIFECYCLE = ("created", "queued", "in_progress", "completed", "failed", "incomplete")

TEXT_FIELD = {
    "output_text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "reasoning": "text",
    "reasoning_summary_text": "text",
    "function_call_arguments": "arguments",
    "mcp_call_arguments": "arguments",
    "custom_tool_call_input": "input",
    "code_interpreter_call_code": "code",
}
"""What deltas of which kind add to."""

PART_TYPE = {
    "output_text": "output_text",
    "refusal": "refusal",
    "reasoning_text": "reasoning_text",
    "reasoning": "reasoning_text",
    "reasoning_summary_text": "summary_text",
}

PROGRESS = ("in_progress", "searching", "interpreting", "generating", "completed", "failed")
PROGRESSING = (
    "file_search_call",
    "web_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_call",
    "mcp_list_tools",
)
WITHOUT_STATUS = ("mcp_list_tools",)
"""Items that tell how far they are, and have no field for it."""


def snapshots(events: Iterable[Json]) -> Iterator[Json]:
    """The response as each of these events leaves it; always the same object, which grows."""
    response: Json = {}
    for event in events:
        _take(response, json.loads(json.dumps(event)))
        yield response


def snapshot_after(events: Iterable[Json]) -> Json:
    """The response as the last of these events leaves it."""
    response: Json = {}
    for response in snapshots(events):  # noqa: B007
        pass
    return response


def _take(response: Json, event: Json) -> None:
    kind, _, step = str(event["type"]).removeprefix("response.").rpartition(".")
    if not kind and step in LIFECYCLE:
        response.update(event["response"])
        return
    if kind == "output_item":
        _put(response["output"], event["output_index"], event["item"])
        return
    if "output_index" not in event:
        return
    item: Json = response["output"][event["output_index"]]
    if kind in ("content_part", "reasoning_summary_part"):
        _put(*_parts(item, event), event["part"])
    elif kind == "output_text.annotation":
        _put(
            _part(item, event, "output_text").setdefault("annotations", []),
            event["annotation_index"],
            event["annotation"],
        )
    elif kind in TEXT_FIELD:
        _say(item, event, kind, step)
    elif kind == "shell_call_command":
        commands = item.setdefault("action", {}).setdefault("commands", [])
        index = event["command_index"]
        _put(commands, index, commands[index] + event["delta"] if step == "delta" else event["command"])
    elif kind in PROGRESSING and step in PROGRESS and item["type"] not in WITHOUT_STATUS:
        item["status"] = step


def _say(item: Json, event: Json, kind: str, step: str) -> None:
    field = TEXT_FIELD[kind]
    target = _part(item, event, PART_TYPE[kind]) if kind in PART_TYPE else item
    if step == "delta":
        target[field] = (target.get(field) or "") + event["delta"]
        if event.get("logprobs"):
            target["logprobs"] = [*target.get("logprobs", []), *event["logprobs"]]
    else:
        target[field] = event[field]
        if event.get("logprobs"):
            target["logprobs"] = event["logprobs"]


def _parts(item: Json, event: Json) -> tuple[list[Any], int]:
    name = "summary" if "summary_index" in event else "content"
    if not isinstance(item.get(name), list):
        item[name] = []
    return item[name], event[f"{name}_index"]


def _part(item: Json, event: Json, kind: str) -> Json:
    """The part that an event speaks of; a text may begin without its part having been announced."""
    parts, index = _parts(item, event)
    if index == len(parts):
        parts.append({"type": kind, "annotations": [], "logprobs": []} if kind == "output_text" else {"type": kind})
    part: Json = parts[index]
    return part


def _put(values: list[Any], index: int, value: Any) -> None:
    """At its place, or behind the last one; never further."""
    assert index <= len(values), f"V6: number {index} of {len(values)}"
    values[index : index + 1] = [value]

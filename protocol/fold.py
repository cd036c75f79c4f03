"""The fold: stream events → the snapshot of the response (V6).

`Fold(created snapshot).apply(event)` for each event of a log, in order, gives the response that a GET shows. A
lifecycle event replaces the state (B37): on recovery its `output` is the reset (R7). An `output_item.added` at an
index already there replaces that slot.

Deltas are kept in lists and joined when a snapshot is asked for, so that a long text costs the same per delta from
its first to its last. Nothing applied is kept by reference. Not thread-safe: one writer, one fold.
"""

from collections.abc import Callable, Mapping
from typing import Any

from protocol import jsonio
from protocol.events import ITEM_STEPS, LIFECYCLE_STATUS, InvalidEvent, status_after
from protocol.items import WITH_STATUS

_Event = Mapping[str, Any]
_Place = tuple[str, int]
"""Which list of an item (`content`, `summary`; empty for the item itself) and which index of it."""


class Fold:
    """The state of one response while its events are applied.

    Args:
        base: a whole snapshot, usually that of `response.created`; its output is taken over.

    Raises:
        InvalidEvent: by `apply`, for an event that does not fit the state: an item or part that is not there.
    """

    def __init__(self, base: Mapping[str, Any]) -> None:
        self._response: dict[str, Any] = {}
        self._slots: list[_Slot] = []
        self._replace(_copied("base", dict(base)))

    @property
    def output_length(self) -> int:
        """How many output items there are."""
        return len(self._slots)

    @property
    def status(self) -> str:
        """The response's status."""
        return str(self._response.get("status"))

    def apply(self, event: _Event) -> None:
        """Takes over one event. Types that say nothing about the snapshot are ignored."""
        name = event["type"]
        if name in LIFECYCLE_STATUS:
            self._apply_lifecycle(event)
        elif name in _WHOLE_ITEM:
            self._put(event)
        elif name in ITEM_STEPS:
            self._slot(event).step(ITEM_STEPS[name])
        elif name in _APPLIED:
            _APPLIED[name](self._slot(event), event)

    def items(self) -> list[dict[str, Any]]:
        """A fresh copy of the output."""
        output: list[dict[str, Any]] = jsonio.copy([slot.joined() for slot in self._slots])
        return output

    def snapshot(self) -> dict[str, Any]:
        """A fresh copy of the whole response."""
        whole: dict[str, Any] = jsonio.copy({**self._response, "output": [slot.joined() for slot in self._slots]})
        return whole

    def _apply_lifecycle(self, event: _Event) -> None:
        payload = _copied(event["type"], event["response"])
        status = status_after(event["type"], payload.get("status"))
        self._replace({**payload, "status": status})

    def _replace(self, payload: dict[str, Any]) -> None:
        output = payload.get("output")
        if isinstance(output, list):
            if not all(isinstance(item, dict) for item in output):
                raise InvalidEvent("an output item is not an object")
            self._slots = [_Slot(item) for item in output]
        # The place of `output` among the keys is kept: a log folded twice gives the same bytes.
        self._response = {**self._response, **payload, "output": []}

    def _put(self, event: _Event) -> None:
        index = event["output_index"]
        slot = _Slot(_copied(event["type"], event["item"]))
        if index < len(self._slots):
            self._slots[index] = slot
        elif index == len(self._slots) and event["type"] == "response.output_item.added":
            self._slots.append(slot)
        else:
            raise InvalidEvent(f"{event['type']}: no item {index}, there are {len(self._slots)}")

    def _slot(self, event: _Event) -> "_Slot":
        index = event["output_index"]
        if index >= len(self._slots):
            raise InvalidEvent(f"{event['type']}: no item {index}, there are {len(self._slots)}")
        return self._slots[index]


class _Slot:
    """One output item and the deltas not yet joined into it."""

    def __init__(self, item: dict[str, Any]) -> None:
        self._item = item
        self._waiting: dict[tuple[_Place, str], list[str]] = {}
        self._commands: dict[int, list[str]] = {}

    def joined(self) -> dict[str, Any]:
        """The item itself, up to date; for reading only."""
        for (place, field), pieces in self._waiting.items():
            target = self._at(place)
            target[field] = "".join((target.get(field) or "", *pieces))
        self._waiting.clear()
        commands = self._command_list() if self._commands else []
        for index, pieces in self._commands.items():
            commands[index] = "".join((str(commands[index]), *pieces))
        self._commands.clear()
        return self._item

    def step(self, status: str) -> None:
        """The item has come this far."""
        if self._item.get("type") in WITH_STATUS:
            self._item["status"] = status

    def append(self, place: _Place, field: str, piece: str) -> None:
        """A delta."""
        pieces = self._waiting.get((place, field))
        if pieces is None:
            if not isinstance(self._at(place).get(field), str | None):
                raise InvalidEvent(f"a delta for {field}, which is not text")
            pieces = self._waiting[place, field] = []
        pieces.append(piece)

    def set(self, place: _Place, field: str, value: Any) -> None:
        """The final value of a field, over its deltas."""
        self._waiting.pop((place, field), None)
        self._at(place)[field] = value

    def put_part(self, place: _Place, part: dict[str, Any]) -> None:
        """A part in its whole, new or over the one that is there."""
        parts, index = self._parts(place[0]), place[1]
        if index > len(parts):
            raise InvalidEvent(f"{place[0]}: no part {index}, there are {len(parts)}")
        for key in [key for key in self._waiting if key[0] == place]:
            del self._waiting[key]
        parts[index : index + 1] = [part]

    def part(self, place: _Place, fresh: dict[str, Any]) -> dict[str, Any]:
        """The part at a place; `fresh` becomes it when a handler did without announcing it."""
        parts, index = self._parts(place[0]), place[1]
        if index >= len(parts):
            self.put_part(place, fresh)
        return self._at(place)

    def append_command(self, index: int, piece: str) -> None:
        """A delta of a command of a shell call."""
        pieces = self._commands.get(index)
        if pieces is None:
            commands = self._command_list()
            if index >= len(commands):
                raise InvalidEvent(f"no command {index} to go on with, there are {len(commands)}")
            pieces = self._commands[index] = []
        pieces.append(piece)

    def put_command(self, index: int, command: str) -> None:
        """A command in its whole, new or over the one that is there."""
        commands = self._command_list()
        if index > len(commands):
            raise InvalidEvent(f"no command {index}, there are {len(commands)}")
        self._commands.pop(index, None)
        commands[index : index + 1] = [command]

    def _command_list(self) -> list[Any]:
        action = self._item.get("action")
        if not isinstance(action, dict):
            action = self._item["action"] = {}
        commands = action.get("commands")
        if not isinstance(commands, list):
            commands = action["commands"] = []
        return commands

    def _parts(self, field: str) -> list[Any]:
        parts = self._item.get(field)
        if not isinstance(parts, list):
            parts = self._item[field] = []
        return parts

    def _at(self, place: _Place) -> dict[str, Any]:
        if not place[0]:
            return self._item
        part = self._parts(place[0])[place[1]]
        if not isinstance(part, dict):
            raise InvalidEvent(f"{place[0]}: part {place[1]} is not an object")
        return part


_WHOLE_ITEM = frozenset({"response.output_item.added", "response.output_item.done"})
_SELF: _Place = ("", 0)
_Applied = Callable[[_Slot, _Event], None]


def _delta(field: str) -> _Applied:
    return lambda slot, event: slot.append(_SELF, field, event["delta"])


def _done(field: str) -> _Applied:
    return lambda slot, event: slot.set(_SELF, field, event[field])


def _place(parts: str, event: _Event) -> _Place:
    return parts, event["summary_index" if parts == "summary" else "content_index"]


def _fresh(kind: str, field: str) -> dict[str, Any]:
    whole: dict[str, Any] = {"type": kind, field: ""}
    return {**whole, "annotations": [], "logprobs": []} if kind == "output_text" else whole


def _part_delta(parts: str, kind: str, field: str) -> _Applied:
    def apply(slot: _Slot, event: _Event) -> None:
        place = _place(parts, event)
        part = slot.part(place, _fresh(kind, field))
        slot.append(place, field, event["delta"])
        if event.get("logprobs"):
            _own_list(part, "logprobs").extend(_copied(event["type"], event["logprobs"]))

    return apply


def _part_done(parts: str, kind: str, field: str) -> _Applied:
    def apply(slot: _Slot, event: _Event) -> None:
        place = _place(parts, event)
        part = slot.part(place, _fresh(kind, field))
        slot.set(place, field, event[field])
        if event.get("logprobs"):
            part["logprobs"] = _copied(event["type"], event["logprobs"])

    return apply


def _put_part(parts: str) -> _Applied:
    return lambda slot, event: slot.put_part(_place(parts, event), _copied(event["type"], event["part"]))


def _annotation(slot: _Slot, event: _Event) -> None:
    part = slot.part(_place("content", event), _fresh("output_text", "text"))
    annotations, index = _own_list(part, "annotations"), event["annotation_index"]
    annotations[index : index + 1] = [_copied(event["type"], event["annotation"])]


def _own_list(part: dict[str, Any], field: str) -> list[Any]:
    """A list of a part, to be changed in place: to copy it for each event would cost more with each."""
    held = part.get(field)
    if not isinstance(held, list):
        held = part[field] = []
    return held


def _command(slot: _Slot, event: _Event) -> None:
    slot.put_command(event["command_index"], event["command"])


def _command_delta(slot: _Slot, event: _Event) -> None:
    slot.append_command(event["command_index"], event["delta"])


def _copied(name: str, value: Any) -> Any:
    try:
        return jsonio.copy(value)
    except jsonio.NotJson as error:
        raise InvalidEvent(f"{name}: not JSON: {error}") from error


_APPLIED: dict[str, _Applied] = {
    "response.content_part.added": _put_part("content"),
    "response.content_part.done": _put_part("content"),
    "response.output_text.delta": _part_delta("content", "output_text", "text"),
    "response.output_text.done": _part_done("content", "output_text", "text"),
    "response.output_text.annotation.added": _annotation,
    "response.refusal.delta": _part_delta("content", "refusal", "refusal"),
    "response.refusal.done": _part_done("content", "refusal", "refusal"),
    "response.reasoning_text.delta": _part_delta("content", "reasoning_text", "text"),
    "response.reasoning_text.done": _part_done("content", "reasoning_text", "text"),
    "response.reasoning.delta": _part_delta("content", "reasoning_text", "text"),
    "response.reasoning.done": _part_done("content", "reasoning_text", "text"),
    "response.reasoning_summary_part.added": _put_part("summary"),
    "response.reasoning_summary_part.done": _put_part("summary"),
    "response.reasoning_summary_text.delta": _part_delta("summary", "summary_text", "text"),
    "response.reasoning_summary_text.done": _part_done("summary", "summary_text", "text"),
    "response.function_call_arguments.delta": _delta("arguments"),
    "response.function_call_arguments.done": _done("arguments"),
    "response.mcp_call_arguments.delta": _delta("arguments"),
    "response.mcp_call_arguments.done": _done("arguments"),
    "response.custom_tool_call_input.delta": _delta("input"),
    "response.custom_tool_call_input.done": _done("input"),
    "response.code_interpreter_call_code.delta": _delta("code"),
    "response.code_interpreter_call_code.done": _done("code"),
    "response.shell_call_command.added": _command,
    "response.shell_call_command.delta": _command_delta,
    "response.shell_call_command.done": _command,
}

"""Judges a stream: the `openai` package's types say what an event is, W6 and V6 what the events must agree on."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, get_args

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from protocol.events import TERMINAL, check_event
from protocol.fold import Fold

Event = dict[str, Any]

NOT_IN_OPENAI = frozenset({"structured_outputs"})
"""Item types that only this server's ecosystem knows."""


def _models() -> dict[str, type[BaseModel]]:
    union = get_args(ResponseStreamEvent)[0]
    return {get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(union)}


MODELS = _models()


def assert_valid(events: Iterable[Event]) -> None:
    """Every event is one that a typed client can read."""
    for number, event in enumerate(events):
        check_event(event)
        readable = _known_to_openai({**event, "sequence_number": number})
        if readable is not None:
            MODELS[event["type"]].model_validate(readable, strict=True)


def assert_whole(events: list[Event]) -> Event:
    """The events are valid, in order, agree with each other and end; gives the final response."""
    assert_valid(events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] in TERMINAL
    assert sum(event["type"] in TERMINAL for event in events) == 1
    _assert_same_texts(events)
    final: Event = events[-1]["response"]
    assert _folded(events[:-1]) == final["output"]
    return final


def assert_response(response: Event) -> None:
    """A typed client can read the response."""
    known = [item for item in response["output"] if item["type"] not in NOT_IN_OPENAI]
    Response.model_validate({**response, "output": known}, strict=True)


def _folded(events: list[Event]) -> list[Event]:
    fold = Fold(events[0]["response"])
    for event in events:
        fold.apply(event)
    return fold.items()


def _known_to_openai(event: Event) -> Event | None:
    if "item" in event and event["item"]["type"] in NOT_IN_OPENAI:
        return None
    if "response" in event:
        output = [item for item in event["response"]["output"] if item["type"] not in NOT_IN_OPENAI]
        return {**event, "response": {**event["response"], "output": output}}
    return event


def _assert_same_texts(events: list[Event]) -> None:
    deltas: dict[tuple[Any, ...], str] = defaultdict(str)
    output = events[-1]["response"]["output"]
    for event in events:
        kind, _, step = event["type"].rpartition(".")
        place = (kind, event.get("output_index"), event.get("content_index", event.get("summary_index")))
        if step == "delta":
            deltas[place] += event["delta"]
        elif place in deltas and step == "done":
            field = next(name for name in ("text", "refusal", "arguments", "input", "code") if name in event)
            assert deltas[place] == event[field], f"{event['type']} says something else than its deltas"
            item = output[event["output_index"]]
            if item["id"] == event["item_id"]:  # otherwise another item took its place
                assert event[field] == _text_in(item, event, field)


def _text_in(item: Event, event: Event, field: str) -> Any:
    if "content_index" in event:
        return item["content"][event["content_index"]][field]
    if "summary_index" in event:
        return item["summary"][event["summary_index"]][field]
    return item[field]

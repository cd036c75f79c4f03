"""The event catalogue against the `openai` package's types, and the check of what handlers yield (B30)."""

from typing import Any, get_args

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

from protocol import events

OPEN_RESPONSES_ONLY = {"response.reasoning.delta", "response.reasoning.done"}
FILLED_IN = {"logprobs"}
# Optional there, but an annotation event without an annotation says nothing.
STRICTER = {"annotation"}

SAMPLES: dict[type, Any] = {str: "x", int: 0, dict: {"type": "message"}, list: []}


def union() -> dict[str, type[BaseModel]]:
    members: tuple[type[BaseModel], ...] = get_args(get_args(ResponseStreamEvent)[0])
    return {get_args(member.model_fields["type"].annotation)[0]: member for member in members}


def required(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if field.is_required()} - {"type", "sequence_number"}


def sample(name: str) -> dict[str, Any]:
    return {"type": name, **{field: SAMPLES[kind] for field, kind in events.REQUIRED[name].items()}}


def test_the_catalogue_has_every_event_of_the_openai_package() -> None:
    assert set(events.REQUIRED) - OPEN_RESPONSES_ONLY == set(union())


@pytest.mark.parametrize("name", sorted(union()))
def test_an_event_requires_what_the_openai_package_requires(name: str) -> None:
    assert set(events.REQUIRED[name]) - STRICTER == required(union()[name])


@pytest.mark.parametrize("name", sorted(events.REQUIRED))
def test_a_whole_event_passes_unchanged(name: str) -> None:
    assert events.check_event(sample(name)) == sample(name)


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, fields in events.REQUIRED.items() for field in fields if field not in FILLED_IN],
)
def test_an_event_without_a_field_of_its_type_is_refused(name: str, field: str) -> None:
    event = sample(name)
    del event[field]
    with pytest.raises(events.InvalidEvent, match=field):
        events.check_event(event)
    with pytest.raises(events.InvalidEvent, match=field):
        events.check_event({**event, field: object()})


@pytest.mark.parametrize(
    "event",
    [
        None,
        "response.created",
        [],
        {},
        {"type": None},
        {"type": 1},
        {"type": "message"},
        {"type": "thread.run.created"},
        {"type": "response."},
        {"type": "response.new\n"},
        {"type": "response." + "x" * 90},
        {"type": "response.output_item.added", "output_index": True, "item": {"type": "message"}},
        {"type": "response.output_item.added", "output_index": -1, "item": {"type": "message"}},
        {"type": "response.output_item.added", "output_index": 0, "item": {}},
    ],
)
def test_what_is_no_event_is_refused(event: object) -> None:
    with pytest.raises(events.InvalidEvent):
        events.check_event(event)


def test_an_event_of_a_newer_server_passes() -> None:
    event = {"type": "response.hologram.delta", "anything": 1}

    assert events.check_event(event) == event


def test_text_events_get_the_logprobs_that_clients_need() -> None:
    event = {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0, "delta": "a"}

    checked = events.check_event(event)

    assert checked["logprobs"] == []
    assert "logprobs" not in event


@pytest.mark.parametrize(
    ("name", "payload", "status"),
    [
        ("response.created", None, "in_progress"),
        ("response.created", "queued", "queued"),
        ("response.created", "completed", "in_progress"),
        ("response.queued", None, "queued"),
        ("response.in_progress", "queued", "in_progress"),
        ("response.completed", "in_progress", "completed"),
        ("response.incomplete", None, "incomplete"),
        ("response.failed", None, "failed"),
        ("response.failed", "cancelled", "cancelled"),
        ("response.output_text.delta", None, None),
    ],
)
def test_the_event_decides_the_status(name: str, payload: str | None, status: str | None) -> None:
    assert events.status_after(name, payload) == status


def test_three_events_end_a_stream() -> None:
    assert {name for name in events.REQUIRED if events.is_terminal({"type": name})} == {
        "response.completed",
        "response.failed",
        "response.incomplete",
    }

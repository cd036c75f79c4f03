"""Frames (B26, B27, W5): their bytes, and finding one's way in them without parsing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from protocol import sse
from protocol.events import InvalidEvent

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


def delta(number: int, text: str = "a") -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text, "sequence_number": number}


def test_a_frame_is_event_line_data_line_blank_line() -> None:
    frame = sse.encode({"delta": "a", "sequence_number": 3, "type": "response.output_text.delta"})

    assert frame == (
        b"event: response.output_text.delta\n"
        b'data: {"type":"response.output_text.delta","sequence_number":3,"delta":"a"}\n\n'
    )


@settings(deadline=None)
@given(JSON, st.integers(0, 2**53))
def test_a_frame_reads_back_as_its_event(value: object, number: int) -> None:
    event = {"type": "response.new", "sequence_number": number, "value": value}

    frame = sse.encode(event)

    assert sse.decode(frame) == event
    assert sse.sequence_of(frame[: sse.PREFIX_LENGTH]) == number
    assert sse.event_type(frame) == "response.new"
    assert frame.count(b"\n") == 3
    assert len(frame.decode().splitlines()) == 3


def test_the_decoder_of_the_openai_package_reads_a_frame() -> None:
    events = list(SSEDecoder().iter_bytes(iter([sse.encode(delta(0, "a\nb\u2028c\x85"))])))

    assert [event.event for event in events] == ["response.output_text.delta"]
    assert events[0].json() == delta(0, "a\nb\u2028c\x85")


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
def test_no_character_of_a_text_tears_a_frame(character: str) -> None:
    frame = sse.encode(delta(0, f"a{character}b"))

    assert len(frame.decode().splitlines()) == 3
    assert sse.decode(frame)["delta"] == f"a{character}b"


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": 3, "sequence_number": 0},
        {"type": "a\nb", "sequence_number": 0},
        {"type": 'a"b', "sequence_number": 0},
        {"type": "r" * 100, "sequence_number": 0},
        {"type": "response.created"},
        {"type": "response.created", "sequence_number": -1},
        {"type": "response.created", "sequence_number": True},
        {"type": "response.created", "sequence_number": 0, "x": "\ud800"},
        {"type": "response.created", "sequence_number": 0, "x": object()},
    ],
)
def test_an_event_that_cannot_be_framed_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        sse.encode(event)


@pytest.mark.parametrize("frame", [b"", sse.KEEP_ALIVE, b"event: x\n\n", b"data: {}\n\n", b"event: x\ndata: []\n\n"])
def test_bytes_that_are_no_frame_are_refused(frame: bytes) -> None:
    with pytest.raises(ValueError, match=r"not|no sequence"):
        sse.decode(frame)
    with pytest.raises(ValueError, match="no sequence"):
        sse.sequence_of(frame)


def test_the_longest_event_name_leaves_the_number_in_the_prefix() -> None:
    frame = sse.encode({"type": "r" * 80, "sequence_number": 10**18 - 1})

    assert sse.sequence_of(frame[: sse.PREFIX_LENGTH]) == 10**18 - 1


def test_a_number_deeper_in_the_event_is_not_taken_for_its_own() -> None:
    assert sse.sequence_of(sse.encode({**delta(7), "item": {"sequence_number": 99}})) == 7


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.data())
def test_split_gives_whole_frames_and_the_rest_wherever_the_bytes_are_cut(
    texts: list[str], data: st.DataObject
) -> None:
    frames = [sse.encode(delta(index, text)) for index, text in enumerate(texts)]
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole)))

    before, rest = sse.split(whole[:cut])
    after, nothing = sse.split(rest + whole[cut:])

    assert before + after == frames
    assert nothing == b""


def test_the_next_boundary_in_a_piece_of_a_log_is_the_start_of_a_frame() -> None:
    first, second = sse.encode(delta(0, "\n\n")), sse.encode(delta(1))

    assert sse.next_boundary(first + second, 5) == len(first)
    assert sse.next_boundary(first + second) == len(first)
    assert sse.next_boundary(first[3:] + second[:4]) == len(first) - 3


def test_a_piece_in_which_no_frame_begins_has_no_boundary() -> None:
    frame = sse.encode(delta(0))

    assert sse.next_boundary(frame[:-3]) == -1
    assert sse.next_boundary(frame) == -1


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("response.completed", True),
        ("response.failed", True),
        ("response.incomplete", True),
        ("error", True),
        ("response.in_progress", False),
        ("response.completed.not", False),
        ("response.mcp_call.completed", False),
    ],
)
def test_only_terminal_events_end_a_stream(name: str, ends: bool) -> None:
    assert sse.is_terminal(sse.encode({"type": name, "sequence_number": 0})) is ends


def test_a_comment_is_not_terminal() -> None:
    assert not sse.is_terminal(sse.KEEP_ALIVE)
    assert sse.KEEP_ALIVE == b": keep-alive\n\n"


def test_the_headers_keep_proxies_from_holding_back() -> None:
    assert sse.HEADERS == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache",
        "Connection": "keep-alive",
        "X-Accel-Buffering": "no",
    }

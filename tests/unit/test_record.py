"""The record of a request: one form, one producer, one reader (R3)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import ids, jsonio
from resilience.record import MalformedRecord, RequestRecord

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


def record(**changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "response_id": ids.new_response_id(ids.new_partition()),
        "created_at": 7,
        "principal": "somebody",
        "request": {"input": "hi", "model": "m"},
        "client_headers": {"x-client-a": "1"},
        "query_parameters": {"q": "2"},
        "agent_reference": {"type": "agent_reference", "name": "a"},
    }
    return RequestRecord(**{**fields, **changes})


@given(request=st.dictionaries(st.text("abc", max_size=3), JSON, max_size=4))
def test_what_is_stored_is_read_back_equal(request: dict[str, Any]) -> None:
    made = record(request=request)
    assert RequestRecord.from_bytes(made.to_bytes()) == made


def test_a_record_without_an_agent_is_read_back_equal() -> None:
    made = record(agent_reference=None)
    assert RequestRecord.from_bytes(made.to_bytes()) == made


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"7", b"\xff\xfe"])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedRecord):
        RequestRecord.from_bytes(data)


@pytest.mark.parametrize("name", list(jsonio.loads(record().to_bytes())))
@pytest.mark.parametrize("damage", ["missing", "null", "of another type"])
def test_a_record_with_a_damaged_field_is_refused(name: str, damage: str) -> None:
    stored = jsonio.loads(record().to_bytes())
    if (name, damage) in {("agent_reference", "null"), ("request_key", "missing")}:
        return  # that is how none is stored, and how older records are
    if damage == "missing":
        del stored[name]
    else:
        stored[name] = None if damage == "null" else [object.__name__]
    with pytest.raises(MalformedRecord):
        RequestRecord.from_bytes(jsonio.dumps(stored))


@pytest.mark.parametrize("version", [0, 2, "1", True])
def test_another_version_is_refused(version: Any) -> None:
    stored = jsonio.loads(record().to_bytes())
    with pytest.raises(MalformedRecord):
        RequestRecord.from_bytes(jsonio.dumps({**stored, "v": version}))


def test_fields_of_a_later_writer_are_passed_over() -> None:
    made = record()
    stored = {**jsonio.loads(made.to_bytes()), "new": 1}
    assert RequestRecord.from_bytes(jsonio.dumps(stored)) == made


@pytest.mark.parametrize(("value", "expected"), [(None, ""), ("conv_1", "conv_1"), ({"id": "conv_1"}, "conv_1")])
def test_a_conversation_is_known_in_either_form(value: Any, expected: str) -> None:
    assert record(request={"conversation": value}).conversation == expected


def test_partition_and_predecessor_are_read_off_the_request() -> None:
    made = record(request={"previous_response_id": "resp_x"})
    assert made.previous_response_id == "resp_x"
    assert made.partition == ids.partition_of(made.response_id)
    assert record().previous_response_id == ""


def test_the_first_snapshot_echoes_the_request() -> None:
    made = record()
    snapshot = made.snapshot("default", "queued")
    assert (snapshot["id"], snapshot["status"], snapshot["created_at"]) == (made.response_id, "queued", 7)
    assert (snapshot["model"], snapshot["agent_reference"]["name"]) == ("m", "a")
    assert record(request={}).snapshot("default", "queued")["model"] == "default"

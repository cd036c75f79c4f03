"""Identifiers carry the partition that co-locates a chain (architecture: identity and placement; B40)."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import ids
from protocol.errors import MalformedId


def test_a_response_id_is_prefix_partition_and_random_part() -> None:
    partition = ids.new_partition()

    identifier = ids.new_response_id(partition)

    assert re.fullmatch(r"resp_[0-9A-Za-z]{50}", identifier)
    assert ids.partition_of(identifier) == partition
    assert ids.is_well_formed(identifier)


def test_two_ids_of_one_partition_differ() -> None:
    partition = ids.new_partition()

    assert len({ids.new_response_id(partition) for _ in range(100)}) == 100


def test_an_item_lies_in_the_partition_of_its_response() -> None:
    response_id = ids.new_response_id(ids.new_partition())

    item_id = ids.new_item_id("msg", response_id)

    assert re.fullmatch(r"msg_[0-9A-Za-z]{50}", item_id)
    assert ids.partition_of(item_id) == ids.partition_of(response_id)


def test_an_item_of_a_made_up_response_id_gets_a_well_formed_id() -> None:
    assert re.fullmatch(r"fc_[0-9A-Za-z]{50}", ids.new_item_id("fc", "resp_1"))


def test_a_derived_item_id_is_the_same_for_every_attempt() -> None:
    response_id = ids.new_response_id(ids.new_partition())

    first = ids.derived_item_id("msg", response_id, "input/0")

    assert first == ids.derived_item_id("msg", response_id, "input/0")
    assert first != ids.derived_item_id("msg", response_id, "input/1")
    assert first != ids.derived_item_id("msg", ids.new_response_id(ids.partition_of(response_id)), "input/0")


@settings(deadline=None)
@given(st.text())
def test_a_text_has_one_partition_whatever_it_holds(text: str) -> None:
    partition = ids.derived_partition(text)

    assert re.fullmatch(r"[0-9A-Za-z]{18}", partition)
    assert partition == ids.derived_partition(text)


def test_the_partition_of_a_text_is_the_same_in_every_release() -> None:
    assert ids.derived_partition("conv_1") == "9q4Ikf0iD0xrFbj9Xa"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "resp_",
        "resp_1",
        "resp_" + "a" * 49,
        "resp_" + "a" * 51,
        "resp_" + "a" * 49 + "é",
        "resp_" + "a" * 49 + "\n",
        "resp_" + "a" * 50 + "\n",
        "msg_" + "a" * 50,
        "x_resp_" + "a" * 50,
        "../resp_" + "a" * 50,
        None,
        7,
    ],
)
def test_a_malformed_id_is_refused(value: object) -> None:
    with pytest.raises(MalformedId) as caught:
        ids.check_response_id(value, "previous_response_id")

    assert (caught.value.status, caught.value.code) == (400, "invalid_parameters")
    assert caught.value.param == "previous_response_id"


def test_a_malformed_id_of_the_path_is_named_in_the_param() -> None:
    with pytest.raises(MalformedId) as caught:
        ids.check_response_id("resp_1")

    assert caught.value.param == "responseId{resp_1}"


def test_a_malformed_id_with_a_lone_surrogate_can_be_answered() -> None:
    with pytest.raises(MalformedId) as caught:
        ids.check_response_id("resp_\udcff")

    assert caught.value.message.encode()


def test_a_well_formed_id_passes() -> None:
    identifier = ids.new_response_id(ids.new_partition())

    assert ids.check_response_id(identifier) == identifier


def test_an_id_without_a_partition_has_none() -> None:
    with pytest.raises(ValueError, match="no partition"):
        ids.partition_of("resp_1")


def test_conversation_and_request_ids_have_prefixes_of_their_own() -> None:
    assert ids.is_well_formed(ids.new_conversation_id(), "conv")
    assert re.fullmatch(r"req_[0-9A-Za-z]{32}", ids.new_request_id())


def test_every_item_type_has_a_prefix_of_its_own() -> None:
    assert len(set(ids.ITEM_PREFIXES.values())) == len(ids.ITEM_PREFIXES)
    assert ids.item_prefix("message") == "msg"
    assert ids.item_prefix("of_a_newer_server") == ids.item_prefix(None) == "item"

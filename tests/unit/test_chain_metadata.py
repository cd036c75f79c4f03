"""What turns keep for one another: names, values, sizes, and what is told to storage (S7)."""

import asyncio
import datetime
from typing import Any

import pytest

from protocol import jsonio
from resilience.chain_metadata import MAX_METADATA_BYTES, ConversationChainMetadata, MetadataTooLarge, nowhere


class Store:
    """What was stored, newest last; refuses while `error` is set."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.error: Exception | None = None

    async def __call__(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.written.append(jsonio.loads(data))


def test_it_is_a_mapping() -> None:
    metadata = ConversationChainMetadata()
    metadata["a"] = 1
    metadata.update(b=[1, {"c": None}], d="x")
    assert dict(metadata) == {"a": 1, "b": [1, {"c": None}], "d": "x"}
    assert ("a" in metadata, len(metadata), metadata.get("z"), metadata.setdefault("e", 2)) == (True, 3, None, 2)
    del metadata["a"]
    assert metadata.pop("d") == "x"
    assert list(metadata) == ["b", "e"]
    with pytest.raises(KeyError):
        metadata["a"]


def test_namespaces_do_not_see_one_another() -> None:
    metadata = ConversationChainMetadata()
    metadata["a"] = 1
    metadata("one")["a"] = 2
    metadata("two")["a"] = 3
    assert (metadata["a"], metadata("one")["a"], metadata("two")["a"]) == (1, 2, 3)
    assert jsonio.loads(metadata.to_bytes()) == {"": {"a": 1}, "one": {"a": 2}, "two": {"a": 3}}


def test_it_comes_back_as_it_was_stored() -> None:
    metadata = ConversationChainMetadata()
    metadata["ü"] = {"a": [1, 2.5, True, None, "x"]}
    metadata("space")["b"] = ""
    again = ConversationChainMetadata(metadata.to_bytes())
    assert dict(again) == dict(metadata)
    assert dict(again("space")) == {"b": ""}
    assert again.changed() is None


@pytest.mark.parametrize("name", ["_", "_mine", "__"])
def test_names_of_the_server_are_refused(name: str) -> None:
    metadata = ConversationChainMetadata()
    with pytest.raises(ValueError, match="_"):
        metadata[name] = 1
    with pytest.raises(ValueError, match="_"):
        metadata("library")[name] = 1
    with pytest.raises(ValueError, match="_"):
        metadata(name)
    assert metadata.to_bytes() == b"{}"


@pytest.mark.parametrize("name", [1, None, b"a"])
def test_names_that_are_no_texts_are_refused(name: Any) -> None:
    metadata = ConversationChainMetadata()
    with pytest.raises(ValueError, match="texts"):
        metadata[name] = 1
    with pytest.raises(ValueError, match="texts"):
        metadata(name)


def test_a_namespace_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name"):
        ConversationChainMetadata()("")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        {1: "a"},
        b"bytes",
        float("nan"),
        float("inf"),
        2**70,
        "\ud800",
        (1, 2),
        datetime.date(2024, 1, 1),
        [[object()]],
    ],
    ids=["object", "set", "key", "bytes", "nan", "inf", "huge", "surrogate", "tuple", "date", "nested"],
)
def test_a_value_that_json_does_not_carry_is_refused_and_leaves_the_old_one(value: Any) -> None:
    metadata = ConversationChainMetadata()
    metadata["a"] = "old"
    for name in ("a", "b"):
        with pytest.raises(ValueError):  # noqa: PT011
            metadata[name] = value
    assert dict(metadata) == {"a": "old"}


def test_what_is_too_large_is_refused_with_its_size_and_leaves_the_old_value() -> None:
    metadata = ConversationChainMetadata()
    metadata["a"] = "old"
    metadata("library")["b"] = "x" * (MAX_METADATA_BYTES - 100)
    for name in ("a", "c"):
        with pytest.raises(MetadataTooLarge, match="32 KiB") as refused:
            metadata[name] = "y" * 100
        assert refused.value.size > MAX_METADATA_BYTES
    assert dict(metadata) == {"a": "old"}


async def test_a_flush_stores_what_was_changed_and_nothing_twice() -> None:
    store = Store()
    metadata = ConversationChainMetadata(b"", store)
    await metadata.flush()
    metadata["a"] = []
    await metadata.flush()
    await metadata("empty").flush()
    metadata["a"].append(1)
    await metadata("library").flush()
    del metadata["a"]
    await metadata.flush()
    assert store.written == [{"": {"a": []}}, {"": {"a": [1]}}, {}]


async def test_what_grew_too_large_after_it_was_put_in_is_not_stored() -> None:
    store = Store()
    metadata = ConversationChainMetadata(b"", store)
    metadata["a"] = ["x"]
    metadata["a"].append("x" * MAX_METADATA_BYTES)
    with pytest.raises(MetadataTooLarge):
        await metadata.flush()
    assert store.written == []


async def test_after_a_flush_that_failed_everything_counts_as_changed() -> None:
    """Also what was stored before it: the failed one may have been carried out, or may be yet."""
    store = Store()
    metadata = ConversationChainMetadata(b'{"":{"a":1}}', store)
    metadata["a"] = 2
    store.error = RuntimeError("no answer")
    with pytest.raises(RuntimeError):
        await metadata.flush()
    store.error = None
    metadata["a"] = 1
    assert metadata.changed() == b'{"":{"a":1}}'
    await metadata.flush()
    assert store.written == [{"": {"a": 1}}]
    assert metadata.changed() is None


async def test_without_a_store_a_flush_does_nothing() -> None:
    metadata = ConversationChainMetadata()
    metadata["a"] = 1
    await metadata.flush()
    await nowhere(b"")
    assert metadata.changed() is None

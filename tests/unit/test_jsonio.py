"""What JSON cannot carry never gets into the state."""

from typing import Any

import pytest

from protocol import jsonio


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def test_a_copy_shares_nothing() -> None:
    original = {"a": [{"b": 1}]}

    copied = jsonio.copy(original)
    original["a"][0]["b"] = 2

    assert copied == {"a": [{"b": 1}]}


@pytest.mark.parametrize("value", ["\ud800", {1: 2}, object(), nested(300), 2**70])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(jsonio.NotJson):
        jsonio.dumps(value)


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b'"\\ud800"', b"\xff", b"1e999", b"[" * 5000])
def test_bytes_that_are_not_json_are_refused(text: bytes) -> None:
    with pytest.raises(jsonio.NotJson):
        jsonio.loads(text)


def test_a_value_that_could_be_read_but_not_written_does_not_fit() -> None:
    assert jsonio.fits(nested(200))
    assert not jsonio.fits(nested(240))
    assert jsonio.loads(b"[" * 300 + b"]" * 300)

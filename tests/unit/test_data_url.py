import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import data_url


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("data:image/png;base64,aGk=", True),
        ("DATA:,x", True),
        ("https://example.org/data:", False),
        ("dat", False),
        ("", False),
        (None, False),
        (7, False),
    ],
)
def test_data_urls_are_told_from_other_values(value: object, expected: bool) -> None:
    assert data_url.is_data_url(value) is expected


@pytest.mark.parametrize(
    ("url", "media_type", "content"),
    [
        ("data:image/png;base64,aGk=", "image/png", b"hi"),
        ("data:text/plain;charset=utf-8;base64,aGk", "text/plain;charset=utf-8", b"hi"),
        ("DATA:image/png;BASE64,aG\nk=", "image/png", b"hi"),
        ("data:;base64,_-8=", None, b"\xff\xef"),
        ("data:;base64,%2F%2B8%3D", None, b"\xff\xef"),
        ("data:,a%20b", None, b"a b"),
        ("data:text/plain,a,b", "text/plain", b"a,b"),
        ("data:,", None, b""),
    ],
)
def test_data_and_media_type_are_read(url: str, media_type: str | None, content: bytes) -> None:
    assert data_url.get_media_type(url) == media_type
    assert data_url.decode_bytes(url) == content
    assert data_url.try_decode_bytes(url) == content


@pytest.mark.parametrize("url", ["", "data:image/png", "https://e.org/,x", "data:;base64,a", "data:;base64,a!bc"])
def test_what_is_no_data_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="data URL"):
        data_url.decode_bytes(url)
    assert data_url.try_decode_bytes(url) is None


def test_nothing_has_no_media_type_and_no_bytes() -> None:
    assert data_url.get_media_type(None) is None
    assert data_url.get_media_type("plain") is None
    assert data_url.try_decode_bytes(None) is None


@given(st.binary())
def test_bytes_survive_the_way_there_and_back(content: bytes) -> None:
    assert data_url.decode_bytes("data:;base64," + base64.b64encode(content).decode()) == content


@given(st.text())
def test_no_text_makes_it_raise_anything_but_value_error(text: str) -> None:
    data_url.try_decode_bytes("data:;base64," + text)
    data_url.get_media_type(text)

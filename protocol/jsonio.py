"""JSON as it is kept and sent: one encoder, one decoder, one way to copy.

Everything that enters the package's state goes through `copy`, so that an object which a handler goes on changing, or
one that JSON cannot carry, never gets any further. orjson refuses NaN, lone surrogates and integers over 64 bits on
the way in; on the way out it refuses nesting over 254 levels, which is why `fits` looks at the depth of a request
early.
"""

from typing import Any

import orjson

MAX_VALUES = 500_000
"""JSON values in a request's body, those inside others included: what is done for each of them holds up all others."""

_ROOM_FOR_WRAPPING = 24
"""Levels that a request's values may sink below their place in the request: event, response, tools, stored record."""


class NotJson(ValueError):
    """The value cannot be written as JSON, or the bytes cannot be read as JSON."""


def dumps(value: Any) -> bytes:
    """UTF-8 JSON without whitespace.

    Raises:
        NotJson: something in it is not JSON (a lone surrogate, a key that is no string, over 254 levels).
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise NotJson(str(error)) from error


def loads(data: bytes | str) -> Any:
    """The value of a JSON text; the last of doubled keys wins.

    Raises:
        NotJson: not UTF-8, not JSON, or nested over 1,024 levels.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from error


def copy(value: Any) -> Any:
    """A fresh copy that shares nothing with the original and holds only plain JSON.

    Raises:
        NotJson: as `dumps`.
    """
    return loads(dumps(value))


def fits(value: Any) -> bool:
    """Whether the value can still be written after it was put some levels deeper into a response."""
    for _ in range(_ROOM_FOR_WRAPPING):
        value = [value]
    try:
        dumps(value)
    except NotJson:
        return False
    return True

"""Faults in a request: how validation finds them and how a client reads them (B29).

Unions are told apart by a callable discriminator. Its tags stand in angle brackets, which no field name of the wire
does, so that they can be left out of the path that the client sees: `$.input[0].content[1].text`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field
from pydantic_core import ErrorDetails

from protocol.errors import INVALID_REQUEST, InvalidRequest

MAX_FAULTS = 32
"""Faults listed in one answer."""

MAX_INTEGER = 2**53 - 1
"""Up to here every reader of JSON reads integers exactly."""

# Names of fields may come from the client, at any length.
_LONGEST_NAME = 80


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Takes a number without a fraction for an integer, however it is written: to JSON 20 and 20.0 are the same."""

Integer = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER), WHOLE]

OTHER = "<other>"
"""Tag of values that pass unseen: kinds of newer clients (W10)."""


def fault(message: str, path: str = "$") -> dict[str, Any]:
    """One entry of `error.details`."""
    return {"type": INVALID_REQUEST, "code": "invalid_value", "message": message, "param": path}


def refusal(faults: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """The error for a request with these faults, at least one; message and param are those of the first."""
    listed = list(faults)
    first = listed[0]
    param = str(first["param"]).removeprefix("$").removeprefix(".")
    return InvalidRequest(str(first["message"]), param=param or None, details=listed[:MAX_FAULTS])


def faults_of(errors: Iterable[ErrorDetails]) -> list[dict[str, Any]]:
    """What pydantic found, as entries of `error.details`."""
    return [_fault_of(error) for error in errors]


class ByType:
    """Tells objects apart by their type: a known one gets the tag `<type>`, any other one `OTHER`."""

    __name__ = "by_type"  # pydantic asks every discriminator for its name

    def __init__(self, known: Iterable[str], type_of: Callable[[Mapping[str, Any]], object]) -> None:
        self.known = tuple(known)
        self.type_of = type_of
        self._tags = {name: f"<{name}>" for name in self.known}

    def __call__(self, value: Any) -> str | None:
        kind = self.type_of(value) if isinstance(value, dict) else None
        return self._tags.get(kind, OTHER) if isinstance(kind, str) and kind else None


@dataclass(frozen=True)
class ByJsonType:
    """Tells JSON types apart; the tags are the names, in angle brackets."""

    __name__ = "by_json_type"
    named: Mapping[str, type]

    def __call__(self, value: Any) -> str | None:
        return next((f"<{name}>" for name, kind in self.named.items() if isinstance(value, kind)), None)


def own_type(value: Mapping[str, Any]) -> object:
    """The type that an object says it is of."""
    return value.get("type")


def by_type(known: Iterable[str], type_of: Callable[[Mapping[str, Any]], object] = own_type) -> Discriminator:
    """Tells objects apart by their type, see `ByType`."""
    return Discriminator(
        ByType(known, type_of),
        custom_error_type="not_an_object_with_a_type",
        custom_error_message="must be an object with a string `type`",
    )


def by_json_type(**named: type) -> Discriminator:
    """Tells JSON types apart: `by_json_type(string=str, array=list)` gives the tags `<string>` and `<array>`."""
    return Discriminator(
        ByJsonType(named),
        custom_error_type="wrong_json_type",
        custom_error_message=f"must be of type {' or '.join(named)}",
    )


def _fault_of(error: ErrorDetails) -> dict[str, Any]:
    path = "$" + "".join(_step(step) for step in error["loc"])
    shown = path.removeprefix("$").removeprefix(".")
    if error["type"] == "missing":
        return fault(f"Missing required parameter: '{shown}'.", path)
    message = error["msg"].removeprefix("Input should be").removeprefix("Value error,").strip()
    expected = f"expected {message}" if error["msg"].startswith("Input should be") else message
    return fault(f"Invalid value for '{shown}': {expected}.", path)


def _step(step: int | str) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if step == "[key]" or (step.startswith("<") and step.endswith(">")):
        return ""
    return f".{step[:_LONGEST_NAME]}"

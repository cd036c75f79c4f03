"""The API's own description as a judge: does an answer look as the document says it does?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jsonschema_rs

from api.version import VERSION
from protocol import jsonio, sse
from protocol.openapi import document

DOCUMENT = document(VERSION)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]

JSON = "application/json"
EVENTS = "text/event-stream"


class NotAsDescribed(AssertionError):
    """An answer is not as the description says."""


@dataclass(frozen=True)
class Described:
    """An operation of the document."""

    method: str
    path: str
    responses: Mapping[str, Any]


@cache
def validator(name: str) -> jsonschema_rs.Validator:
    """Of the schema of that name."""
    return validator_of({"$ref": f"#/components/schemas/{name}"})


def validator_of(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    """Of a schema that refers to those of the document."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def find(method: str, path: str) -> Described | None:
    """The operation that a request is for, by its method and its path as sent."""
    for pattern, template, operations in _PATHS:
        if pattern.fullmatch(path) and method.lower() in operations:
            return Described(method, template, operations[method.lower()]["responses"])
    return None


def is_described(path: str) -> bool:
    """Whether some operation has this path, by any method."""
    return any(pattern.fullmatch(path) for pattern, _, _ in _PATHS)


def check(operation: Described, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Compare an answer with the document; a stream with the schema of its events.

    `headers` have names in lower case.

    Raises:
        NotAsDescribed: It differs.
    """
    described = operation.responses.get(str(status))
    if described is None:
        raise NotAsDescribed(f"{operation.method} {operation.path}: {status} is not documented: {body[:500]!r}")
    for name in described["headers"]:
        if name.lower() not in headers:
            raise NotAsDescribed(f"{operation.method} {operation.path}: {status} without {name}")
    kind = headers.get("content-type", "").partition(";")[0]
    content = described["content"].get(kind)
    if content is None:
        raise NotAsDescribed(f"{operation.method} {operation.path}: {status} is of the type {kind!r}")
    if kind == EVENTS:
        frames, rest = sse.split(body)
        if rest:
            raise NotAsDescribed(f"a stream ends in the middle of a frame: {rest[:200]!r}")
        for frame in frames:
            if frame != sse.KEEP_ALIVE:
                _check(validator("ResponseStreamEvent"), sse.decode(frame))
    else:
        _check(_schema(operation.path, operation.method, status), _parsed(body))


def example(schema: Mapping[str, Any]) -> Any:
    """A small value that the schema allows: what has to be there and nothing else."""
    if "$ref" in schema:
        named = example(SCHEMAS[schema["$ref"].rpartition("/")[2]])
        return _joined(named, example({key: part for key, part in schema.items() if key != "$ref"}))
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    value: Any = {name: example(schema.get("properties", {}).get(name, {})) for name in schema.get("required", ())}
    for part in schema.get("allOf", ()):
        value = _joined(value, example(part))
    if "anyOf" in schema:
        value = _joined(value, example(schema["anyOf"][0]))
    kind = schema.get("type")
    plain: dict[str, Any] = {"string": "x", "integer": schema.get("minimum", 1), "number": 1, "boolean": True}
    return value if value or kind not in plain | {"array": []} else plain.get(kind, [])


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **other}
    return other or one


def _parsed(body: bytes) -> Any:
    try:
        return jsonio.loads(body)
    except jsonio.NotJson as error:
        raise NotAsDescribed(f"not JSON: {body[:200]!r}") from error


@cache
def _schema(path: str, method: str, status: int) -> jsonschema_rs.Validator:
    return validator_of(DOCUMENT["paths"][path][method.lower()]["responses"][str(status)]["content"][JSON]["schema"])


def _check(judge: jsonschema_rs.Validator, value: Any) -> None:
    try:
        judge.validate(value)
    except jsonschema_rs.ValidationError as error:
        raise NotAsDescribed(f"{str(error)[:2000]}\n{str(value)[:2000]}") from error


_PATHS = [
    (
        re.compile(
            "".join("[^/]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{\w+\})", path))
        ),
        path,
        operations,
    )
    for path, operations in DOCUMENT["paths"].items()
]

"""Route templates as the platform writes them, and which function answers a request.

`literal`, `{name}`, `{name?}`, `{name:int}`, `{*rest}`. Matching ignores case; of several routes that match, the one
with the most literal beginning answers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from devhost.errors import RouteError
from devhost.functions import Function, HttpTrigger

_CONSTRAINTS = {
    "int": r"-?\d+",
    "long": r"-?\d+",
    "guid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "alpha": r"[a-zA-Z]+",
    "bool": r"(?:true|false)",
}
_PARAMETER = re.compile(r"\{(\*)?([A-Za-z_]\w*)(?::(\w+))?(\?)?\}")


@dataclass(frozen=True)
class Match:
    """A function and the values of its path parameters."""

    function: Function
    params: Mapping[str, str]


@dataclass(frozen=True)
class NoMatch:
    """No function answers; `allowed` lists the methods that would have been answered on this path."""

    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Route:
    pattern: re.Pattern[str]
    rank: tuple[int, ...]
    function: Function
    methods: frozenset[str] = field(default_factory=frozenset)


class RouteTable:
    """All HTTP functions of an app under the route prefix. RouteError for a template it cannot read."""

    def __init__(self, functions: Iterable[Function], prefix: str) -> None:
        routes = [_route(function, prefix) for function in functions]
        self._routes = sorted(routes, key=lambda route: route.rank)

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, method: str, path: str) -> Match | NoMatch:
        """Who answers `method` on `path` (percent-encoded)."""
        allowed: set[str] = set()
        for route in self._routes:
            match = route.pattern.fullmatch(path)
            if match is None:
                continue
            if not route.methods or method in route.methods:
                params = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return Match(route.function, params)
            allowed |= route.methods
        return NoMatch(frozenset(allowed))


def _route(function: Function, prefix: str) -> _Route:
    assert isinstance(function.trigger, HttpTrigger)
    template = "/".join(part.strip("/") for part in (prefix, function.trigger.route) if part.strip("/"))
    pattern, rank = "", []
    for segment in filter(None, template.split("/")):
        text, weight = _segment(segment, function.name)
        pattern += text
        rank.append(weight)
    return _Route(re.compile(f"{pattern}/?", re.IGNORECASE), (*rank, -1), function, function.trigger.methods)


def _segment(segment: str, function: str) -> tuple[str, int]:
    if "{" not in segment:
        return "/" + re.escape(segment), 0
    match = _PARAMETER.fullmatch(segment)
    if match is None or (match[3] and match[3] not in _CONSTRAINTS):
        raise RouteError(f"{function}: the local host cannot read the route segment {segment!r}.", function=function)
    star, name, constraint, optional = match.groups()
    if star:
        return f"(?:/(?P<{name}>.*))?", 3
    text = f"/(?P<{name}>{_CONSTRAINTS.get(constraint or '', '[^/]+')})"
    return (f"(?:{text})?" if optional else text), (1 if constraint else 2)

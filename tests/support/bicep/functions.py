"""The functions and operators of Bicep that `infra/` uses, and what the platform would answer."""

import hashlib
from collections.abc import Callable
from typing import Any


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _union(*objects: dict[str, Any]) -> dict[str, Any]:
    return {key: value for each in objects for key, value in each.items()}


SUBSCRIPTION = {"id": "/subscriptions/S", "subscriptionId": "S", "tenantId": "T"}
ENVIRONMENT = {
    "suffixes": {"storage": "core.windows.net"},
    "authentication": {"loginEndpoint": "https://login.microsoftonline.com/"},
}

#: Fewest and most arguments, and what comes of them. More of the language's functions are added here when used.
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "empty": (1, 1, lambda value: value is None or len(value) == 0),
    "environment": (0, 0, lambda: ENVIRONMENT),
    "filter": (2, 2, lambda items, keep: [item for item in items if keep(item)]),
    "guid": (1, 16, _digest),
    "string": (1, 1, str),
    "subscription": (0, 0, lambda: SUBSCRIPTION),
    "subscriptionResourceId": (2, 2, lambda kind, name: f"/subscriptions/S/providers/{kind}/{name}"),
    "tenant": (0, 0, lambda: {"tenantId": "T"}),
    "toLower": (1, 1, str.lower),
    "union": (1, 16, _union),
    "uniqueString": (1, 16, lambda *parts: _digest(*parts)[:13]),
}
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
    "<=": lambda left, right: left <= right,
    ">=": lambda left, right: left >= right,
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
}

"""What the app's functions are triggered by, read from the runtime's raw bindings."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from devhost.errors import AppError


@dataclass(frozen=True)
class HttpTrigger:
    """An HTTP route template without the prefix; no methods means all of them."""

    route: str
    methods: frozenset[str]


@dataclass(frozen=True)
class QueueTrigger:
    """Queue name and connection name, with `%NAME%` expressions unresolved."""

    queue: str
    connection: str


@dataclass(frozen=True)
class TimerTrigger:
    """A schedule, with `%NAME%` expressions unresolved."""

    schedule: str
    run_on_startup: bool


type Trigger = HttpTrigger | QueueTrigger | TimerTrigger


@dataclass(frozen=True)
class Function:
    """One function of the app: its id in the runtime, its trigger, the parameter that the trigger fills."""

    name: str
    id: str
    trigger: Trigger
    parameter: str


def parse(name: str, function_id: str, raw_bindings: Iterable[str]) -> Function:
    """A function from its raw bindings (JSON). AppError for triggers and bindings this host does not have."""
    trigger: Trigger | None = None
    parameter = ""
    for binding in map(json.loads, raw_bindings):
        found = _trigger(name, binding)
        if found is not None:
            trigger, parameter = found, str(binding["name"])
        elif binding.get("type") != "http":
            raise AppError(
                f"{name}: the local host has no {binding.get('type')!r} binding; use the service's SDK instead.",
                function=name,
            )
    if trigger is None:
        raise AppError(f"{name} has no trigger.", function=name)
    return Function(name, function_id, trigger, parameter)


def _trigger(name: str, binding: dict[str, Any]) -> Trigger | None:
    match binding.get("type"):
        case "httpTrigger":
            methods = frozenset(str(method).upper() for method in binding.get("methods") or ())
            route = binding.get("route")
            return HttpTrigger(name if route is None else str(route), methods)
        case "queueTrigger":
            return QueueTrigger(str(binding["queueName"]), str(binding.get("connection") or ""))
        case "timerTrigger":
            return TimerTrigger(str(binding["schedule"]), bool(binding.get("runOnStartup")))
    return None

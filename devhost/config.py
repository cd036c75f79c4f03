"""The parts of `host.json` that this host obeys, with the platform's defaults."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devhost.errors import SettingError


@dataclass(frozen=True)
class QueueRules:
    """`extensions.queues`; times in seconds."""

    batch_size: int = 16
    new_batch_threshold: int = 8
    max_dequeue_count: int = 5
    visibility_timeout: float = 0.0
    max_polling_interval: float = 60.0
    base64: bool = True


@dataclass(frozen=True)
class HostConfig:
    """host.json: route prefix, time limit of an invocation in seconds (None: unlimited), queue rules."""

    route_prefix: str = "api"
    function_timeout: float | None = 1800.0
    queues: QueueRules = field(default_factory=QueueRules)


def load(app: Path) -> HostConfig:
    """Reads `host.json` of the app in folder `app`. SettingError when it is missing or malformed."""
    path = app / "host.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        extensions = content.get("extensions", {})
        return HostConfig(
            route_prefix=str(extensions.get("http", {}).get("routePrefix", "api")).strip("/"),
            function_timeout=_limit(content.get("functionTimeout")),
            queues=_queues(extensions.get("queues", {})),
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SettingError(f"{path} cannot be used: {error}", path=str(path)) from error


def timespan(text: str) -> float:
    """Seconds of `[d.]hh:mm:ss[.fff]`. ValueError for anything else."""
    clock, days = text.strip(), 0
    if "." in clock.split(":")[0]:
        head, clock = clock.split(".", 1)
        days = int(head)
    hours, minutes, seconds = clock.split(":")
    return days * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _limit(value: str | None) -> float | None:
    if value is None:
        return HostConfig.function_timeout
    return None if value.strip() in {"-1", "-00:00:01"} else timespan(value)


def _queues(given: Mapping[str, Any]) -> QueueRules:
    batch = int(given.get("batchSize", QueueRules.batch_size))
    if not 1 <= batch <= 32:
        raise ValueError(f"batchSize is {batch}; the service allows 1 to 32")
    return QueueRules(
        batch_size=batch,
        new_batch_threshold=int(given.get("newBatchThreshold", batch // 2)),
        max_dequeue_count=int(given.get("maxDequeueCount", QueueRules.max_dequeue_count)),
        visibility_timeout=timespan(given.get("visibilityTimeout", "00:00:00")),
        max_polling_interval=timespan(given.get("maxPollingInterval", "00:01:00")),
        base64=str(given.get("messageEncoding", "base64")).lower() == "base64",
    )

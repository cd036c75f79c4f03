"""What the command line decides, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Serve(StrEnum):
    """Which of the app's functions this host serves."""

    ALL = "all"
    HTTP = "http"
    QUEUE = "queue"


@dataclass(frozen=True)
class Options:
    """Options of one host; times are in seconds, None means host.json decides."""

    app: Path
    port: int = 7071
    serve: Serve = Serve.ALL
    settings: Mapping[str, str] = field(default_factory=dict)
    timers: bool = True
    visibility: float = 600.0
    min_poll: float = 0.1
    max_poll: float | None = None
    function_timeout: float | None = None
    idle_timeout: float = 240.0
    grace: float = 0.0
    body_limit: int = 100 * 1024 * 1024
    ready_file: Path | None = None
    log_level: str = "info"
    listen_fd: int | None = None
    lifeline_fd: int | None = None

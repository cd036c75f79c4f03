"""What an app decides (`ResponsesServerOptions`) and what an operator may tune (`EngineSettings`)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesServerOptions:
    """The developer's choices; no request can override them.

    Attributes:
        additional_server_version: Appended to the ``x-platform-server`` header of every answer.
        default_model: The model of a request that names none (B22).
        default_fetch_history_count: How many items ``context.get_history()`` returns; -1 for all (S6).
        sse_keep_alive_interval_seconds: Seconds of silence before a comment line; None means 15 s, 0 turns them off
        (B28).
        shutdown_grace_period_seconds: How long a handler may go on after a shutdown was announced.
        create_span_hook: Called with each run's span attributes before the span begins.
        resilient_background: Stored background responses survive the death of their worker (row 1).
        steerable_conversations: A turn on a busy chain is queued instead of refused (S3).
    """

    additional_server_version: str | None = None
    default_model: str | None = None
    default_fetch_history_count: int = -1
    sse_keep_alive_interval_seconds: float | None = None
    shutdown_grace_period_seconds: float = 10
    create_span_hook: Callable[[dict[str, Any]], None] | None = None
    resilient_background: bool = False
    steerable_conversations: bool = False

    @property
    def sse_keep_alive_enabled(self) -> bool:
        """False only where the interval is set to 0."""
        return self.sse_keep_alive_interval_seconds != 0


class SettingError(ValueError):
    """A setting has a value that cannot be used."""

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.value = value
        super().__init__(f"{name}={value!r} is not a number of the right kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The engine's constants; each may be set as ``RESPONSES_<NAME>`` in the environment.

    All times are seconds on a monotonic clock of one process; no two hosts compare clocks.
    """

    eager_start: bool = False
    """Start background runs in the accepting process; only where that process serves the queue function too."""
    eager_limit: int = 32
    """Eager runs a process holds at most; more wait for the queue function."""

    watch_visibility: float = 5.0
    """How long the watch message stays hidden after a push: the silence that makes a worker suspect."""
    watch_push_interval: float = 1.2
    """Between two pushes of the watch message: four may be missed."""
    heartbeat_interval: float = 20.0
    """Between two merges of the worker row while runs are open."""
    idle_close_after: float = 3.0
    """An idle worker keeps its watch message this long."""
    idle_end_after: float = 20.0
    """An idle worker keeps its ledger this long: less than `stale_after`, or the sweep would end it."""
    stale_after: float = 60.0
    """The sweep suspects a worker row that is older, by the storage service's clock."""

    missing_row_patience: float = 30.0
    """How long a start message without a row is looked after; then it is put back once, for five times as long (R2)."""
    max_attempts: int = 5
    """Handler entries without a graceful hand-over between them (R5)."""

    cancel_poll_interval: float = 0.8
    """Between two looks at the rows of the runs of this process (a cancel arrives within 1 s)."""
    cancel_grace: float = 10.0
    """How long a cancelled handler may wind down (B11)."""
    disconnect_poll_interval: float = 0.5
    """Between two looks whether a foreground client is still there (B17)."""
    handover_after: float = 1740.0
    """A run is handed over before the platform's function timeout (30 min by default) would end the process (R13)."""

    linger_max: float = 0.25
    """The longest a delta waits for company before it is appended."""
    unacknowledged_bytes: int = 1 << 20
    """Bytes a run may have on their way to its log before the handler has to wait."""
    segment_blocks: int = 49_000
    """Blocks of a log segment before it rolls over; the service allows 50,000."""
    append_bytes: int = 4 << 20
    """The most bytes of one append, unless a single frame is larger."""

    finish_patience: float = 30.0
    """How long an outcome is tried to be stored before it becomes ``failed`` with ``storage_error`` (R14)."""

    retention_days: float = 30.0
    """Days that a response is kept after its end, with its events; 0 keeps all for ever."""
    retention_batch: int = 500
    """Responses that one turn of the retention timer deletes at most."""

    tail_poll_min: float = 0.025
    tail_poll_max: float = 0.5
    """Polling of a log that another process writes: from data to the longest silence."""
    tail_row_check_interval: float = 3.0
    """How often an idle reader looks at the row for a new segment or a lost terminal frame."""
    feed_bytes: int = 4 << 20
    """Recent frames kept in memory for the readers of a response."""

    @property
    def last_look_after(self) -> float:
        """Seconds until a message that met no row, or no marker of a deletion, is seen for the last time."""
        return 5 * self.missing_row_patience

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings with every ``RESPONSES_<NAME>`` of the environment laid over the defaults.

        Raises:
            SettingError: A value is not a number (or a truth value) of its setting's kind.
        """
        chosen: dict[str, Any] = {}
        for field in fields(cls):
            name = f"RESPONSES_{field.name.upper()}"
            if name in environment:
                chosen[field.name] = _parse(name, environment[name], field.type)
        return cls(**chosen)


_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _parse(name: str, text: str, kind: Any) -> Any:
    try:
        if kind in (bool, "bool"):
            return _TRUTHS[text.strip().lower()]
        number = int(text) if kind in (int, "int") else float(text)
        if not 0 <= number < math.inf:
            raise ValueError(text)
        return number
    except (KeyError, ValueError) as error:
        raise SettingError(name, text) from error

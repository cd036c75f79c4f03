"""What a log record is about, for whoever formats it: ids that stand in the context of the task that logs.

Names in use: `request_id`, `response_id`, `attempt_id` (generation and worker of one handler entry). Tasks inherit
what is bound when they are made. Nothing else belongs here, least of all anything that a client or a handler said.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import context

_bound: ContextVar[Mapping[str, str] | None] = ContextVar("log_context", default=None)


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Log inside under these ids too; an empty one changes nothing."""
    token = _bound.set({**fields(), **{name: value for name, value in ids.items() if value}})
    try:
        yield
    finally:
        _bound.reset(token)


def start_anew(**ids: str) -> None:
    """From here on this task belongs to these ids alone, and to no trace: not to those of whoever made it."""
    _bound.set(ids)
    context.attach(context.Context())


def fields() -> Mapping[str, str]:
    """The ids that are bound here."""
    return _bound.get() or {}

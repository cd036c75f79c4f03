"""One description of an item's events, played for synchronous and for asynchronous handlers alike.

A script is a generator that yields events, and an `Each` at the place where text flows in from outside. Who plays it
decides whether that source is iterated with `for` or with `async for`; the events and their order are written once.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from typing import Any

type Event = dict[str, Any]
type Json = dict[str, Any]

# A str is an iterable of str for the type checker; at run time it is one chunk.
type Text = Iterable[str]
type Events = Iterator[Event]
type AsyncText = Iterable[str] | AsyncIterable[str]
type AsyncEvents = AsyncGenerator[Event]


class Each:
    """The place in a script where a source of text flows in: one event per chunk."""

    __slots__ = ("emit", "source")

    def __init__(self, source: object, emit: Callable[[str], Event]) -> None:
        self.source = source
        self.emit = emit


type Script = Iterator[Event | Each]


def play(script: Script) -> Events:
    """The events of a script whose sources are plain iterables, one at a time and only when asked for."""
    for step in script:
        if isinstance(step, Each):
            for chunk in chunks_of(step.source):
                yield step.emit(chunk)
        else:
            yield step


def chunks_of(source: object) -> Iterable[str]:
    """The chunks of a text source; a str is one chunk.

    Raises:
        TypeError: it is neither a str nor an iterable.
    """
    if isinstance(source, str):
        return (source,)
    if isinstance(source, Iterable):
        return source
    raise TypeError(f"text must be a str or an iterable of str, not {type(source).__name__}")

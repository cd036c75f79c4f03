"""A text that grows by deltas and is settled once: message text, refusals, summaries, arguments, code, tool input.

Every such text has a pair of events, `KIND.delta` with the chunk in `delta` and `KIND.done` with the whole in a field
of its own. What the deltas said is the text: a different one given at the end is not taken, so that the concatenated
deltas, the done event, the part, the item and the final output can never disagree (W6).
"""

from collections.abc import Callable, Mapping

from protocol.builders.lifecycle import BuilderOrderError
from protocol.builders.script import Each, Event, Script


class TextRun:
    """One growing text.

    Args:
        builder: class name for error messages.
        kind: event type without its last word, for instance `response.refusal`.
        field: name of the whole text in the done event.
        settle_call: the builder's method that settles the text.
        beside: further fields of the done event.
    """

    def __init__(
        self, builder: str, kind: str, field: str, settle_call: str, beside: Mapping[str, str] | None = None
    ) -> None:
        self._builder = builder
        self._kind = kind
        self._field = field
        self.settle_call = settle_call
        self._beside = dict(beside or {})
        self._chunks: list[str] = []
        self.settled: str | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._chunks) if self.settled is None else self.settled

    def delta(self, text: str, call: str) -> Event:
        """The event for one more chunk.

        Raises:
            BuilderOrderError: the text is settled.
            TypeError: the chunk is not a str.
        """
        self._require_open(call)
        if not isinstance(text, str):
            raise TypeError(f"{self._builder}.{call}() takes a str, not {type(text).__name__}")
        self._chunks.append(text)
        return {"type": f"{self._kind}.delta", "delta": text}

    def done(self, final: str | None) -> Event:
        """The event that settles the text. `final` counts only when there was no delta.

        Raises:
            BuilderOrderError: the text is settled.
        """
        self._require_open(self.settle_call)
        self.settled = "".join(self._chunks) or final or ""
        self._chunks.clear()
        return {"type": f"{self._kind}.done", self._field: self.settled, **self._beside}

    def require_settled(self, call: str, *, unless_empty: bool = False) -> None:
        """Check that the text is settled; `unless_empty` forgives it where there was no delta at all.

        Raises:
            BuilderOrderError: it is not.
        """
        if self.settled is None and not (unless_empty and not self._chunks):
            raise BuilderOrderError(self._builder, call, f"{self.settle_call}() must come first")

    def _require_open(self, call: str) -> None:
        if self.settled is not None:
            raise BuilderOrderError(self._builder, call, f"nothing can follow {self.settle_call}()")


def whole_run(source: object, emit_delta: Callable[[str], Event], emit_done: Callable[[str], Event]) -> Script:
    """A text from its first delta to its done event; the deltas make up the whole."""
    yield Each(source, emit_delta)
    yield emit_done("")

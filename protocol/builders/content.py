"""The parts of a message: text and refusal."""

from collections.abc import Iterable, Mapping
from typing import Any

from protocol.builders.base import EventSink
from protocol.builders.part import PartBuilder
from protocol.builders.script import Event, Json
from protocol.builders.text_run import TextRun


class TextContentBuilder(PartBuilder):
    """Text of a message.

    `emit_added()` → `emit_delta()`… → `emit_text_done()` → `emit_done()`; `emit_annotation_added()` anywhere between
    the first and the last.

    Example:
        ```
        text = message.add_text_content()
        yield text.emit_added()
        yield text.emit_delta("Hel")
        yield text.emit_delta("lo")
        yield text.emit_text_done()
        yield text.emit_done()
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    _index_name = "content_index"
    _event_kind = "response.content_part"

    def __init__(self, stream: EventSink[Any], output_index: int, content_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, content_index, item_id)
        self._run = TextRun(type(self).__name__, "response.output_text", "text", "emit_text_done")
        self._annotations: list[Json] = []
        self._logprobs: list[Json] = []

    @property
    def content_index(self) -> int:
        """Zero-based place in the message's content."""
        return self._index

    @property
    def final_text(self) -> str | None:
        """The whole text, or None before `emit_text_done()`."""
        return self._run.settled

    def emit_delta(self, text: str, *, logprobs: Iterable[Mapping[str, Any]] | None = None) -> Event:
        """`response.output_text.delta`. `logprobs` are those of this chunk's tokens."""
        self._lifecycle.during("emit_delta")
        event = self._run.delta(text, "emit_delta")
        given = [_logprob(entry) for entry in logprobs or ()]
        self._logprobs.extend(given)
        return self._emit({**event, "logprobs": given})

    def emit_text_done(self, final_text: str | None = None) -> Event:
        """`response.output_text.done`. `final_text` counts only when there was no delta (W6)."""
        self._lifecycle.during("emit_text_done")
        return self._emit({**self._run.done(final_text), "logprobs": list(self._logprobs)})

    def emit_annotation_added(self, annotation: Mapping[str, Any]) -> Event:
        """`response.output_text.annotation.added`; the annotation also stands in the part and the item."""
        self._lifecycle.during("emit_annotation_added")
        index = len(self._annotations)
        self._annotations.append(dict(annotation))
        return self._emit(
            {
                "type": "response.output_text.annotation.added",
                "annotation_index": index,
                "annotation": dict(annotation),
            }
        )

    def part(self) -> Json:
        """The part as it stands now."""
        return {
            "type": "output_text",
            "text": self._run.text,
            "annotations": list(self._annotations),
            "logprobs": list(self._logprobs),
        }


class RefusalContentBuilder(PartBuilder):
    """A refusal: `emit_added()` → `emit_delta()`… → `emit_refusal_done()` → `emit_done()`.

    Example:
        ```
        refusal = message.add_refusal_content()
        yield refusal.emit_added()
        yield refusal.emit_refusal_done("I cannot help with that.")
        yield refusal.emit_done()
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    _index_name = "content_index"
    _event_kind = "response.content_part"

    def __init__(self, stream: EventSink[Any], output_index: int, content_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, content_index, item_id)
        self._run = TextRun(type(self).__name__, "response.refusal", "refusal", "emit_refusal_done")

    @property
    def content_index(self) -> int:
        """Zero-based place in the message's content."""
        return self._index

    @property
    def final_refusal(self) -> str | None:
        """The whole refusal, or None before `emit_refusal_done()`."""
        return self._run.settled

    def emit_delta(self, text: str) -> Event:
        """`response.refusal.delta`."""
        return self._emit_delta(text, "emit_delta")

    def emit_refusal_done(self, final_refusal: str) -> Event:
        """`response.refusal.done`. `final_refusal` counts only when there was no delta (W6)."""
        return self._emit_text_done(final_refusal)

    def part(self) -> Json:
        """The part as it stands now."""
        return {"type": "refusal", "refusal": self._run.text}


def _logprob(entry: Mapping[str, Any]) -> Json:
    # Typed clients read a token's bytes and its alternatives without asking whether they are there.
    whole = {"bytes": list(str(entry.get("token", "")).encode()), "top_logprobs": [], **entry}
    whole["top_logprobs"] = [
        {"bytes": list(str(other.get("token", "")).encode()), **other} for other in whole["top_logprobs"]
    ]
    return whole

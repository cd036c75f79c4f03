"""Pictures."""

from typing import Any

from protocol.builders.base import EventSink, SteppedBuilder
from protocol.builders.script import Event, Json


class OutputItemImageGenCallBuilder(SteppedBuilder):
    """The making of a picture.

    `emit_added()` → `emit_in_progress()` → `emit_generating()` → `emit_completed()` → `emit_done(result)`;
    `emit_partial_image()` any number of times before `emit_completed()`. Pictures are base64.

    Example:
        ```
        picture = stream.add_output_item_image_gen_call()
        yield picture.emit_added()
        yield picture.emit_generating()
        yield picture.emit_partial_image(preview)
        yield picture.emit_completed()
        yield picture.emit_done(image)
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    _item_type = "image_generation_call"
    _steps = (("in_progress",), ("generating",), ("completed",))

    def __init__(self, stream: EventSink[Any], output_index: int, item_id: str) -> None:
        super().__init__(stream, output_index, item_id)
        self._partials = 0

    def emit_added(self) -> Event:
        """`response.output_item.added` without a picture."""
        return self._emit_added(self._call(None, "in_progress"))

    def emit_in_progress(self) -> Event:
        """`response.image_generation_call.in_progress`."""
        return self._emit_step("in_progress")

    def emit_generating(self) -> Event:
        """`response.image_generation_call.generating`."""
        return self._emit_step("generating")

    def emit_partial_image(self, partial_image_b64: str) -> Event:
        """`response.image_generation_call.partial_image`; numbered from zero. It does not stand in the item."""
        self._guard("emit_partial_image")
        index = self._partials
        self._partials += 1
        return self._emit(
            {
                "type": "response.image_generation_call.partial_image",
                "partial_image_index": index,
                "partial_image_b64": partial_image_b64,
            }
        )

    def emit_completed(self) -> Event:
        """`response.image_generation_call.completed`."""
        return self._emit_step("completed")

    def emit_done(self, result: str) -> Event:
        """`response.output_item.done` with the picture."""
        return self._emit_done(self._call(result, "completed"))

    def _call(self, result: str | None, status: str) -> Json:
        return {"id": self.item_id, "type": "image_generation_call", "status": status, "result": result}

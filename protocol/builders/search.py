"""Searches in files and on the web."""

from collections.abc import Iterable, Mapping
from typing import Any

from protocol.builders.base import SteppedBuilder
from protocol.builders.script import Event, Json


class _SearchBuilder(SteppedBuilder):
    _steps = (("in_progress",), ("searching",), ("completed",))

    def emit_in_progress(self) -> Event:
        """`response.….in_progress`."""
        return self._emit_step("in_progress")

    def emit_searching(self) -> Event:
        """`response.….searching`."""
        return self._emit_step("searching")

    def emit_completed(self) -> Event:
        """`response.….completed`."""
        return self._emit_step("completed")


class OutputItemFileSearchCallBuilder(_SearchBuilder):
    """A search in files.

    `emit_added()` → `emit_in_progress()` → `emit_searching()` → `emit_completed()` → `emit_done()`.

    Example:
        ```
        search = stream.add_output_item_file_search_call()
        yield search.emit_added()
        yield search.emit_searching()
        yield search.emit_completed()
        yield search.emit_done(queries=["warranty"])
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    _item_type = "file_search_call"

    def emit_added(self) -> Event:
        """`response.output_item.added`."""
        return self._emit_added(self._search((), None, "in_progress"))

    def emit_done(self, *, queries: Iterable[str] = (), results: Iterable[Mapping[str, Any]] | None = None) -> Event:
        """`response.output_item.done` with what was searched for and found."""
        return self._emit_done(self._search(queries, results, "completed"))

    def _search(self, queries: Iterable[str], results: Iterable[Mapping[str, Any]] | None, status: str) -> Json:
        found = None if results is None else [dict(result) for result in results]
        return {
            "id": self.item_id,
            "type": "file_search_call",
            "status": status,
            "queries": list(queries),
            "results": found,
        }


class OutputItemWebSearchCallBuilder(_SearchBuilder):
    """A search on the web.

    `emit_added()` → `emit_in_progress()` → `emit_searching()` → `emit_completed()` → `emit_done()`.

    Example:
        ```
        search = stream.add_output_item_web_search_call()
        yield search.emit_added()
        yield search.emit_searching()
        yield search.emit_completed()
        yield search.emit_done(action={"type": "search", "query": "weather in Turin"})
        ```

    Raises:
        BuilderOrderError: a call out of order.
    """

    _item_type = "web_search_call"

    def emit_added(self) -> Event:
        """`response.output_item.added`."""
        return self._emit_added(self._search(None, "in_progress"))

    def emit_done(self, *, action: Mapping[str, Any] | None = None) -> Event:
        """`response.output_item.done`. `action` is what was done: `search`, `open_page` or `find_in_page`."""
        return self._emit_done(self._search(action, "completed"))

    def _search(self, action: Mapping[str, Any] | None, status: str) -> Json:
        return {
            "id": self.item_id,
            "type": "web_search_call",
            "status": status,
            "action": {"type": "search", "query": ""} if action is None else dict(action),
        }

"""What the handlers of several processes did, as they noted it themselves: for V9, who was in which turn when.

One JSON line when a handler is entered and one when it is left, `{what, entry, response_id, pid, at, is_recovery}`; a
killed process leaves nothing. Several processes write to one file: a short write to a file that was opened for
appending does not mix with another.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resilience import ResponseContext


@dataclass
class Entry:
    """One entry into a handler; times are Unix time, `ended` is None if its process was killed in it."""

    entry: str
    response_id: str
    pid: int
    at: float
    is_recovery: bool
    ended: float | None = None

    @property
    def span(self) -> tuple[str, float, float | None]:
        """When it was, for `assert_chain`."""
        return (self.response_id, self.at, self.ended)


@contextmanager
def noted(setting: str, context: ResponseContext) -> Iterator[str]:
    """Note that a handler is entered, and that it is left, in the file of that setting; the entry's own name."""
    path = os.environ.get(setting)
    entry = secrets.token_hex(4)
    if not path:
        yield entry
        return
    _write(path, "entered", entry, context)
    try:
        yield entry
    finally:
        _write(path, "left", entry, context)


def _write(path: str, what: str, entry: str, context: ResponseContext) -> None:
    line = {
        "what": what,
        "entry": entry,
        "response_id": context.response_id,
        "pid": os.getpid(),
        "at": time.time(),
        "is_recovery": context.is_recovery,
    }
    with Path(path).open("a") as journal:
        journal.write(json.dumps(line) + "\n")


def read_entries(path: Path) -> list[Entry]:
    """All entries, in the order in which they began."""
    entries: dict[str, Entry] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        what, entry = line.pop("what"), line["entry"]
        if what == "entered":
            entries[entry] = Entry(**line)
        else:
            entries[entry].ended = line["at"]
    return sorted(entries.values(), key=lambda each: each.at)

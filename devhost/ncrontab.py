"""NCRONTAB schedules: `{second} {minute} {hour} {day} {month} {day-of-week}`, in UTC.

Each field is `*`, a number, a name (months, days), a range, a list, or any of these with `/step`. Five fields mean
second 0. Day and day-of-week must both match. `hh:mm:ss` is a plain interval.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from devhost.config import timespan
from devhost.errors import ScheduleError

_RANGES = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY_NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_DAYS = {name: number for number, name in enumerate(_DAY_NAMES)}
_NAMES: tuple[dict[str, int], ...] = ({}, {}, {}, {}, _MONTHS, _DAYS)
# 29 February on a given weekday recurs within 40 years (28, and 12 more across a century that is no leap year).
_HORIZON = timedelta(days=41 * 366)


@dataclass(frozen=True)
class Interval:
    """Every so many seconds."""

    seconds: float

    def after(self, moment: datetime) -> datetime:
        """The next occurrence strictly after `moment`."""
        return moment + timedelta(seconds=self.seconds)


@dataclass(frozen=True)
class Crontab:
    """The values each of the six fields may take."""

    fields: tuple[frozenset[int], ...]

    def after(self, moment: datetime) -> datetime:
        """The next occurrence strictly after `moment` (aware). ScheduleError when there is none."""
        start = moment.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        for day in self._days(start):
            for hour in sorted(self.fields[2]):
                for minute in sorted(self.fields[1]):
                    for second in sorted(self.fields[0]):
                        found = day.replace(hour=hour, minute=minute, second=second)
                        if found >= start:
                            return found
        raise ScheduleError("The schedule never comes due.")

    def _days(self, start: datetime) -> Iterator[datetime]:
        day = start.replace(hour=0, minute=0, second=0)
        while day - start < _HORIZON:
            weekday = (day.weekday() + 1) % 7
            if day.day in self.fields[3] and day.month in self.fields[4] and weekday in self.fields[5]:
                yield day
            day += timedelta(days=1)


type Schedule = Interval | Crontab


def parse(text: str) -> Schedule:
    """A schedule from its text. ScheduleError when it cannot be read."""
    try:
        if ":" in text:
            return Interval(timespan(text))
        parts = text.split()
        if len(parts) == 5:
            parts = ["0", *parts]
        if len(parts) != 6:
            raise ValueError(f"{len(parts)} fields")
        return Crontab(tuple(_field(part, index) for index, part in enumerate(parts)))
    except ValueError as error:
        raise ScheduleError(f"The schedule {text!r} cannot be read: {error}.", schedule=text) from error


def _field(text: str, index: int) -> frozenset[int]:
    return frozenset(value for part in text.split(",") for value in _values(part, index))


def _values(part: str, index: int) -> range:
    low, high = _RANGES[index]
    span, _, step = part.partition("/")
    if span == "*":
        first, last = low, high
    else:
        start, dash, end = span.partition("-")
        first = _number(start, index)
        last = _number(end, index) if dash else (high if step else first)
    if not low <= first <= last <= high or (step and int(step) < 1):
        raise ValueError(f"{part!r} is outside {low}-{high}")
    return range(first, last + 1, int(step) if step else 1)


def _number(text: str, index: int) -> int:
    return _NAMES[index].get(text.lower()[:3], -1) if text.isalpha() else int(text)

"""What can stop the host from starting."""

from typing import Any


class HostError(Exception):
    """The local host cannot run this app."""

    def __init__(self, message: str = "", **data: Any) -> None:
        self.data = data
        super().__init__(message or type(self).__doc__)


class SettingError(HostError):
    """A setting is missing or cannot be read."""


class AppError(HostError):
    """The app's functions could not be indexed."""


class RouteError(HostError):
    """A route template cannot be understood."""


class ScheduleError(HostError):
    """A timer's schedule cannot be understood."""

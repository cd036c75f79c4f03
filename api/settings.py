"""What an operator may tune of the HTTP side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from resilience.options import SettingError

MAX_BODY_BYTES = "RESPONSES_MAX_BODY_BYTES"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Settings of the endpoints.

    Attributes:
        max_body_bytes: The largest request body that is read (`RESPONSES_MAX_BODY_BYTES`); a larger one is 413.
    """

    max_body_bytes: int = 16 << 20

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings of the environment over the defaults.

        Raises:
            SettingError: A value is not a positive whole number.
        """
        text = environment.get(MAX_BODY_BYTES)
        if text is None:
            return cls()
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise SettingError(MAX_BODY_BYTES, text)
        return cls(max_body_bytes=int(text))

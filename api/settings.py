"""What an operator may set of the HTTP side; each field as `RESPONSES_` and its name, access and CORS as they say."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Self

from api.access import Access, OpenLocally, access_from
from api.cors import Cors
from resilience.options import SettingError

MAX_BODY_BYTES = "RESPONSES_MAX_BODY_BYTES"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Settings of the endpoints. A limit of 0 is none; what is over one is refused before anything is stored.

    Attributes:
        max_body_bytes: The largest request body that is read; a larger one is 413. At least 1.
        max_input_items: The most items of one request's input; more are 413.
        max_runs: Runs that this instance has at a time; further requests are 429.
        max_runs_per_tenant: Runs of one tenant that this instance has at a time; further requests of it are 429.
        max_queue_depth: Background responses that wait or run anywhere; further background requests are 429.
        access: Who may come in.
        cors: Which web pages may read the answers.
    """

    max_body_bytes: int = 16 << 20
    max_input_items: int = 10_000
    max_runs: int = 2_000
    max_runs_per_tenant: int = 1_000
    max_queue_depth: int = 10_000
    access: Access = field(default_factory=OpenLocally)
    cors: Cors = field(default_factory=Cors)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings of the environment over the defaults. Access is what the environment says, and has no default.

        Raises:
            SettingError: A limit is no whole number, or too small.
            NoOrigin: What may read answers is no web page.
        """
        limits = {
            limit.name: _whole(name, environment[name])
            for limit in fields(cls)
            if limit.type is int and (name := f"RESPONSES_{limit.name.upper()}") in environment
        }
        if limits.get("max_body_bytes") == 0:
            raise SettingError(MAX_BODY_BYTES, environment[MAX_BODY_BYTES])
        cors = Cors.from_environment(environment)
        return cls(**limits, access=access_from(environment, cors.origins), cors=cors)


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise SettingError(name, text)
    return int(text)

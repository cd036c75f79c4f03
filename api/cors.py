"""Which web pages may read the answers (CORS). None, unless `RESPONSES_CORS_ORIGINS` says otherwise.

Format of the setting: origins `https://app.example.com`, separated by commas or white space, or `*` alone.
Credentials (cookies) are never allowed: a page sends its key itself. Preflights are answered before authentication,
since browsers send them without.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from protocol.errors import Forbidden

ORIGINS_SETTING = "RESPONSES_CORS_ORIGINS"
ANY = "*"
METHODS = "GET, POST, DELETE"
EXPOSED = "x-request-id, x-platform-server, retry-after"
PREFLIGHT_SECONDS = 600

_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://[a-z0-9._\-\[\]:]+", re.ASCII)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9\-_, ]{1,1000}", re.ASCII)


class NoOrigin(ValueError):
    """`RESPONSES_CORS_ORIGINS` has to hold origins such as https://app.example.com, or * alone."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


@dataclass(frozen=True, slots=True)
class Cors:
    """The pages that may read answers: their origins, or `*`."""

    origins: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Cors":
        """Read the setting.

        Raises:
            NoOrigin: One entry is none, or `*` is not alone.
        """
        text = environment.get(ORIGINS_SETTING, "")
        origins = frozenset(entry.rstrip("/").lower() for entry in re.split(r"[\s,]+", text) if entry)
        if ANY in origins and len(origins) > 1:
            raise NoOrigin
        if any(_ORIGIN.fullmatch(origin) is None for origin in origins - {ANY}):
            raise NoOrigin
        return cls(origins)

    @property
    def is_on(self) -> bool:
        return bool(self.origins)

    def headers(self, request: Request) -> dict[str, str]:
        """What every answer to that request has in addition."""
        if not self.is_on:
            return {}
        allowed = self._allowed(request)
        shared = {} if ANY in self.origins else {"Vary": "Origin"}
        if allowed is None:
            return shared
        return {**shared, "Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": EXPOSED}

    def preflight_headers(self, request: Request) -> dict[str, str]:
        """What the answer to a preflight has besides `headers`.

        Raises:
            Forbidden: That page may not.
        """
        if self._allowed(request) is None:
            raise Forbidden("This origin is not allowed.")
        headers = {"Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": str(PREFLIGHT_SECONDS)}
        asked = request.headers.get("access-control-request-headers", "")
        if _HEADER_NAMES.fullmatch(asked):
            headers["Access-Control-Allow-Headers"] = asked
        return headers

    def _allowed(self, request: Request) -> str | None:
        origin = request.headers.get("origin")
        if not origin:
            return None
        if ANY in self.origins:
            return ANY
        return origin if origin in self.origins else None

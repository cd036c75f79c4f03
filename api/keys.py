"""API keys: who sends a request with `Authorization: Bearer KEY`.

Setting `RESPONSES_API_KEYS`: entries `NAME:HASH`, separated by commas or white space; HASH is the SHA-256 of the key in
hexadecimal, so that whoever reads the settings cannot use them as keys. One name may have several keys, which is how
they are exchanged without a pause: add the new one, move the clients, take the old one out.

A key is compared with all entries, each in constant time: how long a refusal takes tells nothing of a key.

With `RESPONSES_TRUSTED_USER_HEADER` the keys are those of gateways, which name their users in that header: each user
of a gateway is a principal of its own, and a request without exactly one such header is refused.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass

from starlette.requests import Request

from api.headers import single_header
from protocol.errors import AuthenticationFailed, Forbidden

KEYS_SETTING = "RESPONSES_API_KEYS"
USER_HEADER_SETTING = "RESPONSES_TRUSTED_USER_HEADER"
MAX_USER = 256
"""Characters of a user's name in the trusted header."""

_SCHEME = "bearer"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@\-]{0,63}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-]{0,63}", re.ASCII)
_NEVER_TRUSTED = frozenset(("authorization", "cookie", "host", "origin", "user-agent", "x-request-id"))


class Misconfigured(Exception):
    """A setting about access cannot be used; the values of settings are never shown."""

    def __init__(self, setting: str, problem: str) -> None:
        self.setting = setting
        self.problem = problem
        super().__init__(f"The setting {setting} {problem}.")


def hash_of(key: str) -> str:
    """What stands for a key in the setting."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Whoever has one of the keys.

    Attributes:
        entries: (hash, name) of each key.
        user_header: The trusted header, "" for none.
    """

    entries: tuple[tuple[str, str], ...]
    user_header: str = ""

    @classmethod
    def parse(cls, text: str, user_header: str = "") -> "ApiKeys":
        """Read the settings.

        Raises:
            Misconfigured: One of them is malformed, or one key stands for two names.
        """
        if user_header and (_HEADER.fullmatch(user_header) is None or user_header.lower() in _NEVER_TRUSTED):
            raise Misconfigured(USER_HEADER_SETTING, "is not the name of a header that could name a user")
        names: dict[str, str] = {}
        entries = [entry for entry in re.split(r"[\s,]+", text) if entry]
        for number, entry in enumerate(entries, 1):
            name, _, hashed = entry.partition(":")
            hashed = hashed.lower()
            if _NAME.fullmatch(name) is None or _HASH.fullmatch(hashed) is None:
                raise Misconfigured(KEYS_SETTING, f"has a malformed entry, number {number}: it has to be NAME:SHA256")
            if names.setdefault(hashed, name) != name:
                raise Misconfigured(KEYS_SETTING, f"has one key under two names, the second in entry {number}")
        if not names:
            raise Misconfigured(KEYS_SETTING, "has no entry")
        return cls(tuple(names.items()), user_header)

    @property
    def notice(self) -> None:
        """Nothing has to be said of it at start."""

    def principal_of(self, request: Request) -> str:
        """`key:NAME`, and with a trusted header `key:NAME/user:USER`.

        Raises:
            AuthenticationFailed: No key, or none of ours.
            Forbidden: The key is right, and the trusted header is not there exactly once.
        """
        principal = f"key:{self._name_of(_presented(request))}"
        if not self.user_header:
            return principal
        user = single_header(request, self.user_header)
        if not user or len(user) > MAX_USER:
            raise Forbidden(f"The header {self.user_header} has to name one user, in at most {MAX_USER} characters.")
        return f"{principal}/user:{user}"

    def _name_of(self, key: str) -> str:
        hashed, found = hash_of(key), ""
        for known, name in self.entries:  # all of them, whichever it is
            if hmac.compare_digest(known, hashed):
                found = name
        if not key or not found:
            raise AuthenticationFailed
        return found


def _presented(request: Request) -> str:
    header = single_header(request, "authorization")
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != _SCHEME or not key.strip():
        raise AuthenticationFailed(
            "You didn't provide an API key. Provide it in an Authorization header: Authorization: Bearer YOUR_KEY."
        )
    return key.strip()

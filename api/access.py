"""Who may use this server. What is not clearly allowed is refused.

Settings:

- `RESPONSES_AUTH`: `keys` or `entra`. Without it: keys where there are some, else nobody, except on the developer's
  own machine.
- `RESPONSES_API_KEYS`, `RESPONSES_TRUSTED_USER_HEADER`: see `api.keys`.
- `WEBSITE_AUTH_ENABLED`, set by the platform: see `api.entra`.

Where nothing is configured, or anything is configured wrongly, every request but that for `/healthz` is answered with
503 and the name of the setting. Only a local host serves without: one that says of itself that it is for development
and under a loopback name, in an environment without a sign of the platform. What a client sends has no say in that.

An open local server is open to the programs of its machine, not to the web pages in its browsers: it takes no request
for a foreign host name (a page whose name was pointed at this machine) and none that comes from a foreign page.
"""

import ipaddress
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from starlette.requests import Request

from api.entra import ENABLED_SETTING, EntraId
from api.keys import KEYS_SETTING, USER_HEADER_SETTING, ApiKeys, Misconfigured
from protocol.errors import AccessNotConfigured, Forbidden

AUTH_SETTING = "RESPONSES_AUTH"
KEYS = "keys"
ENTRA = "entra"
LOCAL_PRINCIPAL = "local"

_KIND_SETTING = "AZURE_FUNCTIONS_ENVIRONMENT"
_HOST_SETTING = "WEBSITE_HOSTNAME"
# Each is there on some plan of the platform, and on no developer's machine.
_SIGNS_OF_THE_PLATFORM = ("WEBSITE_INSTANCE_ID", "WEBSITE_SITE_NAME", "WEBSITE_POD_NAME", "CONTAINER_APP_NAME")

_log = logging.getLogger("api.access")


class Access(Protocol):
    """Decides who sends a request."""

    @property
    def notice(self) -> str | None:
        """What an operator should read in the log at start."""

    def principal_of(self, request: Request) -> str:
        """A name that nobody else can have.

        Raises:
            ApiError: The request may not come in.
        """
        ...


@dataclass(frozen=True, slots=True)
class OpenLocally:
    """Every program of this machine, as one principal.

    Attributes:
        origins: Foreign pages that may come in too.
    """

    origins: Collection[str] = ()

    @property
    def notice(self) -> str:
        return (
            f"Nobody has to authenticate: {KEYS_SETTING} is not set, and this host is for local development. "
            "Whoever can reach its port can use it."
        )

    def principal_of(self, request: Request) -> str:
        """`local`.

        Raises:
            Forbidden: It is for a foreign host name, or from a foreign page.
        """
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if host and not is_loopback(host):
            raise Forbidden(f"Without {KEYS_SETTING} this server answers to the names of its own machine only.")
        if origin and origin not in self.origins and not is_loopback(origin.partition("://")[2]):
            raise Forbidden(f"Without {KEYS_SETTING} this server takes no requests from web pages.")
        return LOCAL_PRINCIPAL


@dataclass(frozen=True, slots=True)
class Closed:
    """Nobody, since it is not clear who."""

    setting: str
    problem: str

    @property
    def notice(self) -> str:
        return f"This server answers nobody: the setting {self.setting} {self.problem}."

    def principal_of(self, request: Request) -> str:
        """Raises `AccessNotConfigured`."""
        raise AccessNotConfigured(self.notice)


def access_from(environment: Mapping[str, str], origins: Collection[str] = ()) -> Access:
    """Whom the settings let in; `origins` are the pages that are named in `RESPONSES_CORS_ORIGINS`."""
    try:
        return _chosen(environment, origins)
    except Misconfigured as problem:
        return Closed(problem.setting, problem.problem)


def announce(access: Access, *, log: logging.Logger = _log) -> None:
    """Say at start what an operator should know."""
    if access.notice:
        log.warning("%s", access.notice)


def is_local(environment: Mapping[str, str]) -> bool:
    """Whether this is a host on a developer's machine. A host that does not say so is none."""
    return (
        environment.get(_KIND_SETTING, "").strip().lower() == "development"
        and is_loopback(environment.get(_HOST_SETTING, ""))
        and not any(environment.get(name) for name in _SIGNS_OF_THE_PLATFORM)
    )


def is_loopback(authority: str) -> bool:
    """Whether `HOST[:PORT]` can only mean this machine."""
    if "@" in authority:
        return False
    try:
        name = urlsplit(f"//{authority}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _chosen(environment: Mapping[str, str], origins: Collection[str]) -> Access:
    method = environment.get(AUTH_SETTING, "").strip().lower()
    keys = environment.get(KEYS_SETTING, "").strip()
    user_header = environment.get(USER_HEADER_SETTING, "").strip()
    if method not in ("", KEYS, ENTRA):
        raise Misconfigured(AUTH_SETTING, f"has to be {KEYS} or {ENTRA}")
    if method == ENTRA:
        return _entra(environment, has_keys=bool(keys or user_header))
    if keys:
        return ApiKeys.parse(keys, user_header)
    if user_header:
        raise Misconfigured(USER_HEADER_SETTING, f"needs {KEYS_SETTING}")
    if method == "" and is_local(environment):
        return OpenLocally(frozenset(origins) - {"*"})
    raise Misconfigured(KEYS_SETTING, "is not set")


def _entra(environment: Mapping[str, str], *, has_keys: bool) -> EntraId:
    if has_keys:
        raise Misconfigured(AUTH_SETTING, f"is {ENTRA}, which goes neither with {KEYS_SETTING} nor a trusted header")
    if environment.get(ENABLED_SETTING, "").strip().lower() != "true":
        raise Misconfigured(AUTH_SETTING, f"is {ENTRA}, and the platform's authentication is not on")
    return EntraId()

"""Entra ID, where the platform's authentication stands in front of the app.

The platform checks the token and puts the caller's claims into `X-MS-CLIENT-PRINCIPAL`: base64 of
`{"auth_typ": "aad", "claims": [{"typ", "val"}, …]}`. It takes such headers away from what clients send; without it
anybody could send one. They are believed only where two settings say so: the platform's own
`WEBSITE_AUTH_ENABLED=True`, and ours, `RESPONSES_AUTH=entra`.

The principal is tenant and object id, both GUIDs that never change or come back. Names and addresses do, and decide
nothing here.
"""

import base64
import binascii
import re
from typing import Any

from starlette.requests import Request

from api.headers import single_header
from protocol import jsonio
from protocol.errors import AuthenticationFailed

ENABLED_SETTING = "WEBSITE_AUTH_ENABLED"
PRINCIPAL_HEADER = "x-ms-client-principal"
PROVIDER = "aad"

_TENANT_CLAIMS = frozenset(("tid", "http://schemas.microsoft.com/identity/claims/tenantid"))
_OBJECT_CLAIMS = frozenset(("oid", "http://schemas.microsoft.com/identity/claims/objectidentifier"))
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class EntraId:
    """Whoever the platform's authentication let through."""

    @property
    def notice(self) -> None:
        """Nothing has to be said of it at start."""

    def principal_of(self, request: Request) -> str:
        """`entra:TENANT/OBJECT`.

        Raises:
            AuthenticationFailed: The platform names nobody, or not in a form that we know.
        """
        claims = _claims(single_header(request, PRINCIPAL_HEADER) or "")
        return f"entra:{_guid(claims, _TENANT_CLAIMS)}/{_guid(claims, _OBJECT_CLAIMS)}"


def _claims(header: str) -> list[Any]:
    try:
        principal = jsonio.loads(base64.b64decode(header, validate=True))
    except (binascii.Error, ValueError):
        raise _refusal() from None
    if not isinstance(principal, dict) or principal.get("auth_typ") != PROVIDER:
        raise _refusal()
    claims = principal.get("claims")
    return claims if isinstance(claims, list) else []


def _guid(claims: list[Any], names: frozenset[str]) -> str:
    """The one value of a claim, which may have a short and a long name."""
    found = {
        str(claim.get("val")).lower() for claim in claims if isinstance(claim, dict) and str(claim.get("typ")) in names
    }
    value = found.pop() if len(found) == 1 else ""
    if _GUID.fullmatch(value) is None:
        raise _refusal()
    return value


def _refusal() -> AuthenticationFailed:
    return AuthenticationFailed("Sign in with Microsoft Entra ID: the platform named no caller.")

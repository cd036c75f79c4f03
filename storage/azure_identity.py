"""The identity with which storage is used where there is no key.

What azure-identity raises carries the status of *its* endpoint, in the classes in which the clients report what storage
answers. A 404 of that endpoint is no missing row: every failure leaves here as a request that was never sent, without a
status, and is tried again as if storage could not be reached. Those tries are the only ones: the identity's own would
multiply them.

Time limits: those of `StorageSettings`, for each try.

Concurrency: a credential belongs to the event loop, or to the threads that block. Both share `Tokens`, so that a thread
finds the token with which the event loop made its last calls, and need not wait for one when it has a message to push.
"""

import math
import time
from types import TracebackType
from typing import Any, Self

from azure.core.credentials import AccessToken, AccessTokenInfo, SupportsTokenInfo, TokenRequestOptions
from azure.core.credentials_async import AsyncSupportsTokenInfo
from azure.core.exceptions import ServiceRequestError

from storage.connection import StorageSettings


class NoToken(ServiceRequestError):
    """The identity has no token for storage, at this moment at least; the reason is the `__cause__`."""

    def __init__(self) -> None:
        super().__init__(" ".join((type(self).__doc__ or "").split()))


class Tokens:
    """The newest token for each scope and tenant. For any thread."""

    def __init__(self) -> None:
        self._newest: dict[tuple[tuple[str, ...], str | None], AccessTokenInfo] = {}

    def keep(self, scopes: tuple[str, ...], options: TokenRequestOptions | None, token: AccessTokenInfo) -> None:
        self._newest[scopes, (options or {}).get("tenant_id")] = token

    def find(self, scopes: tuple[str, ...], options: TokenRequestOptions | None) -> AccessTokenInfo | None:
        """A token that is valid, also where it is time for a new one."""
        asked = options or {}
        if asked.get("claims"):
            return None  # storage has refused the one that is here
        token = self._newest.get((scopes, asked.get("tenant_id")))
        return token if token is not None and token.expires_on > time.time() else None


class Credential:
    """That of the asynchronous clients. Raises only `NoToken`."""

    def __init__(self, settings: StorageSettings, tokens: Tokens) -> None:
        self._source = _source(settings)
        self._tokens = tokens

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        try:
            token = await self._source.get_token_info(*scopes, options=options)
        except Exception as error:  # whatever it is, storage was not asked
            raise NoToken from error
        self._tokens.keep(scopes, options, token)
        return token

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **_: Any,
    ) -> AccessToken:
        """By its presence the clients know a credential; the tokens they use are of `get_token_info`."""
        info = await self.get_token_info(*scopes, options=_options(claims, tenant_id, enable_cae))
        return AccessToken(info.token, info.expires_on)

    async def close(self) -> None:
        await self._source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()


class BlockingCredential:
    """The same for the blocking clients. It asks only where the event loop has left no valid token."""

    def __init__(self, settings: StorageSettings, tokens: Tokens) -> None:
        self._source = _blocking_source(settings)
        self._tokens = tokens

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        token = self._tokens.find(scopes, options)
        if token is not None:
            return token
        try:
            token = self._source.get_token_info(*scopes, options=options)
        except Exception as error:  # whatever it is, storage was not asked
            raise NoToken from error
        self._tokens.keep(scopes, options, token)
        return token

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **_: Any,
    ) -> AccessToken:
        """By its presence the clients know a credential; the tokens they use are of `get_token_info`."""
        info = self.get_token_info(*scopes, options=_options(claims, tenant_id, enable_cae))
        return AccessToken(info.token, info.expires_on)

    def close(self) -> None:
        self._source.close()


def _options(claims: str | None, tenant_id: str | None, enable_cae: bool) -> TokenRequestOptions:
    options: TokenRequestOptions = {"enable_cae": enable_cae}
    if claims is not None:
        options["claims"] = claims
    if tenant_id is not None:
        options["tenant_id"] = tenant_id
    return options


def _source(settings: StorageSettings) -> AsyncSupportsTokenInfo:
    from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

    limits = _limits(settings.connection_timeout, settings.read_timeout)
    if settings.managed_identity:
        return ManagedIdentityCredential(client_id=settings.client_id, **limits)
    return DefaultAzureCredential(managed_identity_client_id=settings.client_id, **limits)


def _blocking_source(settings: StorageSettings) -> SupportsTokenInfo:
    from azure.identity import DefaultAzureCredential, ManagedIdentityCredential

    seconds = settings.blocking_timeout
    limits = _limits(seconds, seconds)
    if settings.managed_identity:
        return ManagedIdentityCredential(client_id=settings.client_id, **limits)
    # The command line tools of a developer's machine have a limit of their own.
    tools = {"process_timeout": math.ceil(seconds)}
    return DefaultAzureCredential(managed_identity_client_id=settings.client_id, **limits, **tools)


def _limits(connection: float, read: float) -> dict[str, Any]:
    """For the pipeline in which a token is asked for; its defaults are three more tries of five minutes each."""
    return {"connection_timeout": connection, "read_timeout": read, "retry_total": 0}

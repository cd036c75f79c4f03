"""The identity with which storage is used where there is no key.

What azure-identity raises carries the status of *its* endpoint, in the classes in which the clients report what storage
answers. A 404 of that endpoint is no missing row: every failure leaves here as a request that was never sent, without a
status, and is tried again as if storage could not be reached.
"""

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


class Credential:
    """That of the asynchronous clients. Raises only `NoToken`."""

    def __init__(self, settings: StorageSettings) -> None:
        self._source = _source(settings)

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        try:
            return await self._source.get_token_info(*scopes, options=options)
        except Exception as error:  # whatever it is, storage was not asked
            raise NoToken from error

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
    """The same for the blocking clients."""

    def __init__(self, settings: StorageSettings) -> None:
        self._source = _blocking_source(settings)

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        try:
            return self._source.get_token_info(*scopes, options=options)
        except Exception as error:  # whatever it is, storage was not asked
            raise NoToken from error

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


def _options(claims: str | None, tenant_id: str | None, enable_cae: bool) -> TokenRequestOptions:
    options: TokenRequestOptions = {"enable_cae": enable_cae}
    if claims is not None:
        options["claims"] = claims
    if tenant_id is not None:
        options["tenant_id"] = tenant_id
    return options


def _source(settings: StorageSettings) -> AsyncSupportsTokenInfo:
    from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

    if settings.managed_identity:
        return ManagedIdentityCredential(client_id=settings.client_id)
    return DefaultAzureCredential(managed_identity_client_id=settings.client_id)


def _blocking_source(settings: StorageSettings) -> SupportsTokenInfo:
    from azure.identity import DefaultAzureCredential, ManagedIdentityCredential

    if settings.managed_identity:
        return ManagedIdentityCredential(client_id=settings.client_id)
    return DefaultAzureCredential(managed_identity_client_id=settings.client_id)

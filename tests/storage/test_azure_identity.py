"""The driver with a managed identity, whose endpoint may be silent, or have no token to give."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from azure.core.credentials import AccessTokenInfo

from storage.azure import AzureDriver
from storage.azure_identity import NoToken, Tokens
from storage.connection import Endpoints, StorageSettings
from storage.driver import Delete, QueueReceipt, Update
from storage.errors import StorageUnavailable

RECEIPT = QueueReceipt("11111111-2222-3333-4444-555555555555", "AgAAAA==")
REFUSAL = b'{"statusCode": 400, "message": "No managed identity of that client id."}'
PAGE = b"<html>Bad gateway</html>"

#: Port 1 is reserved: storage answers nothing. Tokens are sent over https only.
NOWHERE = Endpoints(blob="https://127.0.0.1:1", queue="https://127.0.0.1:1", table="https://127.0.0.1:1")
SETTINGS = StorageSettings(endpoints=NOWHERE, managed_identity=True, client_id="c", retry_delay=0.01)


class IdentityEndpoint:
    """As App Service has it. Status None: it takes the request and does not answer."""

    def __init__(self, status: int | None, body: bytes) -> None:
        self.status = status
        self.body = body
        self.requests = 0
        self.released = threading.Event()

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.requests += 1
                if endpoint.status is None:
                    endpoint.released.wait(60)
                    return
                self.send_response(endpoint.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(endpoint.body)))
                self.end_headers()
                self.wfile.write(endpoint.body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/msi/token"
        finally:
            self.released.set()
            server.shutdown()
            thread.join()
            server.server_close()


@contextlib.asynccontextmanager
async def identified(
    status: int | None, body: bytes = REFUSAL, settings: StorageSettings = SETTINGS
) -> AsyncIterator[tuple[AzureDriver, IdentityEndpoint]]:
    """A driver that was prepared while there was a token."""
    endpoint = IdentityEndpoint(status, body)
    with endpoint.serve() as url, pytest.MonkeyPatch.context() as environment:
        environment.setenv("IDENTITY_ENDPOINT", url)
        environment.setenv("IDENTITY_HEADER", "secret")
        driver = AzureDriver(settings)
        driver._ready = True
        try:
            yield driver, endpoint
        finally:
            await driver.aclose()


type Call = Callable[[AzureDriver], Awaitable[object]]

CALLS: dict[str, Call] = {
    "row": lambda driver: driver.get_entity("responses", "p", "r"),
    "row deleted": lambda driver: driver.delete_entity("responses", Delete("p", "r")),
    "blob": lambda driver: driver.read_range("events", "n", 0, 10),
    "message": lambda driver: driver.delete_message("responses-work", RECEIPT),
    "preparation": lambda driver: driver.ensure(("events",), ("responses",), ("responses-work",)),
    "push": lambda driver: asyncio.to_thread(
        driver.update_message_blocking, "responses-watch", RECEIPT, delay=5, text="x"
    ),
    "pulse": lambda driver: asyncio.to_thread(driver.update_entity_blocking, "workers", Update("p", "r", {}, "e")),
}


@pytest.mark.parametrize("body", [REFUSAL, PAGE], ids=["json", "html"])
@pytest.mark.parametrize("status", [400, 404, 409, 412])
@pytest.mark.parametrize("name", CALLS)
async def test_an_answer_of_the_identity_endpoint_is_none_of_storage(name: str, status: int, body: bytes) -> None:
    async with identified(status, body) as (driver, endpoint):
        with pytest.raises(StorageUnavailable) as caught:
            await CALLS[name](driver)
        assert endpoint.requests
        assert caught.value.__cause__ is not None


def token(seconds: float) -> bytes:
    """An answer with a token that is valid for so long."""
    expires = str(int(time.time() + seconds))
    fields = {"access_token": "t", "token_type": "Bearer", "resource": "https://storage.azure.com"}
    return json.dumps(fields | {"expires_on": expires}).encode()


@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize("name", CALLS)
async def test_a_silent_identity_endpoint_holds_a_call_up_for_the_time_of_its_tries(name: str, managed: bool) -> None:
    impatient = replace(
        SETTINGS,
        managed_identity=managed,
        connection_timeout=0.5,
        read_timeout=0.5,
        blocking_timeout=0.5,
        retries=0,
    )
    with pytest.MonkeyPatch.context() as environment:
        # Of the chain that is tried where no identity is set, nothing but the endpoint.
        environment.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        async with identified(None, settings=impatient) as (driver, endpoint):
            with pytest.raises(StorageUnavailable):
                async with asyncio.timeout(10):
                    await CALLS[name](driver)
            assert endpoint.requests


@pytest.mark.parametrize("name", CALLS)
async def test_a_failing_identity_endpoint_is_asked_once_for_each_try_of_a_call(name: str) -> None:
    async with identified(500) as (driver, endpoint):
        with pytest.raises(StorageUnavailable):
            await CALLS[name](driver)
        # The preparation makes three calls at a time; a deletion of a message or of a row may be tried once only.
        assert 1 <= endpoint.requests <= (1 + SETTINGS.retries) * (3 if name == "preparation" else 1)
        if name in ("push", "pulse"):
            assert endpoint.requests == 1


async def test_a_push_uses_the_token_of_the_event_loop() -> None:
    async with identified(200, token(3600)) as (driver, endpoint):
        with pytest.raises(StorageUnavailable):
            await CALLS["message"](driver)
        assert endpoint.requests == 1
        endpoint.status = None
        for name in ("push", "pulse"):
            with pytest.raises(StorageUnavailable) as caught:
                await CALLS[name](driver)
            assert not isinstance(caught.value.__cause__, NoToken)
        assert endpoint.requests == 1


async def test_a_push_uses_a_token_for_as_long_as_it_is_valid() -> None:
    # The clients ask for a new one five minutes before.
    async with identified(200, token(60)) as (driver, endpoint):
        with pytest.raises(StorageUnavailable):
            await CALLS["message"](driver)
        endpoint.status, asked = None, endpoint.requests
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await CALLS["push"](driver)
        assert endpoint.requests == asked


async def test_a_push_fetches_a_token_in_the_place_of_an_expired_one_and_the_pulse_uses_it() -> None:
    async with identified(200, token(-1), replace(SETTINGS, retries=0)) as (driver, endpoint):
        with pytest.raises(StorageUnavailable):
            await CALLS["message"](driver)
        assert endpoint.requests == 1
        endpoint.body = token(3600)
        for name in ("push", "pulse"):
            with pytest.raises(StorageUnavailable) as caught:
                await CALLS[name](driver)
            assert not isinstance(caught.value.__cause__, NoToken)
            assert endpoint.requests == 2


def test_a_token_that_storage_refused_is_not_used_again() -> None:
    tokens, scopes = Tokens(), ("https://storage.azure.com/.default",)
    tokens.keep(scopes, None, AccessTokenInfo("t", int(time.time()) + 3600))
    assert tokens.find(scopes, {}) is not None
    assert tokens.find(scopes, {"claims": "{}"}) is None
    assert tokens.find(scopes, {"tenant_id": "another"}) is None

"""The driver with a managed identity whose endpoint is there, but has no token to give."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from storage.azure import AzureDriver
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
    "push": lambda driver: asyncio.to_thread(driver.update_message_blocking, "responses-watch", RECEIPT, delay=5),
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

"""The Python worker: `azure-functions-runtime` in this process.

The runtime keeps global state, so there is one app per process, on the event loop that loaded it. Its HTTP functions
are reached through a server of the web extension on a port of its own; the request arrives there and the invocation
arrives here, and the runtime joins the two by invocation id.
"""

import asyncio
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import azure_functions_runtime as worker  # type: ignore[import-untyped]
import uvicorn.config
from azure_functions_runtime import http_v2

from devhost import functions, messages
from devhost.errors import AppError
from devhost.functions import Function, HttpTrigger
from devhost.messages import TypedData

START_SECONDS = 20.0
# Where the extension's server listens: `messages.worker_init` says so.
HOST = "127.0.0.1"

http_coordinator = http_v2.http_coordinator

_log = logging.getLogger("devhost.runtime")


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended, and after how many seconds."""

    succeeded: bool
    seconds: float
    error: str = ""


class Runtime:
    """An indexed app. Made by `Runtime.load`, which has to run on the loop that serves the app."""

    def __init__(self, app_functions: tuple[Function, ...], http_uri: str | None) -> None:
        self.functions = app_functions
        self.http_uri = http_uri

    @classmethod
    async def load(cls, folder: Path) -> "Runtime":
        """Imports and indexes the app in `folder`. AppError when that fails."""
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        _quiet_uvicorn()
        if sys.platform == "linux":
            http_v2.get_unused_tcp_port = _hold_port
        worker.start_threadpool_executor()
        answer = await worker.worker_init_request(messages.worker_init(str(folder)))
        if answer.result.status != messages.StatusResult.Success:
            error = answer.result.exception
            raise AppError(f"The app cannot be indexed. {error.message}\n{error.stack_trace}", folder=str(folder))
        listing = await worker.functions_metadata_request(None)
        if not listing.function_metadata_results:
            raise AppError(f"{folder} holds no functions: is there a function_app.py?", folder=str(folder))
        found = tuple(
            functions.parse(item.name, item.function_id, item.raw_bindings)
            for item in listing.function_metadata_results
        )
        http_uri = answer.capabilities.get("HttpUri")
        if http_uri is not None:
            await _reachable(http_uri)
        for holder in _holders:
            holder.close()
        return cls(found, http_uri)

    async def start(self, served: tuple[Function, ...]) -> None:
        """Makes the functions that are served ready to run."""
        for function in served:
            await worker.function_load_request(messages.function_load(function.id))

    async def invoke(
        self,
        function: Function,
        invocation_id: str,
        data: TypedData,
        metadata: Mapping[str, TypedData],
        trace: tuple[str, str] = ("", ""),
    ) -> Outcome:
        """Runs a function to its end. Never raises: whatever the handler throws is an outcome."""
        request = messages.invocation(invocation_id, function.id, function.parameter, data, metadata, trace)
        begin = time.monotonic()
        try:
            answer = await worker.invocation_request(request)
        except BaseException as error:
            # The runtime lets everything but Exception through; on the platform such an invocation never answers.
            if isinstance(error, SystemExit | KeyboardInterrupt):
                raise
            if isinstance(function.trigger, HttpTrigger):
                http_coordinator.set_http_response(invocation_id, RuntimeError(repr(error)))
            return Outcome(False, time.monotonic() - begin, repr(error))
        seconds = time.monotonic() - begin
        if answer.result.status == messages.StatusResult.Success:
            return Outcome(True, seconds)
        failure: Any = answer.result.exception
        return Outcome(False, seconds, f"{failure.message}\n{failure.stack_trace}".rstrip())


def abandon(invocation_id: str) -> None:
    """Ends an invocation that waits for an HTTP request which will not come; one that has its request goes on."""
    http_coordinator.set_http_request(invocation_id, None)


_holders: list[socket.socket] = []


def _hold_port() -> int:
    """A free port for the extension's server, which nobody else is given before that server listens there.

    The runtime's own choice is free again until then, and another host that starts meanwhile may choose it too.
    """
    holder = socket.socket()
    # Both sides say so, and this one never listens: so Linux lets that server have it, and nobody who asks for any.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HOST, 0))
    _holders.append(holder)
    port: int = holder.getsockname()[1]
    return port


async def _reachable(uri: str) -> None:
    """Waits until the extension's server accepts connections. AppError after `START_SECONDS`."""
    address = urlsplit(uri)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise AppError(f"The web extension's server at {uri} does not answer.", uri=uri) from error
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return


def _quiet_uvicorn() -> None:
    """Lets the extension's server log through the root logger, and only what matters.

    It is configured with uvicorn's defaults, out of reach: these are that default's dictionaries.
    """
    uvicorn.config.LOGGING_CONFIG["handlers"].clear()
    uvicorn.config.LOGGING_CONFIG["loggers"].clear()
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_news)


def _news(record: logging.LogRecord) -> bool:
    """Whether an error of the extension's server says more than the outcome of the invocation did.

    What a handler raises is raised once more out of the extension's route; what a stream raises is not.
    """
    trace = record.exc_info[2] if record.exc_info else None
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(trace)}
    return "catch_all" not in names

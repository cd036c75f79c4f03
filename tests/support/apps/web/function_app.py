"""HTTP functions that show what a host does with requests and responses.

What happened to a request is written, line by line, to the file that `TRACE_FILE` names.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import azure.functions as func
from azurefunctions.extensions.http.fastapi import (  # type: ignore[import-untyped]
    JSONResponse,
    Request,
    Response,
    StreamingResponse,
)

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


def trace(line: str) -> None:
    """Appends a line to the trace."""
    if path := os.environ.get("TRACE_FILE"):
        with Path(path).open("a") as file:
            file.write(line + "\n")


async def on_shutdown(grace_seconds: float) -> None:
    """What a host with grace calls."""
    trace(f"on_shutdown {grace_seconds}")


@app.route(route="items/{name}/parts/{number:int}", methods=["GET", "PUT"])
async def part(req: Request) -> JSONResponse:
    """Path and query parameters."""
    return JSONResponse({"method": req.method, "path": dict(req.path_params), "query": dict(req.query_params)})


@app.route(route="items/special", methods=["GET"])
async def special(req: Request) -> JSONResponse:
    """A literal beside a parameter."""
    return JSONResponse({"path": "special"})


@app.route(route="items/{name}", methods=["GET"])
async def item(req: Request) -> JSONResponse:
    """A parameter beside a literal."""
    return JSONResponse({"path": dict(req.path_params)})


@app.route(route="echo", methods=["POST"])
async def echo(req: Request) -> Response:
    """The request body, and the headers it came with."""
    body = await req.body()
    seen = {f"seen-{name}": value for name, value in req.headers.items() if name.startswith("x-")}
    return Response(content=body, media_type=req.headers.get("content-type"), headers=seen)


@app.route(route="settings/{name}", methods=["GET"])
async def setting(req: Request) -> JSONResponse:
    """One environment variable."""
    return JSONResponse({"value": os.environ.get(req.path_params["name"])})


@app.route(route="ticks/{count:int}/{milliseconds:int}", methods=["GET"])
async def ticks(req: Request) -> StreamingResponse:
    """Server-sent events with the time at which each was produced."""
    count, pause = int(req.path_params["count"]), int(req.path_params["milliseconds"]) / 1000

    async def produce() -> AsyncIterator[bytes]:
        sent = 0
        try:
            while sent < count:
                sent += 1
                yield f"data: {time.time()}\n\n".encode()
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            trace(f"stream cancelled after {sent}")
            raise
        trace("stream ended")

    return StreamingResponse(produce(), media_type="text/event-stream", headers={"Connection": "keep-alive"})


@app.route(route="wait", methods=["GET", "POST"])
async def wait(req: Request) -> JSONResponse:
    """Waits for its client to leave, for `seconds` at most."""
    await req.body()
    trace("waiting")
    deadline = time.monotonic() + float(req.query_params.get("seconds", 30))
    while time.monotonic() < deadline:
        if await req.is_disconnected():
            trace("client left")
            break
        await asyncio.sleep(0.02)
    return JSONResponse({"waited": True})


@app.route(route="block", methods=["GET"])
async def block(req: Request) -> JSONResponse:
    """Blocks the event loop."""
    trace("blocking")
    time.sleep(float(req.query_params["seconds"]))  # noqa: ASYNC251
    return JSONResponse({})


@app.route(route="broken", methods=["GET"])
async def broken(req: Request) -> StreamingResponse:
    """A stream that breaks off."""

    async def produce() -> AsyncIterator[bytes]:
        yield b"data: first\n\n"
        await asyncio.sleep(0.05)
        raise RuntimeError("the stream breaks")

    return StreamingResponse(produce(), media_type="text/event-stream")


class Signal(BaseException):
    """Not an Exception."""


@app.route(route="raise/{kind}", methods=["GET"])
async def throw(req: Request) -> JSONResponse:
    """A handler that fails."""
    raise Signal("base") if req.path_params["kind"] == "base" else ValueError("ordinary")


@app.route(route="plain", methods=["GET"])
async def plain(req: Request) -> Response:
    """The least a handler can do."""
    return Response(content=b"ok", media_type="text/plain")


@app.queue_trigger(arg_name="message", queue_name="web-unused", connection="AzureWebJobsStorage")
async def unused(message: func.QueueMessage) -> None:
    """A function that `--only http` leaves out."""

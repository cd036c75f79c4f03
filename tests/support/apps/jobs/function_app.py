"""Queue and timer functions that do as their messages say.

A message is JSON: `{"name": …, "do": "pass" | "fail" | "hang" | "block", "seconds": …}`. What happened is written,
line by line, to the file that `TRACE_FILE` names, with the `HOST_NAME` of the host it happened in.
"""

import asyncio
import json
import os
import time
from pathlib import Path

import azure.functions as func
from azurefunctions.extensions.http.fastapi import (  # type: ignore[import-untyped]
    JSONResponse,
    Request,
)

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


def trace(*words: object) -> None:
    """Appends a line to the trace."""
    with Path(os.environ["TRACE_FILE"]).open("a") as file:
        file.write(" ".join([os.environ.get("HOST_NAME", "host"), *map(str, words)]) + "\n")


async def on_shutdown(grace_seconds: float) -> None:
    """What a host with grace calls."""
    trace("on_shutdown", grace_seconds)


@app.queue_trigger(arg_name="message", queue_name="%JOBS_QUEUE%", connection="JobsStorage")
async def job(message: func.QueueMessage) -> None:
    """One message of the work queue."""
    order = json.loads(message.get_body())
    assert message.insertion_time is not None
    assert message.expiration_time is not None
    assert message.time_next_visible is not None
    assert message.id
    assert message.pop_receipt
    trace("begin", order["name"], message.dequeue_count)
    match order["do"]:
        case "fail":
            raise RuntimeError(f"{order['name']} fails")
        case "hang":
            await asyncio.sleep(order["seconds"])
        case "block":
            time.sleep(order["seconds"])  # noqa: ASYNC251
    trace("end", order["name"], message.dequeue_count)


@app.queue_trigger(arg_name="message", queue_name="%JOBS_QUEUE%-poison", connection="JobsStorage")
async def lost(message: func.QueueMessage) -> None:
    """What the work queue gave up."""
    trace("poison", json.loads(message.get_body())["name"], message.dequeue_count)


@app.timer_trigger(arg_name="timer", schedule="%JOBS_SCHEDULE%")
async def tick(timer: func.TimerRequest) -> None:
    """A timer."""
    trace("tick", timer.past_due)


@app.route(route="ping", methods=["GET"])
async def ping(req: Request) -> JSONResponse:
    """The one HTTP function, which also answers how it sees the others."""
    names = ("job", "lost", "tick", "ping")
    return JSONResponse({name: os.environ.get(f"AzureWebJobs.{name}.Disabled") for name in names})

"""The triggers of the function app. Each calls one function elsewhere; what happens is in `api` and `resilience`.

Every route of responses stands under `/v1` and, for clients with a bare base URL, without it.
`RESPONSES_STORAGE_PREFIX` goes in front of the queues' names. All functions are asynchronous and share one event loop.
"""

import os
from collections.abc import Awaitable, Callable
from functools import partial

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response  # type: ignore[import-untyped]

from api import logs, page
from api.endpoints import Endpoints
from api.process import Process
from api.settings import ApiSettings
from storage.connection import SETTING, StorageSettings
from storage.driver import WATCH_QUEUE, WORK_QUEUE

RUN_FUNCTION = "run_response"
POISON = "-poison"

logs.configure(os.environ)
app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
process = Process(os.environ, run_function=RUN_FUNCTION)
endpoints = Endpoints(process.engine, ApiSettings.from_environment(os.environ))
endpoints.announce()
queue_name = StorageSettings.from_environment(os.environ).name

type HttpFunction = Callable[[Request], Awaitable[Response]]


async def on_shutdown(grace_seconds: float) -> None:
    """What the local host calls before it ends with grace; in Azure a worker is ended without a word."""
    await process.drain(grace_seconds)


def responses_route(method: str, path: str = "", *, of: str = "responses") -> Callable[[HttpFunction], HttpFunction]:
    """Serve a function at `/v1/responses…` and, as a second function `…_bare`, at `/responses…`."""

    def register(function: HttpFunction) -> HttpFunction:
        name = function.__name__
        for function_name, prefix in ((name, "v1/"), (f"{name}_bare", "")):
            route = app.route(route=f"{prefix}{of}{path}", methods=[method])
            app.function_name(function_name)(route(function))
        return function

    return register


conversations_route = partial(responses_route, of="conversations")


# -- HTTP -----------------------------------------------------------------------------------------------------------


@responses_route("POST")
async def create_response(req: Request) -> Response:
    return await endpoints.create_response(req)


@responses_route("GET", "/{response_id}")
async def get_response(req: Request) -> Response:
    return await endpoints.get_response(req)


@responses_route("DELETE", "/{response_id}")
async def delete_response(req: Request) -> Response:
    return await endpoints.delete_response(req)


@responses_route("POST", "/{response_id}/cancel")
async def cancel_response(req: Request) -> Response:
    return await endpoints.cancel_response(req)


@responses_route("GET", "/{response_id}/input_items")
async def list_input_items(req: Request) -> Response:
    return await endpoints.list_input_items(req)


@responses_route("POST", "/input_tokens")
async def count_input_tokens(req: Request) -> Response:
    return await endpoints.count_input_tokens(req)


@responses_route("POST", "/compact")
async def compact_items(req: Request) -> Response:
    return await endpoints.compact_items(req)


@conversations_route("POST")
async def create_conversation(req: Request) -> Response:
    return await endpoints.create_conversation(req)


@conversations_route("GET", "/{conversation_id}")
async def get_conversation(req: Request) -> Response:
    return await endpoints.get_conversation(req)


@conversations_route("POST", "/{conversation_id}")
async def update_conversation(req: Request) -> Response:
    return await endpoints.update_conversation(req)


@conversations_route("DELETE", "/{conversation_id}")
async def delete_conversation(req: Request) -> Response:
    return await endpoints.delete_conversation(req)


@conversations_route("POST", "/{conversation_id}/items")
async def create_conversation_items(req: Request) -> Response:
    return await endpoints.create_conversation_items(req)


@conversations_route("GET", "/{conversation_id}/items")
async def list_conversation_items(req: Request) -> Response:
    return await endpoints.list_conversation_items(req)


@conversations_route("GET", "/{conversation_id}/items/{item_id}")
async def get_conversation_item(req: Request) -> Response:
    return await endpoints.get_conversation_item(req)


@conversations_route("DELETE", "/{conversation_id}/items/{item_id}")
async def delete_conversation_item(req: Request) -> Response:
    return await endpoints.delete_conversation_item(req)


# Without the version the path is taken: the HTTP extension answers it itself, with a description of its own.
@app.function_name("openapi_document")
@app.route(route="v1/openapi.json", methods=["GET"])
async def openapi_document(req: Request) -> Response:
    return await endpoints.describe(req)


@app.function_name("healthz")
@app.route(route="healthz", methods=["GET"])
async def healthz(req: Request) -> Response:
    return await endpoints.is_alive(req)


@app.function_name("readyz")
@app.route(route="readyz", methods=["GET"])
async def readyz(req: Request) -> Response:
    return await endpoints.is_ready(req)


if page.is_enabled(os.environ):

    @app.function_name("page")
    @app.route(route="/", methods=["GET"])
    async def page_index(req: Request) -> Response:
        return await page.index(req)

    @app.function_name("page_file")
    @app.route(route="page/{name}", methods=["GET"])
    async def page_file(req: Request) -> Response:
        return await page.file(req)

    @responses_route("GET", "/{response_id}/timeline")
    async def get_timeline(req: Request) -> Response:
        return await endpoints.get_timeline(req)


if endpoints.answers_preflights:
    for name, paths in (("", "v1"), ("_responses", "responses"), ("_conversations", "conversations")):

        @app.function_name(f"preflight{name}")
        @app.route(route=f"{paths}/{{*path}}", methods=["OPTIONS"])
        async def preflight(req: Request) -> Response:
            return await endpoints.preflight(req)


# -- queues: an exception gives the message back to the queue ---------------------------------------------------------


def text_of(message: func.QueueMessage) -> str:
    """A message's text; bytes that are none make a text that is no message of ours."""
    return message.get_body().decode(errors="replace")


@app.function_name(RUN_FUNCTION)
@app.queue_trigger(arg_name="message", queue_name=queue_name(WORK_QUEUE), connection=SETTING)
async def run_response(message: func.QueueMessage) -> None:
    await process.engine().run_message(text_of(message))


@app.function_name("adopt_worker")
@app.queue_trigger(arg_name="message", queue_name=queue_name(WATCH_QUEUE), connection=SETTING)
async def adopt_worker(message: func.QueueMessage) -> None:
    await process.engine().watch_message(text_of(message))


@app.function_name("fail_poisoned_response")
@app.queue_trigger(arg_name="message", queue_name=queue_name(WORK_QUEUE + POISON), connection=SETTING)
async def fail_poisoned_response(message: func.QueueMessage) -> None:
    await process.engine().poison_message(text_of(message))


@app.function_name("retry_poisoned_watch")
@app.queue_trigger(arg_name="message", queue_name=queue_name(WATCH_QUEUE + POISON), connection=SETTING)
async def retry_poisoned_watch(message: func.QueueMessage) -> None:
    await process.engine().poison_watch(text_of(message))


# -- timer ----------------------------------------------------------------------------------------------------------


@app.function_name("sweep")
@app.timer_trigger(arg_name="timer", schedule="0 * * * * *")
async def sweep(timer: func.TimerRequest) -> None:
    await process.engine().sweep()


@app.function_name("expire_responses")
@app.timer_trigger(arg_name="timer", schedule="30 * * * * *")
async def expire_responses(timer: func.TimerRequest) -> None:
    await process.engine().expire()

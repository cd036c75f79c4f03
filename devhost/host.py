"""One host process: the app, its HTTP front, its listeners, its end.

Starting: settings into the environment, import and index the app, decide which functions are served, and say in the
environment which are not. Ending: SIGTERM and SIGINT end the process at once, as the platform ends a Python worker.
With `grace`, the host first stops taking requests and messages, calls the app's `async on_shutdown(grace_seconds)` if
there is one, and waits for what is running. An invocation past its time limit ends the whole process with
`TIMEOUT_EXIT`; messages being worked on are given back first, as a host does that outlives its worker.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from aiohttp import web

from devhost import config, log, ncrontab, settings
from devhost.errors import AppError
from devhost.exits import TIMEOUT_EXIT
from devhost.front import Front, invocation_id
from devhost.functions import Function, HttpTrigger, QueueTrigger, TimerTrigger
from devhost.invocations import Invocations, Running
from devhost.messages import TypedData
from devhost.options import Options, Serve
from devhost.proxy import Proxy
from devhost.routes import RouteTable
from devhost.runtime import Outcome, Runtime
from devhost.timers import Singleton, TimerListener, payload

# How long the event loop has to begin with giving messages back, and then to give all of them back.
BLOCKED_SECONDS = 3.0
RELEASE_SECONDS = 30.0
# So much of it goes to polls that are under way: one that storage does not answer must not hide the rest.
QUIET_SECONDS = 10.0
LISTEN_SECONDS = 5.0

_log = logging.getLogger("devhost")


class Listener(Protocol):
    """A queue or timer trigger at work; `ready` once it is."""

    ready: asyncio.Event

    async def listen(self) -> None:
        """Runs its function until stopped."""

    def stop(self) -> None:
        """Starts nothing new."""

    async def quiesce(self) -> None:
        """Starts nothing new, and returns when nothing new can start any more."""

    async def release(self) -> None:
        """Gives back what it works on, because this process is about to die; only when all listeners are quiet."""


@dataclass
class Host:
    """A host that has loaded its app. Use `serve`."""

    options: Options
    app_settings: settings.AppSettings
    config: config.HostConfig
    runtime: Runtime
    served: tuple[Function, ...]
    invocations: Invocations
    listeners: list[Listener] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, listening: socket.socket) -> None:
        """Serves the app on `listening`. Ends the process; does not return."""
        loop = asyncio.get_running_loop()
        # Not earlier: the extension's server has put its own handlers in place when it started. Not later: it would end
        # alone, and the host would go on and answer with errors until its last request is over.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        proxy = Proxy(self.runtime, self.invocations, self.options.idle_timeout, self.options.body_limit)
        async with proxy:
            front = self._front(proxy)
            # A handler is cancelled when its client leaves: that is how the app learns of it.
            server = web.Server(front.handle, handler_cancellation=True, access_log=None)
            runner = web.ServerRunner(server)
            await runner.setup()
            site = web.SockSite(runner, listening)
            await site.start()
            starting, stopping = asyncio.create_task(self._listen()), asyncio.create_task(self._stopping.wait())
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self.invocations.watch(lambda running: self._expired(running, loop))
                self._ready(listening.getsockname()[1])
            await stopping
            if self.options.grace > 0:
                front.draining = True
                await site.stop()
                await self._drain()
        end(0)

    def _front(self, proxy: Proxy) -> Front:
        web_functions = [function for function in self.served if isinstance(function.trigger, HttpTrigger)]
        if web_functions and self.runtime.http_uri is None:
            raise AppError("HTTP functions need azurefunctions-extensions-http-fastapi, imported by the app.")
        routes = RouteTable(web_functions, self.config.route_prefix)
        triggered = {function.name.lower(): function for function in self.served if function not in web_functions}
        homepage = (self.app_settings.get("AzureWebJobsDisableHomepage") or "").lower() not in {"true", "1"}
        return Front(proxy, routes, triggered, self._trigger, homepage)

    async def _listen(self) -> None:
        for function in self.served:
            match function.trigger:
                case QueueTrigger():
                    self._add_queue(function, function.trigger)
                case TimerTrigger() if self.options.timers:
                    self._add_timer(function, function.trigger)
        for listener in self.listeners:
            task = asyncio.create_task(self._guarded(listener))
            self._tasks.add(task)
        try:
            async with asyncio.timeout(LISTEN_SECONDS):
                await asyncio.gather(*(listener.ready.wait() for listener in self.listeners))
        except TimeoutError:
            _log.warning("Not every trigger is at work yet: is the storage there?")

    async def _guarded(self, listener: Listener) -> None:
        try:
            await listener.listen()
        except Exception:
            _log.exception("A trigger cannot be served any more.")

    def _add_queue(self, function: Function, trigger: QueueTrigger) -> None:
        # Imported here: a host that serves no queue starts without the SDK.
        from azure.storage.queue.aio import QueueClient

        from devhost.queues import POISON, QueueListener

        connection = self.app_settings.connection(self.app_settings.resolve(trigger.connection))
        name = self.app_settings.resolve(trigger.queue)

        def client(queue: str) -> QueueClient:
            return QueueClient.from_connection_string(
                connection, queue, message_encode_policy=None, message_decode_policy=None
            )

        poison = None if name.endswith(POISON) else client(name + POISON)
        listener = QueueListener(
            function,
            client(name),
            poison,
            self.config.queues,
            self.run,
            visibility=self.options.visibility,
            min_poll=self.options.min_poll,
        )
        self.listeners.append(listener)

    def _add_timer(self, function: Function, trigger: TimerTrigger) -> None:
        schedule = ncrontab.parse(self.app_settings.resolve(trigger.schedule))
        singleton = Singleton(str(self.options.app), self.app_settings.get("AzureWebJobsStorage") or "", function.name)
        self.listeners.append(
            TimerListener(function, schedule, singleton, self.run, run_on_startup=trigger.run_on_startup)
        )

    async def run(self, function: Function, data: TypedData, metadata: dict[str, TypedData]) -> Outcome:
        """Runs a queue or timer function once and logs how it ended."""
        with self.invocations.track(function.name):
            outcome = await self.runtime.invoke(function, invocation_id(), data, metadata)
        if outcome.succeeded:
            _log.info("%s succeeded, %.1f ms", function.name, 1000 * outcome.seconds)
        else:
            _log.error("%s failed, %.1f ms: %s", function.name, 1000 * outcome.seconds, outcome.error)
        return outcome

    async def _trigger(self, function: Function, text: str) -> None:
        """Runs a function on an operator's request."""
        if isinstance(function.trigger, TimerTrigger):
            await self.run(function, payload(None, None), {})
            return
        metadata = {"Id": TypedData(string=invocation_id()), "DequeueCount": TypedData(json="1")}
        await self.run(function, TypedData(string=text), metadata)

    def _ready(self, port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        for function in self.served:
            text = _describe(function, self.config.route_prefix)
            _log.info("%s: %s", function.name, self.app_settings.resolve(text))
        if self.options.ready_file is not None:
            part = self.options.ready_file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"port": port, "pid": os.getpid()}))
            part.replace(self.options.ready_file)
        log.announce(url)

    async def _drain(self) -> None:
        """Waits for the app's hook and for what is running, for no longer than the grace."""
        for listener in self.listeners:
            listener.stop()
        _log.info("Stopping: %d running, %.0f s of grace.", len(self.invocations), self.options.grace)
        hook = asyncio.create_task(self._hook())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.grace):
                # The listeners' tasks too: a message is settled only after its invocation has ended.
                await asyncio.gather(hook, self._quiesce(), self.invocations.idle(), *self._tasks)
        if len(self.invocations):
            _log.warning("%d invocations end with the process.", len(self.invocations))

    async def _quiesce(self) -> None:
        """Waits for the polls that are under way: each may still bring a message."""
        await asyncio.gather(*(listener.quiesce() for listener in self.listeners))
        _log.info("No trigger starts anything any more.")

    async def _hook(self) -> None:
        module = sys.modules.get(os.environ.get("PYTHON_SCRIPT_FILE_NAME", "function_app.py").removesuffix(".py"))
        hook: Callable[[float], Awaitable[None]] | None = getattr(module, "on_shutdown", None)
        if hook is None:
            return
        try:
            await hook(self.options.grace)
        except Exception:
            _log.exception("on_shutdown failed.")

    def _expired(self, running: Running, loop: asyncio.AbstractEventLoop) -> None:
        _log.critical("%s has run for %.1f s: the process ends.", running.function, time.monotonic() - running.since)

        begun = threading.Event()

        async def release() -> None:
            begun.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_SECONDS):
                    await asyncio.gather(*(listener.quiesce() for listener in self.listeners))
            await asyncio.gather(*(listener.release() for listener in self.listeners))

        waiting = asyncio.run_coroutine_threadsafe(release(), loop)
        try:
            # The overdue handler may block the loop: its messages come back when their time is over. A storage that
            # is slow to answer gets longer, or they would stay hidden for all of that time.
            if not begun.wait(BLOCKED_SECONDS):
                raise TimeoutError("the event loop is blocked")
            waiting.result(RELEASE_SECONDS)
        except Exception as error:
            _log.warning("Messages were not given back: %r", error)
        end(TIMEOUT_EXIT)


def _describe(function: Function, prefix: str) -> str:
    match function.trigger:
        case HttpTrigger(route, methods):
            path = "/".join(part for part in ("", prefix, route.strip("/")) if part or not prefix)
            return f"{','.join(sorted(methods)) or 'any method'} /{path.lstrip('/')}"
        case QueueTrigger(queue, _):
            return f"queue {queue}"
        case TimerTrigger(schedule, _):
            return f"timer {schedule}"


def served(
    options: Options, app_settings: settings.AppSettings, functions: tuple[Function, ...]
) -> tuple[Function, ...]:
    """The functions this host serves. The others are named in the environment as disabled, where they are not yet."""
    chosen: list[Function] = []
    for function in functions:
        web_function = isinstance(function.trigger, HttpTrigger)
        wanted = options.serve is Serve.ALL or web_function == (options.serve is Serve.HTTP)
        if not wanted:
            os.environ[f"AzureWebJobs.{function.name}.Disabled"] = "true"
        elif app_settings.disabled(function.name):
            _log.info("%s is disabled.", function.name)
        else:
            chosen.append(function)
    return tuple(chosen)


def end(code: int) -> None:
    """Ends the process at once, without running anybody's clean-up."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def listen(options: Options) -> socket.socket:
    """The socket to serve on: the one the supervisor passed down, or a new one on the loopback interface."""
    if options.listen_fd is not None:
        return socket.socket(fileno=options.listen_fd)
    return socket.create_server(("127.0.0.1", options.port), backlog=1024)


def _follow(lifeline: int) -> None:
    """Ends with the supervisor: its end of the pipe closes however it dies."""

    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


async def run(options: Options) -> None:
    """Loads and serves the app. HostError when it cannot be; otherwise ends the process."""
    if options.lifeline_fd is not None:
        _follow(options.lifeline_fd)
    app_settings = settings.load(options.app, options.settings)
    if app_settings.source is not None and app_settings.source.name == settings.EXAMPLE:
        _log.warning("There is no %s: %s is used.", settings.FILE, settings.EXAMPLE)
    host_config = _config(options)
    listening = listen(options)
    os.environ.setdefault("AZURE_FUNCTIONS_ENVIRONMENT", "Development")
    os.environ.setdefault("WEBSITE_HOSTNAME", f"localhost:{listening.getsockname()[1]}")
    os.environ.update(app_settings.values)
    runtime = await Runtime.load(options.app)
    chosen = served(options, app_settings, runtime.functions)
    await runtime.start(chosen)
    invocations = Invocations(host_config.function_timeout)
    await Host(options, app_settings, host_config, runtime, chosen, invocations).serve(listening)


def _config(options: Options) -> config.HostConfig:
    found = config.load(options.app)
    if options.function_timeout is not None:
        found = replace(found, function_timeout=options.function_timeout or None)
    if options.max_poll is not None:
        found = replace(found, queues=replace(found.queues, max_polling_interval=options.max_poll))
    return found

"""Several processes of the app in one: a fleet of hosts, each an engine with queue functions, over one account.

A `Host` plays the Functions host for its engine: it receives the messages of both queues, calls the engine, deletes a
message on success, shows it again at once on failure, and gives it to the poison function after `MAX_DEQUEUES`. Its
storage calls pass a seam of its own, so that one host alone can be slowed, cut off (`Fault`), stopped (`pause`, a
SIGSTOP) or killed (`crash`, a SIGKILL: not one storage call of it gets through any more, whatever `finally` says, and
all its connections break).

Everything of a host runs in tasks that carry its context, so that a crash finds all of them.
"""

import asyncio
import contextvars
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Self

from protocol import sse
from protocol.items import ListQuery
from protocol.requests import parse_create
from resilience.app import ResponsesApp
from resilience.context import ResponseContext
from resilience.engine import Call, Engine
from resilience.log_context import fields
from resilience.options import EngineSettings, ResponsesServerOptions
from resilience.placement import partition_key, tenant_of
from resilience.response_row import read_row
from resilience.watch_pusher import Lost, Pushes, ThreadPusher, WatchPusher
from storage.connection import Storage
from storage.driver import WATCH_QUEUE, WORK_QUEUE, QueueMessage, QueueReceipt, StorageDriver
from storage.errors import NotFound, PreconditionFailed, StorageError, StorageUnavailable
from storage.memory import MemoryDriver
from storage.rows import ResponseRow
from storage.seam import Moment, Seam
from tests.support.handlers import entry_of
from tests.support.invariants import View
from tests.support.virtual_time import LoopClock

type Json = dict[str, Any]
type Handler = Callable[[Json, ResponseContext, asyncio.Event], Any]

PRINCIPAL = "somebody"
MAX_DEQUEUES = 5
RECEIVED_AT_ONCE = 24
QUEUE_POLL_SECONDS = (0.1, 1.0)
"""From the first look after a message to the longest silence."""
MESSAGE_VISIBILITY = 600.0
PATIENCE = 120.0
"""Seconds (virtual ones cost nothing) that a test waits for something."""

_CANCEL_ROUNDS = 1_000

_host: contextvars.ContextVar["Host | None"] = contextvars.ContextVar("host", default=None)


class HostGone(Exception):
    """The connection broke: the host was killed."""


class TooLate(AssertionError):
    """It did not happen in time."""


async def until(condition: Callable[[], Any], what: str = "it", seconds: float = PATIENCE) -> Any:
    """The first truthy result of `condition`, which may be asynchronous."""
    deadline = asyncio.get_running_loop().time() + seconds
    pause = 0.01
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return result
        if asyncio.get_running_loop().time() > deadline:
            raise TooLate(f"{what} did not happen within {seconds} s")
        await asyncio.sleep(pause)
        pause = min(pause * 1.1, 0.5)


class TaskPusher:
    """A watch pusher that runs on the loop, and stops with its host."""

    def __init__(
        self,
        host: "Host",
        push: Callable[[QueueReceipt, float], QueueReceipt],
        pulse: Callable[[], None],
        receipt: QueueReceipt,
        settings: EngineSettings,
        lost: Callable[[Lost], None],
    ) -> None:
        self._host = host
        clock = asyncio.get_running_loop().time
        self._pushes = Pushes(push, pulse, receipt, settings, lost, clock)
        self._interval = settings.watch_push_interval
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="watch-pusher")

    async def stop(self) -> QueueReceipt:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        return self._pushes.receipt

    async def _run(self) -> None:
        pause: float | None = self._interval
        while pause is not None:
            await asyncio.sleep(pause)
            await self._host.passage()
            pause = self._pushes.once()


class Reader:
    """A client that reads a stream, frame by frame, in a task of its own."""

    def __init__(self, host: "Host", frames: AsyncIterator[bytes], pause: float = 0.0, after: int = -1) -> None:
        self.host = host
        self.frames: list[bytes] = []
        self.after = after
        """The cursor that it gave."""
        self.ended = False
        """True once the stream ended in order."""
        self.error: BaseException | None = None
        self._pause = pause
        self._task = host.spawn(self._read(frames), "reader")

    async def _read(self, frames: AsyncIterator[bytes]) -> None:
        try:
            async with aclosing(frames) as closing:  # type: ignore[type-var]
                async for frame in closing:
                    self.frames.append(frame)
                    if self._pause:
                        await asyncio.sleep(self._pause)
            self.ended = True
        except Exception as error:
            self.error = error

    @property
    def view(self) -> View:
        """What was read, for the judge."""
        return View(list(self.frames), self.after, self.ended)

    @property
    def events(self) -> list[Json]:
        """What was read, decoded."""
        return [sse.decode(frame) for frame in self.frames]

    @property
    def types(self) -> list[str]:
        """The event names."""
        return [sse.event_type(frame) for frame in self.frames]

    async def response_id(self) -> str:
        """The response's id, as soon as an event shows it."""
        await self.until(1)
        return str(self.events[0]["response"]["id"])

    async def until(self, frames: int) -> None:
        """Wait for so many frames."""
        await until(lambda: len(self.frames) >= frames or self._task.done(), f"frame {frames}")
        if self.error is not None:
            raise self.error
        assert len(self.frames) >= frames, f"the stream ended after {len(self.frames)} frames"

    async def whole(self, *, seconds: float = 900) -> list[bytes]:
        """All frames, to the end of the stream."""
        await until(self._task.done, "the end of the stream", seconds)
        if self.error is not None:
            raise self.error
        if not self.ended:
            raise HostGone
        return self.frames

    async def whole_view(self, *, seconds: float = 900) -> View:
        """`whole`, for the judge."""
        await self.whole(seconds=seconds)
        return self.view

    async def leave(self) -> None:
        """Close the connection."""
        self._task.cancel()
        await asyncio.wait({self._task})


class Host:
    """One process of the app."""

    def __init__(
        self,
        fleet: "Fleet",
        name: str,
        driver: StorageDriver,
        options: ResponsesServerOptions,
        settings: EngineSettings,
        threads: bool,
        line: "Callable[[StorageDriver], StorageDriver]",
    ) -> None:
        self.fleet = fleet
        self.name = name
        self.options = options
        self.settings = settings
        self.dead = False
        self.calls: list[str] = []
        """Every storage call of this host, in order."""
        self.received: Counter[str] = Counter()
        self.failures: list[Exception] = []
        """What invocations raised."""
        self.poisoned: list[str] = []
        self.invocations: set[asyncio.Task[None]] = set()
        self._receivers: list[asyncio.Task[None]] = []
        self._driver = driver
        self._threads = threads
        self._seam = Seam()
        self._seam.hooks.append(self._gate)
        self._running = asyncio.Event()
        self._running.set()
        self._crash_point: tuple[int, Moment] | None = None
        self._fault: tuple[range, Moment] | None = None
        # Calls overlap, but not those of one task.
        self._numbers: dict[asyncio.Task[Any] | None, int] = {}
        self._context = contextvars.copy_context()
        self._context.run(_host.set, self)
        self.storage = Storage.over(line(driver), self._seam)
        app = ResponsesApp(options)
        app.response_handler(self._handle)
        self.engine = Engine(
            app,
            self.storage,
            settings,
            now=fleet.now,
            pusher=self._make_pusher,
        )

    @property
    def seam(self) -> Seam:
        """Where this host's storage calls pass."""
        return self._seam

    async def _handle(self, request: Json, context: ResponseContext, cancellation_signal: asyncio.Event) -> Any:
        self.fleet.entries[context.response_id].append(Entry(self, context, request, cancellation_signal))
        result = self.fleet.handler(request, context, cancellation_signal)
        return await result if asyncio.iscoroutine(result) else result

    def _make_pusher(
        self,
        push: Callable[[QueueReceipt, float], QueueReceipt],
        pulse: Callable[[], None],
        receipt: QueueReceipt,
        settings: EngineSettings,
        lost: Callable[[Lost], None],
    ) -> WatchPusher:
        if not self._threads:
            return TaskPusher(self, push, pulse, receipt, settings, lost)

        def while_alive() -> None:
            while not self.dead and not self._running.is_set():
                time.sleep(0.02)
            if self.dead:
                raise NotFound  # the thread of a killed process ends

        def push_if_alive(newest: QueueReceipt, visibility: float) -> QueueReceipt:
            while_alive()
            return push(newest, visibility)

        def pulse_if_alive() -> None:
            while_alive()
            pulse()

        return ThreadPusher(push_if_alive, pulse_if_alive, receipt, settings, lost)

    # -- life and death ---------------------------------------------------------------------------------------------

    async def _gate(self, name: str, moment: Moment) -> None:
        task = asyncio.current_task()
        if moment == "before":
            self.calls.append(name)
            self._numbers[task] = len(self.calls)
        if self._crash_point == (self._numbers[task], moment):
            self.fleet.kill(self)
        await self.passage()
        if self._fault is not None and self._numbers[task] in self._fault[0] and moment == self._fault[1]:
            raise StorageUnavailable

    async def passage(self) -> None:
        """Returns when this host may go on; never if it is dead."""
        while self.dead or not self._running.is_set():
            if self.dead:
                await asyncio.get_running_loop().create_future()
            await self._running.wait()

    def crash_at(self, call: int, moment: Moment) -> None:
        """Kill this host right before its `call`-th storage call (from 1), or right after it was carried out."""
        self._crash_point = (call, moment)

    def fail_at(self, call: int, moment: Moment, times: int = 1) -> None:
        """Make so many storage calls fail from the `call`-th on: before they reach storage, or their replies lost."""
        self._fault = range(call, call + times), moment

    def pause(self) -> None:
        """Stop it as SIGSTOP would: nothing of it reaches storage until `resume`."""
        self._running.clear()

    def pause_at(self, operation: str) -> asyncio.Event:
        """`pause` right before the next call of that operation; the event tells when."""
        reached = asyncio.Event()

        async def stop(name: str, moment: Moment) -> None:
            if name == operation and moment == "before" and not reached.is_set():
                reached.set()
                self.pause()
                await self.passage()

        self._seam.hooks.append(stop)
        return reached

    def resume(self) -> None:
        """Let it go on where it was."""
        self._running.set()

    async def crash(self) -> None:
        """Kill it."""
        self.dead = True
        self._running.set()
        for _ in range(_CANCEL_ROUNDS):
            tasks = [task for task in asyncio.all_tasks() if task.get_context().get(_host) is self]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        raise AssertionError(f"these tasks cannot be killed: {tasks}")

    def spawn[T](self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """A task of this process."""
        return asyncio.get_running_loop().create_task(work, name=f"{self.name}:{name}", context=self._context)

    async def inside[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Call the engine as a client whose connection ends with the process.

        Raises:
            HostGone: It was killed meanwhile.
        """
        task = self.spawn(work, "call")
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled():
            raise HostGone
        return task.result()

    # -- clients ----------------------------------------------------------------------------------------------------

    async def create(
        self,
        body: Json,
        *,
        principal: str = PRINCIPAL,
        disconnected: Callable[[], Awaitable[bool]] | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> Json:
        """``POST /responses`` without ``stream``."""
        call = replace(_call(body, principal, headers, query), idempotency_key=idempotency_key)
        return await self.inside(self.engine.create(call, disconnected or _stays_connected))

    async def stream(
        self,
        body: Json,
        *,
        principal: str = PRINCIPAL,
        pause: float = 0.0,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> Reader:
        """``POST /responses`` with ``stream``; `pause` seconds after each frame make a slow reader."""
        call = replace(_call({**body, "stream": True}, principal, headers, query), idempotency_key=idempotency_key)
        return Reader(self, await self.inside(self.engine.create_stream(call)), pause)

    async def replay(
        self, response_id: str, after: int = -1, *, principal: str = PRINCIPAL, pause: float = 0.0
    ) -> Reader:
        """``GET /responses/{id}?stream=true``."""
        return Reader(self, await self.inside(self.engine.replay(principal, response_id, after)), pause, after)

    async def get(self, response_id: str, *, principal: str = PRINCIPAL) -> Json:
        """``GET /responses/{id}``."""
        return await self.inside(self.engine.get(principal, response_id))

    async def cancel(self, response_id: str, *, principal: str = PRINCIPAL) -> Json:
        """``POST /responses/{id}/cancel``."""
        return await self.inside(self.engine.cancel(principal, response_id))

    async def delete(self, response_id: str, *, principal: str = PRINCIPAL) -> None:
        """``DELETE /responses/{id}``."""
        await self.inside(self.engine.delete(principal, response_id))

    async def input_items(
        self, response_id: str, query: ListQuery | None = None, *, principal: str = PRINCIPAL
    ) -> Json:
        """``GET /responses/{id}/input_items``."""
        return await self.inside(self.engine.input_items(principal, response_id, query or ListQuery()))

    # -- the queue functions ----------------------------------------------------------------------------------------

    def serve_queues(self, *queues: str) -> Self:
        """Begin to receive messages (of both queues, unless told otherwise)."""
        for queue in queues or (WORK_QUEUE, WATCH_QUEUE):
            self._receivers.append(self.spawn(self._receive(queue), queue))
        return self

    def stop_serving(self) -> None:
        """Receive no more messages; what was received goes on."""
        for receiver in self._receivers:
            receiver.cancel()

    def serve_timer(self, interval: float = 60.0) -> Self:
        """Begin to call the timer function."""
        self.spawn(self._tick(interval), "timer")
        return self

    async def _tick(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            try:
                await self.engine.sweep()
            except Exception as error:
                self.failures.append(error)

    async def _receive(self, queue: str) -> None:
        slots = asyncio.Semaphore(RECEIVED_AT_ONCE)
        pause = QUEUE_POLL_SECONDS[0]
        while True:
            await slots.acquire()
            await self.passage()
            message = await self._driver.receive_message(queue, visibility=self.fleet.visibility)
            if message is None:
                slots.release()
                await asyncio.sleep(pause)
                pause = min(pause * 2, QUEUE_POLL_SECONDS[1])
                continue
            pause = QUEUE_POLL_SECONDS[0]
            self.received[queue] += 1
            task = self.spawn(self._invoke(queue, message), "invocation")
            self.invocations.add(task)
            task.add_done_callback(self.invocations.discard)
            task.add_done_callback(lambda _: slots.release())

    async def _invoke(self, queue: str, message: QueueMessage) -> None:
        function = self.engine.run_message if queue == WORK_QUEUE else self.engine.watch_message
        if message.dequeue_count > MAX_DEQUEUES:
            self.poisoned.append(message.text)
            function = self.engine.poison_message if queue == WORK_QUEUE else self.engine.poison_watch
        work = self.spawn(function(message.text), "function")
        receipt = message.receipt
        while not work.done():
            await asyncio.wait({work}, timeout=self.fleet.visibility / 2)
            await self.passage()
            if not work.done():
                receipt = await self._driver.update_message(queue, receipt, delay=self.fleet.visibility)
        await self.passage()
        with suppress(NotFound, PreconditionFailed):
            try:
                work.result()
            except Exception as error:
                self.failures.append(error)
                if message.dequeue_count > 2 * MAX_DEQUEUES:  # its poison message is poisoned too: nobody hears of it
                    await self._driver.delete_message(queue, receipt)
                else:
                    await self._driver.update_message(queue, receipt, delay=0)
            else:
                await self._driver.delete_message(queue, receipt)

    async def deliver(self, text: str) -> None:
        """Call the work function as if a message had been received."""
        await self.inside(self.engine.run_message(text))


class Entry:
    """One entry into the handler.

    Attributes:
        generation: the claim that led to it; who entered late may have the older one.
    """

    def __init__(self, host: Host, context: ResponseContext, request: Json, signal: asyncio.Event) -> None:
        self.host = host
        self.context = context
        self.request = request
        self.signal = signal
        self.generation = int(fields()["attempt_id"].partition("-")[0])


class Fleet:
    """Hosts over one account; made by `fleet`."""

    def __init__(self, handler: Handler, make_driver: Callable[[], StorageDriver], *, real_time: bool) -> None:
        self.handler = handler
        self.visibility = MESSAGE_VISIBILITY
        self.hosts: list[Host] = []
        self.entries: defaultdict[str, list[Entry]] = defaultdict(list)
        """The handler's entries, by response id."""
        self._make_driver = make_driver
        self._real_time = real_time
        self._killers: set[asyncio.Task[None]] = set()
        self._clock = LoopClock()
        #: To look at what is stored, through no host's seam.
        self.storage = Storage.over(make_driver())

    def now(self) -> int:
        """Unix time, by the loop."""
        return int(self._clock.now())

    def host(
        self,
        name: str = "",
        *,
        resilient: bool = True,
        queues: bool = True,
        options: ResponsesServerOptions | None = None,
        line: Callable[[StorageDriver], StorageDriver] = lambda driver: driver,
        **settings: Any,
    ) -> Host:
        """One more process; `settings` are those of `EngineSettings`, `line` may lie between engine and storage."""
        made = Host(
            self,
            name or f"host{len(self.hosts)}",
            self._make_driver(),
            options or ResponsesServerOptions(resilient_background=resilient),
            EngineSettings(**settings),
            self._real_time,
            line,
        )
        self.hosts.append(made)
        return made.serve_queues() if queues else made

    def kill(self, host: Host) -> None:
        """`Host.crash`, from within the host."""
        host.dead = True
        self._killers.add(asyncio.get_running_loop().create_task(host.crash(), context=contextvars.Context()))

    def entered(self, response_id: str) -> int:
        """How often the handler was entered for a response (V7)."""
        return len(self.entries.get(response_id, ()))

    def generation_of(self, response_id: str) -> Callable[[Json], int | None]:
        """Tells from a delta of a `Teller` under which claim its handler was entered (V5).

        The entries of a response are numbered as they come, whichever claim is the newer one.
        """

        def told(event: Json) -> int | None:
            number = entry_of(event)
            return None if number is None else self.entries[response_id][number - 1].generation

        return told

    async def row(self, response_id: str, principal: str = PRINCIPAL) -> ResponseRow | None:
        """The row as it stands."""
        return await read_row(self.storage, key_of(response_id, principal), response_id)

    async def finished(self, response_id: str, principal: str = PRINCIPAL, *, seconds: float = PATIENCE) -> ResponseRow:
        """The row once it has an outcome and no host runs the response any more."""

        async def ended() -> ResponseRow | None:
            row = await self.row(response_id, principal)
            over = row is not None and row.status in ("completed", "failed", "incomplete", "cancelled")
            held = any(response_id in host.engine.runtime.running for host in self.hosts if not host.dead)
            return row if over and not held else None

        row = await until(ended, f"the end of {response_id}", seconds)
        assert isinstance(row, ResponseRow)
        return row

    async def ids(self) -> list[str]:
        """All responses there are."""
        found = await self.storage.driver.query_entities("responses", row_key_prefix="response-")
        return [entity.row_key.removeprefix("response-") for entity in found]

    async def quiet(self, seconds: float = 1_000) -> None:
        """Wait until nobody does anything any more: no messages, no ledgers (memory only)."""
        driver = self.storage.driver
        assert isinstance(driver, MemoryDriver)
        await until(
            lambda: not any(driver.queues.values()) and not driver.tables["workers"],
            "the end of all messages and ledgers",
            seconds,
        )

    async def resting(self, seconds: float = 1_000) -> None:
        """Wait until no host has anything to do; what idle ledgers hold may still be there (memory only)."""
        driver = self.storage.driver
        assert isinstance(driver, MemoryDriver)
        await until(
            lambda: (
                not any(driver.queues.values())
                and all(host.engine.runtime.worker.rests for host in self.hosts if not host.dead)
            ),
            "the end of all messages",
            seconds,
        )

    async def close(self) -> None:
        """End all hosts."""
        for host in self.hosts:
            if not host.dead and self._real_time:
                with suppress(StorageError):
                    await host.engine.runtime.worker.stop()
            await host.crash()
            await host.storage.aclose()
        await asyncio.gather(*self._killers)
        await self.storage.aclose()


@asynccontextmanager
async def fleet(handler: Handler, make_driver: Callable[[], StorageDriver] | None = None) -> AsyncIterator[Fleet]:
    """A fleet over memory, or over what `make_driver` opens; its hosts are killed in the end."""
    shared = MemoryDriver(LoopClock())
    made = Fleet(handler, make_driver or (lambda: shared), real_time=make_driver is not None)
    try:
        yield made
    finally:
        await made.close()


def key_of(response_id: str, principal: str = PRINCIPAL) -> str:
    """The partition key of a response."""
    return partition_key(tenant_of(principal), response_id)


def start_message(response_id: str, principal: str = PRINCIPAL) -> str:
    """The text of a response's start message."""
    return json.dumps({"v": 1, "tenant": tenant_of(principal), "id": response_id})


def background(text: str = "hello", **fields: Any) -> Json:
    """The body of a background request."""
    return {"model": "m", "input": text, "background": True, **fields}


def deltas(events: Iterable[Json]) -> list[str]:
    """The text deltas among events."""
    return [event["delta"] for event in events if event["type"] == "response.output_text.delta"]


def _call(body: Json, principal: str, headers: Mapping[str, str] | None, query: Mapping[str, str] | None) -> Call:
    return Call(
        request=parse_create(json.dumps(body).encode()),
        principal=principal,
        client_headers=headers or {},
        query_parameters=query or {},
    )


async def _stays_connected() -> bool:
    return False


class Doubling:
    """A line on which the reply to one write is lost and the client repeats it: it is carried out twice.

    The second answer is the one that counts. A driver for one host; reads pass.
    """

    READS = (
        "read_",
        "blob_",
        "download_",
        "list_",
        "get_",
        "query_",
        "receive_",
        "service_",
        "ping",
        "aclose",
        "ensure",
    )

    def __init__(self, inner: StorageDriver, write: int) -> None:
        self.writes: list[str] = []
        self._inner = inner
        self._write = write

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        return call if name.startswith(self.READS) or name.endswith("_blocking") else self._doubled(name, call)

    def _doubled(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def twice(*arguments: Any, **options: Any) -> Any:
            self.writes.append(name)
            if len(self.writes) == self._write:
                await call(*arguments, **options)
            return await call(*arguments, **options)

        return twice

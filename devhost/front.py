"""The host's HTTP side: routes to functions, the host's own page, and `/admin`."""

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from devhost.functions import Function
from devhost.proxy import Proxy, failure
from devhost.routes import Match, RouteTable

_log = logging.getLogger("devhost.front")

type Trigger = Callable[[Function, str], Awaitable[None]]

_PAGE = "The local Functions host is running.\n"


@dataclass
class Front:
    """Answers every request of this host; `handle` is the handler of an aiohttp server."""

    proxy: Proxy
    routes: RouteTable
    triggered: Mapping[str, Function]
    trigger: Trigger
    homepage: bool
    draining: bool = False
    _begin: float = field(default_factory=time.monotonic)
    _tasks: set[asyncio.Future[None]] = field(default_factory=set)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request. Never raises for what a client sends."""
        if self.draining:
            return failure(503, "The host is stopping.", {"Connection": "close"})
        path = request.raw_path.partition("?")[0]
        if path.startswith("/admin/"):
            return await self._admin(request, path)
        found = self.routes.find(request.method, path)
        if isinstance(found, Match):
            return await self.proxy.forward(request, found.function, found.params)
        if found.allowed:
            allowed = ", ".join(sorted(found.allowed))
            return failure(405, f"{request.method} is not one of {allowed}.", {"Allow": allowed})
        if path == "/" and self.homepage:
            return web.Response(text=_PAGE)
        return failure(404, f"No function answers {path}.")

    async def _admin(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if path == "/admin/host/status":
            uptime = int(1000 * (time.monotonic() - self._begin))
            return web.json_response({"state": "Running", "processId": os.getpid(), "processUptime": uptime})
        name = path.removeprefix("/admin/functions/")
        function = self.triggered.get(name.lower())
        if function is None or path == name:
            return failure(404, f"The host has nothing to run at {path}.")
        if request.method != "POST":
            return failure(405, "Running a function takes POST.", {"Allow": "POST"})
        return await self._run(request, function)

    async def _run(self, request: web.BaseRequest, function: Function) -> web.StreamResponse:
        try:
            given = json.loads(await request.read() or b"{}").get("input", "")
        except (ValueError, AttributeError):
            return failure(400, 'The body must be JSON: {"input": "…"}.')
        text = given if isinstance(given, str) else json.dumps(given)
        task = asyncio.ensure_future(self.trigger(function, text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.Response(status=202)


def invocation_id() -> str:
    """A fresh id for an invocation that no HTTP request began."""
    return str(uuid.uuid4())

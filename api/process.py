"""The one engine of this process, made on first use from the environment.

Settings: `RESPONSES_AGENT` names the app that is served, `module:attribute` (default `agent:app`); the storage's and
the engine's own settings are read with it. Eager start is off where this process does not serve the queue function
that runs responses: hosts with separate instances say so by disabling the function, after the app was indexed, which
is why nothing is read before the first use.
"""

import asyncio
import importlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from api import exporting
from resilience import ResponsesApp, crash_points
from resilience.app import NoHandler
from resilience.engine import Engine
from resilience.options import EngineSettings
from resilience.storage_meter import metered
from resilience.telemetry import shared
from storage.connection import StorageSettings, open_storage

AGENT_SETTING = "RESPONSES_AGENT"
DEFAULT_AGENT = "agent:app"

if TYPE_CHECKING:
    from api.telemetry_sdk import Exporting

_log = logging.getLogger("api")


class AgentUnusable(Exception):
    """What `RESPONSES_AGENT` names is no app that can be served."""

    def __init__(self, reference: str, problem: str) -> None:
        self.reference = reference
        super().__init__(f"{AGENT_SETTING}={reference}: {problem}.")


def load_app(reference: str) -> ResponsesApp:
    """Import an app that is named as `module:attribute`.

    Raises:
        AgentUnusable: It cannot be imported, is no `ResponsesApp`, or has no handler.
    """
    module_name, separator, attribute = reference.partition(":")
    if not (separator and module_name and attribute):
        raise AgentUnusable(reference, "it has to be module:attribute, such as agent:app")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise AgentUnusable(reference, f"importing {module_name} failed, {type(error).__name__}: {error}") from error
    app = getattr(module, attribute, None)
    if not isinstance(app, ResponsesApp):
        raise AgentUnusable(reference, f"{module_name} has no ResponsesApp of the name {attribute}")
    try:
        _ = app.handler
    except NoHandler as error:
        raise AgentUnusable(reference, str(error)) from error
    return app


def is_disabled(environment: Mapping[str, str], function: str) -> bool:
    """Whether the host was told not to run a function; with underscores where names cannot have dots."""
    names = (f"AzureWebJobs{sign}{function}{sign}Disabled" for sign in (".", "_", "__"))
    return any(environment.get(name, "").strip().lower() in ("true", "1") for name in names)


class Process:
    """Makes and keeps the engine. Used on one event loop.

    Args:
        environment: The settings, read when the engine is made.
        run_function: The queue function that runs responses.
    """

    def __init__(self, environment: Mapping[str, str], *, run_function: str) -> None:
        self._environment = environment
        self._run_function = run_function
        self._made: Engine | None = None
        self._exporting: Exporting | None = None

    def engine(self) -> Engine:
        """The engine of this process.

        Raises:
            AgentUnusable: The app cannot be served.
            SettingError, ConnectionSettingsError: A setting cannot be used.
        """
        if self._made is None:
            settings = EngineSettings.from_environment(self._environment)
            if is_disabled(self._environment, self._run_function):
                settings = replace(settings, eager_start=False)
            app = load_app(self._environment.get(AGENT_SETTING) or DEFAULT_AGENT)
            self._exporting = exporting.start(self._environment)
            storage = metered(open_storage(StorageSettings.from_environment(self._environment)), shared())
            if crash_at := self._environment.get(crash_points.SETTING):
                app = crash_points.CrashAt.parse(crash_at).install(storage.seam, app)
            self._made = Engine(app, storage, settings)
        return self._made

    async def drain(self, grace: float) -> None:
        """Leave within `grace` seconds: every run ends or goes to another worker (B24).

        What telemetry there is goes after that.
        """
        if self._made is None:
            return
        try:
            async with asyncio.timeout(grace):
                await self._made.drain()
        except TimeoutError:
            _log.warning("the grace of %.0f s is over; what still runs is found through the ledger", grace)
        if self._exporting is not None:
            await self._exporting.flush()

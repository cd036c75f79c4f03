"""The one engine of a process, and the functions that are declared over it."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from api.process import AgentUnusable, Process, is_disabled, load_app
from api.settings import ApiSettings
from api.version import SERVER, VERSION
from resilience import ResponsesApp
from resilience.options import SettingError
from storage.connection import ConnectionSettingsError

ROOT = Path(__file__).resolve().parents[2]
STORAGE = {"AzureWebJobsStorage": "UseDevelopmentStorage=true"}
RUN = "run_response"


def process(**environment: str) -> Process:
    return Process({**STORAGE, **environment}, run_function=RUN)


@pytest.fixture
def write_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """Writes the module `some_agent`."""
    monkeypatch.syspath_prepend(tmp_path)
    yield (tmp_path / "some_agent.py").write_text
    sys.modules.pop("some_agent", None)


async def test_engine_is_made_once_from_the_environment() -> None:
    made = process(RESPONSES_EAGER_START="true", RESPONSES_CANCEL_GRACE="3")
    engine = made.engine()
    assert made.engine() is engine
    assert (engine.runtime.settings.eager_start, engine.runtime.settings.cancel_grace) == (True, 3)
    assert engine.runtime.app is load_app("agent:app")
    await engine.close()


async def test_named_agent_is_served(write_agent: Callable[[str], object]) -> None:
    write_agent(
        "from resilience import ResponsesApp\n"
        "served = ResponsesApp()\n"
        "@served.response_handler\n"
        "async def handler(request, context, cancellation_signal):\n"
        "    return []\n"
    )
    engine = process(RESPONSES_AGENT="some_agent:served").engine()
    assert engine.runtime.app is importlib.import_module("some_agent").served
    await engine.close()


async def test_eager_start_is_off_where_the_run_function_is_disabled_later() -> None:
    environment = {**STORAGE, "RESPONSES_EAGER_START": "true"}
    made = Process(environment, run_function=RUN)
    environment["AzureWebJobs.run_response.Disabled"] = "true"
    engine = made.engine()
    assert engine.runtime.settings.eager_start is False
    await engine.close()


@pytest.mark.parametrize("name", ["AzureWebJobs.f.Disabled", "AzureWebJobs_f_Disabled", "AzureWebJobs__f__Disabled"])
@pytest.mark.parametrize(
    ("value", "disabled"), [("true", True), ("1", True), ("True", True), ("false", False), ("", False)]
)
def test_disabled_functions_are_recognised(name: str, value: str, disabled: bool) -> None:
    assert is_disabled({name: value}, "f") is disabled
    assert is_disabled({name: value}, "g") is False


@pytest.mark.parametrize(
    ("source", "reference", "problem"),
    [
        (None, "some_agent", "module:attribute"),
        (None, ":app", "module:attribute"),
        (None, "there_is_no_such_module:app", "importing there_is_no_such_module failed"),
        ("raise ValueError('broken at import')", "some_agent:app", "ValueError: broken at import"),
        ("", "some_agent:app", "no ResponsesApp of the name app"),
        ("app = 1", "some_agent:app", "no ResponsesApp of the name app"),
        ("from resilience import ResponsesApp\napp = ResponsesApp()", "some_agent:app", "no handler"),
    ],
)
def test_agent_that_cannot_be_served_is_named_with_the_reason(
    write_agent: Callable[[str], object], source: str | None, reference: str, problem: str
) -> None:
    if source is not None:
        write_agent(source)
    with pytest.raises(AgentUnusable, match=problem) as caught:
        load_app(reference)
    assert str(caught.value).startswith(f"RESPONSES_AGENT={reference}: ")


def test_unusable_settings_stop_the_engine() -> None:
    with pytest.raises(SettingError, match="RESPONSES_CANCEL_GRACE"):
        process(RESPONSES_CANCEL_GRACE="long").engine()
    with pytest.raises(ConnectionSettingsError):
        Process({}, run_function=RUN).engine()


@pytest.mark.parametrize("text", ["", "0", "-1", "1e6", "16 MiB", "²"])
def test_body_limit_has_to_be_a_positive_number(text: str) -> None:
    with pytest.raises(SettingError, match="RESPONSES_MAX_BODY_BYTES"):
        ApiSettings.from_environment({"RESPONSES_MAX_BODY_BYTES": text})


def test_body_limit_comes_from_the_environment() -> None:
    assert ApiSettings.from_environment({}).max_body_bytes == 16 * 1024 * 1024
    assert ApiSettings.from_environment({"RESPONSES_MAX_BODY_BYTES": "1000"}).max_body_bytes == 1000


async def test_drain_without_an_engine_makes_none() -> None:
    await Process({}, run_function=RUN).drain(1)


def test_version_is_that_of_the_project() -> None:
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()
    assert f"resilient-responses/{VERSION}" == SERVER


@pytest.fixture
def function_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The function app, declared under a prefix."""
    for name, value in {**STORAGE, "RESPONSES_STORAGE_PREFIX": "abc"}.items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("function_app", None)
    yield importlib.import_module("function_app")
    sys.modules.pop("function_app", None)


def triggers(function_app: ModuleType) -> dict[str, Mapping[str, Any]]:
    """The trigger of each function, by its name."""
    found = function_app.app.get_functions()
    return {function.get_function_name(): function.get_trigger().get_dict_repr() for function in found}


def test_every_endpoint_is_a_route_with_and_without_the_version(function_app: ModuleType) -> None:
    routes = {
        (method.value, trigger["route"])
        for trigger in triggers(function_app).values()
        if trigger["type"] == "httpTrigger"
        for method in trigger["methods"]
    }
    endpoints = {
        ("POST", "responses"),
        ("GET", "responses/{response_id}"),
        ("DELETE", "responses/{response_id}"),
        ("POST", "responses/{response_id}/cancel"),
        ("GET", "responses/{response_id}/input_items"),
        ("POST", "responses/input_tokens"),
        ("POST", "responses/compact"),
        ("POST", "conversations"),
        ("GET", "conversations/{conversation_id}"),
        ("POST", "conversations/{conversation_id}"),
        ("DELETE", "conversations/{conversation_id}"),
        ("POST", "conversations/{conversation_id}/items"),
        ("GET", "conversations/{conversation_id}/items"),
        ("GET", "conversations/{conversation_id}/items/{item_id}"),
        ("DELETE", "conversations/{conversation_id}/items/{item_id}"),
    }
    versioned = {(method, f"v1/{route}") for method, route in endpoints}
    assert routes == endpoints | versioned | {("GET", "v1/openapi.json"), ("GET", "healthz"), ("GET", "readyz")}


def test_queue_functions_respect_the_prefix(function_app: ModuleType) -> None:
    queues = {
        name: (trigger["queueName"], trigger["connection"])
        for name, trigger in triggers(function_app).items()
        if trigger["type"] == "queueTrigger"
    }
    assert queues == {
        "run_response": ("abcresponses-work", "AzureWebJobsStorage"),
        "adopt_worker": ("abcresponses-watch", "AzureWebJobsStorage"),
        "fail_poisoned_response": ("abcresponses-work-poison", "AzureWebJobsStorage"),
        "retry_poisoned_watch": ("abcresponses-watch-poison", "AzureWebJobsStorage"),
    }


def test_the_sweep_runs_every_minute(function_app: ModuleType) -> None:
    assert triggers(function_app)["sweep"]["schedule"] == "0 * * * * *"


def test_the_example_agent_is_an_app() -> None:
    assert isinstance(load_app("agent:app"), ResponsesApp)

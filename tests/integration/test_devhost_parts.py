"""The local host's pure parts: schedules, routes, settings, host.json."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from devhost import config, ncrontab, settings
from devhost.errors import RouteError, ScheduleError, SettingError
from devhost.functions import Function, HttpTrigger
from devhost.routes import Match, NoMatch, RouteTable


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("0 * * * * *", "2026-01-01T00:00:00", "2026-01-01T00:01:00"),
        ("*/30 * * * * *", "2026-01-01T00:00:00", "2026-01-01T00:00:30"),
        ("*/30 * * * * *", "2026-01-01T00:00:30.5", "2026-01-01T00:01:00"),
        ("0 */5 * * * *", "2026-01-01T00:57:00", "2026-01-01T01:00:00"),
        ("0 30 9 * * Mon-Fri", "2026-01-02T09:30:00", "2026-01-05T09:30:00"),
        ("0 0 0 1 jan,Jul *", "2026-01-01T00:00:00", "2026-07-01T00:00:00"),
        ("0 0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 0 29 2 0", "2032-03-01T00:00:00", "2060-02-29T00:00:00"),
        ("15 10/20 8-9 * * *", "2026-01-01T08:50:15", "2026-01-01T09:10:15"),
        ("*/10 * * * *", "2026-01-01T00:00:00", "2026-01-01T00:10:00"),
        ("00:00:45", "2026-01-01T00:00:00", "2026-01-01T00:00:45"),
    ],
)
def test_a_schedule_gives_its_next_occurrence(schedule: str, after: str, expected: str) -> None:
    assert ncrontab.parse(schedule).after(moment(after)) == moment(expected)


@pytest.mark.parametrize(
    "schedule", ["", "* * *", "60 * * * * *", "* * * 0 * *", "*/0 * * * * *", "5-1 * * * * *", "x"]
)
def test_a_schedule_that_makes_no_sense_is_refused(schedule: str) -> None:
    with pytest.raises(ScheduleError):
        ncrontab.parse(schedule)


def test_a_schedule_that_never_comes_due_is_refused() -> None:
    with pytest.raises(ScheduleError):
        ncrontab.parse("0 0 0 31 2 *").after(moment("2026-01-01T00:00:00"))


def table(*routes: str, prefix: str = "", methods: tuple[str, ...] = ("GET",)) -> RouteTable:
    triggers = [HttpTrigger(route, frozenset(methods)) for route in routes]
    return RouteTable([Function(trigger.route, trigger.route, trigger, "req") for trigger in triggers], prefix)


@pytest.mark.parametrize(
    ("path", "route", "params"),
    [
        ("/v1/things", "v1/things", {}),
        ("/V1/Things/", "v1/things", {}),
        ("/v1/things/a%2Fb", "v1/things/{id}", {"id": "a/b"}),
        ("/v1/things/a/b", None, {}),
        ("/n/12", "n/{number:int}", {"number": "12"}),
        ("/n/x", "n/{word}", {"word": "x"}),
        ("/maybe", "maybe/{value?}", {}),
        ("/maybe/1", "maybe/{value?}", {"value": "1"}),
        ("/files/a/b.txt", "files/{*rest}", {"rest": "a/b.txt"}),
        ("/files/index", "files/index", {}),
        ("/v1/things/a.b", "v1/things/{id}", {"id": "a.b"}),
        ("/", None, {}),
    ],
)
def test_a_path_finds_its_route(path: str, route: str | None, params: dict[str, str]) -> None:
    routes = table(
        "files/{*rest}", "n/{word}", "n/{number:int}", "maybe/{value?}", "v1/things/{id}", "v1/things", "files/index"
    )
    found = routes.find("GET", path)
    if route is None:
        assert found == NoMatch()
    else:
        assert isinstance(found, Match)
        assert (found.function.name, found.params) == (route, params)


def test_the_prefix_belongs_to_every_route_and_an_empty_route_is_the_prefix() -> None:
    routes = table("thing", "", prefix="api")
    assert isinstance(routes.find("GET", "/api/thing"), Match)
    assert isinstance(routes.find("GET", "/api"), Match)
    assert routes.find("GET", "/thing") == NoMatch()


def test_a_wrong_method_lists_the_right_ones() -> None:
    assert table("thing", methods=("PUT", "GET")).find("POST", "/thing") == NoMatch(frozenset({"GET", "PUT"}))


@pytest.mark.parametrize("route", ["a{b}c", "{a:regex(x)}", "{a:decimal}"])
def test_a_route_segment_this_host_cannot_read_is_refused(route: str) -> None:
    with pytest.raises(RouteError):
        table(route)


def test_expressions_take_settings_and_name_what_is_missing() -> None:
    app = settings.AppSettings({"A": "x", "B": "y"}, None)
    assert app.resolve("%A%-%B%-z") == "x-y-z"
    with pytest.raises(SettingError, match="%C%"):
        app.resolve("%C%")


def test_local_storage_is_spelled_out() -> None:
    app = settings.AppSettings({"AzureWebJobsStorage": "UseDevelopmentStorage=true"}, None)
    assert "QueueEndpoint=http://127.0.0.1:10001/devstoreaccount1;" in app.connection("")
    assert settings.AppSettings({"AzureWebJobsOther": "x"}, None).connection("Other") == "x"
    with pytest.raises(SettingError):
        app.connection("Missing")


@pytest.mark.parametrize("content", ["{", "[]", '{"Values": []}', '{"IsEncrypted": true, "Values": {}}'])
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "local.settings.json").write_text(content)
    with pytest.raises(SettingError):
        settings.load(tmp_path, {})


def host_json(folder: Path, content: object) -> config.HostConfig:
    (folder / "host.json").write_text(json.dumps(content))
    return config.load(folder)


def test_host_json_has_the_platforms_defaults(tmp_path: Path) -> None:
    found = host_json(tmp_path, {"version": "2.0"})
    assert (found.route_prefix, found.function_timeout) == ("api", 1800)
    assert found.queues == config.QueueRules(16, 8, 5, 0, 60, True)


def test_host_json_is_obeyed(tmp_path: Path) -> None:
    queues = {
        "batchSize": 32,
        "maxDequeueCount": 2,
        "visibilityTimeout": "00:00:30",
        "maxPollingInterval": "00:00:01.5",
        "messageEncoding": "none",
    }
    extensions = {"http": {"routePrefix": ""}, "queues": queues}
    found = host_json(tmp_path, {"functionTimeout": "01:02:03", "extensions": extensions})
    assert (found.route_prefix, found.function_timeout) == ("", 3723)
    assert found.queues == config.QueueRules(32, 16, 2, 30, 1.5, False)
    assert host_json(tmp_path, {"functionTimeout": "-1"}).function_timeout is None


@pytest.mark.parametrize("queues", [{"batchSize": 33}, {"visibilityTimeout": "soon"}, {"maxDequeueCount": "x"}])
def test_host_json_that_makes_no_sense_is_refused(tmp_path: Path, queues: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        host_json(tmp_path, {"extensions": {"queues": queues}})
    with pytest.raises(SettingError):
        config.load(tmp_path / "nowhere")


def test_timespans_count_days(tmp_path: Path) -> None:
    assert config.timespan("1.02:00:00.5") == 86400 + 7200.5

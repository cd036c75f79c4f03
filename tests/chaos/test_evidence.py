"""The logs of hosts, read."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from api.logs import JsonFormatter
from resilience.log_context import bound
from tests.chaos.agent import handler
from tests.chaos.evidence import ATTEMPT, ENTERED, LEFT, LEFT_AT_SHUTDOWN, Evidence, Line, read_lines
from tests.support.engines import background, fleet, until
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop
AGENT: Any = handler


def logged(message: str, at: float = 0.0, **ids: str) -> str:
    record = logging.LogRecord("chaos", logging.INFO, "", 0, message, (), None)
    record.created = at
    with bound(**ids):
        return JsonFormatter().format(record)


def test_the_lines_of_a_log_are_read_with_what_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "queue-3-77.log"
    path.write_text(
        "\n".join(
            [
                "CRASH_AT=event:after:12",
                "06:48:48.898 WARNING devhost: There is no local.settings.json.",
                logged(ENTERED.format("ab12"), 12.5, response_id="resp_1", attempt_id="2-w9"),
                '{"time": "1970-01-01T00:00:13.000+00:00", "mess',
            ]
        )
    )
    assert list(read_lines(path)) == [Line(12.5, 77, ENTERED.format("ab12"), "resp_1", "2-w9")]
    claim = Evidence.read(tmp_path).entries["ab12"]
    assert (claim.pid, claim.generation, claim.worker) == (77, 2, "w9")


def test_takeovers_are_told_by_the_function_that_was_at_work() -> None:
    def dead(at: float, pid: int) -> Line:
        return Line(at, pid, f"worker w{at:.0f} is dead: 1 open entries")

    evidence = Evidence(
        [
            *(dead(10.1, 1), Line(10.2, 1, "adopt_worker succeeded, 150.0 ms")),
            *(dead(20.1, 2), Line(20.3, 2, "sweep succeeded, 250.0 ms")),
            *(dead(30.1, 3), Line(30.2, 4, "adopt_worker succeeded, 150.0 ms")),
            Line(40.0, 5, "worker w1 was declared dead by another; its 1 runs are no longer its own"),
            Line(41.0, 5, "response resp_1: storage refused an append of generation 1 at 30"),
            Line(42.0, 5, "response resp_1: storage refused a status write of generation 1"),
            *(Line(43.0, 5, LEFT.format("aa")), Line(44.0, 5, LEFT_AT_SHUTDOWN.format("bb"))),
        ]
    )
    assert evidence.counts() == {
        "take-overs by watch message": 1,
        "take-overs by sweep": 1,
        "take-overs by nobody knows": 1,
        "appends refused": 1,
        "status writes refused": 1,
        "entries left at a shutdown": 1,
    }


async def test_the_words_of_the_engine_are_understood(caplog: pytest.LogCaptureFixture) -> None:
    """They are no interface: when they change, nothing would be excused any more."""
    caplog.set_level(logging.INFO)
    async with fleet(AGENT) as hosts:
        one = hosts.host(cancel_poll_interval=3600)  # or it could read of the other before it is refused
        script = json.dumps({"count": 6, "delay": 2.0})
        response_id = (await one.create(background(script, stream=True)))["id"]
        await until(lambda: hosts.entries[response_id], "the handler")
        worker = one.engine.runtime.worker.id
        assert worker is not None
        one.stop_serving()
        hosts.host()
        await hosts.storage.watch.send(worker, delay=0)
        await until(lambda: len(hosts.entries[response_id]) == 2, "the other's entry")
        dead = Evidence(Line(record.created, 2, record.getMessage()) for record in caplog.records)
        assert list(dead.deaths) == [worker]
        assert dead.counts() == {"entries left at a shutdown": 0, "take-overs by nobody knows": 1}
        await one.create({"model": "m", "input": script})
        await hosts.finished(response_id)
    evidence = Evidence(Line(record.created, 1, record.getMessage()) for record in caplog.records)
    assert [each.generation for each in evidence.refusals[response_id]] == [1]
    assert worker in evidence.workers(1)
    assert len(evidence.entries) == 3


def test_the_number_of_an_attempt_is_read() -> None:
    evidence = Evidence([Line(1.0, 7, ATTEMPT.format(3), "resp_1", "4-w1"), Line(2.0, 7, ATTEMPT.format(1), "x", "1")])
    assert [(each.number, each.generation, each.worker) for each in evidence.attempts["resp_1"]] == [(3, 4, "w1")]
    assert evidence.attempts["x"][0].worker == ""

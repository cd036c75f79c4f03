"""What telemetry costs a run of 2,000 deltas in the foreground: next to nothing, with an SDK as without."""

import asyncio
import gc
import time

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from resilience.telemetry import Telemetry, shared
from tests.support.engines import Host, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

DELTAS = 2_000
ROUNDS = 5
MOST_ROUNDS = 40
MOST = 1.15


async def seconds(host: Host, telemetry: Telemetry) -> float:
    """Processor time of one streamed response, that of an SDK's threads included."""
    host.engine.runtime.telemetry = telemetry
    gc.collect()
    began = time.process_time()
    await (await host.stream({"input": "hi", "store": False})).whole()
    await asyncio.sleep(0)
    return time.process_time() - began


async def test_two_thousand_deltas_take_no_longer_with_an_sdk_than_without() -> None:
    """The best of several rounds, taken in turns: other load of the machine meets both alike.

    Either best only comes down to what it really takes: where one of them has had no undisturbed round yet, more
    rounds tell.
    """
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(exporter))
    active = Telemetry(tracers, MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False))
    without: list[float] = []
    with_sdk: list[float] = []
    async with fleet(Teller(DELTAS)) as hosts:
        host = hosts.host()
        await seconds(host, shared())
        while len(without) < ROUNDS or (_ratio(with_sdk, without) >= MOST and len(without) < MOST_ROUNDS):
            without.append(await seconds(host, shared()))
            with_sdk.append(await seconds(host, active))
    tracers.force_flush()
    tracers.shutdown()
    assert len(exporter.get_finished_spans()) == 2 * len(with_sdk)  # of each response its root and its run
    assert _ratio(with_sdk, without) < MOST, (with_sdk, without)


def _ratio(these: list[float], those: list[float]) -> float:
    return min(these) / min(those)

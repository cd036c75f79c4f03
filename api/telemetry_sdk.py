"""The OpenTelemetry SDK, set up as `api.exporting` describes; imported only where something is exported.

Everything is recorded unless `OTEL_TRACES_SAMPLER` says otherwise. The SDK's own default follows the flag of the
caller's trace, and the Functions host may hand traces down as not sampled: every run would be missing.

The web extension's framework traces requests by itself, three spans for each, under the one route that it knows. The
host has the same with the real names, so they are left out, and its numbers too.
"""

import asyncio
import logging
from collections.abc import Mapping

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from api.exporting import INSIGHTS_SETTING, OTLP_SETTING
from api.version import VERSION

IDENTITY_SETTING = "APPLICATIONINSIGHTS_AUTHENTICATION_STRING"
SAMPLER_SETTING = "OTEL_TRACES_SAMPLER"

LEFT_OUT = "fastapi"
"""The instrumentation scope of the web extension's framework."""

FLUSH_SECONDS = 5.0
"""The longest that the end of a process waits for its telemetry."""

_log = logging.getLogger("api.telemetry")

type Exporters = tuple[SpanExporter, MetricExporter]


class MalformedIdentity(ValueError):
    """`APPLICATIONINSIGHTS_AUTHENTICATION_STRING` is not a list of Name=value, separated by semicolons."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class OwnSpans(BatchSpanProcessor):
    """Sends all spans in batches but those of the web extension's framework."""

    def on_end(self, span: ReadableSpan) -> None:
        if span.instrumentation_scope is None or span.instrumentation_scope.name != LEFT_OUT:
            super().on_end(span)


class Exporting:
    """Providers that export."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider) -> None:
        self.tracers = tracers
        self.meters = meters

    def install(self) -> None:
        """Make them those of the whole process."""
        trace.set_tracer_provider(self.tracers)
        metrics.set_meter_provider(self.meters)

    async def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send what waits, for so long at most."""
        milliseconds = int(seconds * 1000)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(
                    asyncio.to_thread(self.tracers.force_flush, milliseconds),
                    asyncio.to_thread(self.meters.force_flush, milliseconds),
                )
        except TimeoutError:
            _log.warning("telemetry was not sent within %.1f s", seconds)

    def stop(self) -> None:
        """Send what waits and end; blocks."""
        self.tracers.shutdown()
        self.meters.shutdown()


def make(environment: Mapping[str, str]) -> Exporting:
    """Providers that export as configured; they are not installed.

    Raises:
        ImportError: A package is missing.
        ValueError: A setting cannot be used.
    """
    exporters = [pair for pair in (_insights(environment), _otlp(environment)) if pair is not None]
    resource = _resource(environment)
    sampler = None if environment.get(SAMPLER_SETTING, "").strip() else ALWAYS_ON
    tracers = TracerProvider(sampler=sampler, resource=resource)
    for spans, _ in exporters:
        tracers.add_span_processor(OwnSpans(spans))
    readers = [PeriodicExportingMetricReader(numbers) for _, numbers in exporters]
    views = [View(meter_name=LEFT_OUT, aggregation=DropAggregation())]
    return Exporting(tracers, MeterProvider(readers, resource=resource, views=views))


def identity(environment: Mapping[str, str]) -> str | None:
    """The client id of the managed identity that Application Insights knows this server by.

    "" for the system-assigned one, None for the connection string's key.

    Raises:
        MalformedIdentity: The setting cannot be read.
    """
    parts = [part.partition("=") for part in environment.get(IDENTITY_SETTING, "").split(";") if part.strip()]
    if not all(separator for _, separator, _ in parts):
        raise MalformedIdentity
    values = {name.strip().lower(): value.strip() for name, _, value in parts}
    if values.get("authorization", "").upper() != "AAD":
        return None
    return values.get("clientid", "")


def _insights(environment: Mapping[str, str]) -> Exporters | None:
    connection = environment.get(INSIGHTS_SETTING, "").strip()
    if not connection:
        return None
    from azure.identity import ManagedIdentityCredential
    from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter, AzureMonitorTraceExporter

    found = identity(environment)
    credential = None if found is None else ManagedIdentityCredential(client_id=found or None)
    return (
        AzureMonitorTraceExporter(connection_string=connection, credential=credential),
        AzureMonitorMetricExporter(connection_string=connection, credential=credential),
    )


def _otlp(environment: Mapping[str, str]) -> Exporters | None:
    base = environment.get(OTLP_SETTING, "").strip().rstrip("/")
    if not base:
        return None
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{base}/v1/traces"), OTLPMetricExporter(endpoint=f"{base}/v1/metrics")


def _resource(environment: Mapping[str, str]) -> Resource:
    """Who sends it: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over what the platform says."""
    given = Resource.create()
    own = {
        "service.name": environment.get("WEBSITE_SITE_NAME") or "resilient-responses",
        "service.version": VERSION,
        "service.instance.id": environment.get("WEBSITE_INSTANCE_ID", ""),
    }
    if not str(given.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        del own["service.name"]
    return given.merge(Resource({name: value for name, value in own.items() if value}))

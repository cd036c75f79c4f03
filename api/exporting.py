"""Where telemetry goes: the OpenTelemetry SDK and its exporters, if they are configured.

- `APPLICATIONINSIGHTS_CONNECTION_STRING`: Application Insights. `APPLICATIONINSIGHTS_AUTHENTICATION_STRING`
  (`Authorization=AAD`, with `ClientId=…` for a user-assigned identity) in place of the key, where keys are refused.
- `OTEL_EXPORTER_OTLP_ENDPOINT`: any collector, by OTLP over HTTP; the base address, `/v1/traces` and `/v1/metrics` are
  added. The further `OTEL_…` settings mean what they do everywhere; `OTEL_SDK_DISABLED` turns all of it off.

Both at once is fine. With neither nothing is imported, and the engine's calls are no-ops. Spans and metrics leave from
threads of their own, in batches: never in the path of a request, and never waited for by one. A process that is killed
takes along what it had not sent yet: at most `OTEL_BSP_SCHEDULE_DELAY` (5 s) of spans and `OTEL_METRIC_EXPORT_INTERVAL`
(60 s) of metrics.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import ProxyTracerProvider

if TYPE_CHECKING:
    from api.telemetry_sdk import Exporting

INSIGHTS_SETTING = "APPLICATIONINSIGHTS_CONNECTION_STRING"
OTLP_SETTING = "OTEL_EXPORTER_OTLP_ENDPOINT"
DISABLED_SETTING = "OTEL_SDK_DISABLED"

_log = logging.getLogger("api.telemetry")


def is_configured(environment: Mapping[str, str]) -> bool:
    """Whether there is somewhere to send telemetry to."""
    disabled = environment.get(DISABLED_SETTING, "").strip().lower() == "true"
    return not disabled and any(environment.get(name, "").strip() for name in (INSIGHTS_SETTING, OTLP_SETTING))


def start(environment: Mapping[str, str]) -> "Exporting | None":
    """Export as configured, for the whole process.

    None if nothing is configured, if it cannot be done (telemetry keeps no server from serving), or if the app has
    installed providers of its own before, which then stay.
    """
    if not is_configured(environment):
        return None
    if not isinstance(trace.get_tracer_provider(), ProxyTracerProvider):
        _log.warning("the app has telemetry of its own: %s and %s are left to it", INSIGHTS_SETTING, OTLP_SETTING)
        return None
    try:
        # Only here: it takes a second to import, and who sends nothing needs none of it.
        from api.telemetry_sdk import make

        made = make(environment)
    except Exception:
        _log.exception("telemetry is configured, but cannot be exported")
        return None
    made.install()
    return made

"""A telemetry collector on the loopback interface: it takes OTLP over HTTP, and what Application Insights takes."""

import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What arrived so far."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[Span] = []
        self.services: set[str] = set()
        """The service names of those who sent."""
        self.metrics: set[str] = set()
        """The names of the metrics that arrived."""
        self.envelopes: list[dict[str, Any]] = []
        """What came for Application Insights."""
        self.unknown: list[str] = []
        """Paths that nothing was made of."""

    def take(self, path: str, body: bytes) -> None:
        """A request's body, decoded."""
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services |= {
                    each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
                }
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for sent in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics |= {metric.name for scope in sent.scope_metrics for metric in scope.metrics}
        elif path.endswith("/track"):
            self.envelopes += json.loads(body)
        else:
            self.unknown.append(path)


def attributes_of(span: Span) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            match self.headers.get("Content-Encoding"):
                case "gzip":
                    body = gzip.decompress(body)
                case "deflate":
                    body = zlib.decompress(body)
            collector.take(self.path, body)
            accepted = collector.envelopes if self.path.endswith("/track") else []
            count = len(accepted)
            answer = json.dumps({"itemsReceived": count, "itemsAccepted": count, "errors": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer) if accepted else 0))
            self.end_headers()
            self.wfile.write(answer if accepted else b"")

        def log_message(self, format: str, *args: Any) -> None:
            """Not to stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    server.daemon_threads = True
    collector = Collector(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Resilient Responses: what handler authors import.

Example::

    from resilience import CreateResponse, ResponseContext, ResponsesApp, TextResponse

    app = ResponsesApp()

    @app.response_handler
    async def answer(request: CreateResponse, context: ResponseContext, cancellation_signal):
        return TextResponse(context, request, text="Hello")
"""

from protocol import data_url, models
from protocol.event_stream import ResponseEventStream
from protocol.models import CreateResponse
from resilience.app import ResponsesApp
from resilience.context import ExitForRecovery, ResponseContext
from resilience.options import ResponsesServerOptions
from resilience.text_response import TextResponse

__all__ = [
    "CreateResponse",
    "ExitForRecovery",
    "ResponseContext",
    "ResponseEventStream",
    "ResponsesApp",
    "ResponsesServerOptions",
    "TextResponse",
    "data_url",
    "models",
]

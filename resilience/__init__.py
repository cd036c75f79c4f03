"""Resilient Responses: what handler authors import.

Example::

    from resilience import CreateResponse, ResponseContext, ResponsesApp, TextResponse

    app = ResponsesApp()

    @app.response_handler
    async def answer(request: CreateResponse, context: ResponseContext, cancellation_signal):
        return TextResponse(context, request, text="Hello")
"""

from protocol.builders import BuilderOrderError
from protocol.event_stream import ResponseEventStream
from protocol.models import CreateResponse
from resilience import aio, data_url, models
from resilience.app import ResponsesApp
from resilience.chain_metadata import ChainMetadataNamespace, ConversationChainMetadata, MetadataTooLarge
from resilience.context import ExitForRecovery, ResponseContext, ResponseModeFlags
from resilience.options import ResponsesServerOptions
from resilience.text_response import TextResponse

__all__ = [
    "BuilderOrderError",
    "ChainMetadataNamespace",
    "ConversationChainMetadata",
    "CreateResponse",
    "ExitForRecovery",
    "MetadataTooLarge",
    "ResponseContext",
    "ResponseEventStream",
    "ResponseModeFlags",
    "ResponsesApp",
    "ResponsesServerOptions",
    "TextResponse",
    "aio",
    "data_url",
    "models",
]

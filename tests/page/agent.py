"""The app that the page's tests serve: the one of `agent.py`, with chains that can be steered."""

from agent import handler
from resilience import ResponsesApp, ResponsesServerOptions

app = ResponsesApp(
    ResponsesServerOptions(resilient_background=True, steerable_conversations=True, default_model="counting")
)
app.response_handler(handler)

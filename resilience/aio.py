"""The event stream and builders for asynchronous handlers: ``from resilience.aio import ResponseEventStream``."""

from protocol.aio import *  # noqa: F403
from protocol.aio import __all__ as __all__

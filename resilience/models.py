"""The types of requests, responses, items and events: ``from resilience.models import CreateResponse``."""

from protocol.models import *  # noqa: F403
from protocol.models import __all__ as __all__

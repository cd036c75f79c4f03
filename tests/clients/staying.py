"""The example agent, except that its first entry says six numbers of a count and then stays: a test can kill it there.

That is in the middle of the second message, however long the client takes to hear of it.
"""

import asyncio
from collections import Counter

import agent
from resilience import ResponseContext

SAID = 6

app = agent.app
_numbers: Counter[str] = Counter()
_must_stop = agent.must_stop


async def _stay(context: ResponseContext, cancellation_signal: asyncio.Event) -> bool:
    """Asked before each number."""
    _numbers[context.response_id] += 1
    if _numbers[context.response_id] > SAID and not context.is_recovery:
        await asyncio.Event().wait()
    return await _must_stop(context, cancellation_signal)


agent.must_stop = _stay

"""A stream can be read again for as long as its response is stored (B35)."""

import asyncio

from tests.support.engines import background, fleet
from tests.support.handlers import Teller
from tests.support.virtual_time import VirtualTimeLoop

EVENT_LOOP = VirtualTimeLoop

DAYS = 400


async def test_replay_of_last_years_response_gives_the_same_bytes() -> None:
    """By another process, which never heard of it while it ran."""
    async with fleet(Teller(5)) as hosts:
        owner = hosts.host()
        reader = await owner.stream(background())
        frames = list(await reader.whole())
        response_id = await reader.response_id()
        shown = await owner.get(response_id)
        await hosts.quiet()
        await owner.crash()
        for _ in range(DAYS):
            await asyncio.sleep(86_000)  # a selector waits for less than a day
        other = hosts.host(queues=False)
        assert await (await other.replay(response_id)).whole() == frames
        assert await (await other.replay(response_id, after=4)).whole() == frames[5:]
        assert await other.get(response_id) == shown

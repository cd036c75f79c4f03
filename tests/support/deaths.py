"""Deaths of hosts in memory at a place of one's choosing, and cancels that may come too late for one."""

from protocol.errors import CannotCancel
from tests.support.engines import Fleet, Host


def die_after(hosts: Fleet, host: Host, operation: str) -> None:
    """Kill the host as soon as that storage call was carried out, before its reply is heard."""

    async def passed(name: str, when: str) -> None:
        if (name, when) == (operation, "after") and not host.dead:
            hosts.kill(host)
        await host.passage()

    host.seam.hooks.append(passed)


async def cancelled_in_time(api: Host, response_id: str) -> bool:
    """Cancel a response; False if its outcome was stored before."""
    try:
        await api.cancel(response_id)
    except CannotCancel:
        return False
    return True

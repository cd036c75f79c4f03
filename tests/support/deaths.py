"""Deaths of hosts in memory at a place of one's choosing."""

from tests.support.engines import Fleet, Host


def die_after(hosts: Fleet, host: Host, operation: str) -> None:
    """Kill the host as soon as that storage call was carried out, before its reply is heard."""

    async def passed(name: str, when: str) -> None:
        if (name, when) == (operation, "after") and not host.dead:
            hosts.kill(host)
        await host.passage()

    host.seam.hooks.append(passed)

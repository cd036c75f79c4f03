"""The long attack: `make fuzz`. Hostile requests by the thousand, at the endpoints in a thread and at the local host.

    python -m tests.fuzz [--requests 20000] [--hosted 2000] [--seed N]

Prints its seed first and a line of counts last; an unacceptable answer ends it with the request that caused it.
"""

import argparse
import logging
import random
import sys
import time
from collections.abc import Iterator

from tests.support.azurite import AzuriteServer
from tests.support.fuzzing import Tally, attack_endpoints, attack_host, shipped

BATCH = 2_000
"""Requests to one server: what it keeps in memory of accepted ones goes with it."""


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    # Broken requests are what this is about: each would be in the log, and while one is made smaller, again and again.
    logging.disable(logging.ERROR)
    say(f"seed {options.seed}")
    begin, whole = time.monotonic(), Tally()
    for number, seed_value in batches(options.requests, options.seed):
        whole.add(attack_endpoints(number, seed_value))
        say(f"  in process: {whole}")
    if options.hosted:
        whole.add(at_the_host(options.hosted, options.seed))
    say(f"make fuzz: {whole}; {time.monotonic() - begin:.0f} s, seed {options.seed}")
    return 0


def batches(number: int, seed_value: int) -> Iterator[tuple[int, int]]:
    """The sizes and seeds of the batches that make up so many requests."""
    for index, start in enumerate(range(0, number, BATCH)):
        yield min(BATCH, number - start), seed_value + index


def at_the_host(number: int, seed_value: int) -> Tally:
    """Attack the local host, over a storage emulator of its own."""
    azurite = AzuriteServer.start(None)
    try:
        with shipped(azurite) as made:
            return attack_host(made, number, seed_value)
    finally:
        azurite.stop()


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=20_000, help="at the endpoints, in this process")
    parser.add_argument("--hosted", type=int, default=2_000, help="at the local host")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    return parser.parse_args(arguments)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The host's log: one stream for the host and the app, coloured on a terminal, plain elsewhere."""

import logging
import sys

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"


def setup(level: str) -> None:
    """Sends all logging to stderr at `level`; libraries speak up from warnings on, or at `debug`."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=number, handlers=[handler], force=True)
    if number > logging.DEBUG:
        for name in ("azure", "aiohttp", "asyncio"):
            logging.getLogger(name).setLevel(max(number, logging.WARNING))


def announce(url: str) -> None:
    """The line that says the host answers, whatever the log level."""
    print(f"Host ready: {url}", flush=True)

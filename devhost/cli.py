"""The command line."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from devhost.errors import HostError
from devhost.options import Options, Serve
from devhost.supervisor import supervise

_POSITIVE = click.FloatRange(min=0, min_open=True)


def _pairs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(value.partition("=")[::2] for value in values)
    if not all("=" in value for value in values):
        raise click.BadParameter("write it as NAME=VALUE")
    return pairs


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--app", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", help="The app's folder."
)
@click.option("--port", type=click.IntRange(0, 65535), default=7071, help="Port on 127.0.0.1; 0 picks a free one.")
@click.option(
    "--only", type=click.Choice(["http", "queue"]), help="Serve HTTP functions only, or queues and timers only."
)
@click.option(
    "--setting",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="An app setting; wins over all others.",
)
@click.option("--timers/--no-timers", default=True, help="Run timers when they are due.")
@click.option(
    "--visibility",
    type=click.FloatRange(min=1),
    default=600.0,
    help="Seconds a received message is hidden; renewed at half.",
)
@click.option(
    "--min-poll", type=_POSITIVE, default=0.1, help="Shortest pause in seconds between polls of an idle queue."
)
@click.option("--max-poll", type=_POSITIVE, help="Longest such pause.  [default: host.json]")
@click.option(
    "--function-timeout",
    type=click.FloatRange(min=0),
    help="Seconds an invocation may take; 0: no limit.  [default: host.json]",
)
@click.option("--idle-timeout", type=_POSITIVE, default=240.0, help="Seconds without a byte that end a response.")
@click.option(
    "--body-limit", type=click.IntRange(min=1), default=100 * 1024 * 1024, help="Bytes a request body may have."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Seconds to finish in after SIGTERM; the platform gives none.",
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write {port, pid} to when the host answers.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option("--supervisor/--no-supervisor", default=True, help="Start the host again after a time limit or a crash.")
@click.option("--listen-fd", type=int, hidden=True)
@click.option("--lifeline-fd", type=int, hidden=True)
def main(supervisor: bool, only: str | None, app: Path, **given: Any) -> None:
    """Run a Python Functions app locally, on the runtime that Azure runs."""
    if supervisor:
        sys.exit(supervise(sys.argv[1:], given["port"]))
    options = Options(app=app.resolve(), serve=Serve(only or Serve.ALL), **given)
    _run(options)


def _run(options: Options) -> None:
    # Imported here: the supervisor stays small and starts at once.
    from devhost import host, log

    log.setup(options.log_level)

    async def run() -> None:
        try:
            await host.run(options)
        except (HostError, OSError) as error:
            click.secho(f"The host cannot run this app. {error}", fg="red", err=True)
            # Not by leaving the loop: the extension's server would be torn down, with a traceback of its own.
            host.end(1)

    asyncio.run(run())

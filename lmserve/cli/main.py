"""`lmserve`: the command line.

Importing this costs click and little else; each command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from lmserve import __version__
from lmserve.cli.bench import bench
from lmserve.cli.chat import chat
from lmserve.cli.check_env import check_env
from lmserve.cli.keys import keys
from lmserve.cli.run import run
from lmserve.cli.serve import serve
from lmserve.cli.show import config
from lmserve.cli.top import top
from lmserve.errors import LmserveError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Cli(click.Group):
    """The one place where errors become exit codes: one line on stderr, no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LmserveError as error:
            raise click.ClickException(_one_line(error.message)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output left: click's own affair
                raise
            raise click.ClickException(_one_line(str(error))) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def _one_line(message: str) -> str:
    return " ".join(message.split())


@click.group(
    cls=Cli,
    # `--server_port` is `--server-port`
    context_settings={
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, message="lmserve %(version)s")
def cli() -> None:
    """Serve a language model to many people at once."""


cli.add_command(serve)
cli.add_command(run)
cli.add_command(chat)
cli.add_command(bench)
cli.add_command(keys)
cli.add_command(config)
cli.add_command(check_env)
cli.add_command(top)


def main() -> None:
    try:
        cli(prog_name="lmserve")
    except KeyboardInterrupt:  # before or after a command
        sys.exit(EXIT_INTERRUPTED)

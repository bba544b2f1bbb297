"""`lmserve bench serve` and `lmserve bench startup`: servers over HTTP, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lmserve.errors import SetupError

if TYPE_CHECKING:
    from lmserve.bench.comparison import Plan
    from lmserve.bench.records import Record, Records

F = TypeVar("F", bound=Callable[..., Any])
EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells count
ABOVE_0 = click.FloatRange(0, min_open=True)


def _both(command: F) -> F:
    """The options of both commands."""
    for option in reversed(
        (
            click.option(
                "--server",
                "servers",
                multiple=True,
                metavar="NAME=COMMAND|URL",
                help="One to measure; several are compared to the first. A command is started "
                "without a shell: {port} in it is a free port, NAME=value before it is "
                "environment. Or the URL of a server that runs.",
            ),
            click.option("--rounds", default=3, show_default=True, type=click.IntRange(1)),
            click.option("--json", "path", metavar="FILE", help="Append each figure as it comes."),
            click.option("--model", default="", help="As requests name it [default: first listed]"),
            click.option("--api-key", default="", help="Sent as a bearer token"),
            click.option(
                "--endpoint",
                default="chat",
                show_default=True,
                type=click.Choice(["chat", "completions"]),
            ),
            click.option("--extra", default="{}", help="JSON object: more fields of each request"),
            click.option(
                "--start-limit-s",
                default=300.0,
                show_default=True,
                type=ABOVE_0,
                help="What a server has to answer in",
            ),
            click.option(
                "--quiet-wait-s",
                default=30.0,
                show_default=True,
                type=click.FloatRange(0),
                help="Longest wait for a quiet machine",
            ),
            click.option(
                "--request-timeout-s",
                "timeout_s",
                default=120.0,
                show_default=True,
                type=ABOVE_0,
            ),
        )
    ):
        command = option(command)
    return command


@click.command("serve")
@_both
@click.option("--workload", "names", multiple=True, metavar="a|b|c|d|e", help="Default: all five")
@click.option("--users", type=click.IntRange(1), help="Each waits for its answer, then asks again")
@click.option("--requests", "num_requests", type=click.IntRange(1))
@click.option("--prompt-tokens", type=click.IntRange(1), help="With what the template adds")
@click.option("--shared-prefix-tokens", type=click.IntRange(0), help="System message of all")
@click.option("--max-tokens", type=click.IntRange(1))
@click.option("--rate", type=ABOVE_0, help="Requests a second that begin (Poisson), not users")
@click.option("--slo", multiple=True, metavar="ttft|itl|tpot|e2e=MS", help="For the goodput")
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option(
    "--warmup",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Requests before each run's clock",
)
@click.option(
    "--duration-s",
    default=120.0,
    show_default=True,
    type=ABOVE_0,
    help="No request begins after it",
)
@click.option("--seed", default="", help="Of prompts and arrivals [default: new each time]")
@click.option(
    "--repeats",
    default=2,
    show_default=True,
    type=click.IntRange(0),
    help="Most repeats of a disturbed run",
)
@click.option("--keep", is_flag=True, help="Start each server once; it idles in others' turns")
@click.option("--table", "as_table", is_flag=True, help="At the end, one row a workload")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    help="Of --table: a server that the others are compared to [default: all but the first]",
)
@click.option(
    "--from", "files", multiple=True, metavar="FILE", help="Measure nothing: show --json files"
)
def bench_serve(
    files: tuple[str, ...],
    path: str | None,
    as_table: bool,
    peers: tuple[str, ...],
    **options: Any,
) -> None:
    """Load OpenAI-compatible servers, in turn, and compare them.

    Each round starts every server once, alone, runs the workloads and ends it. Without options
    of a workload's own there are five: a, b, c (1, 8, 32 users, 128 tokens in, 128 out), d (8
    users, 1024 in, 64 out) and e (8 users, a shared prefix of 1000 tokens, 32 in, 64 out). Such
    options change those that --workload names, or else make one of their own.
    """
    from lmserve.bench.comparison_tables import detailed, one_row_each
    from lmserve.bench.records import read
    from lmserve.cli.bench_plan import serve_plan

    if files:
        records = read(files)
        if not records.workloads:
            raise SetupError(f"{', '.join(files)}: no run of a workload is noted there")
    else:
        plan = serve_plan(**options)
        _known(peers, [server.name for server in plan.servers])
        records = _measure(plan, path)
    _known(peers, records.servers)
    click.echo(detailed(records))
    if as_table:
        click.echo("\n" + one_row_each(records, peers))
    _exit(records)


@click.command("startup")
@_both
def bench_startup(path: str | None, **options: Any) -> None:
    """Time servers from their command to their first answer.

    They take turns, and their memory is told too.
    """
    from lmserve.bench.comparison_tables import detailed
    from lmserve.cli.bench_plan import startup_plan

    records = _measure(startup_plan(**options), path)
    click.echo(detailed(records))
    _exit(records)


def _known(peers: Sequence[str], servers: Sequence[str]) -> None:
    if unknown := set(peers) - set(servers):
        raise SetupError(f"--peer {min(unknown)}: no --server has this name")


def _measure(plan: Plan, path: str | None) -> Records:
    import asyncio
    import signal
    import threading

    import uvloop

    from lmserve.bench.comparison import compare
    from lmserve.bench.records import Records, write

    records = Records()

    def note(record: Record) -> None:
        records.add(record)
        if path:
            write(path, record)
        if line := _line(record):
            click.echo(line, err=True)

    async def until_ended() -> None:
        task = asyncio.current_task()
        assert task is not None
        if threading.current_thread() is threading.main_thread():  # where signals can be heard
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await compare(plan, note)

    try:
        uvloop.run(until_ended())
    except asyncio.CancelledError:  # its servers have ended
        raise click.exceptions.Exit(EXIT_TERMINATED) from None
    return records


def _line(record: Record) -> str:
    """What is told while it runs."""
    from lmserve.bench.records import Lived, Measured

    match record:
        case Measured(server=server, workload=work, figures=figures, load=load):
            return (
                f"{record.round + 1} {server} {work.name}: {figures.output_tok_s:.1f} tok/s, "
                f"{figures.ok} ok, {figures.errors} errors, other work {load.disturbance:.2f} cores"
                + (", disturbed" if load.is_disturbed else "")
            )
        case Lived(error="", start_s=float() as start_s):
            return f"{record.round + 1} {record.server}: start {start_s:.2f} s"
        case Lived(error=error) if error:
            return f"{record.round + 1} {record.server}: {error}"
    return ""


def _exit(records: Records) -> None:
    """1 if a server never gave a whole answer."""
    if any(all(life.error for life in records.lives(name)) for name in records.servers):
        raise click.exceptions.Exit(1)

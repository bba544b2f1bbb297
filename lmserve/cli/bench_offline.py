"""`lmserve bench throughput` and `lmserve bench latency`: the engine in this process."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import click

from lmserve.cli.logs import set_up_logging
from lmserve.cli.options import SettingsCommand, load_options, setting_options

F = TypeVar("F", bound=Callable[..., Any])


def _both(num_prompts: int) -> Callable[[F], F]:
    """The options of both commands."""
    options = (
        click.option(
            "--num-prompts",
            default=num_prompts,
            show_default=True,
            type=click.IntRange(1),
            help="prompts in a round, all there at its beginning",
        ),
        click.option(
            "--prompt-tokens",
            default=128,
            show_default=True,
            type=click.IntRange(1),
            help="of each, in random words",
        ),
        click.option(
            "--max-tokens",
            default=128,
            show_default=True,
            type=click.IntRange(1),
            help="of each answer",
        ),
        click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True),
        click.option("--temperature", default=0.0, show_default=True),
        click.option("--seed", default=0, show_default=True, help="of prompts and sampling"),
        click.option(
            "--rounds",
            "num_rounds",
            default=5,
            show_default=True,
            type=click.IntRange(1),
            help="after one to warm up",
        ),
        click.option(
            "--repeats",
            default=2,
            show_default=True,
            type=click.IntRange(0),
            help="most repeats of a round that other work disturbed",
        ),
        click.option("--json", "path", metavar="FILE", help="write all figures there"),
    )

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command("throughput", cls=SettingsCommand)
@click.argument("model", required=False)
@_both(num_prompts=64)
@setting_options("engine", "log")
def bench_throughput(model: str | None, **options: Any) -> None:
    """Tokens a second where many prompts are there at once.

    MODEL runs in this process; without one, the default model.
    """
    from lmserve.bench import throughput

    _run(throughput, model, options)


@click.command("latency", cls=SettingsCommand)
@click.argument("model", required=False)
@_both(num_prompts=1)
@setting_options("engine", "log")
def bench_latency(model: str | None, **options: Any) -> None:
    """How long one batch waits: first token, each further one, all.

    MODEL runs in this process; without one, the default model.
    """
    from lmserve.bench import latency

    _run(latency, model, options)


def _run(bench: ModuleType, model: str | None, options: dict[str, Any]) -> None:
    from lmserve.bench import offline, report
    from lmserve.offline.llm import LLM

    loaded = load_options(options, model)
    set_up_logging(loaded, quiet=True)
    path, num_rounds, repeats = (options.pop(name) for name in ("path", "num_rounds", "repeats"))
    work = offline.Work(**options)
    with LLM(settings=loaded.settings.engine) as llm:
        rounds = bench.measure(llm, work, num_rounds, repeats=repeats)
        click.echo(bench.shown(rounds))
        if path is not None:
            arguments = offline.arguments(work, num_rounds=num_rounds, repeats=repeats)
            results = bench.told(rounds) | {"model": offline.told_of(llm)}
            name = bench.__name__.rpartition(".")[2]
            report.write_json(path, report.document(name, arguments, results))

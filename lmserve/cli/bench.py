"""`lmserve bench`: what this machine does, in figures. One file a measurement."""

from __future__ import annotations

import click

from lmserve.cli.bench_offline import bench_latency, bench_throughput
from lmserve.cli.bench_servers import bench_serve, bench_startup


@click.group()
def bench() -> None:
    """Measure a model in this process, or servers in turn.

    Each prints tables, and writes all figures as JSON with --json FILE.
    """


bench.add_command(bench_throughput)
bench.add_command(bench_latency)
bench.add_command(bench_serve)
bench.add_command(bench_startup)

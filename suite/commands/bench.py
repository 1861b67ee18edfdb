"""`suite bench ...`: how fast the suite itself is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.commands.console import progress, show

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure the suite itself."""


@app.command()
def simulator(
    trace: Annotated[
        Path | None, typer.Argument(help="A Mooncake trace file; by default a ready one.")
    ] = None,
) -> None:
    """Time the simulator beside a bare prefix walk over the same trace, and each policy's decisions.

    Example: suite bench simulator
    """
    from suite import bench

    show(*bench.simulator(trace))


@app.command()
def client(
    streams: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Streams at once; repeatable.", show_default="256, 512 and 1024"),
    ] = None,
) -> None:
    """Measure the replay client beside `vllm bench serve` on one paced mock server: tokens/s, TPOT, lag.

    Example: suite bench client --streams 512
    """
    from suite import bench_client

    with progress().status("") as status:
        table = bench_client.client(streams or (), status.update)
    show(table)


@app.command()
def engine(
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="vllm or sglang; repeatable. By default all that are installed."),
    ] = None,
) -> None:
    """Measure what the plugin costs in an engine: beside its own scheduler, and for each policy's decisions.

    Takes about four minutes for each engine.

    Example: suite bench engine --engine sglang
    """
    from suite import bench_engine

    with progress().status("starting") as status:
        tables = bench_engine.engines(engines or (), status.update)
    show(*tables)


@app.command()
def decisions(
    routers: Annotated[
        list[str] | None, typer.Option("--router", "-r", help="Repeatable. By default all of ours.")
    ] = None,
) -> None:
    """Measure what a routing decision costs, with 8 and 64 workers and an index of a million tokens.

    Example: suite bench decisions --router d2lpm
    """
    from suite import bench_router_decisions

    with progress().status("starting") as status:
        table = bench_router_decisions.routers(routers or (), status.update)
    show(table)


@app.command()
def front() -> None:
    """Measure the suite's front beside both Rust routers and none: requests/s, added latency, CPU.

    Takes about six minutes.

    Example: suite bench front
    """
    from suite import bench_front

    with progress().status("starting") as status:
        table = bench_front.front(bench_front.KINDS, status.update)
    show(table)


@app.command()
def workloads(
    spec: Annotated[str, typer.Argument(help="A ready synthetic spec, or the path of one.")] = "mixed",
    requests: Annotated[int, typer.Option(min=1, help="About how many.")] = 1_000_000,
) -> None:
    """Measure how long a large trace takes to generate, write, read and describe, and the memory of each.

    Takes about three minutes.

    Example: suite bench workloads chat --requests 100000
    """
    from suite import bench_workloads

    with progress().status("starting") as status:
        table = bench_workloads.workloads(spec, requests, status.update)
    show(table)

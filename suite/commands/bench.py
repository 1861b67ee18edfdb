"""`suite bench ...`: how fast the suite itself is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.commands.console import show

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

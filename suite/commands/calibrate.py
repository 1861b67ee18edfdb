"""`suite calibrate`: what the steps of an engine cost on this machine."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from suite.commands.console import complain, progress, say, show


def calibrate(
    backend: Annotated[str, typer.Argument(help="Kind of backend: vllm or sglang.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the backend; repeatable."),
    ] = None,
) -> None:
    """Measure prefill, decode and mixed steps of an engine and fit the cost model of the simulator to them.

    The settings are those of an experiment's `backend` section. The error on lengths and batch sizes that the
    fit has not seen is shown, and stands in the file. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

    suite calibrate vllm --set model=mid --set max_running=8 --set token_budget=512 -o mid.yaml

    suite run quickstart --set backend.cost=mid.yaml
    """
    from rich.progress import Progress

    from suite import calibrate as calibration
    from suite import fit
    from suite.runner import RUNS
    from suite.validation import assignments

    logs = RUNS / f"calibrate-{datetime.now():%Y%m%d-%H%M%S}"
    with Progress(console=progress(), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def shown(share: float, note: str = "") -> None:
            bar.update(task, completed=share, description=note)

        found = calibration.calibrate(backend, assignments(settings or ()), out, logs, shown)
    show(fit.table(found))
    if found.problem:
        complain(found.problem)
    say(f"written: {out}")
    say(f"logs:    {logs}")

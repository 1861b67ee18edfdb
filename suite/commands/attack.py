"""`suite attack`: the workload that hurts a scheduler most."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from suite.commands.console import INTERRUPTED, complain, progress, say, show


def attack(
    scheduler: Annotated[str, typer.Argument(help="The scheduler to attack, as `suite run -s` takes it.")],
    metric: Annotated[
        str, typer.Option("--metric", "-m", help="What to make bad: p99, throughput or jain.")
    ] = "p99",
    against: Annotated[
        str | None,
        typer.Option(
            help="The rival that it is held against.",
            show_default="p99: vtc; throughput: lpm; jain: vtc:charge=extend",
        ),
    ] = None,
    evaluations: Annotated[int, typer.Option("--evaluations", "-n", min=1, help="Workloads to try.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    search: Annotated[
        str, typer.Option(help="cma, held against a random search as long; or random.")
    ] = "cma",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder; by default results/runs/attack-SCHEDULER-METRIC."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Processes.", show_default="one for each core")
    ] = os.cpu_count() or 1,
) -> None:
    """Search the workload on which a scheduler does worst beside a rival; keep a small trace of it.

    Workloads are served in the simulator; CMA-ES chooses them by fourteen parameters within stated bounds
    (suite/attack/space.py). A minute or two on 2 cores. The trace is replayed by the experiment beside it.

    [bold]Examples[/bold]

    suite attack dlpm

    suite attack my_idea.py:MyIdea --metric throughput --against dlpm

    suite run results/runs/attack-dlpm-p99/found.yaml --set backend.kind=vllm --set backend.clock=virtual
    """
    from rich.progress import Progress

    from suite.attack import course, found, objective, words
    from suite.attack.search import checked
    from suite.files import probe
    from suite.runner import RUNS

    contest, strategy = objective.contest(scheduler, metric, against), checked(search)
    folder = out or RUNS / contest.name
    probe(folder)
    try:
        with Progress(console=progress(), transient=True) as bar:
            task = bar.add_task("", total=1.0)

            def shown(share: float, note: str = "") -> None:
                bar.update(task, completed=share, description=note)

            made = course.attack(contest, strategy, seed, evaluations, jobs, shown)
    except KeyboardInterrupt:
        complain("interrupted: nothing is written")
        raise typer.Exit(INTERRUPTED) from None
    found.write(made, folder, shlex.join(["suite", *sys.argv[1:]]))
    show(words.table(made))
    if made.finding is not None:
        say(f"replay:  suite run {folder / 'found.yaml'}")
    say(f"written: {folder}")

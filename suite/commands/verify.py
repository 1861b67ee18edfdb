"""`suite verify ...`: is the suite itself right?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from suite.commands.console import complain, progress, say, show

app = typer.Typer(no_args_is_help=True)


@app.callback()
def verify() -> None:
    """Check the suite itself."""


@app.command()
def prediction(
    real: Annotated[Path, typer.Argument(help="Folder of an experiment on a real engine.")],
    predicted: Annotated[Path, typer.Argument(help="Folder of the same experiment in the simulator.")],
) -> None:
    """Compare what the simulator predicts with what a real engine did: hits, throughput, latency.

    Cells are paired by workload, scheduler and seed. The simulator's cost model should have been fitted to
    the machine before: see `suite calibrate`.

    Example: suite verify prediction results/runs/vllm-cpu results/runs/vllm-cpu-predicted
    """
    from suite.report import prediction

    show(prediction.table(prediction.errors(real, predicted)))


@app.command()
def simulator(
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="vllm or sglang; repeatable. By default all that are installed."),
    ] = None,
    schedulers: Annotated[
        list[str] | None, typer.Option("--scheduler", "-s", help="Scheduler to compare under; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random traces for each.")] = 20,
) -> None:
    """Run random traces through the simulator and through the engines' own code, and compare every decision.

    The scheduler and the prefix cache of vLLM and of SGLang run without a model on a virtual clock. Exit code
    1 if anything differs, or if the traces show too little.

    Example: suite verify simulator --seeds 50
    """
    from rich.progress import Progress

    from suite import verify

    engines = engines or verify.installed()
    with Progress(console=progress()) as bar:
        task = bar.add_task("comparing", total=1.0)
        found = verify.simulator(
            engines,
            schedulers or verify.SCHEDULERS,
            range(seeds),
            lambda share: bar.update(task, completed=share),
        )
    show(verify.table(found))
    wrong = [f"{one.engine}, {one.scheduler}: {problem}" for one in found for problem in one.differences]
    wrong += [
        f"{one.engine}, {one.scheduler}: no trace shows: {', '.join(one.unseen)}"
        for one in found
        if one.unseen
    ]
    for line in wrong:
        complain(line)
    if wrong:
        raise typer.Exit(1)
    say(f"the simulator decides as {' and '.join(engines)}")


@app.command()
def compare(
    trials: Annotated[int, typer.Option(min=1, help="Comparisons of each kind.")] = 100,
) -> None:
    """Compare arms of which the truth is known, and count how often `suite compare` tells it.

    A/A: both arms are the same scheduler in the simulator, on independent seeds of the workload and of the
    noise of its steps; no difference may be seen in at least 88 of 100 trials. Planted: each step of the
    candidate takes 5 % longer; that its throughput loses must be seen in at least 80 of 100. Exit code 1 if
    it is otherwise. 100 trials take some minutes.

    Example: suite verify compare --trials 20
    """
    from rich.progress import Progress

    from suite import verify_compare

    with Progress(console=progress()) as bar:
        task = bar.add_task("comparing", total=1.0)
        found = verify_compare.trials(
            range(trials),
            os.cpu_count() or 1,
            lambda share: bar.update(task, completed=share),
        )
    alike, slow = verify_compare.shares(found)
    say(f"A/A: no difference seen in {alike}")
    say(f"planted slowdown of 5 %: found in {slow}")
    for number, one in enumerate(found):
        if one.seen:
            say(f"A/A, trial {number}: a difference seen in {', '.join(one.seen)}")
    if not (alike.holds and slow.holds):
        raise typer.Exit(1)

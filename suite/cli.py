"""The command line: parse, call, print. Heavy imports stand inside the commands, so that help is quick."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import suite
from suite.commands import (
    attack,
    bench,
    calibrate,
    compare,
    engines,
    metrics,
    new,
    reproduce,
    route,
    serve,
    verify,
    workload,
)
from suite.commands.console import INTERRUPTED, complain, progress, results, say, show
from suite.errors import BadInput

if TYPE_CHECKING:
    from suite.experiment import Experiment
    from suite.runner import Outcome

BAD_INPUT = 2

_OUT_HELP = (
    "Folder for the results; by default results/runs/NAME, or NAME-DIGEST where flags say what to run."
)

_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""What a wrong flag raises; typer has no name of its own for it."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(workload.app, name="workload")
app.add_typer(bench.app, name="bench")
app.add_typer(engines.app, name="engines")
app.add_typer(verify.app, name="verify")
app.add_typer(new.app, name="new")
app.command()(attack.attack)
app.command()(compare.compare)
app.command()(metrics.metrics)
app.command()(reproduce.reproduce)
app.command()(serve.serve)
app.command()(route.route)
app.command()(calibrate.calibrate)


def main() -> None:
    """Entry point of the `suite` script. Exits with 2 for bad input, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = _run_app()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads; be quiet at exit too
        code = 1
    except OSError as error:
        complain(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        code = BAD_INPUT
    sys.exit(code)


def _run_app() -> int:
    """Run the command and return its exit code; bad input and usage become one line."""
    try:
        return app(prog_name="suite", standalone_mode=False) or 0
    except BadInput as error:
        complain(f"error: {error}")
    except _UsageError as error:
        if told := " ".join(error.format_message().split()):  # empty where the help was shown instead
            complain(f"error: {told}")
    return BAD_INPUT


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _version(wanted: bool) -> None:
    if wanted:
        say(f"suite {suite.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Which scheduler serves many tenants fairly without wasting the prefix cache, and by how much?

    Begin with: suite run quickstart
    """


@app.command()
def run(
    experiment: Annotated[
        str | None, typer.Argument(help="Name of a ready experiment, or path of a YAML file.")
    ] = None,
    workloads: Annotated[
        list[str] | None, typer.Option("--workload", "-w", help="Workload to run; repeatable.")
    ] = None,
    schedulers: Annotated[
        list[str] | None, typer.Option("--scheduler", "-s", help="Scheduler to compare; repeatable.")
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Seed to run; repeatable.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set or, with a list, sweep a parameter; repeatable."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Experiment whose schedulers are run beside yours; a score card compares them."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=_OUT_HELP)] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Cells run at once.", show_default="one for each core")
    ] = os.cpu_count() or 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local", help="Run the cells on a Ray cluster; `local` starts one here."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Also redo what is finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and estimate the time.")] = False,
) -> None:
    """Run workloads under schedulers and report who is served how, fairly and at what cost.

    Every combination of workload, scheduler, swept parameter and seed is a cell. Cells run in parallel and
    are kept when finished, so the same command resumes. Flags replace what the experiment says, or make one.

    [bold]Examples[/bold]

    suite run quickstart

    suite run quickstart -s vtc -s dlpm --set "dlpm.quantum=[1000, 8000]" --set backend.gpu=h100

    suite run -w chat -s vtc -s dlpm:quantum=2000 -s my_idea.py:MyIdea

    suite run -s my_idea.py:MyIdea --against standard

    suite run quickstart --ray 10.0.0.1:6379
    """
    from suite import display, runner
    from suite import experiment as experiments
    from suite.validation import assignments

    if against is not None and (experiment is not None or not schedulers):
        raise BadInput("--against stands in for EXPERIMENT, and needs a scheduler of yours: -s SCHEDULER")
    chosen = experiments.load(
        against or experiment,
        workloads=workloads or (),
        schedulers=schedulers or () if against is None else (),
        candidates=schedulers or () if against is not None else (),
        seeds=seeds or (),
        sweep=assignments(settings or ()),
    )
    folder = out or runner.RUNS / chosen.folder
    console = progress()
    with console.status("generating the traces"):
        plan = list(runner.plan(chosen, folder, shlex.join(["suite", *sys.argv[1:]])))
    if dry_run:
        show(display.plan(plan, runner.estimate(plan), jobs))
        return
    outcome = runner.run(chosen, plan, folder, processes=jobs, ray=ray, fresh=fresh, console=console)
    _tell(outcome, chosen, schedulers or () if against else ())


def _tell(outcome: Outcome, experiment: Experiment, candidates: Sequence[str]) -> None:
    """What became of a run; of candidates, their score card against all others."""
    from suite.report import terminal

    for slug, reason in outcome.failed.items():
        complain(f"failed: {slug}: {reason}")
    if outcome.interrupted:
        kept = outcome.skipped + outcome.finished
        complain(f"interrupted: {kept} of {outcome.jobs} cells are kept; the same command resumes")
        raise typer.Exit(INTERRUPTED)
    if outcome.report is not None:
        show(terminal.rich_table(outcome.report.frame, results().width))
        if candidates:
            compare.score_card(experiment, candidates, outcome.out, outcome.report)
        say(f"report:  {outcome.report.page}")
        say(f"figures: {outcome.out / 'figures'}")
        say(
            f"cells:   {outcome.finished} run, {outcome.skipped} kept from before, in {outcome.out / 'cells'}"
        )
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def schedulers() -> None:
    """List the schedulers: what they do, their parameters, and whether they are work conserving.

    Example: suite schedulers
    """
    from suite import display, policies

    show(display.schedulers(policies.parse(name) for name in policies.available()))


@app.command()
def routers() -> None:
    """List the routers, which deal requests out over replicas: what they do, and their parameters.

    Each stands before a scheduler, as in d2lpm+dlpm.

    [bold]Examples[/bold]

    suite routers

    suite run -w chat -s round-robin+lpm -s d2lpm+dlpm --set backend.replicas=4 --set workload.load=4
    """
    from suite import display, policies

    peers = [f"{program}:{policy}" for program, known in policies.PEERS.items() for policy in known]
    show(display.routers(policies.parse_router(name) for name in (*policies.available_routers(), *peers)))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder written by `suite run`.")],
    slo: Annotated[
        str | None,
        typer.Option(metavar="KEY=SECONDS,...", help="Latency goal to count goodput under."),
    ] = None,
    with_invalid: Annotated[
        bool, typer.Option("--with-invalid", help="Also show the runs that are not valid as results.")
    ] = False,
) -> None:
    """Write the figures, tables and report.html of an experiment's folder again.

    [bold]Examples[/bold]

    suite report results/runs/quickstart

    suite report results/runs/quickstart --slo ttft=5,tpot=0.2
    """
    from suite.metrics.goodput import Slo
    from suite.report import html, terminal
    from suite.validation import assignments, at, validated

    with at("--slo"):
        bounds = None if slo is None else validated(Slo, assignments(slo.split(",")))
    written = html.write_report(folder, slo=bounds, with_invalid=with_invalid)
    show(terminal.rich_table(written.frame, results().width))
    say(f"report:  {written.page}")

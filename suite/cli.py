"""The command line: parse, call, print. Heavy imports stand inside the commands, so that help is quick."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import suite
from suite.commands import bench, calibrate, engines, serve, verify, workload
from suite.commands.console import complain, progress, results, say, show
from suite.errors import BadInput

if TYPE_CHECKING:
    from suite.runner import Outcome

INTERRUPTED = 130
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
app.command()(serve.serve)
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help=_OUT_HELP)] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Cells run at once.", show_default="one for each core")
    ] = os.cpu_count() or 1,
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
    """
    from suite import display, runner
    from suite import experiment as experiments
    from suite.validation import assignments

    chosen = experiments.load(
        experiment,
        workloads=workloads or (),
        schedulers=schedulers or (),
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
    outcome = runner.run(chosen.name, plan, folder, processes=jobs, fresh=fresh, console=console)
    _tell(outcome)


def _tell(outcome: Outcome) -> None:
    from suite.report import tables

    for slug, reason in outcome.failed.items():
        complain(f"failed: {slug}: {reason}")
    if outcome.interrupted:
        kept = outcome.skipped + outcome.finished
        complain(f"interrupted: {kept} of {outcome.jobs} cells are kept; the same command resumes")
        raise typer.Exit(INTERRUPTED)
    if outcome.report is not None:
        show(tables.rich_table(tables.collect(outcome.out), results().width))
        say(f"report:  {outcome.report}")
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

    show(display.schedulers(policies.available()))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder written by `suite run`.")],
) -> None:
    """Write the figures, tables and report.html of an experiment's folder again.

    Example: suite report results/runs/quickstart
    """
    from suite.report import html, tables

    page = html.write_report(folder)
    show(tables.rich_table(tables.collect(folder), results().width))
    say(f"report:  {page}")

"""`suite compare`: does a candidate win against its baselines, by how much, and how sure is that?"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suite.commands.console import INTERRUPTED, complain, progress, say, show
from suite.errors import BadInput

if TYPE_CHECKING:
    from suite.compare import Compared, Measured
    from suite.experiment import Experiment
    from suite.report.html import Report

_OF_RUNS = {
    "repeat": "--repeat",
    "narrow": "--narrow",
    "seed_from": "--seed-from",
    "workloads": "--workload",
    "settings": "--set",
}
"""Flags that say what to run, by parameter: a folder is only read."""

LOSES = 3
"""Exit code where the candidate loses somewhere."""


def compare(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(help="A folder written by `suite run`, or an experiment (name or YAML) to run.")
    ],
    candidate: Annotated[str, typer.Option("--candidate", "-c", help="The scheduler in question.")],
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline", "-b", help="Scheduler it is held against; repeatable.", show_default="all others"
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Seeds to run at most.")] = 5,
    narrow: Annotated[
        float,
        typer.Option(min=0, help="Stop early once the ratios of throughput and TTFT P99 are known so well."),
    ] = 0.02,
    seed_from: Annotated[int, typer.Option(min=0, help="The first seed to run.")] = 0,
    workloads: Annotated[
        list[str] | None, typer.Option("--workload", "-w", help="Workload to run instead; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter of the experiment; repeatable."),
    ] = None,
) -> None:
    """Compare a candidate with baselines: ratios, their intervals, and a verdict a person can read.

    A folder is only read. An experiment is run: candidate and baselines replay the same traces, seed by seed,
    on real engines in the order A B B A; the same command resumes. From the third seed on it stops when every
    interval of throughput and TTFT P99 is narrower than --narrow to both sides; it looks at widths alone,
    never at who is ahead.

    Intervals are corrected for their number: of the differences told, 5 % may be none, on average. One metric
    wins or loses if its interval excludes 1; a setting goes by throughput, Jain (all active) and TTFT P99 of
    the well-behaved clients: "wins" wins some of the three and loses none.

    A candidate whose run failed in a setting of the folder loses there; a baseline whose run failed is not
    won against.

    Exit code: 0 if the candidate loses in no setting, 3 if it does in one, 1 if a run made here failed, 2 for
    bad input.

    [bold]Examples[/bold]

    suite compare results/runs/quickstart --candidate dlpm --baseline vtc

    suite compare quickstart -c my_idea.py:MyIdea -b vtc -b dlpm --repeat 10 --narrow 0.05
    """
    from suite import compare as comparing
    from suite.report import scorecard

    if (Path(target) / "experiment.json").exists():
        folder = Path(target)
        _only_read(context, folder)
        found = comparing.in_folder(folder, candidate, baselines or ())
    else:
        seeds = range(seed_from, seed_from + repeat)
        folder, measured = _measured(target, candidate, baselines, seeds, narrow, workloads, settings)
        found = measured.found
        say(f"seeds:   {measured.seeds} of at most {repeat}, in {folder}")
    _tell(found)
    say(f"effects: {scorecard.write(found.effects, folder)}")
    if comparing.loses(found.effects):
        raise typer.Exit(LOSES)


def _only_read(context: typer.Context, folder: Path) -> None:
    """Raises `BadInput` naming a flag that would have no part in reading a folder."""
    for name, flag in _OF_RUNS.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise BadInput(f"{flag}: {folder} holds results and is only read; name an experiment to run")


def _measured(
    target: str,
    candidate: str,
    baselines: Sequence[str] | None,
    seeds: Sequence[int],
    narrow: float,
    workloads: Sequence[str] | None,
    settings: Sequence[str] | None,
) -> tuple[Path, Measured]:
    from suite import compare as comparing
    from suite import runner
    from suite.validation import assignments

    chosen = comparing.planned(
        target, candidate, baselines or (), seeds, workloads or (), assignments(settings or ())
    )
    folder, console = runner.RUNS / chosen.folder, progress()
    with console.status("generating the traces"):
        jobs = list(runner.plan(chosen, folder, shlex.join(["suite", *sys.argv[1:]])))
    measured = comparing.measure(chosen, candidate, jobs, folder, narrow, os.cpu_count() or 1, console)
    for slug, reason in measured.outcome.failed.items():
        complain(f"failed: {slug}: {reason}")
    if measured.outcome.interrupted:
        complain("interrupted: finished cells are kept; the same command resumes")
        raise typer.Exit(INTERRUPTED)
    if measured.outcome.failed:
        raise typer.Exit(1)
    return folder, measured


def _tell(found: Compared) -> None:
    from suite.report import scorecard
    from suite.report.verdicts import verdicts

    by_setting = verdicts(found.effects)
    show(scorecard.table(found.effects))
    sentences = (verdict.sentence for verdict in by_setting)
    for line in (*sentences, *found.left_out, *scorecard.totals(by_setting)):
        say(line)


def score_card(experiment: Experiment, schedulers: Sequence[str], folder: Path, report: Report) -> None:
    """Print how these schedulers do against all others of a folder, setting by setting and in all."""
    from suite import compare as comparing
    from suite.report import scorecard
    from suite.report.verdicts import verdicts

    found = comparing.card(folder, report.frame, comparing.matching(experiment, schedulers))
    if not found.effects:
        return
    show(*scorecard.cards(found.effects))
    for line in (*found.left_out, *scorecard.totals(verdicts(found.effects))):
        say(line)
    say(f"effects: {scorecard.write(found.effects, folder)}")

"""Candidate against baselines: in a folder that is there, or in runs made for it, seed by seed.

Runs stop early when the intervals are narrow enough. The look at them sees their widths alone, at a level
that no outcome has a part in, and never whether they exclude anything: a comparison that stops when it likes
what it sees finds what it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from suite import experiment as experiments
from suite import runner
from suite.errors import BadInput, did_you_mean
from suite.plugins import Plugin
from suite.policies import SchedulerSpec, parse
from suite.report import effects, tables
from suite.report import experiment as folders
from suite.report.effects import Effect
from suite.report.verdicts import verdicts
from suite.runner import Job, Outcome

FIRST_LOOK = 3
"""Seeds before the first look at the widths."""

LOOKED_AT = ("client_service_per_s", "well_ttft_p99")
"""The metrics whose intervals must be narrow."""


def matching(experiment: experiments.Experiment, candidates: Sequence[str]) -> list[str]:
    """The experiment's schedulers, as shown, that are these; several of one whose parameters are swept."""
    wanted = [parse(candidate) for candidate in candidates]
    found = {str(cell.labels["scheduler"]): cell.scheduler for cell in experiment.cells}
    return [label for label, spec in found.items() if any(_is(spec, one) for one in wanted)]


def _is(spec: SchedulerSpec, wanted: SchedulerSpec) -> bool:
    if spec.router is None or wanted.router is None:
        return spec.router is wanted.router and _alike(spec, wanted)
    return _alike(spec, wanted) and _alike(spec.router, wanted.router)


def _alike(plugin: Plugin, wanted: Plugin) -> bool:
    return plugin.target == wanted.target and wanted.parameters.items() <= plugin.parameters.items()


@dataclass(frozen=True)
class Compared:
    """What a comparison came to, and a line per run that had no part in it: which one and why."""

    effects: list[Effect]
    left_out: list[str]


def in_folder(folder: Path, candidate: str, baselines: Sequence[str]) -> Compared:
    """Compare in a folder written by `suite run`; without baselines, against all others there.

    Raises `BadInput` naming a scheduler that is not there. One whose every cell failed is.
    """
    experiment = folders.load(folder)
    there = experiment.schedulers
    for name in (candidate, *baselines):
        if name not in there:
            raise BadInput(f"{folder}: no scheduler {name!r} in it; {did_you_mean(name, there)}")
    chosen = list(dict.fromkeys(baselines)) or [name for name in there if name != candidate]
    if not chosen or candidate in chosen:
        raise BadInput(f"{folder}: {candidate!r} needs another scheduler to be compared with")
    names = {cell.folder.name for cell in experiment.cells if cell.scheduler in (candidate, *chosen)}
    names |= {failure.cell for failure in experiment.failed if failure.scheduler in (candidate, *chosen)}
    compared = experiment.only(names)
    frame = tables.collected(compared)
    return Compared(effects.effects(compared, frame, candidate, chosen), _left_out(compared, frame))


def _left_out(experiment: folders.Experiment, frame: pd.DataFrame) -> list[str]:
    """A line per cell of the frame that is not valid, then one per cell that failed."""
    invalid = frame[frame["invalid"].notna()] if len(frame) else frame
    reasons = [(str(row["cell"]), str(row["invalid"])) for _, row in invalid.iterrows()]
    reasons += [(failure.cell, f"failed: {failure.reason}") for failure in experiment.failed]
    return [f"left out: {cell}: {reason}" for cell, reason in reasons]


def card(folder: Path, frame: pd.DataFrame, candidates: Sequence[str]) -> Compared:
    """The effects of all candidates against all other schedulers of a folder, judged together.

    `frame` is what `tables.collect` returns of the folder.
    """
    experiment = folders.load(folder)
    others = [name for name in experiment.schedulers if name not in candidates]
    found = effects.comparisons(experiment, frame, candidates, others)
    return Compared(effects.compared(found), _left_out(experiment, frame))


@dataclass(frozen=True)
class Measured:
    """What runs made for a comparison came to: `found` is empty if one failed or was interrupted."""

    outcome: Outcome
    found: Compared
    seeds: int


def planned(
    source: str,
    candidate: str,
    baselines: Sequence[str],
    seeds: Sequence[int],
    workloads: Sequence[str] = (),
    sweep: dict[str, object] | None = None,
) -> experiments.Experiment:
    """The experiment with these seeds and the candidate beside the baselines; without, beside its own.

    Raises `BadInput` as `suite.experiment.load` does, and if the candidate would be alone.
    """
    found = experiments.load(
        source,
        workloads=workloads,
        schedulers=baselines,
        candidates=[candidate],
        seeds=seeds,
        sweep=sweep or {},
    )
    if matching(found, [candidate]) == found.schedulers:
        raise BadInput(f"{source}: {candidate!r} needs another scheduler to be compared with")
    return found


def measure(
    experiment: experiments.Experiment,
    candidate: str,
    jobs: Sequence[Job],
    out: Path,
    narrow: float,
    processes: int,
    console: Console,
) -> Measured:
    """Run the cells of one seed after the other until the intervals are narrow enough, then compare.

    `narrow` bounds half the width of the logarithm's interval, so about the relative error, of the metrics
    `LOOKED_AT` in every setting. The report is written once, at the end.
    """
    mine = matching(experiment, [candidate])
    found, count = Compared([], []), 0
    for count in range(min(FIRST_LOOK, len(experiment.seeds)), len(experiment.seeds) + 1):
        part = [job for job in jobs if job.cell.seed in experiment.seeds[:count]]
        outcome = runner.run(experiment, part, out, processes=processes, report=False, console=console)
        if outcome.failed or outcome.interrupted:
            return Measured(outcome, Compared([], []), count)
        found = card(out, tables.collect(out), mine)
        if narrow_enough(found.effects, narrow) or len(part) == len(jobs):
            break
    outcome = runner.run(experiment, part, out, processes=processes, console=console)
    return Measured(outcome, found, count)


def narrow_enough(found: Sequence[Effect], narrow: float) -> bool:
    """True if every interval that is looked at is there and at most so wide."""
    widths = [effect.half_width for effect in found if effect.metric in LOOKED_AT]
    return bool(widths) and all(width is not None and width <= narrow for width in widths)


def loses(found: Sequence[Effect]) -> bool:
    """True if the candidate loses a deciding metric in some setting."""
    return any("loses" in verdict.word for verdict in verdicts(found))

"""The figures of an experiment, each drawn by a pure function of its results and saved as PNG, PDF and CSV.

A figure of one setting over time shows the first seed; a figure over settings shows means over seeds. Cells
that are not valid are in none of them unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from suite.files import write_atomically
from suite.report import parallel, style
from suite.report.effects import Effect
from suite.report.experiment import Experiment
from suite.report.figures.bound import gap_under_bound
from suite.report.figures.cache import hit_rate, payers
from suite.report.figures.effects import forest
from suite.report.figures.frontier import tradeoff
from suite.report.figures.latencies import cdfs, per_client, per_scheduler
from suite.report.figures.over_time import fairness_over_time, response_over_time, service_over_time
from suite.report.figures.parts import Plot, Runs
from suite.report.figures.replicas import service_by_replica
from suite.report.figures.sweeps import grid, parameter_sweep, scaling, swept_keys, swept_parameters
from suite.report.tables import valid

MOST_DETAILED = 4
"""Settings whose clients are drawn over time; a page with more would be too long to read."""

DPI = 160
"""Pixels an inch of the PNGs."""


@dataclass(frozen=True)
class Drawing:
    """A figure on disk: what it is called, how to read it, its PNG (PDF and CSV lie beside it), and the
    setting whose details it shows, if it is of one.
    """

    title: str
    reading: str
    png: Path
    setting: str | None = None


@dataclass(frozen=True)
class _Plan:
    """A figure to be drawn: by what, under which file name, called what, and how to read it."""

    draw: Callable[[], Plot]
    stem: str
    title: str
    reading: str
    setting: str | None = None


def write_figures(experiment: Experiment, frame: pd.DataFrame, effects: Sequence[Effect]) -> list[Drawing]:
    """Draw the figures that suit an experiment into its `figures/`, the main ones first.

    `frame` is what `tables.collected` returns. Of `experiment` and `frame` only valid cells are drawn.
    """
    rows = valid(frame)
    shown = experiment.only(set(rows["cell"]))
    folder = experiment.folder / "figures"
    if rows.empty:
        _sweep(folder, set())
        return []
    plans = [*_over_settings(rows, effects), *_replicas(shown, rows), *_details(shown)]
    drawings = parallel.each(partial(_write, folder), plans)
    _sweep(folder, {drawing.png.stem for drawing in drawings})
    return drawings


def _sweep(folder: Path, kept: set[str]) -> None:
    """Remove the figures of an earlier report that are not of this one."""
    for path in folder.glob("*.*"):
        if path.suffix in (".png", ".pdf", ".csv") and path.stem not in kept:
            path.unlink()


def _write(folder: Path, plan: _Plan) -> Drawing:
    png = folder / f"{plan.stem}.png"
    with style.styled():
        _save(plan.draw(), png)
    return Drawing(plan.title, plan.reading, png, plan.setting)


def _save(plot: Plot, png: Path) -> None:
    """Write PNG, PDF and CSV without dates or versions in them, so equal results give equal bytes."""
    figure = plot.figure
    figure.set_dpi(DPI)  # text is not quite as wide at another
    for _ in range(2):  # what the first pass moves, such as the labels of equal-sided panels, needs a second
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it has been laid out, for both files
    unnamed = {"Creator": None, "Producer": None, "CreationDate": None}
    write_atomically(png, lambda file: figure.savefig(file, dpi=DPI, metadata={"Software": None}))
    write_atomically(png.with_suffix(".pdf"), lambda file: figure.savefig(file, metadata=unnamed))
    write_atomically(png.with_suffix(".csv"), lambda file: plot.data.to_csv(file, index=False))


# -- figures over all settings ---------------------------------------------------------------------------


def _over_settings(frame: pd.DataFrame, effects: Sequence[Effect]) -> Iterator[_Plan]:
    yield _Plan(partial(tradeoff, frame), "tradeoff", "Throughput against fairness", _TRADEOFF)
    if any(effect.ratio is not None for effect in effects):
        yield _Plan(partial(forest, effects), "effects", "Effects", _EFFECTS)
    yield from _sweeps(frame)
    yield _Plan(partial(per_scheduler, frame), "latency", "Latency by scheduler", _LATENCY)
    yield _Plan(partial(hit_rate, frame), "hit-rate", "Prefix hits", _HITS)


def _sweeps(frame: pd.DataFrame) -> Iterator[_Plan]:
    for policy, parameter in swept_parameters(frame):
        draw = partial(parameter_sweep, frame, policy, parameter)
        yield _Plan(draw, f"sweep-{_slug(policy)}-{_slug(parameter)}", f"{policy}: {parameter}", _PARAMETER)
    keys = swept_keys(frame)
    for key in keys:
        title = f"Scaling with {key}"
        yield _Plan(partial(scaling, frame, key), f"scaling-{_slug(key)}", title, _SCALING)
    if len(keys) == 1 and frame["workload"].nunique() > 1:
        title = f"All workloads over {keys[0]}"
        yield _Plan(partial(grid, frame, keys[0]), f"grid-{_slug(keys[0])}", title, _GRID)


def _replicas(experiment: Experiment, frame: pd.DataFrame) -> Iterator[_Plan]:
    several = set(frame.loc[frame["imbalance"].notna(), "cell"])
    if several:
        draw = partial(service_by_replica, experiment.only(several))
        yield _Plan(draw, "replicas", "Service by replica", _REPLICAS)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60]


# -- figures of one setting ------------------------------------------------------------------------------

Draw: TypeAlias = Callable[[Runs], Plot]


def _details(experiment: Experiment) -> Iterator[_Plan]:
    for number, setting in enumerate(experiment.settings[:MOST_DETAILED], start=1):
        yield _Plan(
            partial(_all_seeds, experiment, setting), f"cdf-{number:02d}", "Distributions", _CDFS, setting
        )
        for draw, stem, title, reading in DETAILS:
            first = partial(_first_seed, draw, experiment, setting)
            yield _Plan(first, f"{stem}-{number:02d}", title, f"{reading} First seed.", setting)


def _first_seed(draw: Draw, experiment: Experiment, setting: str) -> Plot:
    return draw({cell.scheduler: cell.run() for cell in experiment.first_seed(setting)})


def _all_seeds(experiment: Experiment, setting: str) -> Plot:
    cells = experiment.by_scheduler(setting)
    return cdfs({scheduler: [cell.run() for cell in seeds] for scheduler, seeds in cells.items()})


# -- how to read them ------------------------------------------------------------------------------------

_TRADEOFF = (
    "Up and to the right is better. Jain's index of client service while all clients are active, means over "
    "seeds; bars are standard deviations; lines join one policy at several values of a parameter; † from a "
    "window too short to rank by."
)
_EFFECTS = (
    "The number of the fastest fair scheduler over each other's, with its interval where seeds allow one. An "
    "interval that does not reach the line at 1 is a difference; green is the better side, red the worse. "
    'For latency less is better; "first token sooner" is the share of requests served sooner, over one half.'
)
_LATENCY = (
    "Time to first token, P50 inside P99, of the well-behaved clients and of those that misbehave; means "
    'over seeds. A request that ought to have been served and was not is infinitely late: "never".'
)
_HITS = (
    "Share of the prompt tokens that were found in the prefix cache at first admission, by who had computed "
    "them; means over seeds, bars are standard deviations."
)
_REPLICAS = (
    "Share of the actual service (uncached input + 2 output tokens) that each replica gave, means over "
    "seeds. Dotted lines are where the shares of an even load end."
)
_PARAMETER = (
    "Throughput and fairness against the parameter, on a logarithmic scale; level lines are the other "
    "schedulers. Means over seeds, bands are standard deviations."
)
_SCALING = (
    "Throughput, fairness and time to first token of the well-behaved clients. Means over seeds, bands are "
    "standard deviations."
)
_GRID = (
    "Rows are measures, columns workloads, as in Fig. 7 of the DLPM paper; latencies are the well-behaved "
    "clients' time to first token. Means over seeds, bars are standard deviations."
)
_CDFS = (
    "Time to first token, end-to-end time and inter-token latency of the well-behaved clients, all seeds "
    "pooled. Requests never served count, so their curve does not reach 1."
)
DETAILS: tuple[tuple[Draw, str, str, str], ...] = (
    (
        service_over_time,
        "service",
        "Service over time",
        "Cumulative client service (input + 2 output tokens). Parallel lines are equal rates; a flat line is "
        "a client that waits or is idle.",
    ),
    (
        gap_under_bound,
        "bound",
        "Service gap under its bound",
        "The two backlogged clients whose service differs most: the largest difference over any interval "
        "that ends at the time, on the service that the policy charges, and what its theorem allows. A "
        "shaded window broke the bound, which with several replicas is for clients that wait at each of "
        "them; a policy without a theorem has no bound.",
    ),
    (
        fairness_over_time,
        "fairness",
        "Fairness over time",
        "Jain's index and largest pairwise gap of client service rates in sliding windows, over the clients "
        "active in each.",
    ),
    (
        response_over_time,
        "response",
        "Response time over time",
        "Mean time to first token by time of arrival, on a logarithmic scale; no line where a request was "
        "never served.",
    ),
    (
        per_client,
        "clients",
        "Latency per client",
        "Time to first token: P50, P90 and P99 nested in one bar.",
    ),
    (
        payers,
        "sharing",
        "Who paid for shared prefixes",
        "Prompt tokens found in the cache, by the client that found them and the client that had computed "
        "them last. Off the diagonal one client paid for another.",
    ),
)
"""Figures of the first seed of one setting: function, file name, title, how to read it."""

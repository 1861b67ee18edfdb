"""The figures, each a pure function of the results: throughput against fairness, and clients over time.

A figure over time shows the first seed; a figure over settings shows means over seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, LogFormatter

from suite.files import write_atomically
from suite.metrics import fairness, latency
from suite.metrics.service import Floats, curves
from suite.metrics.summary import client_weights, misbehaving
from suite.report import style
from suite.report.experiment import Experiment
from suite.report.tables import aggregated
from suite.results import Run

MOST_BARS = 12
_REST = "#bdbdbd"
_POINTS = 200
_BINS = 24
_SHADES = {"p99": "#c6dbef", "p90": "#6baed6", "p50": "#08306b"}

_TRADEOFF = (
    "Up and to the right is better. Jain's index of client service while all clients are active, means over "
    "seeds; bars are standard deviations; lines join one policy at several values of a parameter; † from a "
    "window too short to rank by."
)

Runs: TypeAlias = Mapping[str, Run]
"""Runs of one setting by scheduler, in reading order."""


@dataclass(frozen=True)
class Drawing:
    """A figure on disk: what it is called, how to read it, and its PNG (the PDF lies beside it)."""

    title: str
    reading: str
    png: Path


def write_figures(experiment: Experiment, frame: pd.DataFrame) -> list[Drawing]:
    """Draw all figures of an experiment into its `figures/`; `frame` is what `tables.collect` returns."""
    folder = experiment.folder / "figures"
    with style.styled():
        png = _save(tradeoff(frame), folder / "tradeoff.png")
        drawings = [Drawing("Throughput against fairness", _TRADEOFF, png)]
        for number, setting in enumerate(experiment.settings, start=1):
            runs = {cell.scheduler: cell.run() for cell in experiment.first_seed(setting)}
            for plan in _PER_SETTING:
                png = _save(plan.draw(runs), folder / f"{plan.stem}-{number:02d}.png")
                drawings.append(Drawing(f"{plan.title}: {setting}", plan.reading, png))
    return drawings


def _save(figure: Figure, png: Path) -> Path:
    """Write PNG and PDF without dates or versions in them, so equal results give equal bytes."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it has been laid out: once is enough for both files
    unnamed = {"Creator": None, "Producer": None, "CreationDate": None}
    write_atomically(png, lambda file: figure.savefig(file, dpi=200, metadata={"Software": None}))
    write_atomically(png.with_suffix(".pdf"), lambda file: figure.savefig(file, metadata=unnamed))
    return png


# -- throughput against fairness -------------------------------------------------------------------------


def tradeoff(frame: pd.DataFrame) -> Figure:
    """Jain's index against throughput, one point per scheduler, one panel per setting (DLPM's Fig. 1).

    Points of one policy that differ in one numeric parameter are joined; bars are standard deviations.
    """
    table = aggregated(frame)
    settings = list(dict.fromkeys(table["setting"]))
    looks = style.policies(table["policy"])
    figure = style.panels(len(settings), 3.6, 3.0, most=3)
    for axes, setting in zip(figure.axes, settings, strict=True):
        _tradeoff_panel(axes, table[table["setting"] == setting], looks)
        axes.set(title=style.plain(setting), xlabel="client service / s", ylabel="Jain's index (all active)")
    policies = table["policy"].unique()
    _say_where_empty(figure)
    _legend(figure, {_policy_name(name, table): _handle(looks[name], line=False) for name in policies})
    return figure


def _tradeoff_panel(axes: Axes, table: pd.DataFrame, looks: Mapping[str, style.Look]) -> None:
    drawn = table.dropna(subset=["jain_client_all_active"])
    labels: list[_Label] = []
    for (policy, swept), line in drawn.groupby(["policy", drawn["scheduler"].map(_swept)], sort=False):
        joined = bool(swept) and len(line) > 1
        _scatter(axes, line, looks[str(policy)], joined)
        for row in line.itertuples():
            text = str(row.scheduler).removeprefix(str(policy)).removeprefix(":")
            shown = text.partition("=")[2] if joined else style.plain(text)
            shown += "†" if row.jain_client_all_active_short else ""
            x, y = cast(float, row.client_service_per_s), cast(float, row.jain_client_all_active)
            labels.append(_Label(x, y, shown))
    absent = [name for name in table["scheduler"] if name not in set(drawn["scheduler"])]
    if absent:
        text = "no such Jain: " + ", ".join(map(style.plain, absent))
        axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=6.5, wrap=True)
    axes.margins(0.2, 0.15)
    _annotate(axes, labels)


class _Label(NamedTuple):
    x: float
    y: float
    text: str


def _annotate(axes: Axes, labels: list[_Label]) -> None:
    """Write each label beside its point; points too close for labels of their own share one."""
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    groups: list[list[_Label]] = []
    for label in filter(lambda label: label.text, labels):
        near = (
            group
            for group in groups
            if abs(group[0].x - label.x) < width * 0.1 and abs(group[0].y - label.y) < height * 0.05
        )
        group = next(near, None)
        if group is None:
            groups.append([label])
        else:
            group.append(label)
    for group in groups:
        place = (float(np.mean([label.x for label in group])), max(label.y for label in group))
        left = place[0] > np.mean(axes.get_xlim())
        text = ", ".join(dict.fromkeys(label.text for label in group))
        beside: dict[str, Any] = {"xytext": (-5, 4), "ha": "right"} if left else {"xytext": (5, 4)}
        axes.annotate(text, place, textcoords="offset points", fontsize=6.5, **beside)


def _scatter(axes: Axes, points: pd.DataFrame, look: style.Look, joined: bool) -> None:
    axes.errorbar(
        points["client_service_per_s"],
        points["jain_client_all_active"],
        xerr=points["client_service_per_s_sd"].fillna(0),
        yerr=points["jain_client_all_active_sd"].fillna(0),
        color=look.color,
        marker=look.marker,
        markersize=6,
        linestyle="-" if joined else "none",
        linewidth=1,
        elinewidth=0.8,
    )


def _policy_name(policy: str, table: pd.DataFrame) -> str:
    """The policy as the legend has it: with the name of the parameter whose values stand at its points."""
    schedulers = table.loc[table["policy"] == policy, "scheduler"].drop_duplicates()
    swept = Counter(map(_swept, schedulers))
    names = [name for name, count in swept.items() if name and count > 1]
    return ", by ".join(map(style.plain, [policy, *names]))


def _swept(scheduler: str) -> str:
    """The name of the parameter in a scheduler's label if it is a single number, else nothing."""
    name, _, value = scheduler.partition(":")[2].partition("=")
    return name if value.replace(".", "", 1).isdigit() else ""


# -- one setting, one panel per scheduler ----------------------------------------------------------------


def service_over_time(runs: Runs) -> Figure:
    """Cumulative client service of each client; parallel lines are equal rates."""
    times = np.linspace(0, _end(runs), _POINTS)

    def lines(run: Run) -> Iterator[tuple[str, Floats, Floats]]:
        names = sorted(run.requests["client"].unique()) if len(run.service) else []
        for client, curve in curves(run.service, names, "client").items():
            yield client, times, curve.before(times)

    figure = _client_lines(runs, lines, "client service")
    for axes in figure.axes:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def response_over_time(runs: Runs) -> Figure:
    """Mean TTFT of each client's requests by time of arrival, on a logarithmic scale."""
    end = max(run.requests["arrival"].max() for run in runs.values())
    edges = np.linspace(0, max(end, 1e-9), _BINS + 1)

    def lines(run: Run) -> Iterator[tuple[str, Floats, Floats]]:
        served = latency.latencies(run.requests)
        for client, rows in served.groupby("client"):
            means = rows["ttft"].groupby(np.digitize(rows["arrival"], edges[1:-1])).mean()
            yield str(client), ((edges[:-1] + edges[1:]) / 2)[means.index], means.to_numpy(np.float64)

    figure = _client_lines(runs, lines, "mean TTFT (s)")
    for axes in figure.axes:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PlainLog())
        axes.yaxis.set_minor_formatter(_PlainLog(minor_thresholds=(1, 0.4)))
    low, high = figure.axes[0].get_ylim()
    if high < 4 * low:  # nearly constant: ticks this close could not be told apart
        figure.axes[0].set_ylim(float(np.sqrt(low * high)) / 2, float(np.sqrt(low * high)) * 2)
    return figure


class _PlainLog(LogFormatter):
    """Plain numbers at the ticks that matplotlib would label on a logarithmic axis."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def _client_lines(
    runs: Runs, lines: Callable[[Run], Iterator[tuple[str, Floats, Floats]]], ylabel: str
) -> Figure:
    bad, names = _ranked(runs)
    looks = style.clients(names[: style.MOST_CLIENTS], bad)
    figure = style.panels(len(runs), 2.7, 2.2)
    for axes, (scheduler, run) in zip(figure.axes, runs.items(), strict=True):
        for client, x, y in lines(run):
            _client_line(axes, x, y, looks.get(client))
        axes.set(title=style.plain(scheduler), xlabel="time (s)")
    _share_axes(figure)
    figure.axes[0].set_ylabel(ylabel)
    _client_legend(figure, looks, bad, len(names))
    return figure


def _client_line(axes: Axes, x: Floats, y: Floats, look: style.Look | None) -> None:
    if look is None:
        axes.plot(x, y, color=_REST, linewidth=0.7, zorder=1)
    else:
        every = max(1, len(x) // 6)
        axes.plot(x, y, look.dashes, color=look.color, marker=look.marker, markevery=every)


def latency_bars(runs: Runs) -> Figure:
    """P50, P90 and P99 of TTFT of each client, nested in one bar."""
    bad, names = _ranked(runs)
    shown = names[:MOST_BARS]
    figure = style.panels(len(runs), 2.7, 0.7 + 0.22 * len(shown))
    for axes, (scheduler, run) in zip(figure.axes, runs.items(), strict=True):
        table = latency.by_client(run.requests).reindex(shown)
        for i, (shade, color) in enumerate(_SHADES.items()):
            axes.barh(range(len(shown)), table[f"ttft_{shade}"], height=0.85 - 0.25 * i, color=color)
        axes.set(title=style.plain(scheduler), xlabel="TTFT (s)", ylim=(len(shown) - 0.5, -0.5))
        axes.set_yticks(range(len(shown)), [_client_name(name, bad) for name in shown])
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.6g}"))
    _share_axes(figure)
    handles = {shade.upper(): Patch(color=_SHADES[shade]) for shade in reversed(_SHADES)}
    _legend(figure, handles, _cut(len(shown), len(names), "shown"))
    return figure


def fairness_over_time(runs: Runs) -> Figure:
    """Jain's index and pairwise gap of client service rates in sliding windows, over the clients active."""
    end = _end(runs)
    looks = style.policies({run.manifest.labels["policy"] for run in runs.values()})
    figure = style.panels(2, 5.4, 2.6)
    dashes: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
    handles: dict[str, Line2D] = {}
    for i, (scheduler, run) in enumerate(runs.items()):
        look = looks[run.manifest.labels["policy"]]._replace(dashes=dashes[i % 4])
        handles[style.plain(scheduler)] = _handle(look)
        if run.service.empty:
            continue
        course = _course(run, end)
        for axes, measure in zip(figure.axes, ("jain", "gap"), strict=True):
            _client_line(axes, course["time"].to_numpy(), course[measure].to_numpy(), look)
    figure.axes[0].set(xlabel="time (s)", ylabel="Jain's index", ylim=(0, 1.05))
    figure.axes[1].set(xlabel="time (s)", ylabel="largest gap (service / s)")
    _say_where_empty(figure)
    sns.despine(fig=figure)
    _legend(figure, handles, f"sliding windows of {end / 20:.3g} s, clients active in them" if end else None)
    return figure


def _course(run: Run, end: float) -> pd.DataFrame:
    weights = client_weights(run.requests)
    log = curves(run.service, list(weights.index), "client")
    width = end / 20
    centres = np.linspace(width / 2, end - width / 2, _POINTS // 2)
    return fairness.over_time(run.requests, log, weights, centres, width)


# -- shared parts ----------------------------------------------------------------------------------------


def _end(runs: Runs) -> float:
    """Seconds at which the last request of all runs finished; 0 if none did."""
    ends = (float(run.requests["finish"].max()) for run in runs.values())
    return max((end for end in ends if end == end), default=0.0)


def _say_where_empty(figure: Figure) -> None:
    for axes in figure.axes:
        heights = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
        lengths = [np.array([patch.get_width()]) for patch in axes.patches if isinstance(patch, Rectangle)]
        if not any(np.isfinite(values).any() for values in (*heights, *lengths)):
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center")


def _ranked(runs: Runs) -> tuple[set[str], list[str]]:
    """The misbehaving clients, and all clients: misbehaving first, then those that ask for most tokens."""
    run = next(iter(runs.values()))
    bad = set(misbehaving(run))
    tokens = run.requests["prompt_tokens"] + run.requests["output_tokens"]
    asked = tokens.groupby(run.requests["client"]).sum()
    return bad, sorted(map(str, asked.index), key=lambda name: (name not in bad, -asked[name], name))


def _client_name(name: str, bad: set[str]) -> str:
    return f"{style.plain(name)} (misbehaving)" if name in bad else style.plain(name)


def _cut(shown: int, of: int, how: str) -> str | None:
    if shown >= of:
        return None
    return f"{shown} of {of} clients {how}: misbehaving first, then those that ask for most tokens"


def _client_legend(figure: Figure, looks: Mapping[str, style.Look], bad: set[str], count: int) -> None:
    handles = {_client_name(name, bad): _handle(look) for name, look in looks.items()}
    if count > len(looks):
        handles[f"{count - len(looks)} others"] = Line2D([], [], color=_REST, linewidth=0.7)
    _legend(figure, handles, _cut(len(looks), count, "in colour"))


def _handle(look: style.Look, line: bool = True) -> Line2D:
    return Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dashes if line else "none")


def _legend(figure: Figure, handles: Mapping[str, Line2D | Patch], title: str | None = None) -> None:
    columns = min(len(handles), max(1, int(figure.get_size_inches()[0] / 1.6)))
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=columns, title=title)


def _share_axes(figure: Figure) -> None:
    """One scale for all panels; tick labels at the left and the bottom only."""
    _say_where_empty(figure)
    first, *rest = figure.axes
    for axes in rest:
        axes.sharex(first)
        axes.sharey(first)
    first.autoscale()
    for axes in figure.axes:
        axes.label_outer()
    sns.despine(fig=figure)


class _Plan(NamedTuple):
    draw: Callable[[Runs], Figure]
    stem: str
    title: str
    reading: str


_PER_SETTING = (
    _Plan(
        service_over_time,
        "service",
        "Service over time",
        "Cumulative client service (input + 2 output tokens). Parallel lines are equal rates; a flat line is "
        "a client that waits or is idle. First seed.",
    ),
    _Plan(
        fairness_over_time,
        "fairness",
        "Fairness over time",
        "Jain's index and largest pairwise gap of client service rates in sliding windows, over the clients "
        "active in each. First seed.",
    ),
    _Plan(
        response_over_time,
        "response",
        "Response time over time",
        "Mean time to first token by time of arrival, on a logarithmic scale. First seed.",
    ),
    _Plan(
        latency_bars,
        "latency",
        "Latency per client",
        "Time to first token: P50, P90 and P99 nested in one bar. First seed.",
    ),
)

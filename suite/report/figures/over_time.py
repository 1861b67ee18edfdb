"""Clients over time, one panel per scheduler; and fairness over time, one line per scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from suite.metrics import fairness, latency
from suite.metrics.service import curves
from suite.metrics.summary import client_weights
from suite.report import style
from suite.report.figures.parts import (
    OTHERS,
    Plot,
    Runs,
    client_name,
    cut,
    end,
    handle,
    legend,
    line,
    log_y,
    policy_of,
    ranked,
    say_where_empty,
    share_axes,
)
from suite.results import Run

_POINTS = 200
_BINS = 24


def service_over_time(runs: Runs) -> Plot:
    """Cumulative client service of each client; parallel lines are equal rates."""
    last = end(runs)
    plot = _client_lines(runs, {name: _service(run, last) for name, run in runs.items()}, "client service")
    for axes in plot.figure.axes:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    return plot


def _service(run: Run, last: float) -> pd.DataFrame:
    times = np.linspace(0, last, _POINTS)
    names = sorted(run.requests["client"].unique()) if len(run.service) else []
    log = curves(run.service, names, "client")
    return _stacked({name: (times, curve.before(times)) for name, curve in log.items()}, "client service")


def response_over_time(runs: Runs) -> Plot:
    """Mean TTFT of each client's requests by time of arrival, on a logarithmic scale.

    Where one of them was never served, the line has a hole.
    """
    last = max(run.requests["arrival"].max() for run in runs.values())
    edges = np.linspace(0, max(last, 1e-9), _BINS + 1)
    plot = _client_lines(runs, {name: _responses(run, edges) for name, run in runs.items()}, "mean TTFT (s)")
    for axes in plot.figure.axes:
        log_y(axes)
    return plot


def _responses(run: Run, edges: Any) -> pd.DataFrame:
    centres = (edges[:-1] + edges[1:]) / 2
    found = latency.latencies(run.requests).dropna(subset=["arrival"])
    lines = {}
    for client, rows in found.groupby("client"):
        means = rows["ttft"].groupby(np.digitize(rows["arrival"], edges[1:-1])).mean()
        lines[str(client)] = (centres[means.index], means.replace(np.inf, np.nan).to_numpy(float))
    return _stacked(lines, "mean TTFT (s)")


def _stacked(lines: dict[str, tuple[Any, Any]], measure: str) -> pd.DataFrame:
    parts = [pd.DataFrame({"client": name, "time": x, measure: y}) for name, (x, y) in lines.items()]
    return pd.concat(parts) if parts else pd.DataFrame(columns=["client", "time", measure])


def _client_lines(runs: Runs, data: dict[str, pd.DataFrame], measure: str) -> Plot:
    bad, names = ranked(runs)
    looks = style.clients(names[: style.MOST_CLIENTS], bad)
    figure = style.panels(len(runs), 2.7, 2.2)
    for axes, (scheduler, rows) in zip(figure.axes, data.items(), strict=True):
        for client, points in rows.groupby("client", sort=False):
            line(axes, points["time"].to_numpy(), points[measure].to_numpy(float), looks.get(str(client)))
        axes.set(title=style.plain(scheduler), xlabel="time (s)")
    share_axes(figure)
    figure.axes[0].set_ylabel(measure)
    _client_legend(figure, looks, bad, len(names))
    return Plot(figure, pd.concat(data, names=["scheduler"]).reset_index("scheduler"))


def _client_legend(figure: Any, looks: dict[str, style.Look], bad: set[str], count: int) -> None:
    handles = {client_name(name, bad): handle(look) for name, look in looks.items()}
    if count > len(looks):
        handles[f"{count - len(looks)} others"] = Line2D([], [], color=OTHERS, linewidth=0.7)
    legend(figure, handles, cut(len(looks), count, "in colour"))


def fairness_over_time(runs: Runs) -> Plot:
    """Jain's index and pairwise gap of client service rates in sliding windows, over the clients active."""
    last = end(runs)
    data = pd.DataFrame(_courses(runs, last), columns=["scheduler", "time", "jain", "gap"])
    looks = style.schedulers(policy_of(runs))
    figure = style.panels(2, 5.4, 2.6)
    for scheduler, course in data.groupby("scheduler", sort=False):
        for axes, measure in zip(figure.axes, ("jain", "gap"), strict=True):
            line(axes, course["time"].to_numpy(), course[measure].to_numpy(), looks[str(scheduler)])
    figure.axes[0].set(xlabel="time (s)", ylabel="Jain's index", ylim=(0, 1.05))
    figure.axes[1].set(xlabel="time (s)", ylabel="largest gap (service / s)")
    say_where_empty(figure)
    sns.despine(fig=figure)
    title = f"sliding windows of {last / 20:.3g} s, clients active in them" if last else None
    legend(figure, {style.plain(name): handle(look) for name, look in looks.items()}, title)
    return Plot(figure, data)


def _courses(runs: Runs, last: float) -> Iterator[tuple[str, float, float, float]]:
    width = last / 20
    centres = np.linspace(width / 2, last - width / 2, _POINTS // 2)
    for scheduler, run in runs.items():
        if len(run.service):
            weights = client_weights(run.requests)
            log = curves(run.service, list(weights.index), "client")
            course = fairness.over_time(run.requests, log, weights, centres, width)
            rows = course[["time", "jain", "gap"]].to_numpy(float)
            yield from ((scheduler, time, jain, gap) for time, jain, gap in rows)

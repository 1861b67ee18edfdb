"""Throughput against fairness, the picture of the DLPM paper's Fig. 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from suite.report import style
from suite.report.figures.parts import Plot, given, handle, legend, say_where_empty, swept
from suite.report.tables import aggregated

_X, _Y = "client_service_per_s", "jain_client_all_active"


def tradeoff(frame: pd.DataFrame) -> Plot:
    """Jain's index against throughput, one point per scheduler, one panel per setting (DLPM's Fig. 1).

    Points of one policy that differ in one numeric parameter are joined; bars are standard deviations. A
    scheduler without one of the two numbers is named in its panel.
    """
    table = aggregated(frame)
    settings = list(dict.fromkeys(table["setting"]))
    looks = style.policies(table["policy"])
    figure = style.panels(len(settings), 3.6, 3.0, most=3)
    for axes, setting in zip(figure.axes, settings, strict=True):
        here = table[table["setting"] == setting]
        _panel(axes, here.dropna(subset=[_X, _Y]), looks)
        _name_absent(axes, [*here.loc[here[[_X, _Y]].isna().any(axis=1), "scheduler"]])
        axes.set(title=style.plain(setting), xlabel="client service / s", ylabel="Jain's index (all active)")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    say_where_empty(figure)
    policies = table["policy"].unique()
    legend(figure, {_policy_name(name, table): handle(looks[name], line=False) for name in policies})
    columns = ["setting", "scheduler", "policy", "seeds", _X, f"{_X}_sd", _Y, f"{_Y}_sd", f"{_Y}_short"]
    return Plot(figure, table.dropna(subset=[_X, _Y])[columns])


def _panel(axes: Axes, table: pd.DataFrame, looks: Mapping[str, style.Look]) -> None:
    labels: list[Label] = []
    names = table["scheduler"].map(lambda label: (swept(label) or ("", 0))[0])
    for (policy, parameter), line in table.groupby(["policy", names], sort=False):
        joined = bool(parameter) and len(line) > 1
        _scatter(axes, line, looks[str(policy)], joined)
        labels += [_label(row, joined) for _, row in line.iterrows()]
    axes.margins(0.2, 0.15)
    annotate(axes, labels)


def _name_absent(axes: Axes, absent: list[str]) -> None:
    if absent:
        text = "no such numbers: " + ", ".join(map(style.plain, absent))
        axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=6.5, wrap=True)


class Label(NamedTuple):
    """A text that belongs to a point."""

    x: float
    y: float
    text: str


def _label(row: pd.Series[Any], joined: bool) -> Label:
    parameters = given(str(row["scheduler"]))
    pairs = parameters.values() if joined else (f"{key}={value}" for key, value in parameters.items())
    shown = style.plain(",".join(pairs))
    return Label(row[_X], row[_Y], shown + ("†" if row[f"{_Y}_short"] else ""))


def annotate(axes: Axes, labels: list[Label]) -> None:
    """Write each label beside its point; points too close for labels of their own share one."""
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    groups: list[list[Label]] = []
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
        points[_X],
        points[_Y],
        xerr=points[f"{_X}_sd"].fillna(0),
        yerr=points[f"{_Y}_sd"].fillna(0),
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
    parameters = Counter(found[0] for found in map(swept, schedulers) if found)
    names = [name for name, count in parameters.items() if count > 1]
    return ", by ".join(map(style.plain, [policy, *names]))

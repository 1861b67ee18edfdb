"""What changes when a parameter does: of a scheduler, of the workload, of the backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from suite.report import style
from suite.report.experiment import setting_of
from suite.report.figures.parts import (
    Plot,
    finite,
    handle,
    legend,
    say_where_empty,
    swept,
    tidy,
    values_as_ticks,
)
from suite.report.tables import over_seeds, valid


class _Measure(NamedTuple):
    key: str
    title: str


_MEASURES = (
    _Measure("client_service_per_s", "client service / s"),
    _Measure("jain_client_all_active", "Jain's index"),
    _Measure("well_ttft_p50", "TTFT P50 (s)"),
    _Measure("well_ttft_p99", "TTFT P99 (s)"),
)
_KEYS = [measure.key for measure in _MEASURES]


# -- a scheduler's parameter -----------------------------------------------------------------------------


def swept_parameters(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Policies and the numeric parameter that an experiment gives them several values of."""
    labels = frame[["policy", "scheduler"]].drop_duplicates()
    found: dict[tuple[str, str], int] = {}
    for policy, scheduler in labels.itertuples(index=False):
        if (parameter := swept(scheduler)) is not None:
            found[policy, parameter[0]] = found.get((policy, parameter[0]), 0) + 1
    return [key for key, count in found.items() if count > 1]


def parameter_sweep(frame: pd.DataFrame, policy: str, parameter: str) -> Plot:
    """Throughput and Jain's index against a scheduler's parameter; the other schedulers as level lines.

    Bands are standard deviations over the valid seeds. Two panels per setting.
    """
    table = over_seeds(valid(frame), _KEYS[:2])
    found = table["scheduler"].map(swept)
    mine = (table["policy"] == policy) & found.map(lambda f: f is not None and f[0] == parameter)
    table = table.assign(value=found.map(lambda f: f[1] if f else np.nan).where(mine))
    looks = style.schedulers({policy: policy} | dict(table.loc[~mine, ["scheduler", "policy"]].to_numpy()))
    settings = list(dict.fromkeys(table["setting"]))
    figure = style.panels(2 * len(settings), 3.6, 2.7, most=2)
    for i, setting in enumerate(settings):
        for axes, measure in zip(figure.axes[2 * i : 2 * i + 2], _MEASURES, strict=False):
            _swept_panel(axes, table[table["setting"] == setting], measure, looks, policy)
            axes.set(title=style.plain(setting), xlabel=style.plain(f"{policy} {parameter}"))
    say_where_empty(figure)
    sns.despine(fig=figure)
    level = {name: look._replace(marker="") for name, look in looks.items() if name != policy}
    legend(figure, {style.plain(name): handle(look) for name, look in (looks | level).items()})
    return Plot(figure, _melted(table, ["setting", "scheduler", "value"], _KEYS[:2]))


def _swept_panel(
    axes: Axes, table: pd.DataFrame, measure: _Measure, looks: Mapping[str, style.Look], policy: str
) -> None:
    line = table[table["value"].notna()].sort_values("value")
    _band(axes, line["value"], line[measure.key], line[f"{measure.key}_sd"], looks[policy])
    for _, row in table[table["value"].isna()].iterrows():
        look = looks[row["scheduler"]]
        axes.axhline(float(finite(row[measure.key])), color=look.color, linestyle=look.dashes, linewidth=1)
    values_as_ticks(axes, line["value"])
    _scale(axes, measure)


# -- a parameter of the workload or the backend ----------------------------------------------------------


def swept_keys(frame: pd.DataFrame) -> list[str]:
    """The numeric parameters of the workload or backend that an experiment gives several values."""
    keys = [str(name) for name in frame.columns if str(name).startswith(("workload.", "backend."))]
    return [
        key for key in keys if pd.api.types.is_numeric_dtype(frame[key]) and frame[key].dropna().nunique() > 1
    ]


def scaling(frame: pd.DataFrame, key: str) -> Plot:
    """Throughput, Jain's index and TTFT of the well-behaved against a swept number, a line per scheduler.

    One row of panels for each combination of everything else; bands are standard deviations over seeds.
    """
    table = _by_value(frame, key)
    policies = dict(table[["scheduler", "policy"]].drop_duplicates().to_numpy())
    looks = style.schedulers(policies)
    groups = list(dict.fromkeys(table["setting"]))
    figure = style.panels(len(_MEASURES) * len(groups), 2.9, 2.3, most=len(_MEASURES))
    for axes, (group, measure) in zip(figure.axes, _product(groups), strict=True):
        for scheduler, line in table[table["setting"] == group].groupby("scheduler", sort=False):
            _band(axes, line["value"], line[measure.key], line[f"{measure.key}_sd"], looks[str(scheduler)])
        values_as_ticks(axes, table["value"])
        _scale(axes, measure)
        axes.set(title=style.plain(group), xlabel=style.plain(key.partition(".")[2]))
    say_where_empty(figure)
    sns.despine(fig=figure)
    legend(figure, {style.plain(name): handle(look) for name, look in looks.items()})
    return Plot(figure, _melted(table, ["setting", "scheduler", "value"], _KEYS))


def grid(frame: pd.DataFrame, key: str) -> Plot:
    """The DLPM paper's Fig. 7: a row per measure, a column per workload, groups of bars over a swept number.

    Bars are schedulers, means over the valid seeds; "never" stands where no number is finite.
    """
    table = _by_value(frame, key)
    policies = dict(table[["scheduler", "policy"]].drop_duplicates().to_numpy())
    looks = style.schedulers(policies)
    columns = list(dict.fromkeys(table["setting"]))
    figure = style.panels(len(_MEASURES) * len(columns), 2.6, 1.7, most=len(columns))
    for k, axes in enumerate(figure.axes):
        measure, column = _MEASURES[k // len(columns)], columns[k % len(columns)]
        _grouped_bars(axes, table[table["setting"] == column], measure, looks)
        axes.set_title(style.plain(column) if k < len(columns) else "")
        if k >= len(figure.axes) - len(columns):
            axes.set_xlabel(style.plain(key.partition(".")[2]))
        if k % len(columns):
            axes.set_ylabel("")
    say_where_empty(figure)
    sns.despine(fig=figure)
    legend(figure, {style.plain(name): Patch(color=look.color) for name, look in looks.items()})
    return Plot(figure, _melted(table, ["setting", "scheduler", "value"], _KEYS))


def _grouped_bars(
    axes: Axes, table: pd.DataFrame, measure: _Measure, looks: Mapping[str, style.Look]
) -> None:
    values = sorted(table["value"].unique())
    width = 0.8 / max(len(looks), 1)
    for i, (name, look) in enumerate(looks.items()):
        bars = table[table["scheduler"] == name].set_index("value").reindex(values)
        places = np.arange(len(values)) - 0.4 + width * (i + 0.5)
        deviations = finite(bars[f"{measure.key}_sd"].fillna(0))
        axes.bar(places, finite(bars[measure.key]), width, color=look.color, yerr=deviations,
                 error_kw={"elinewidth": 0.6})  # fmt: skip
        for place in places[np.isinf(bars[measure.key].to_numpy(float))]:
            axes.text(place, 0.02, "never", transform=axes.get_xaxis_transform(), rotation=90, fontsize=6,
                      ha="center", va="bottom")  # fmt: skip
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_ylabel(measure.title)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


# -- shared parts ----------------------------------------------------------------------------------------


def _by_value(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Means over seeds by `value` of the key, scheduler and everything else (`setting`)."""
    rows = valid(frame)
    rows = rows[rows[key].notna()]
    labels = ({str(name): value for name, value in row.dropna().items()} for _, row in rows.iterrows())
    others = [setting_of(some, without=key) for some in labels]
    rows = rows.assign(setting=others)
    parts = [over_seeds(group, _KEYS).assign(value=value) for value, group in rows.groupby(key)]
    return pd.concat(parts, ignore_index=True)


def _product(groups: list[str]) -> Iterator[tuple[str, _Measure]]:
    return ((group, measure) for group in groups for measure in _MEASURES)


def _band(axes: Axes, x: Any, y: Any, deviation: Any, look: style.Look) -> None:
    values, spread = finite(y), finite(deviation.fillna(0))
    axes.plot(x, values, look.dashes, color=look.color, marker=look.marker)
    axes.fill_between(x, values - spread, values + spread, color=look.color, alpha=0.15, linewidth=0)


def _scale(axes: Axes, measure: _Measure) -> None:
    """Jain's index where it lies, so that differences show; everything else from zero."""
    axes.set_ylabel(measure.title)
    if measure.key.startswith("jain"):
        low, _ = axes.get_ylim()
        axes.set_ylim(max(min(low, 0.9), 0), 1.01)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _melted(table: pd.DataFrame, names: list[str], keys: list[str]) -> pd.DataFrame:
    rows = (
        {**{name: row[name] for name in names}, "measure": key, "mean": row[key], "sd": row[f"{key}_sd"]}
        for _, row in table.iterrows()
        for key in keys
    )
    return tidy(rows, *names, "measure", "mean", "sd")

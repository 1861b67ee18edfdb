"""Latency: per client, per scheduler, and as whole distributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from suite.metrics import latency
from suite.metrics.service import Floats
from suite.metrics.summary import misbehaving
from suite.report import style
from suite.report.figures.parts import (
    Plot,
    Runs,
    bars_by_setting,
    client_name,
    cut,
    finite,
    handle,
    is_never,
    legend,
    log_x,
    ranked,
    say_where_empty,
    share_axes,
    tidy,
)
from suite.report.tables import over_seeds, valid
from suite.results import Run

MOST_BARS = 12
_SHADES = {"p99": "#c6dbef", "p90": "#6baed6", "p50": "#08306b"}
_GROUPS = {
    "well": ("well-behaved", "#9ecae1", "#08519c"),
    "misbehaving": ("misbehaving", "#fcae91", "#a50f15"),
}
_SHARES = np.arange(1, 201) / 200
_MEASURES = {"ttft": "TTFT (s)", "e2e": "end to end (s)", "itl": "ITL (s)"}


def per_client(runs: Runs) -> Plot:
    """P50, P90 and P99 of TTFT of each client, nested in one bar."""
    bad, names = ranked(runs)
    shown = names[:MOST_BARS]
    figure = style.panels(len(runs), 2.7, 0.7 + 0.22 * len(shown))
    parts = []
    for axes, (scheduler, run) in zip(figure.axes, runs.items(), strict=True):
        every = latency.by_client(latency.samples(run.requests, None))
        table = every.reindex(shown)[[f"ttft_{shade}" for shade in _SHADES]]
        _nested(axes, table)
        axes.set(title=style.plain(scheduler), xlabel="TTFT (s)", ylim=(len(shown) - 0.5, -0.5))
        axes.set_yticks(range(len(shown)), [client_name(name, bad) for name in shown])
        parts.append(table.rename_axis("client").reset_index().assign(scheduler=scheduler))
    share_axes(figure)
    handles = {shade.upper(): Patch(color=_SHADES[shade]) for shade in reversed(_SHADES)}
    legend(figure, handles, cut(len(shown), len(names), "shown"))
    return Plot(figure, pd.concat(parts))


def _nested(axes: Axes, table: pd.DataFrame) -> None:
    for i, (shade, color) in enumerate(_SHADES.items()):
        axes.barh(range(len(table)), finite(table[f"ttft_{shade}"]), height=0.85 - 0.25 * i, color=color)
    for i, value in enumerate(table["ttft_p99"]):
        if is_never(value):
            axes.text(0.99, i, "P99: never", transform=axes.get_yaxis_transform(), ha="right", va="center",
                      fontsize=6.5)  # fmt: skip
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.6g}"))


def per_scheduler(frame: pd.DataFrame) -> Plot:
    """P50 and P99 of TTFT of the well-behaved and of the misbehaving clients, means over the valid seeds."""
    keys = [f"{group}_ttft_{statistic}" for group in _GROUPS for statistic in ("p50", "p99")]
    table = over_seeds(valid(frame), keys)
    figure = bars_by_setting(table, 0.36, "TTFT (s)", _paired_bars)
    handles = {
        f"{name}, {statistic}": Patch(color=color)
        for name, light, dark in _GROUPS.values()
        for statistic, color in (("P50", dark), ("P99", light))
    }
    legend(figure, handles)
    return Plot(figure, _long(table, keys))


def _long(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    names = ["setting", "scheduler", "seeds"]
    return table.melt(id_vars=names, value_vars=list(keys), var_name="measure", value_name="seconds").dropna()


def _paired_bars(axes: Axes, table: pd.DataFrame) -> None:
    """For each scheduler a bar of each group of clients, P50 inside P99."""
    for i, (_, row) in enumerate(table.iterrows()):
        for k, (group, (_, light, dark)) in enumerate(_GROUPS.items()):
            place = i - 0.2 + 0.4 * k
            tail, middle = row[f"{group}_ttft_p99"], row[f"{group}_ttft_p50"]
            axes.barh(place, finite(tail), height=0.36, color=light)
            axes.barh(place, finite(middle), height=0.2, color=dark)
            if is_never(tail):
                axes.text(0.99, place, f"{'P50 and P99' if is_never(middle) else 'P99'}: never", fontsize=6.5,
                          transform=axes.get_yaxis_transform(), ha="right", va="center")  # fmt: skip
    axes.set_yticks(range(len(table)), [style.plain(name) for name in table["scheduler"]])
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(False, axis="y")


def cdfs(runs: Mapping[str, Sequence[Run]]) -> Plot:
    """Distributions of the well-behaved clients' TTFT, end-to-end time and ITL, all seeds pooled.

    One curve per scheduler (`runs`: a run per seed). Requests never served count: their curve ends below 1.
    """
    data = tidy(_quantiles(runs), "scheduler", "measure", "share", "seconds")
    looks = style.schedulers({name: str(some[0].manifest.labels["policy"]) for name, some in runs.items()})
    figure = style.panels(len(_MEASURES), 3.4, 2.6, most=3)
    for axes, (measure, title) in zip(figure.axes, _MEASURES.items(), strict=True):
        for scheduler, curve in data[data["measure"] == measure].groupby("scheduler", sort=False):
            look = looks[str(scheduler)]
            axes.plot(curve["seconds"], curve["share"], look.dashes, color=look.color)
        axes.set(xlabel=title, ylim=(0, 1.02))
        log_x(axes)
    figure.axes[0].set_ylabel("share of requests")
    figure.axes[-1].set_ylabel("share of gaps")
    say_where_empty(figure)
    sns.despine(fig=figure)
    legend(figure, {style.plain(name): handle(look._replace(marker="")) for name, look in looks.items()})
    return Plot(figure, data)


def _quantiles(runs: Mapping[str, Sequence[Run]]) -> Iterator[dict[str, Any]]:
    for scheduler, seeds in runs.items():
        found = [_well_behaved(run) for run in seeds]
        for measure in _MEASURES:
            for share, seconds in zip(_SHARES, _at_shares([one[measure] for one in found]), strict=False):
                if np.isfinite(seconds):
                    yield {"scheduler": scheduler, "measure": measure, "share": share, "seconds": seconds}


def _well_behaved(run: Run) -> dict[str, latency.Sample]:
    found = latency.samples(run.requests, run.streams)
    bad = set(misbehaving(run))
    chosen = np.array([client not in bad for client in found.clients])
    return {
        measure: found.measures[measure].of(chosen[found.measures[measure].clients]) for measure in _MEASURES
    }


def _at_shares(pooled: Sequence[latency.Sample]) -> Floats:
    """The values below or at which `_SHARES` of all lie; none where there is nothing."""
    values = np.concatenate([sample.values for sample in pooled])
    counts = np.concatenate([sample.counts for sample in pooled])
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(counts[order])
    if not len(values):
        return values
    return np.asarray(values[order][np.searchsorted(upto, _SHARES * upto[-1] - 1e-9)])

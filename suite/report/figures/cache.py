"""The prefix cache: how much of the prompts it held, and who had paid for what others found in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from suite.report import style
from suite.report.figures.parts import (
    Plot,
    Runs,
    bars_by_setting,
    client_name,
    cut,
    legend,
    ranked,
)
from suite.report.tables import over_seeds, valid

MOST_PAYERS = 8
_OWN, _SHARED, _UNKNOWN = "#4292c6", "#fdae6b", "#969696"


def hit_rate(frame: pd.DataFrame) -> Plot:
    """Share of prompt tokens found in the cache, means over the valid seeds, one panel per setting.

    Split by who had computed the tokens, the same client or another, where the runs know it.
    """
    table = over_seeds(valid(frame), ["hit_rate", "hit_rate_own", "hit_rate_shared"])
    figure = bars_by_setting(table, 0.26, "hit rate (% of prompt tokens)", _hits)
    handles: dict[str, Patch] = {}
    if table["hit_rate_own"].notna().any():
        handles |= {"computed by the client itself": Patch(color=_OWN), "by another": Patch(color=_SHARED)}
    if table["hit_rate_own"].isna().any():
        handles["by whom is not known"] = Patch(color=_UNKNOWN)
    legend(figure, handles)
    columns = ["setting", "scheduler", "seeds", "hit_rate", "hit_rate_sd", "hit_rate_own", "hit_rate_shared"]
    return Plot(figure, table[columns])


def _hits(axes: Axes, table: pd.DataFrame) -> None:
    places = np.arange(len(table))
    known = table["hit_rate_own"].notna().to_numpy()
    whole, own, shared = (
        100 * table[key].to_numpy(float) for key in ("hit_rate", "hit_rate_own", "hit_rate_shared")
    )
    axes.barh(places[~known], whole[~known], height=0.7, color=_UNKNOWN)
    axes.barh(places[known], own[known], height=0.7, color=_OWN)
    axes.barh(places[known], shared[known], left=own[known], height=0.7, color=_SHARED)
    deviation = 100 * table["hit_rate_sd"].fillna(0).to_numpy(float)
    axes.errorbar(whole, places, xerr=deviation, fmt="none", ecolor="#333333", elinewidth=0.8)
    axes.set_yticks(places, [style.plain(name) for name in table["scheduler"]])
    axes.set(ylim=(len(table) - 0.5, -0.5), xlim=(0, 100))
    axes.grid(False, axis="y")


def payers(runs: Runs) -> Plot:
    """Cached prompt tokens by who found them (across) and who had computed them last (down).

    One panel per scheduler. At most `MOST_PAYERS` clients have a line of their own.
    """
    bad, names = ranked(runs)
    shown = names[:MOST_PAYERS]
    figure = style.panels(len(runs), 0.9 + 0.42 * len(shown), 0.7 + 0.42 * len(shown))
    tables = {name: _paid(run.sharing, shown) for name, run in runs.items() if run.sharing is not None}
    top = max((float(table.to_numpy().max()) for table in tables.values()), default=0.0)
    for axes, scheduler in zip(figure.axes, runs, strict=True):
        if scheduler in tables:
            _heat(axes, tables[scheduler], top, [client_name(name, bad) for name in shown])
        else:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", va="center")
        axes.set_title(style.plain(scheduler))
    figure.axes[0].set_ylabel("computed by")
    for axes in figure.axes:
        axes.set_xlabel("found by")
        axes.label_outer()
    if (note := cut(len(shown), len(names), "shown")) is not None:
        figure.supxlabel(note, fontsize=8)
    parts = [
        table.reset_index().melt("payer", value_name="tokens").assign(scheduler=name)
        for name, table in tables.items()
    ]
    columns = ["scheduler", "payer", "client", "tokens"]
    return Plot(figure, pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns))


def _paid(sharing: pd.DataFrame, shown: list[str]) -> pd.DataFrame:
    """Tokens by payer (rows) and client (columns)."""
    table = sharing.pivot_table(
        index="payer", columns="client", values="tokens", aggfunc="sum", fill_value=0, observed=True
    )
    return table.reindex(
        index=pd.Index(shown, name="payer"), columns=pd.Index(shown, name="client"), fill_value=0
    )


def _heat(axes: Axes, table: pd.DataFrame, top: float, names: list[str]) -> None:
    values = table.to_numpy(float)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=top or 1)
    for (i, k), value in np.ndenumerate(values):
        color = "white" if value > 0.6 * top else "black"
        axes.text(k, i, _tokens(value), ha="center", va="center", fontsize=6, color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.grid(False)


def _tokens(value: float) -> str:
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1e3:.3g}k" if value < 999_500 else f"{value / 1e6:.3g}M"

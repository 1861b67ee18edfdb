"""How the work was spread over the replicas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from suite.metrics.balance import by_replica
from suite.report import style
from suite.report.experiment import Cell, Experiment
from suite.report.figures.parts import Plot, bars_by_setting, legend, tidy

_COLUMNS = ("setting", "scheduler", "replica", "share", "seeds")


def service_by_replica(experiment: Experiment) -> Plot:
    """Each replica's share of the actual service, means over seeds, one panel per setting."""
    rows = [
        row
        for setting in experiment.settings
        for scheduler, cells in experiment.by_scheduler(setting).items()
        for row in _rows(setting, scheduler, cells)
    ]
    table = tidy(rows, *_COLUMNS)
    names = sorted(table["replica"].unique(), key=lambda name: (len(name), name))
    colors = dict(zip(names, sns.color_palette("crest", len(names)), strict=True))
    wide = table.pivot_table(
        index=["setting", "scheduler"], columns="replica", values="share", sort=False
    ).reindex(columns=names)

    def draw(axes: Axes, here: pd.DataFrame) -> None:
        _stack(axes, here, colors)

    figure = bars_by_setting(wide.reset_index(), 0.26, "share of actual service (%)", draw)
    legend(figure, {style.plain(name): Patch(color=color) for name, color in colors.items()})
    return Plot(figure, table)


def _rows(setting: str, scheduler: str, cells: Sequence[Cell]) -> list[dict[str, object]]:
    """The mean share of each replica, if there are several that gave any service."""
    given = [by_replica(cell.run()) for cell in cells]
    shares = pd.DataFrame([one / one.sum() for one in given if len(one) > 1 and one.sum() > 0])
    return [
        dict(zip(_COLUMNS, (setting, scheduler, name, share, len(shares)), strict=True))
        for name, share in shares.mean().items()
    ]


def _stack(axes: Axes, table: pd.DataFrame, colors: dict[str, tuple[float, float, float]]) -> None:
    """A bar per scheduler, a part per replica; lines stand where the parts of an even split end."""
    places, left = np.arange(len(table)), np.zeros(len(table))
    present = [name for name in colors if table[name].notna().any()]
    for name in present:
        width = 100 * table[name].fillna(0).to_numpy(float)
        axes.barh(places, width, left=left, height=0.7, color=colors[name], edgecolor="white", linewidth=0.5)
        left += width
    for part in range(1, len(present)):
        axes.axvline(100 * part / len(present), color="black", linestyle=":", linewidth=0.8)
    axes.set_yticks(places, [style.plain(name) for name in table["scheduler"]])
    axes.set(ylim=(len(table) - 0.5, -0.5), xlim=(0, 100))
    axes.grid(False)

"""What the figures share: the plot and its data, legends, scales, and how clients are ranked and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter

from suite.metrics.service import Floats
from suite.metrics.summary import misbehaving
from suite.report import style
from suite.results import Run

Runs: TypeAlias = Mapping[str, Run]
"""Runs of one setting by scheduler, in reading order."""

OTHERS = "#bdbdbd"
"""The colour of clients that have none of their own."""


class Plot(NamedTuple):
    """A figure and exactly what it draws: one row per point, bar or cell."""

    figure: Figure
    data: pd.DataFrame


def _plain(number: float) -> str:
    """Three significant digits, never as a power of ten below a million."""
    return f"{float(f'{number:.3g}'):g}"


class PlainLog(LogFormatter):
    """Plain numbers at the ticks that matplotlib would label on a logarithmic axis."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The tick's label, empty where it has none."""
        return _plain(x) if super().__call__(x, pos) else ""


def end(runs: Runs) -> float:
    """Seconds at which the last request of all runs finished; 0 if none did."""
    ends = (float(run.requests["finish"].max()) for run in runs.values())
    return max((end for end in ends if end == end), default=0.0)


def policy_of(runs: Runs) -> dict[str, str]:
    """The policy of each scheduler of some runs."""
    return {scheduler: str(run.manifest.labels["policy"]) for scheduler, run in runs.items()}


def given(scheduler: str) -> dict[str, str]:
    """The parameters in a scheduler's label: {"quantum": "2000"}, behind a router {"dlpm.quantum": ...}."""
    halves = re.split(r"\+(?!\d)", scheduler)
    found = {}
    for name, _, text in (half.partition(":") for half in halves):
        pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
        found.update({f"{name}.{key}" if len(halves) > 1 else key: value for key, _, value in pairs})
    return found


def swept(scheduler: str) -> tuple[str, float] | None:
    """Name and value of the parameter in a scheduler's label, if it is a single number."""
    (name, value), *others = given(scheduler).items() or [("", "")]
    return (name, float(value)) if not others and re.fullmatch(r"\d+(\.\d+)?", value) else None


def ranked(runs: Runs) -> tuple[set[str], list[str]]:
    """The misbehaving clients, and all clients: misbehaving first, then those that ask for most tokens."""
    run = next(iter(runs.values()))
    bad = set(misbehaving(run))
    tokens = run.requests["prompt_tokens"] + run.requests["output_tokens"]
    asked = tokens.groupby(run.requests["client"]).sum()
    return bad, sorted(map(str, asked.index), key=lambda name: (name not in bad, -asked[name], name))


def client_name(name: str, bad: set[str]) -> str:
    """A client as figures name it."""
    return f"{style.plain(name)} (misbehaving)" if name in bad else style.plain(name)


def cut(shown: int, of: int, how: str) -> str | None:
    """What to say where not all clients are shown."""
    if shown >= of:
        return None
    return f"{shown} of {of} clients {how}: misbehaving first, then those that ask for most tokens"


def line(axes: Axes, x: Floats, y: Floats, look: style.Look | None) -> None:
    """A line with some markers; without a look, the thin grey one of the many."""
    if look is None:
        axes.plot(x, y, color=OTHERS, linewidth=0.7, zorder=1)
    else:
        every = max(1, len(x) // 6)
        axes.plot(x, y, look.dashes, color=look.color, marker=look.marker, markevery=every)


def handle(look: style.Look, line: bool = True) -> Line2D:
    """The legend's sample of a look."""
    return Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dashes if line else "none")


def legend(figure: Figure, handles: Mapping[str, Line2D | Patch], title: str | None = None) -> None:
    """One legend below all panels, as many columns as the names leave room for."""
    longest = max((len(name) for name in handles), default=0)
    columns = max(1, int(figure.get_size_inches()[0] / (0.62 + 0.068 * longest)))
    figure.legend(
        [*handles.values()],
        [*handles],
        loc="outside lower center",
        ncols=min(len(handles), columns) or 1,
        title=title,
        fontsize=8,
        title_fontsize=8,
    )


def bars_by_setting(
    table: pd.DataFrame, height: float, xlabel: str, draw: Callable[[Axes, pd.DataFrame], None]
) -> Figure:
    """One panel of horizontal bars per setting; `draw` draws its rows, each so many inches high."""
    settings = list(dict.fromkeys(table["setting"]))
    most = max((int((table["setting"] == setting).sum()) for setting in settings), default=1)
    longest = max((len(style.plain(name)) for name in table["scheduler"]), default=0)
    figure = style.panels(len(settings), max(3.6, 2.5 + 0.085 * longest), 0.8 + height * most, most=3)
    for axes, setting in zip(figure.axes, settings, strict=True):
        draw(axes, table[table["setting"] == setting])
        axes.set(title=style.plain(setting), xlabel=xlabel)
    say_where_empty(figure)
    sns.despine(fig=figure)
    return figure


def say_where_empty(figure: Figure) -> None:
    """Write "no data" into every panel in which nothing is drawn."""
    for axes in figure.axes:
        heights = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
        lengths = [np.array([patch.get_width()]) for patch in axes.patches if isinstance(patch, Rectangle)]
        if not any(np.isfinite(values).any() for values in (*heights, *lengths)):
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center")


def share_axes(figure: Figure) -> None:
    """One scale for all panels; tick labels at the left and the bottom only."""
    say_where_empty(figure)
    first, *rest = figure.axes
    for axes in rest:
        axes.sharex(first)
        axes.sharey(first)
    first.autoscale()
    for axes in figure.axes:
        axes.label_outer()
    sns.despine(fig=figure)


def log_y(axes: Axes) -> None:
    """A logarithmic scale with plain numbers at its ticks; at least a factor of four high.

    The axes stay as they are where nothing positive is drawn.
    """
    if np.isinf(axes.dataLim.minposy):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PlainLog())
    axes.yaxis.set_minor_formatter(PlainLog(minor_thresholds=(1, 0.4)))
    low, high = axes.get_ylim()
    if high < 4 * low:  # nearly constant: ticks this close could not be told apart
        middle = float(np.sqrt(low * high))
        axes.set_ylim(middle / 2, middle * 2)


def log_x(axes: Axes) -> None:
    """A logarithmic scale with plain numbers at the powers of ten, and between them where these are few.

    The axes stay as they are where nothing positive is drawn.
    """
    if np.isinf(axes.dataLim.minposx):
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    wide = high > 30 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _plain(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def values_as_ticks(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic x axis of the values swept, each its own tick; a linear one where one is not positive."""
    shown = sorted(set(values))
    if shown and shown[0] > 0:
        axes.set_xscale("log")
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def finite(values: Any) -> Floats:
    """The values as floats, those that are infinite as NaN, which nothing draws."""
    found = np.asarray(values, float)
    return np.where(np.isfinite(found), found, np.nan)


def is_never(value: Any) -> bool:
    """Whether a latency is infinite: so many requests were never served."""
    return bool(np.isinf(float(value)))


def tidy(rows: Iterable[Mapping[str, Any]], *columns: str) -> pd.DataFrame:
    """Tidy data of a plot: rows with these columns, also where there are none."""
    return pd.DataFrame(list(rows), columns=list(columns))

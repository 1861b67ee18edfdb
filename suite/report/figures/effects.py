"""Effects with their intervals: a forest plot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from suite.report import style
from suite.report.effects import Effect
from suite.report.figures.parts import Plot, finite, legend, say_where_empty, tidy

MOST_COLUMNS = 3
FARTHEST = 100.0
"""Ratios up to this, and down to its inverse, are on the scale; an interval that goes on reaches its edge."""

_WIDE = 18
"""Characters of a name beside which "/ baseline" has room below a panel."""

_COLORS = {"wins": "#1a7f37", "loses": "#b3261e", "no difference seen": "#6e7781", "none": "#bdbdbd"}
_MARKERS = {"wins": "o", "loses": "s", "no difference seen": "D", "none": "x"}
_FIELDS = ("setting", "title", "candidate", "baseline", "ratio", "low", "high", "verdict")


def forest(effects: Sequence[Effect]) -> Plot:
    """Ratio of the candidate's number to each baseline's, with its interval; a panel per setting.

    Metrics stand below each other, the baselines within each. Green circles win, red squares lose.
    """
    shown = [effect for effect in effects if effect.ratio is not None and finite(effect.ratio) > 0]
    settings = list(dict.fromkeys(effect.setting for effect in effects))
    most = max((sum(effect.setting == setting for effect in shown) for setting in settings), default=1)
    figure = style.panels(len(settings), 4.2, 0.9 + 0.17 * most, most=MOST_COLUMNS)
    for axes, setting in zip(figure.axes, settings, strict=True):
        _panel(axes, [effect for effect in shown if effect.setting == setting])
        axes.set_title(style.plain(setting))
    _label_once(figure.axes)
    say_where_empty(figure)
    sns.despine(fig=figure, left=True)
    handles = {
        word: Line2D([], [], color=color, marker=_MARKERS[word], linestyle="none")
        for word, color in _COLORS.items()
        if any(effect.verdict == word for effect in shown)
    }
    legend(figure, handles)
    rows = ({field: getattr(effect, field) for field in _FIELDS} for effect in shown)
    return Plot(figure, tidy(rows, *_FIELDS))


def _panel(axes: Axes, effects: list[Effect]) -> None:
    metrics = list(dict.fromkeys(effect.title for effect in effects))
    ordered = sorted(effects, key=lambda effect: metrics.index(effect.title))
    labels = []
    for place, effect in enumerate(ordered):
        color = _COLORS[effect.verdict]
        if effect.low is not None and effect.high is not None:
            axes.plot([effect.low, effect.high], [place, place], color=color, linewidth=1.4)
        axes.plot(finite([effect.ratio]), [place], _MARKERS[effect.verdict], color=color, markersize=4)
        first = place == 0 or ordered[place - 1].title != effect.title
        labels.append(f"{effect.title if first else ''}  / {style.plain(effect.baseline)}")
        if first and place:
            axes.axhline(place - 0.5, color="#e6e6e6", linewidth=0.8)
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(ordered)), labels, fontsize=6.5)
    axes.set(ylim=(len(ordered) - 0.5, -0.5), xlabel=_across(effects))
    axes.grid(False, axis="y")
    _ratios(axes)


def _label_once(panels: list[Axes]) -> None:
    """Leave the names at the left panel of a row, where all panels have the same."""
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in panels]
    for place, axes in enumerate(panels):
        if place % MOST_COLUMNS and names[place] == names[place - 1]:
            axes.tick_params(labelleft=False)


def _across(effects: list[Effect]) -> str:
    if not effects:
        return ""
    name = style.plain(effects[0].candidate)
    return name + ("\n" if len(name) > _WIDE else " ") + "/ baseline"


def _ratios(axes: Axes) -> None:
    """A logarithmic scale around 1 whose ticks are plain ratios, as many as have room."""
    axes.set_xscale("log")
    low, high = np.clip(axes.get_xlim(), 1 / FARTHEST, FARTHEST)
    axes.set_xlim(low, high)
    ticks = next(ticks for reach, ticks in _TICKS if high < reach * low)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


_TICKS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1.5, (0.8, 0.9, 1, 1.1, 1.2)),
    (8, (0.25, 0.5, 0.8, 1, 1.25, 2, 4)),
    (60, (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)),
    (math.inf, (0.01, 0.1, 1, 10, 100)),
)
"""Ticks by how many times the lowest ratio the highest is."""

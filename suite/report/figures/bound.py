"""The fairness audit as a picture: the service gap of two clients under what a theorem allows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from suite.metrics.audit import ROUNDING, curve
from suite.report import style
from suite.report.figures.parts import Plot, Runs, finite, handle, legend, policy_of, say_where_empty

_BROKEN = "#b3261e"
_POINTS = 2000
_COLUMNS = ["scheduler", "client", "other", "time", "gap", "bound"]


def gap_under_bound(runs: Runs) -> Plot:
    """The service gap in the backlogged interval that comes nearest to its bound, a panel per scheduler.

    The line is the policy's bound; where the gap passes it, the window is shaded. A policy without a theorem
    has no line.
    """
    courses = {name: _thinned(curve(run)) for name, run in runs.items()}
    looks = style.schedulers(policy_of(runs))
    figure = style.panels(len(runs), 2.7, 2.3)
    for axes, (name, course) in zip(figure.axes, courses.items(), strict=True):
        if course is not None:
            _panel(axes, course, looks[name])
        axes.set(title=style.plain(name), xlabel="time (s)")
    figure.axes[0].set_ylabel("service gap")
    say_where_empty(figure)
    sns.despine(fig=figure)
    drawn = [course for course in courses.values() if course is not None]
    legend(figure, _handles(any(_broken(course).any() for course in drawn)))
    parts = [
        course.assign(scheduler=name)[_COLUMNS] for name, course in courses.items() if course is not None
    ]
    return Plot(figure, pd.concat(parts) if parts else pd.DataFrame(columns=_COLUMNS))


def _thinned(course: pd.DataFrame | None) -> pd.DataFrame | None:
    """At most `_POINTS` of the points, the peak of every stretch among them."""
    if course is None:
        return None
    stretch = np.arange(len(course)) // -(-len(course) // _POINTS)
    return course.loc[course["gap"].groupby(stretch).idxmax()]


def _panel(axes: Axes, course: pd.DataFrame, look: style.Look) -> None:
    broken = _broken(course)
    axes.plot(course["time"], course["gap"], color=look.color, drawstyle="steps-post")
    axes.plot(course["time"], finite(course["bound"]), color="black", linestyle="--", linewidth=1)
    if broken.any():
        times = course["time"][broken]
        axes.axvspan(times.min(), times.max(), color=_BROKEN, alpha=0.15, linewidth=0)
    pair = " and ".join(style.plain(str(course[side].iloc[0])) for side in ("client", "other"))
    axes.text(0.02, 0.98, pair, transform=axes.transAxes, va="top", fontsize=6.5)
    axes.set_ylim(0, 1.15 * float(np.nanmax(course[["gap", "bound"]].to_numpy(float))) or 1)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _broken(course: pd.DataFrame) -> pd.Series[bool]:
    return course["gap"] > course["bound"] * (1 + ROUNDING)


def _handles(broken: bool) -> dict[str, Line2D | Patch]:
    handles: dict[str, Line2D | Patch] = {
        "gap": handle(style.Look("#595959", "", "-")),
        "bound": Line2D([], [], color="black", linestyle="--", linewidth=1),
    }
    return handles | ({"bound broken": Patch(color=_BROKEN, alpha=0.15)} if broken else {})

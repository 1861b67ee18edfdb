"""From an engine's log of its steps to the coefficients of a linear cost, and how far off they are.

The duration of a step is the time between its end and the end of the step before, while the engine was busy:
it holds all that passes between two steps, as a step of the simulator must. The first step after idleness has
no known beginning and is left out. So are decode steps of a batch that still grows or already shrinks: it
would show the fit batch sizes that it must not see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import yaml
from rich.table import Table
from scipy.optimize import nnls

from suite.backends.cost import Cost
from suite.backends.simulator.cost import Coefficients
from suite.errors import BadInput

KINDS = ("prefill", "decode", "mixed")
"""What a step may do: compute prompts only, generate only, or both."""
WORK = ("new", "attended", "read", "sequences")
"""The work of a step, as `suite.backends.cost` defines it."""
REPEATS = 3
"""Steps that a point has at least; their median counts, as any machine is disturbed now and then."""
ALIKE = 1.25
"""Steps of one point have equal new tokens and sequences; pairs and KV tokens differ by this at most."""
TOLERATED = 0.2
"""Mean relative error above which the coefficients are said not to fit."""
SHORTEST_STEP = 1e-6
"""Seconds: the least that a step costs, so that time always passes."""

_Row: TypeAlias = tuple[int, int, str, bool, int, int, int, int, float]


@dataclass(frozen=True)
class Fit:
    """Coefficients, and the points that they were fitted to and judged by.

    `points` has kind, held_out, the columns of `WORK`, seconds (the median), steps (how many), scatter (their
    mean relative distance from the median) and error (relative, of the coefficients).
    """

    coefficients: Coefficients
    points: pd.DataFrame

    @property
    def errors(self) -> pd.DataFrame:
        """By kind of step and for all: fitted and held_out points, and of the latter steps, seconds of the
        shortest and the longest, mean and P90 of the relative error, mean scatter; NaN where there are none.
        """
        return pd.DataFrame([_summary(self._of(kind)) for kind in (*KINDS, "all")], index=[*KINDS, "all"])

    @property
    def problem(self) -> str | None:
        """Where the coefficients do not fit, if anywhere, and how far apart the repeats were."""
        off, scatter = self.errors["mean"], self.errors["scatter"]
        bad = [f"{kind} {off[kind]:.0%}" for kind in KINDS if off[kind] > TOLERATED]
        if not bad:
            return None
        return (
            f"does not fit: mean error above {TOLERATED:.0%}: {', '.join(bad)} (repeats scatter by "
            f"{scatter['all']:.0%}; on a quiet machine by little)"
        )

    def _of(self, kind: str) -> pd.DataFrame:
        return self.points if kind == "all" else self.points[self.points["kind"] == kind]


def _summary(points: pd.DataFrame) -> dict[str, float]:
    held_out = points[points["held_out"]]
    return {
        "fitted": len(points) - len(held_out),
        "held_out": len(held_out),
        "steps": held_out["steps"].sum(),
        "shortest": held_out["seconds"].min(),
        "longest": held_out["seconds"].max(),
        "mean": held_out["error"].mean(),
        "p90": held_out["error"].quantile(0.9),
        "scatter": held_out["scatter"].mean(),
    }


# -- steps -------------------------------------------------------------------------------------------------


def steps(lines: Iterable[Sequence[Any]], held_out: Collection[str]) -> pd.DataFrame:
    """The steps of known duration in a service log in which each request has a client of its own.

    Columns: kind, held_out (whether its requests are among these ids), those of `WORK`, seconds.
    """
    reading = _Reading(held_out)
    for line in lines:
        reading.take(line)
    columns = ["kind", "held_out", *WORK, "seconds"]
    found = pd.DataFrame(reading.rows, columns=["period", "decoders", *columns])
    whole = found["decoders"] == found.groupby("period")["decoders"].transform("max")
    return found.loc[whole | (found["kind"] != "decode"), columns].reset_index(drop=True)


@dataclass(frozen=True)
class _Ended:
    """How the engine stood when a step ended and it had more to do."""

    time: float
    held_out: bool
    decoders: int
    """How many requests were decoding."""


@dataclass
class _Reading:
    """What has been read of a log so far. A period lasts from one idleness to the next."""

    held_out: Collection[str]
    rows: list[_Row] = field(default_factory=list)
    _unfinished: dict[str, str] = field(default_factory=dict)
    _decoding: set[str] = field(default_factory=set)
    _last: _Ended | None = None
    _period: int = 0

    def take(self, line: Sequence[Any]) -> None:
        """Read one more line."""
        match line:
            case ["admitted", _, id, client, *_]:
                self._unfinished[id] = client
            case ["generated", _, dict(by_client)]:
                self._decoding |= by_client.keys()
            case ["finished", _, id, client, *_]:
                self._unfinished.pop(id, None)
                self._decoding.discard(client)
            case ["step", time, new, attended, read, sequences]:
                self._step(time, (new, attended, read, sequences))

    def _step(self, time: float, work: tuple[int, int, int, int]) -> None:
        last = self._last
        if last:
            kind = _kind(work[0], work[3], last.decoders)
            told = (kind, last.held_out, *work, time - last.time)
            self.rows.append((self._period, last.decoders, *told))
        else:
            self._period += 1
        held_out = any(id in self.held_out for id in self._unfinished)
        self._last = _Ended(time, held_out, len(self._decoding)) if self._unfinished else None


def _kind(new: int, sequences: int, decoders: int) -> str:
    if decoders and new == sequences == decoders:
        return "decode"
    alone = sequences <= decoders and new > sequences  # of a batch of prompts, for which the decoders wait
    return "prefill" if alone or not decoders else "mixed"


# -- fitting -----------------------------------------------------------------------------------------------


def fitted(steps: pd.DataFrame) -> Fit:
    """Fit the points that are not held out, and judge by those that are.

    Non-negative least squares of relative errors: a decode step is a hundred times shorter than a full
    prefill and there are a hundred times as many, so that both must be right by the same share. Raises
    `BadInput` if there are fewer points than coefficients.
    """
    points = _points(steps)
    seen = points[~points["held_out"]]
    if len(seen) <= len(WORK):
        raise BadInput(
            f"only {len(seen)} points could be measured, too few to fit; "
            f"make max_running, kv_tokens or max_length larger"
        )
    coefficients = _coefficients(seen)
    line = tuple(getattr(coefficients, name) for name in Coefficients.model_fields)
    cost = Cost((line,))
    predicted = np.array([cost.step(*work) for work in points[list(WORK)].itertuples(index=False)])
    return Fit(coefficients, points.assign(error=(predicted / points["seconds"] - 1).abs()))


def _points(steps: pd.DataFrame) -> pd.DataFrame:
    """Steps alike as one point each; no point that is fitted has the new tokens and batch of one held out."""
    bins = {f"{key}_bin": (np.log(steps[key]) / log(ALIKE)).round() for key in ("attended", "read")}
    alike = steps.assign(**bins).groupby(["held_out", "kind", "new", "sequences", *bins])
    points = alike.agg(
        attended=("attended", "mean"), read=("read", "mean"), seconds=("seconds", "median"),
        steps=("seconds", "size"), scatter=("seconds", _scatter),
    ).reset_index()  # fmt: skip
    points = points[points["steps"] >= REPEATS]
    seen = set(_shapes(points[~points["held_out"]]))
    known = np.array([shape in seen for shape in _shapes(points)], bool)
    return points[~(points["held_out"] & known)].drop(columns=list(bins)).reset_index(drop=True)


def _shapes(points: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    return points[["kind", "new", "sequences"]].itertuples(index=False, name=None)


def _scatter(seconds: pd.Series[float]) -> float:
    return float((seconds / seconds.median() - 1).abs().mean())


def _coefficients(points: pd.DataFrame) -> Coefficients:
    seconds = points["seconds"].to_numpy()
    work = np.column_stack([np.ones(len(points)), points[list(WORK)].to_numpy()])
    scale = work.max(axis=0)  # the units differ by a factor of a million, which would cost precision
    found, _ = nnls(work / scale / seconds[:, None], (seconds - SHORTEST_STEP) / seconds)
    found = found / scale
    found[0] += SHORTEST_STEP
    rounded = (float(f"{seconds:.4g}") for seconds in found)
    return Coefficients(**dict(zip(Coefficients.model_fields, rounded, strict=True)))


# -- telling -----------------------------------------------------------------------------------------------


def table(fit: Fit) -> Table:
    """The coefficients, and their error on held-out points by kind of step."""
    what = ", ".join(f"{key} {value:g} s" for key, value in fit.coefficients)
    verdict = fit.problem or f"fits: mean error at most {TOLERATED:.0%} on each kind of step"
    table = Table(
        "steps", title=f"a step costs: {what}", caption=verdict, title_justify="left", caption_justify="left"
    )
    for heading in (
        "points fitted", "points held out", "their steps", "duration, ms", "error, mean", "error, P90",
        "scatter of repeats",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for kind, row in fit.errors.iterrows():
        table.add_row(str(kind), *_cells(row))
    return table


def _cells(row: pd.Series[float]) -> Iterator[str]:
    yield f"{row['fitted']:.0f}"
    yield f"{row['held_out']:.0f}"
    if not row["held_out"]:
        yield from ("none",) * 5
        return
    yield f"{row['steps']:.0f}"
    yield f"{1e3 * row['shortest']:.1f} - {1e3 * row['longest']:.1f}"
    yield from (f"{row[key]:.1%}" for key in ("mean", "p90", "scatter"))


def as_yaml(fit: Fit, about: Iterable[str]) -> str:
    """The file that the simulator reads; `about` says in comments what was measured."""
    comments = [*about, *_verdict(fit)]
    plain = ("".join(c if c.isprintable() else " " for c in line) for line in comments)
    coefficients = yaml.safe_dump(fit.coefficients.model_dump(), sort_keys=False)
    return "".join(f"# {line}\n" for line in plain) + coefficients


def _verdict(fit: Fit) -> Iterator[str]:
    yield (
        f"Relative error on lengths and batch sizes that the fit has not seen (each point the median of "
        f"{REPEATS} or more steps):"
    )
    for kind, row in fit.errors.iterrows():
        if not row["held_out"]:
            yield f"  {kind}: none measured"
            continue
        yield (
            f"  {kind}: mean {row['mean']:.1%}, P90 {row['p90']:.1%} on {row['held_out']:.0f} points "
            f"({row['fitted']:.0f} fitted); repeats scatter by {row['scatter']:.1%}"
        )
    if fit.problem:
        yield f"THIS FILE {fit.problem}"

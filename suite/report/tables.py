"""The tables: every number of every cell, and the one table that is meant to be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from suite.files import write_atomically
from suite.metrics.goodput import Slo
from suite.metrics.summary import summarise
from suite.metrics.validity import SHORT
from suite.metrics.validity import reasons as faults
from suite.report import parallel
from suite.report.experiment import Cell, Experiment, load, reading_order
from suite.results import Manifest

REFERENCE = "vtc"
"""The scheduler whose throughput the others are compared with, alone or behind a router, as in the papers."""


def collect(folder: Path, slo: Slo | None = None) -> pd.DataFrame:
    """One row per cell of the folder: `cell`, `setting`, labels, what is to be known of it, its summary.

    `invalid` says why it is no result, `fallback` how often an engine's own scheduler went by another policy
    than the one asked for; both None where there is nothing to say. `slo` stands in for the folder's own.
    """
    experiment = load(folder)
    with parallel.processes(len(experiment.cells)):
        return collected(experiment if slo is None else replace(experiment, slo=slo))


def collected(experiment: Experiment) -> pd.DataFrame:
    """`collect` for an experiment that is already loaded."""
    return pd.DataFrame(parallel.each(_summary, [(cell, experiment.slo) for cell in experiment.cells]))


def _summary(item: tuple[Cell, Slo | None]) -> dict[str, Any]:
    cell, slo = item
    run = cell.run()
    return {
        "cell": cell.folder.name,
        "setting": cell.setting,
        **cell.labels,
        "invalid": "; ".join(faults(run)) or None,
        "fallback": _fallback(cell.manifest),
        **summarise(run, slo),
    }


def valid(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cells that are results."""
    return frame[frame["invalid"].isna()]


def _fallback(manifest: Manifest) -> str | None:
    """Which policies an engine's own scheduler went by instead of the one asked for, and how often."""
    passes: dict[str, int] = manifest.engine.get("active", {})
    asked = str(manifest.scheduler["target"]).partition(":")[2]
    total = sum(passes.values())
    others = [f"{name} in {count / total:.0%} of passes" for name, count in passes.items() if name != asked]
    return ", ".join(others) or None


def write_summary(frame: pd.DataFrame, folder: Path) -> Path:
    """Write what `collect` returns as summary.csv into the experiment folder."""
    path = folder / "summary.csv"
    write_atomically(path, lambda file: frame.to_csv(file, index=False))
    return path


# -- the table to be read --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the final table: the summary's column, its heading, which end is best, how it is shown."""

    key: str
    heading: str
    best: Literal["max", "min"] | None
    """None where schedulers cannot be ranked by it."""
    digits: int | None = None
    """Digits after the point; None for as many as make about three in all."""
    scale: float = 1.0
    window: str | None = None
    """The window of `suite.metrics.windows` it is taken in, if that can be empty or short."""
    none: str | None = None
    """The summary's column that says why there is no such number."""
    optional: bool = False
    """Left out where no scheduler has the number."""

    def show(self, *values: float) -> str:
        """The values as text, all with the digits that suit the first; infinite is "never"."""
        if math.isinf(values[0]):
            return "never"
        first = abs(values[0]) * self.scale
        digits = (2 if first < 10 else 1 if first < 100 else 0) if self.digits is None else self.digits
        return " ±".join(f"{value * self.scale:,.{digits}f}" for value in values)


COLUMNS = (
    Column("client_service_per_s", "service/s", "max", 0, none="rates_none"),
    Column("vs_reference", f"x {REFERENCE}", "max", 2),
    Column("goodput_per_s", "goodput/s", "max", none="goodput_none", optional=True),
    Column(
        "jain_client_all_active", "Jain, all active", "max", 3, window="all_active", none="all_active_none"
    ),
    Column(
        "jain_actual_backlogged", "Jain, backlogged", "max", 3, window="backlogged", none="backlogged_none"
    ),
    Column("bound_share", "gap / bound", None, 2, optional=True),
    Column("worker_share", "replica's gap / bound", None, 2, optional=True),
    Column("imbalance", "imbalance", "min", 2, optional=True),
    Column("hit_rate", "hit rate (%)", "max", 1, scale=100),
    Column("well_ttft_p50", "TTFT P50 (s)", "min"),
    Column("well_ttft_p99", "TTFT P99 (s)", "min"),
    Column("well_itl_p99", "ITL P99 (s)", "min", 3, optional=True),
    Column("e2e_p99", "e2e P99 (s)", "min"),
    Column("preemptions", "preempted", "min", 0),
)
_CAPTION = (
    "service/s: client service (input + 2 output tokens) per second of makespan. Jain, all active: on client "
    "service while all clients are active (the DLPM paper's number); Jain, backlogged: on actual service "
    "(uncached input + 2 output) while all are waiting. x vtc: service/s over vtc's. "
    "gap / bound: largest service gap of two backlogged clients over what the policy's theorem allows. "
    "TTFT and ITL of the well-behaved clients, e2e of all; never: so many requests were not served. "
    "* best of its workload; ± standard deviation over seeds; "
    f"† taken in less than {SHORT:.0%} of the makespan, too short to rank by."
)


_BOUNDS = {
    "bound_share": ("bound_gap", "bound", "bound_window"),
    "worker_share": ("worker_gap", "worker_bound", "worker_window"),
}
"""Shares of a bound: the summary's columns that say the gap, the bound, and who broke it when."""


_REPLICAS = (
    " replica's gap / bound: in the service of one replica, while both wait at it. imbalance: largest over "
    "mean actual service of the replicas. vtc is the first here, whatever its router."
)


def caption(columns: Sequence[Column]) -> str:
    """What stands below the final table with these columns."""
    replicas = any(column.key in ("worker_share", "imbalance") for column in columns)
    return _CAPTION + (_REPLICAS if replicas else "")


def shown_columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    """The columns of the final table of these cells."""
    table = aggregated(frame)
    return tuple(column for column in COLUMNS if not column.optional or table[column.key].notna().any())


@dataclass(frozen=True)
class Shown:
    """A value as text, and whether it is the best of its setting."""

    text: str
    best: bool
    bare: str
    """The text without deviation and without how many seeds have the number."""


@dataclass(frozen=True)
class Row:
    """One scheduler under one setting, as shown: its values by key of the column, in their order."""

    setting: str
    scheduler: str
    seeds: int
    values: dict[str, Shown]


def aggregated(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the valid seeds, one row per setting and scheduler, in reading order.

    Columns: those of `over_seeds` for `COLUMNS`, and `<key>_short` where the number comes from a window that
    was too short under some seed. `starved` counts the requests never admitted. `vs_reference` is the ratio
    of mean client service to that of the reference in the same setting, `bound_share` and `worker_share` the
    largest gap over its bound.
    """
    results = valid(frame)
    shares = {
        key: _numbers(results[gap]) / _numbers(results[bound]) for key, (gap, bound, _) in _BOUNDS.items()
    }
    results = results.assign(**shares)
    table = over_seeds(results, [column.key for column in COLUMNS if column.key in results])
    groups = results.groupby(["setting", "scheduler"], sort=False)
    index = pd.MultiIndex.from_frame(table[["setting", "scheduler"]])
    for column in COLUMNS:
        if column.window is not None:
            short = results[f"{column.window}_s"] < SHORT * results["makespan_s"]
            short &= results[column.key].notna()
            any_short = short.groupby([results["setting"], results["scheduler"]]).any()
            table[f"{column.key}_short"] = any_short.reindex(index).to_numpy(bool)
    table["starved"] = groups["starved"].sum().reindex(index).to_numpy()
    for key in _BOUNDS:
        table[key] = groups[key].max().reindex(index).to_numpy()
        table[f"{key}_sd"] = np.nan  # of a largest there is none
    return table.assign(vs_reference=table["client_service_per_s"] / table["setting"].map(_references(table)))


def over_seeds(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean of each key over the rows of a setting and scheduler, in reading order.

    Columns: setting, scheduler, policy, seeds, and for each key its mean, `<key>_sd` (sample standard
    deviation, NaN for one seed or where one is infinite) and `<key>_n` (seeds that have the number).
    """
    rows = [
        {"setting": setting, "scheduler": scheduler, "policy": group["policy"].iloc[0], "seeds": len(group)}
        | _statistics(group, keys)
        for (setting, scheduler), group in frame.groupby(["setting", "scheduler"], sort=False)
    ]
    settings = list(dict.fromkeys(frame["setting"]))
    rows.sort(key=lambda r: (settings.index(r["setting"]), reading_order(r["policy"], r["scheduler"])))
    numbers = [name for key in keys for name in (key, f"{key}_sd", f"{key}_n")]
    return pd.DataFrame(rows, columns=["setting", "scheduler", "policy", "seeds", *numbers])


def _statistics(group: pd.DataFrame, keys: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in keys:
        values = _numbers(group[key])
        finite = bool(np.isfinite(values.dropna()).all())
        found[key] = values.mean()
        found[f"{key}_sd"] = values.std() if finite else float("nan")
        found[f"{key}_n"] = values.count()
    return found


def _numbers(values: pd.Series[Any]) -> pd.Series[float]:
    return pd.to_numeric(values).astype(float)


def _references(table: pd.DataFrame) -> dict[str, float]:
    """Client service of the reference in each setting: the first in reading order, so the plain one."""
    own = table["policy"].str.split("+").str[-1]
    candidates = table[own == REFERENCE].drop_duplicates("setting")
    return dict(zip(candidates["setting"], candidates["client_service_per_s"], strict=True))


def rows(frame: pd.DataFrame) -> list[Row]:
    """The final table as text, from what `collect` returns: what is ranked. See `excluded` for the others."""
    table = aggregated(frame)
    columns = {column.key: _shown(table, column) for column in shown_columns(frame)}
    return [
        Row(
            str(r["setting"]), str(r["scheduler"]), int(r["seeds"]), {key: columns[key][i] for key in columns}
        )
        for i, (_, r) in enumerate(table.iterrows())
    ]


def excluded(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The schedulers that have no valid cell in a setting, by (setting, scheduler), and why."""
    ranked = set(valid(frame)[["setting", "scheduler"]].itertuples(index=False, name=None))
    return {
        (str(setting), str(scheduler)): str(group["invalid"].iloc[0])
        for (setting, scheduler), group in frame.groupby(["setting", "scheduler"], sort=False)
        if (setting, scheduler) not in ranked
    }


def _shown(table: pd.DataFrame, column: Column) -> list[Shown]:
    best = {i: mark for _, group in table.groupby("setting") for i, mark in _best(group, column).items()}
    return [
        Shown(_text(row, column), bool(best[index]), _bare(row, column)) for index, row in table.iterrows()
    ]


def _best(group: pd.DataFrame, column: Column) -> pd.Series[bool]:
    """Which rows of a setting show its best value: none where all show the same; never one from too short a
    window, nor a scheduler that left requests unserved: it did less work than the others.
    """
    values = group[column.key].where(group["starved"] == 0)
    if column.best is None:
        return pd.Series(False, group.index)
    if column.window is not None:
        values = values.mask(group[f"{column.key}_short"])
    values = values.dropna()
    shown = values.map(column.show)
    best = shown[values == values.agg(column.best)]
    return shown.isin(best).reindex(group.index, fill_value=False) & (shown.nunique() > 1)


def _bare(row: pd.Series, column: Column, *deviation: float) -> str:
    value = row[column.key]
    if pd.isna(value):
        return "none"
    return column.show(value, *deviation) + ("†" if row.get(f"{column.key}_short", False) else "")


def _text(row: pd.Series, column: Column) -> str:
    if pd.isna(row[column.key]):
        return "none"
    deviation = row.get(f"{column.key}_sd")
    text = _bare(row, column) if pd.isna(deviation) else _bare(row, column, deviation)
    count = row.get(f"{column.key}_n", row["seeds"])
    return text if count == row["seeds"] else f"{text} ({count:.0f} of {row['seeds']} seeds)"


def reasons(frame: pd.DataFrame) -> list[str]:
    """Why numbers of the final table are missing: one sentence per column, setting and reason."""
    return list(dict.fromkeys(_reasons(frame)))


def _reasons(frame: pd.DataFrame) -> Iterator[str]:
    for column in COLUMNS:
        if column.none is not None and (column.window is not None or not column.optional):
            for _, row in frame[frame[column.none].notna()].iterrows():
                yield f"{column.heading}, {row['setting']}, {row['scheduler']}: {row[column.none]}"


_FATES = {
    "starved": "the scheduler never admitted them",
    "rejected": "larger than the KV pool",
    "failed": "an error, or cut short",
    "cancelled": "each came after one that was not served",
}


def warnings(frame: pd.DataFrame) -> list[str]:
    """What stands against the numbers: cells that are not valid, or not wholly what their name says,
    requests that were not served, and bounds that were broken.
    """
    return [*_invalid(frame), *_fallbacks(frame), *_losses(frame), *_broken_bounds(frame)]


def _invalid(frame: pd.DataFrame) -> list[str]:
    """A sentence per cell that must not be shown as a result."""
    found = frame[frame["invalid"].notna()]
    return [f"invalid: {cell}: {why}" for cell, why in zip(found["cell"], found["invalid"], strict=True)]


def _fallbacks(frame: pd.DataFrame) -> list[str]:
    """A sentence per cell that was not always under the policy asked for."""
    found = frame[frame["fallback"].notna()]
    return [
        f"{row['setting']}, {row['scheduler']}, seed {row['seed']}: {row['fallback']}"
        for _, row in found.iterrows()
    ]


def _losses(frame: pd.DataFrame) -> list[str]:
    """Whose requests were not all served, and why: a sentence per setting, scheduler and fate."""
    return [
        f"{setting}, {scheduler}: {group[fate].sum():,} of {group['requests'].sum():,} requests were {fate} "
        f"({why})"
        for (setting, scheduler), group in frame.groupby(["setting", "scheduler"], sort=False)
        for fate, why in _FATES.items()
        if group[fate].sum() > 0
    ]


_BROKEN = {
    "bound_share": "the bound",
    "worker_share": "the bound of one replica, which the scheduler there ought to hold,",
}
_TOGETHER = "the bound on all replicas together, promised for clients that wait at each of them,"


def _broken_bounds(frame: pd.DataFrame) -> Iterator[str]:
    """A sentence per setting and scheduler that broke a bound, with the widest gap and its window."""
    for (setting, scheduler), group in frame.groupby(["setting", "scheduler"], sort=False):
        names = _BROKEN | ({"bound_share": _TOGETHER} if group["imbalance"].notna().any() else {})
        for key, (gap, bound, window) in _BOUNDS.items():
            share = (_numbers(group[gap]) / _numbers(group[bound])).where(group[window].notna())
            if share.notna().any():
                worst = group.iloc[int(np.nanargmax(share))]
                runs = f"{share.count()} of {len(group)} runs, at most {share.max():.2f} times over"
                yield (
                    f"{setting}, {scheduler}: {names[key]} was broken in {runs}: seed {worst['seed']}, "
                    f"{worst[window]}"
                )

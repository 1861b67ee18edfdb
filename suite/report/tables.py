"""The tables: every number of every cell, and the one table that is meant to be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.table import Table
from rich.text import Text

from suite.files import write_atomically
from suite.metrics.summary import summarise
from suite.report.experiment import Experiment, load, reading_order

REFERENCE = "vtc"
"""The policy whose throughput the others are compared with, as in the papers."""

SHORT = 0.05
"""A window below this share of the makespan is too short to rank by."""


def collect(folder: Path) -> pd.DataFrame:
    """One row per cell of the experiment folder: `cell`, `setting`, its labels, and its summary."""
    return collected(load(folder))


def collected(experiment: Experiment) -> pd.DataFrame:
    """`collect` for an experiment that is already loaded."""
    rows = [
        {"cell": cell.folder.name, "setting": cell.setting, **cell.labels, **summarise(cell.run())}
        for cell in experiment.cells
    ]
    return pd.DataFrame(rows)


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
    best: Literal["max", "min"]
    digits: int | None = None
    """Digits after the point; None for as many as make about three in all."""
    scale: float = 1.0
    window: str | None = None
    """The window of `suite.metrics.windows` it is taken in, if that can be empty or short."""

    def show(self, *values: float) -> str:
        """The values as text, all with the digits that suit the first."""
        first = abs(values[0]) * self.scale
        digits = (2 if first < 10 else 1 if first < 100 else 0) if self.digits is None else self.digits
        return " ±".join(f"{value * self.scale:,.{digits}f}" for value in values)


COLUMNS = (
    Column("client_service_per_s", "service/s", "max", 0),
    Column("vs_reference", f"x {REFERENCE}", "max", 2),
    Column("jain_client_all_active", "Jain, all active", "max", 3, window="all_active"),
    Column("jain_actual_backlogged", "Jain, backlogged", "max", 3, window="backlogged"),
    Column("hit_rate", "hit rate (%)", "max", 1, scale=100),
    Column("well_ttft_p50", "TTFT P50 (s)", "min"),
    Column("well_ttft_p99", "TTFT P99 (s)", "min"),
    Column("e2e_p99", "e2e P99 (s)", "min"),
    Column("preemptions", "preempted", "min", 0),
)
CAPTION = (
    "service/s: client service (input + 2 output tokens) per second of makespan. Jain, all active: on client "
    "service while all clients are active (the DLPM paper's number); Jain, backlogged: on actual service "
    "(uncached input + 2 output) while all are waiting. x vtc: service/s over vtc's. "
    "TTFT of the well-behaved clients, e2e of all. * best of its workload; ± standard deviation over seeds; "
    f"† taken in less than {SHORT:.0%} of the makespan, too short to rank by."
)


@dataclass(frozen=True)
class Shown:
    """A value as text, and whether it is the best of its setting."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One scheduler under one setting, as shown; `values` in the order of `COLUMNS`."""

    setting: str
    scheduler: str
    seeds: int
    values: tuple[Shown, ...]


def aggregated(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, one row per setting and scheduler, in reading order.

    Columns: setting, scheduler, policy, seeds, and for each of `COLUMNS` its mean, `<key>_sd` (sample
    standard deviation, NaN for one seed) and `<key>_n` (seeds that have the number); `<key>_short` where the
    number comes from a window that was too short under some seed. `vs_reference` is the ratio of mean client
    service to that of the reference policy in the same setting.
    """
    rows = [
        {"setting": setting, "scheduler": scheduler, "policy": group["policy"].iloc[0], "seeds": len(group)}
        | _statistics(group)
        for (setting, scheduler), group in frame.groupby(["setting", "scheduler"], sort=False)
    ]
    settings = list(dict.fromkeys(frame["setting"]))
    rows.sort(key=lambda r: (settings.index(r["setting"]), reading_order(r["policy"], r["scheduler"])))
    table = pd.DataFrame(rows)
    reference = table["setting"].map(_references(table))
    return table.assign(vs_reference=table["client_service_per_s"] / reference)


def _statistics(group: pd.DataFrame) -> dict[str, float | bool]:
    found: dict[str, float | bool] = {}
    for column in COLUMNS:
        if column.key in group:
            values = pd.to_numeric(group[column.key])
            found[column.key] = values.mean()
            found[f"{column.key}_sd"] = values.std()
            found[f"{column.key}_n"] = values.count()
        if column.window is not None:
            short = group[f"{column.window}_s"] < SHORT * group["makespan_s"]
            found[f"{column.key}_short"] = bool((short & group[column.key].notna()).any())
    return found


def _references(table: pd.DataFrame) -> dict[str, float]:
    """Client service of the reference in each setting: the first in reading order, so the plain one."""
    candidates = table[table["policy"] == REFERENCE].drop_duplicates("setting")
    return dict(zip(candidates["setting"], candidates["client_service_per_s"], strict=True))


def rows(frame: pd.DataFrame) -> list[Row]:
    """The final table as text, from what `collect` returns."""
    table = aggregated(frame)
    columns = [_shown(table, column) for column in COLUMNS]
    values = zip(*columns, strict=True)
    return [
        Row(str(r["setting"]), str(r["scheduler"]), int(r["seeds"]), tuple(shown))
        for (_, r), shown in zip(table.iterrows(), values, strict=True)
    ]


def _shown(table: pd.DataFrame, column: Column) -> list[Shown]:
    texts = [_text(row, column) for _, row in table.iterrows()]
    best = pd.concat([_best(group, column) for _, group in table.groupby("setting")])[table.index]
    return [Shown(text, bool(mark)) for text, mark in zip(texts, best, strict=True)]


def _best(group: pd.DataFrame, column: Column) -> pd.Series[bool]:
    """Which rows of a setting show its best value; none where all show the same, or where it is too short."""
    values = group[column.key]
    if column.window is not None:
        values = values.mask(group[f"{column.key}_short"])
    values = values.dropna()
    shown = values.map(column.show)
    best = shown[values == values.agg(column.best)]
    return shown.isin(best).reindex(group.index, fill_value=False) & (shown.nunique() > 1)


def _text(row: pd.Series, column: Column) -> str:
    value = row[column.key]
    if pd.isna(value):
        return "none"
    deviation = row.get(f"{column.key}_sd")
    text = column.show(value) if pd.isna(deviation) else column.show(value, deviation)
    text += "†" if row.get(f"{column.key}_short", False) else ""
    count = row.get(f"{column.key}_n", row["seeds"])
    return text if count == row["seeds"] else f"{text} ({count:.0f} of {row['seeds']} seeds)"


def reasons(frame: pd.DataFrame) -> list[str]:
    """Why numbers of the final table are missing: one sentence per column, setting and reason."""
    return list(dict.fromkeys(_reasons(frame)))


def _reasons(frame: pd.DataFrame) -> Iterator[str]:
    for column in COLUMNS:
        if column.window is not None:
            reason = f"{column.window}_none"
            for _, row in frame[frame[reason].notna()].iterrows():
                yield f"{column.heading}, {row['setting']}, {row['scheduler']}: {row[reason]}"


def rich_table(frame: pd.DataFrame) -> Table:
    """The final table for the terminal, from what `collect` returns. No name is read as markup."""
    table = Table(caption=Text(CAPTION), caption_justify="left", row_styles=["", "dim"])
    table.add_column("scheduler", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.heading, justify="right")
    table.add_column("seeds", justify="right")
    setting = None
    for row in rows(frame):
        if row.setting != setting:
            setting = row.setting
            table.add_section()
            table.add_row(Text(setting, style="bold"))
        table.add_row(Text(f"  {row.scheduler}"), *map(_rich, row.values), str(row.seeds))
    return table


def _rich(shown: Shown) -> Text:
    return Text(f"{shown.text}*", style="bold green") if shown.best else Text(f"{shown.text} ")

"""The tables: every number of every cell, and the one table that is meant to be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suite.files import write_atomically
from suite.metrics.summary import summarise
from suite.report.experiment import Experiment, load, reading_order
from suite.results import Manifest

REFERENCE = "vtc"
"""The policy whose throughput the others are compared with, as in the papers."""

SHORT = 0.05
"""A window below this share of the makespan is too short to rank by."""


def collect(folder: Path) -> pd.DataFrame:
    """One row per cell of the folder: `cell`, `setting`, labels, what is to be known of it, its summary.

    `invalid` says why it is no result, `fallback` how often an engine's own scheduler went by another policy
    than the one asked for; both None where there is nothing to say.
    """
    return collected(load(folder))


def collected(experiment: Experiment) -> pd.DataFrame:
    """`collect` for an experiment that is already loaded."""
    rows = [
        {
            "cell": cell.folder.name,
            "setting": cell.setting,
            **cell.labels,
            "invalid": "; ".join(cell.manifest.invalid) or None,
            "fallback": _fallback(cell.manifest),
            **summarise(cell.run()),
        }
        for cell in experiment.cells
    ]
    return pd.DataFrame(rows)


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
    bare: str
    """The text without deviation and without how many seeds have the number."""


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
    best = pd.concat([_best(group, column) for _, group in table.groupby("setting")])[table.index]
    return [
        Shown(_text(row, column), bool(mark), _bare(row, column))
        for (_, row), mark in zip(table.iterrows(), best, strict=True)
    ]


def _best(group: pd.DataFrame, column: Column) -> pd.Series[bool]:
    """Which rows of a setting show its best value; none where all show the same, or where it is too short."""
    values = group[column.key]
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
        if column.window is not None:
            reason = f"{column.window}_none"
            for _, row in frame[frame[reason].notna()].iterrows():
                yield f"{column.heading}, {row['setting']}, {row['scheduler']}: {row[reason]}"


def warnings(frame: pd.DataFrame) -> list[str]:
    """What stands against the numbers: cells that are not valid, or not wholly what their name says, and
    requests that were not served.
    """
    return [*_invalid(frame), *_fallbacks(frame), *_losses(frame)]


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


# -- the table in the terminal ---------------------------------------------------------------------------

_FATES = {
    "rejected": "larger than the KV pool",
    "failed": "an error, or cut short",
    "cancelled": "each came after one that was not served",
}
_SEEDS, _DEVIATIONS = "seeds", "±"
_LEAVING = (
    _SEEDS,
    "preemptions",
    "e2e_p99",
    "hit_rate",
    "jain_actual_backlogged",
    _DEVIATIONS,
    "well_ttft_p50",
    "vs_reference",
    "well_ttft_p99",
    "jain_client_all_active",
)
"""What leaves a table that is too wide, first to last."""

_NAME = 20
"""Characters that a scheduler's name has at least before it is folded."""


def rich_table(frame: pd.DataFrame, width: int | None = None) -> Table:
    """The final table for the terminal, from what `collect` returns. No name is read as markup.

    Numbers stand whole: where `width` characters do not hold all columns, the less important ones are left
    out, and the caption says so. None shows everything.
    """
    shown, lost = rows(frame), warnings(frame)
    for leaving in range(len(_LEAVING) + 1):
        table = _table(shown, _LEAVING[:leaving], lost)
        if width is None or _width(table) <= width:
            break
    return table


def _width(table: Table) -> int:
    """Characters the table needs, long names folded."""
    console = Console(width=10_000)
    name = max(console.measure(cell).maximum for cell in table.columns[0].cells)
    return console.measure(table).maximum - max(0, name - _NAME)


def _table(shown: list[Row], left_out: tuple[str, ...], lost: list[str]) -> Table:
    table = Table(caption=_caption(left_out, lost), caption_justify="left", row_styles=["", "dim"])
    table.add_column("scheduler", overflow="fold")
    kept = [i for i, column in enumerate(COLUMNS) if column.key not in left_out]
    seeds = _SEEDS not in left_out
    for heading in [*(COLUMNS[i].heading for i in kept), *[_SEEDS] * seeds]:
        table.add_column(heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    setting = None
    for row in shown:
        if row.setting != setting:
            setting = row.setting
            table.add_section()
            table.add_row(Text(setting, style="bold"))
        values = (_rich(row.values[i], _DEVIATIONS in left_out) for i in kept)
        table.add_row(Text(f"  {row.scheduler}"), *values, *[str(row.seeds)] * seeds)
    return table


def _caption(left_out: tuple[str, ...], lost: list[str]) -> Text:
    headings = {column.key: column.heading for column in COLUMNS} | {_DEVIATIONS: "± over seeds"}
    names = "; ".join(headings.get(key, key) for key in left_out)
    notes = [f"Too narrow for: {names}; summary.csv has all."] if left_out else []
    return Text("\n".join([CAPTION, *notes, *lost]))


def _rich(shown: Shown, bare: bool) -> Text:
    text = shown.bare if bare else shown.text
    return Text(f"{text}*", style="bold green") if shown.best else Text(f"{text} ")

"""The final table in the terminal: as many columns as fit, every number whole."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suite.report.tables import COLUMNS, Column, Row, Shown, caption, excluded, rows, shown_columns, warnings

_SEEDS, _DEVIATIONS = "seeds", "±"
_LEAVING = (
    _SEEDS,
    "preemptions",
    "bound_share",
    "worker_share",
    "e2e_p99",
    "imbalance",
    "well_itl_p99",
    "hit_rate",
    "jain_actual_backlogged",
    _DEVIATIONS,
    "well_ttft_p50",
    "goodput_per_s",
    "vs_reference",
    "well_ttft_p99",
    "jain_client_all_active",
)
"""What leaves a table that is too wide, first to last."""

_WHOLE, _FOLDED = 24, 20
"""Characters up to which a scheduler's name stands whole, and that a longer one has before it is folded."""


def rich_table(frame: pd.DataFrame, width: int | None = None) -> Table:
    """The final table for the terminal, from what `tables.collect` returns. No name is read as markup.

    Numbers stand whole: where `width` characters do not hold all columns, the less important ones are left
    out, and the caption says so. None shows everything. A scheduler without a valid run is listed as such.
    """
    columns = shown_columns(frame)
    shown, lost = list(_sections(frame)), warnings(frame)
    has = {_SEEDS, _DEVIATIONS, *(column.key for column in columns)}
    leaving = [key for key in _LEAVING if key in has]
    for count in range(len(leaving) + 1):
        table = _table(columns, shown, leaving[:count], lost)
        if width is None or _width(table) <= width:
            break
    return table


def _sections(frame: pd.DataFrame) -> Iterator[tuple[str, list[Row], list[str]]]:
    """Each setting, its ranked schedulers, and the names of those without a valid run."""
    ranked, left_out = rows(frame), excluded(frame)
    for setting in dict.fromkeys(frame["setting"]):
        names = [name for where, name in left_out if where == setting]
        yield str(setting), [row for row in ranked if row.setting == setting], names


def _width(table: Table) -> int:
    """Characters the table needs, long names folded."""
    console = Console(width=10_000)
    name = max(console.measure(cell).maximum for cell in table.columns[0].cells)
    return console.measure(table).maximum - (name - _FOLDED if name > _WHOLE else 0)


def _table(
    columns: tuple[Column, ...],
    sections: list[tuple[str, list[Row], list[str]]],
    left_out: list[str],
    lost: list[str],
) -> Table:
    table = Table(caption=_caption(columns, left_out, lost), caption_justify="left", row_styles=["", "dim"])
    table.add_column("scheduler", overflow="fold")
    kept = [column for column in columns if column.key not in left_out]
    seeds = _SEEDS not in left_out
    for heading in [*(column.heading for column in kept), *[_SEEDS] * seeds]:
        table.add_column(heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for setting, ranked, names in sections:
        table.add_section()
        table.add_row(Text(setting, style="bold"))
        for row in ranked:
            values = (_rich(row.values[column.key], _DEVIATIONS in left_out) for column in kept)
            table.add_row(Text(f"  {row.scheduler}"), *values, *[str(row.seeds)] * seeds)
        for name in names:
            table.add_row(Text(f"  {name}"), Text("invalid", style="red"))
    return table


def _caption(columns: tuple[Column, ...], left_out: list[str], lost: list[str]) -> Text:
    from_summary = [_heading(key) for key in left_out]
    notes = [f"Too narrow for: {'; '.join(from_summary)}; summary.csv has all."] if left_out else []
    return Text("\n".join([caption(columns), *notes, *lost]))


def _heading(key: str) -> str:
    headings = {column.key: column.heading for column in COLUMNS}
    return {_DEVIATIONS: "± over seeds", **headings}.get(key, key)


def _rich(shown: Shown, bare: bool) -> Text:
    text = shown.bare if bare else shown.text
    return Text(f"{text}*", style="bold green") if shown.best else Text(f"{text} ")

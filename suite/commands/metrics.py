"""`suite metrics`: what every reported number means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from suite.commands.console import results

if TYPE_CHECKING:
    from suite.metrics.glossary import Metric

_WIDE = 100
"""Columns that a definition takes at most."""


def metrics(
    word: Annotated[
        str | None,
        typer.Argument(help="Only those with this word in their name or formula.", show_default="all"),
    ] = None,
) -> None:
    """Say what every reported number means: formula, window, unit, source, and what it hides.

    They are the columns of summary.csv; `gap_{a,b}` stands for gap_a and gap_b.

    Example: suite metrics jain
    """
    from suite.metrics.glossary import search

    console = results()
    width = min(_WIDE, console.width)
    for metric in search(word or ""):
        console.print(Text(metric.names, style="bold"), width=width)
        console.print(_table(metric), width=width)


def _table(metric: Metric) -> Table:
    """A definition below its names."""
    table = Table.grid(padding=(0, 0, 0, 2), pad_edge=True)
    for fact in ("formula", "window", "unit", "source", "hides"):
        table.add_row(Text(fact, style="dim"), Text(getattr(metric, fact)))
    table.add_row("")
    return table

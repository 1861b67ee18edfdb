"""Numbers of a paper beside ours: as a table to be read, as CSV, and in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal, NamedTuple

import pandas as pd


class Quantity(NamedTuple):
    """Something measured: its name, and the digits after the point that are shown."""

    name: str
    digits: int

    def show(self, value: float | None) -> str:
        """The value as text, "-" where there is none."""
        return "-" if value is None else f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Value:
    """One number: of which case, "GROUP: NAME" or "NAME"; ours, and the paper's if it has one.

    `spread` is the standard deviation over seeds.
    """

    case: str
    quantity: Quantity
    ours: float
    paper: float | None = None
    spread: float | None = None

    @property
    def group(self) -> str:
        """What the case belongs to; empty if to nothing."""
        return self.case.rpartition(": ")[0]

    @property
    def name(self) -> str:
        """The case without its group."""
        return self.case.rpartition(": ")[2]

    @property
    def deviation(self) -> float | None:
        """(ours - paper) / paper; None if the paper has no value."""
        return None if self.paper is None else self.ours / self.paper - 1


@dataclass(frozen=True)
class Table:
    """Values under a title; `heading` says what the cases are."""

    title: str
    heading: str
    values: tuple[Value, ...]

    def markdown(self) -> str:
        """One row for each case; of each quantity ours and, where the paper has any, the paper's beside."""
        cells = {(value.case, value.quantity): value for value in self.values}
        quantities = list(dict.fromkeys(value.quantity for value in self.values))
        known = {q for q in quantities if any(v.paper is not None for v in self.values if v.quantity == q)}
        names = [name for q in quantities for name in _names(q, q in known)]
        rows = [
            [case, *(cell for q in quantities for cell in _cells(cells.get((case, q)), q, q in known))]
            for case in dict.fromkeys(value.case for value in self.values)
        ]
        return markdown([self.heading, *names], rows)

    def of(self, group: str, *quantities: Quantity) -> list[Value]:
        """The values of some quantities of one group of cases."""
        return [v for v in self.values if v.group == group and v.quantity in quantities]


def markdown(names: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; what stands in a cell cannot end it."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def frame(tables: Iterable[Table]) -> pd.DataFrame:
    """All values, one a row: table, case, quantity, ours, spread, paper, deviation."""
    rows = [
        (table.title, value.case, value.quantity.name, value.ours, value.spread, value.paper, value.deviation)
        for table in tables
        for value in table.values
    ]
    return pd.DataFrame(rows, columns=["table", "case", "quantity", "ours", "spread", "paper", "deviation"])


def _names(quantity: Quantity, has_paper: bool) -> list[str]:
    return [quantity.name, "paper", "deviation"] if has_paper else [quantity.name]


def _cells(value: Value | None, quantity: Quantity, has_paper: bool) -> list[str]:
    if value is None:
        return ["-"] * (3 if has_paper else 1)
    spread = "" if value.spread is None else f" ± {quantity.show(value.spread)}"
    ours = quantity.show(value.ours) + spread
    return [ours, quantity.show(value.paper), percent(value.deviation, "+")] if has_paper else [ours]


# -- sentences -------------------------------------------------------------------------------------------


def orders(values: Sequence[Value]) -> str:
    """By which quantities the cases stand in the paper's order, and by which not."""
    kept: dict[bool, list[str]] = {True: [], False: []}
    for quantity in dict.fromkeys(value.quantity for value in values):
        pairs = [value for value in values if value.quantity == quantity and value.paper is not None]
        if pairs:
            kept[has_order(pairs)].append(quantity.name)
    told = [f"the order is the paper's by {listed(kept[True])}"] if kept[True] else []
    told += [f"the order is not the paper's by {listed(kept[False])}"] if kept[False] else []
    return "; ".join(told)


def has_order(values: Iterable[Value]) -> bool:
    """Whether the values, each with one of the paper, are in the paper's order, ties in any."""
    ours = [value.ours for value in sorted(values, key=lambda value: (value.paper or 0.0, value.ours))]
    return ours == sorted(ours)


def furthest(values: Iterable[Value]) -> str:
    """Which value deviates most from the paper's, and by how much."""
    worst = max(values, key=lambda value: abs(value.deviation or 0.0))
    return (
        f"the largest deviation is {percent(worst.deviation, '+')} ({worst.quantity.name} of {worst.name}: "
        f"{worst.quantity.show(worst.ours)}, the paper {worst.quantity.show(worst.paper)})"
    )


def within(values: Sequence[Value]) -> str:
    """How many of the paper's values lie near ours, measured by how ours vary over seeds."""
    known = [value for value in values if value.paper is not None and value.spread is not None]
    near = sum(abs(value.ours - (value.paper or 0.0)) <= 2 * (value.spread or 0.0) for value in known)
    return f"{near} of {len(known)} of the paper's values lie within two standard deviations of ours"


def distance(values: Iterable[Value]) -> float:
    """Mean of the deviations' sizes, over the values that the paper has too."""
    return mean(abs(value.deviation) for value in values if value.deviation is not None)


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def percent(share: float | None, sign: Literal["+", "-"] = "-") -> str:
    """A share as text with one digit, "-" where there is none; `sign` "+" also marks positive ones."""
    if share is None:
        return "-"
    tenths = round(1000 * share) / 10 or 0.0
    return f"{tenths:{sign if tenths else '-'}.1f} %"

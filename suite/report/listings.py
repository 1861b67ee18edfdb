"""The page's tables of clients, of the fairness audit and of the validity checks, as text to be shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from suite.metrics import summary, validity
from suite.report import parallel
from suite.report.experiment import Cell, Experiment

MOST_CLIENTS = 100
"""Clients of one run that the page lists; clients.csv beside the run has all."""


@dataclass(frozen=True)
class Item:
    """One cell of a table: its text, and the number to sort by, if it is one and finite."""

    text: str
    number: float | None = None
    alarm: bool = False
    """Whether it is to be seen as a problem."""


@dataclass(frozen=True)
class Listing:
    """A table of the page. `words` are the headings of its columns of text."""

    title: str
    headings: tuple[str, ...]
    words: tuple[str, ...]
    rows: list[list[Item]]
    note: str = ""


# -- clients ---------------------------------------------------------------------------------------------

_CLIENT_COLUMNS = {
    "client": "client",
    "requests": "requests",
    "finished": "finished",
    "client_service": "client service",
    "actual_service": "actual service",
    "client_service_all_active": "client service, all active",
    "hit_rate": "hit rate",
    "paid_for_others": "paid for others (tokens)",
    "taken_from_others": "taken from others (tokens)",
    "preemptions": "preempted",
    "ttft_p50": "TTFT P50 (s)",
    "ttft_p99": "TTFT P99 (s)",
    "itl_p99": "ITL P99 (s)",
    "e2e_p50": "e2e P50 (s)",
    "e2e_p99": "e2e P99 (s)",
    "program_p99": "program P99 (s)",
}


def clients(experiment: Experiment) -> list[Listing]:
    """One table per setting: every client under every scheduler, first seed."""
    cells = [cell for setting in experiment.settings for cell in experiment.first_seed(setting)]
    found: dict[str, dict[str, pd.DataFrame]] = {setting: {} for setting in experiment.settings}
    for cell, table in zip(cells, parallel.each(_clients, cells), strict=True):
        found[cell.setting][cell.scheduler] = table
    return [_listing(setting, runs) for setting, runs in found.items()]


def _clients(cell: Cell) -> pd.DataFrame:
    table = summary.clients(cell.run())
    names = table["client"] + table["misbehaving"].map({True: " (misbehaving)", False: ""})
    return table.assign(client=names)[list(_CLIENT_COLUMNS)]


def _listing(setting: str, found: dict[str, pd.DataFrame]) -> Listing:
    rows = [
        [Item(scheduler), *map(_item, row)]
        for scheduler, table in found.items()
        for row in table.nlargest(MOST_CLIENTS, "requests").sort_index().itertuples(index=False)
    ]
    cut = max((len(table) for table in found.values()), default=0) > MOST_CLIENTS
    note = f"The {MOST_CLIENTS} clients with most requests; clients.csv of each run has all." if cut else ""
    headings = ("scheduler", *_CLIENT_COLUMNS.values())
    return Listing(setting, headings, ("scheduler", "client"), rows, note)


def _item(value: Any) -> Item:
    if isinstance(value, str):
        return Item(value)
    if pd.isna(value):
        return Item("none")
    if value == float("inf"):
        return Item("never", alarm=True)
    number = float(value)
    return Item(f"{number:,.0f}" if number.is_integer() or number >= 1000 else f"{number:.3g}", number)


# -- the fairness audit ----------------------------------------------------------------------------------

_GAP = ("largest gap", "bound", "gap / bound", "held", "window that broke it")
_REPLICA = tuple(f"{name}, one replica" for name in _GAP)


def audit(frame: pd.DataFrame) -> Listing:
    """One line per run: the largest gap between backlogged clients, the policy's bound, whether it held.

    With several replicas the same of one of them, that which came nearest to its bound.
    """
    held = frame["bound_held"].dropna()
    title = f"The bound held in {int(held.sum())} of {len(held)} runs whose policy has one"
    replicas = frame["worker_held"].dropna()
    if len(replicas):
        title += f"; that of each replica in {int(replicas.sum())} of {len(replicas)}"
    rows = [[*_audited(row), *(_of_replica(row) if len(replicas) else ())] for _, row in frame.iterrows()]
    headings = ("run", "service charged", *_GAP, *(_REPLICA if len(replicas) else ()))
    words = [heading for heading in headings if heading.startswith(("run", "service", "held", "window"))]
    return Listing(title, headings, tuple(words), rows)


def _audited(row: pd.Series[Any]) -> Iterator[Item]:
    yield Item(str(row["cell"]))
    if pd.isna(row["bound"]):
        yield Item("none")
        yield _item(row["backlogged_gap_actual"])
        yield from (Item("none"), Item("none"), Item("no bound"), Item(str(row["bound_none"])))
        return
    yield Item(str(row["bound_service"]))
    looked = f" ({row['bound_pairs']})" if pd.notna(row["bound_pairs"]) else ""
    yield from _gap(row, "bound_gap", "bound", "bound_window", looked)


def _of_replica(row: pd.Series[Any]) -> Iterator[Item]:
    if pd.isna(row["worker_bound"]):
        return iter([Item("none")] * len(_REPLICA))
    return _gap(row, "worker_gap", "worker_bound", "worker_window", "")


def _gap(row: pd.Series[Any], gap: str, bound: str, window: str, note: str) -> Iterator[Item]:
    """A gap, its bound, their ratio, and whether the bound held; if not, who broke it when."""
    broken = bool(pd.notna(row[window]))
    yield from (_item(row[gap]), _item(row[bound]), _item(row[gap] / row[bound]))
    yield Item(("no" if broken else "yes") + note, alarm=broken)
    yield Item(str(row[window]) if broken else "")


# -- validity --------------------------------------------------------------------------------------------


def checks(experiment: Experiment) -> Listing:
    """One line per run: what each check measured; those not passed are marked."""
    found = parallel.each(_checks, experiment.cells)
    names = list(dict.fromkeys(check.name for some in found for check in some))
    limits = {
        name: _limit([check for some in found for check in some if check.name == name]) for name in names
    }
    rows = []
    for cell, some in zip(experiment.cells, found, strict=True):
        measured = {check.name: Item(check.measured, alarm=not check.ok) for check in some}
        rows.append([Item(cell.folder.name), *(measured.get(name, Item("none")) for name in names)])
    headings = ("run", *(f"{name} ({limits[name]})" if limits[name] else name for name in names))
    return Listing("What each run was checked for", headings, headings, rows)


def _checks(cell: Cell) -> list[validity.Check]:
    return validity.checks(cell.run())


def _limit(some: list[validity.Check]) -> str:
    """The limit as the heading has it, if it is the same for all runs."""
    limits = {check.limit for check in some}
    return limits.pop() if len(limits) == 1 else ""

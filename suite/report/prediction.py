"""How well the simulator predicts a real engine: two experiment folders, paired cell by cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from suite.errors import BadInput
from suite.report import tables

MEASURES = {
    "client_service_per_s": "service/s",
    "ttft_mean": "mean TTFT",
    "e2e_mean": "mean e2e",
    "hit_rate": "hit rate",
}
"""What is compared: columns of the summary, and their headings."""

_PAIRED = ["workload", "scheduler", "seed"]


def errors(real: Path, predicted: Path) -> pd.DataFrame:
    """One row per cell that both folders hold: workload, scheduler, seed, the error of each of `MEASURES`.

    The error of a rate or a latency is predicted / real - 1, that of the hit rate the difference. Raises
    `BadInput` if the folders have no cell in common, or if a folder has several of such a kind.
    """
    ours, theirs = tables.collect(predicted), tables.collect(real)
    for folder, frame in ((predicted, ours), (real, theirs)):
        if frame.duplicated(_PAIRED).any():
            raise BadInput(f"{folder}: varies more than workload, scheduler and seed; compare one setting")
    both = theirs.merge(ours, on=_PAIRED, suffixes=("_real", ""))
    if both.empty:
        raise BadInput(f"{predicted}: holds no cell of {real}; workload, scheduler and seed must be the same")
    found = both[_PAIRED].copy()
    for key in MEASURES:
        guess, truth = both[key].astype(float), both[f"{key}_real"].astype(float)
        found[key] = guess - truth if key == "hit_rate" else guess / truth - 1
    return found


def table(errors: pd.DataFrame) -> Table:
    """Mean error over seeds by workload and scheduler, and the mean size of the error of single runs."""
    title = "predicted / real - 1 (hit rate: difference in points), mean over seeds; in brackets mean size"
    shown = Table("workload", "scheduler", "runs", *MEASURES.values(), title=title, title_justify="left")
    for (workload, scheduler), group in errors.groupby(["workload", "scheduler"], sort=False):
        values = (_text(group[key]) for key in MEASURES)
        shown.add_row(Text(str(workload)), Text(str(scheduler)), str(len(group)), *values)
    shown.add_section()
    shown.add_row("all", "", str(len(errors)), *(_text(errors[key]) for key in MEASURES))
    return shown


def _text(values: pd.Series[float]) -> str:
    return f"{100 * values.mean():+.1f} % ({100 * values.abs().mean():.1f} %)"

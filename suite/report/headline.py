"""The answer in words: who is fastest, who is fairest, and at what price."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from suite.report.tables import REFERENCE, aggregated

NEAR_FAIREST = 0.9
"""A scheduler whose Jain's index is at least this share of the fairest one's counts as fair."""

ALIKE = 0.99
"""Schedulers of which the last has at least this share of the first's number are called alike."""

_SERVICE, _JAIN = "client_service_per_s", "jain_client_all_active"


@dataclass(frozen=True)
class Headline:
    """What one setting shows.

    `fairest` and `balanced` are None where no scheduler has a Jain's index from a window long enough.
    """

    setting: str
    fastest: str
    fairest: str | None
    balanced: str | None


def headlines(frame: pd.DataFrame) -> list[Headline]:
    """One headline per setting, from what `tables.collect` returns."""
    table = aggregated(frame)
    return [_headline(str(setting), group) for setting, group in table.groupby("setting", sort=False)]


def _headline(setting: str, table: pd.DataFrame) -> Headline:
    served = table.dropna(subset=[_SERVICE])
    judged = served[served[_JAIN].notna() & ~served[f"{_JAIN}_short"]]
    fastest = _first(served, _SERVICE) if len(served) else "nobody: no request was served"
    if judged.empty:
        return Headline(setting, fastest, None, None)
    fair = judged[judged[_JAIN] >= NEAR_FAIREST * judged[_JAIN].max()]
    return Headline(setting, fastest, _first(judged, _JAIN), _first(fair, _SERVICE))


def _first(table: pd.DataFrame, key: str) -> str:
    """Who has most of `key`, in a sentence that admits it where the others have as much."""
    best = table.iloc[int(table[key].argmax())]
    alike = len(table) > 1 and table[key].min() >= ALIKE * best[key]
    return f"all {len(table)} alike, e.g. {_sentence(best)}" if alike else _sentence(best)


def _sentence(row: pd.Series) -> str:
    text = f"{row['scheduler']}: {row[_SERVICE]:,.0f} service/s"
    if pd.notna(row["vs_reference"]) and row["scheduler"] != REFERENCE:
        text += f", {row['vs_reference']:.2f}x {REFERENCE}'s"
    return f"{text}, at Jain {row[_JAIN]:.3f}" if pd.notna(row[_JAIN]) else f"{text}, Jain none"

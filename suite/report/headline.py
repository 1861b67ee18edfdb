"""The answer in words: who is fastest, who is fairest, at what price, and how sure that is.

A scheduler that left requests unserved has no throughput and a Jain's index that says so; one without a valid
run is not ranked. Neither is ever named as fastest or fairest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from suite.report import effects
from suite.report.effects import Effect, Verdict
from suite.report.experiment import Experiment
from suite.report.tables import COLUMNS, REFERENCE, Column, aggregated, excluded, valid

NEAR_FAIREST = 0.9
"""A scheduler whose Jain's index is at least this share of the fairest one's counts as fair."""

ALIKE = 0.99
"""Schedulers of which the last has at least this share of the first's number are called alike."""

_SERVICE, _JAIN, _TAIL = "client_service_per_s", "jain_client_all_active", "well_ttft_p99"
_SHOWN = {column.key: column for column in COLUMNS}


@dataclass(frozen=True)
class Place:
    """A line of the compact ranking, as text. `reason` says why a scheduler is not ranked, if it is not."""

    scheduler: str
    service: str
    jain: str
    tail: str
    fair: bool
    reason: str | None = None


@dataclass(frozen=True)
class Headline:
    """What one setting shows.

    `winner` is the fastest of the fair schedulers. It, `fairest` and `balanced` are None where no scheduler
    has a Jain's index from a window long enough, `fastest` where none has a throughput.
    """

    setting: str
    fastest: str | None
    fairest: str | None
    balanced: str | None
    winner: str | None
    ranking: tuple[Place, ...]


def headlines(frame: pd.DataFrame) -> list[Headline]:
    """One headline per setting, from what `tables.collect` returns."""
    table, left_out = aggregated(frame), excluded(frame)
    return [
        _headline(
            str(setting),
            table[table["setting"] == setting],
            {name: why for (where, name), why in left_out.items() if where == setting},
        )
        for setting in dict.fromkeys(frame["setting"])
    ]


def _headline(setting: str, table: pd.DataFrame, left_out: dict[str, str]) -> Headline:
    served = table[table[_SERVICE].notna() & (table["starved"] == 0)]
    judged = served[served[_JAIN].notna() & ~served[f"{_JAIN}_short"].astype(bool)]
    fair = judged[judged[_JAIN] >= NEAR_FAIREST * judged[_JAIN].max()]
    best = fair.sort_values(_SERVICE, ascending=False, kind="stable")
    return Headline(
        setting,
        fastest=_first(served, _SERVICE),
        fairest=_first(judged, _JAIN),
        balanced=_first(fair, _SERVICE),
        winner=None if best.empty else str(best["scheduler"].iloc[0]),
        ranking=(*_places(table, set(fair["scheduler"])), *(_unranked(*item) for item in left_out.items())),
    )


def _places(table: pd.DataFrame, fair: set[str]) -> list[Place]:
    """The fair ones by throughput, then the others."""
    ordered = table.assign(fair=table["scheduler"].isin(fair))
    ordered = ordered.sort_values(["fair", _SERVICE], ascending=False, kind="stable", na_position="last")
    return [
        Place(
            scheduler=str(row["scheduler"]),
            service=_shown(row, _SERVICE),
            jain=_shown(row, _JAIN),
            tail=_shown(row, _TAIL),
            fair=bool(row["fair"]),
        )
        for _, row in ordered.iterrows()
    ]


def _unranked(scheduler: str, reason: str) -> Place:
    return Place(scheduler, "", "", "", False, reason)


def _shown(row: pd.Series, key: str) -> str:
    column: Column = _SHOWN[key]
    mark = "†" if row.get(f"{key}_short", False) else ""
    return "none" if pd.isna(row[key]) else column.show(row[key]) + mark


def _first(table: pd.DataFrame, key: str) -> str | None:
    """Who has most of `key`, in a sentence that admits it where the others have as much."""
    if table.empty:
        return None
    best = table.iloc[int(table[key].argmax())]
    alike = len(table) > 1 and table[key].min() >= ALIKE * best[key]
    return f"all {len(table)} alike, e.g. {_sentence(best)}" if alike else _sentence(best)


def _sentence(row: pd.Series) -> str:
    text = f"{row['scheduler']}: {row[_SERVICE]:,.0f} service/s"
    if pd.notna(row["vs_reference"]) and row["scheduler"] != REFERENCE:
        text += f", {row['vs_reference']:.2f}x {REFERENCE}'s"
    return f"{text}, at Jain {row[_JAIN]:.3f}" if pd.notna(row[_JAIN]) else f"{text}, Jain none"


# -- over all settings -----------------------------------------------------------------------------------


def answer(found: Sequence[Headline]) -> str:
    """Who wins in how many settings, in a sentence."""
    wins = Counter(headline.winner for headline in found)
    undecided = wins.pop(None, 0)
    total = f"{len(found)} setting{'s' * (len(found) > 1)}"
    if not wins:
        return "Nobody wins: no scheduler has a valid run that served all and can be judged for fairness."
    parts = [f"{name} in {count}" for name, count in wins.most_common()]
    parts += [f"it cannot be said in {undecided}"] if undecided else []
    return f"The fastest of the fair schedulers, of {total}: {', '.join(parts)}."


def validity(frame: pd.DataFrame) -> str:
    """How many runs are results."""
    return f"{len(valid(frame))} of {len(frame)} runs are valid"


def comparisons(experiment: Experiment, frame: pd.DataFrame, found: Sequence[Headline]) -> list[Effect]:
    """The winner of each setting against all other schedulers there, corrected for all of it together.

    The winners were picked out by these very runs, so the intervals speak of them and not of a new trial.
    """
    pairs = []
    for head in found:
        here = frame[frame["setting"] == head.setting]
        others = [name for name in dict.fromkeys(here["scheduler"]) if name != head.winner]
        if head.winner is not None and others:
            part = experiment.only(set(here["cell"]))
            pairs += effects.comparisons(part, here, head.winner, others)
    return effects.compared(pairs)


@dataclass(frozen=True)
class Against:
    """The winner against one other scheduler in one setting: the verdict's word, the main ratios as text."""

    winner: str
    other: str
    word: str
    ratios: str


def against(found: Sequence[Effect], setting: str) -> list[Against]:
    """The comparisons of a setting, one per other scheduler."""
    here = [effect for effect in found if effect.setting == setting]
    return [Against(v.candidate, v.baseline, v.word, _ratios(here, v)) for v in effects.verdicts(here)]


def _ratios(found: Sequence[Effect], verdict: Verdict) -> str:
    main = (e for e in found if e.baseline == verdict.baseline and e.metric in effects.MAIN)
    return ", ".join(f"{effect.title} {effect.shown}" for effect in main)

"""The answer in words: who is the fastest of the fair, at what price, and how sure that is.

A scheduler that left requests unserved has no throughput and a Jain's index that says so; one without a valid
run is not ranked. Neither is ever named as the winner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from suite.report import effects
from suite.report.effects import Effect
from suite.report.experiment import Experiment
from suite.report.tables import COLUMNS, REFERENCE, Column, aggregated, excluded, valid
from suite.report.verdicts import Verdict, verdicts

NEAR_FAIREST = 0.9
"""A scheduler whose Jain's index is at least this share of the fairest one's counts as fair."""

ALIKE = 0.99
"""Fair schedulers of which the last has at least this share of the first's throughput are called alike."""

_SERVICE, _JAIN, _TAIL = "client_service_per_s", "jain_client_all_active", "well_ttft_p99"
_JAIN_ACTUAL = "jain_actual_backlogged"
_SHOWN = {column.key: column for column in COLUMNS}


@dataclass(frozen=True)
class Place:
    """A line of the compact ranking, as text. `reason` says why a scheduler is not ranked, if it is not."""

    scheduler: str
    service: str
    jain: str
    jain_actual: str
    tail: str
    fair: bool
    reason: str | None = None


@dataclass(frozen=True)
class Headline:
    """What one setting shows.

    `winner` is the fastest of the fair schedulers, `sentence` says how fast and how fair it is. Both are None
    where no scheduler that served all has a Jain's index from a window long enough. `alike` is true if there
    are other fair ones, all about as fast.
    """

    setting: str
    winner: str | None
    sentence: str | None
    alike: bool
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
    ranking = (*_places(table, set(fair["scheduler"])), *(_unranked(*item) for item in left_out.items()))
    if fair.empty:
        return Headline(setting, None, None, False, ranking)
    best = fair.sort_values(_SERVICE, ascending=False, kind="stable").iloc[0]
    alike = len(fair) > 1 and fair[_SERVICE].min() >= ALIKE * best[_SERVICE]
    text = f"all {len(fair)} alike, e.g. {_sentence(best)}" if alike else _sentence(best)
    return Headline(setting, str(best["scheduler"]), text, alike, ranking)


def _places(table: pd.DataFrame, fair: set[str]) -> list[Place]:
    """The fair ones by throughput, then the others."""
    ordered = table.assign(fair=table["scheduler"].isin(fair))
    ordered = ordered.sort_values(["fair", _SERVICE], ascending=False, kind="stable", na_position="last")
    return [
        Place(
            scheduler=str(row["scheduler"]),
            service=_shown(row, _SERVICE),
            jain=_shown(row, _JAIN),
            jain_actual=_shown(row, _JAIN_ACTUAL),
            tail=_shown(row, _TAIL),
            fair=bool(row["fair"]),
        )
        for _, row in ordered.iterrows()
    ]


def _unranked(scheduler: str, reason: str) -> Place:
    return Place(scheduler, "", "", "", "", False, reason)


def _shown(row: pd.Series, key: str) -> str:
    column: Column = _SHOWN[key]
    mark = "†" if row.get(f"{key}_short", False) else ""
    return "none" if pd.isna(row[key]) else column.show(row[key]) + mark


def _sentence(row: pd.Series) -> str:
    text = f"{row['scheduler']}: {row[_SERVICE]:,.0f} service/s"
    if pd.notna(row["vs_reference"]) and row["scheduler"] != REFERENCE:
        text += f", {row['vs_reference']:.2f}x {REFERENCE}'s"
    return f"{text}, at Jain {row[_JAIN]:.3f}"


# -- over all settings -----------------------------------------------------------------------------------


def answer(found: Sequence[Headline]) -> str:
    """Who wins in how many settings, in a sentence."""
    judged = [headline for headline in found if headline.winner is not None]
    if not judged:
        return "Nobody wins: no scheduler has a valid run that served all and can be judged for fairness."
    wins = Counter(headline.winner for headline in judged if not headline.alike)
    alike, undecided = sum(headline.alike for headline in judged), len(found) - len(judged)
    total = f"{len(found)} setting{'s' * (len(found) > 1)}"
    parts = [f"{name} in {count}" for name, count in wins.most_common()]
    parts += [f"all alike in {alike}"] if alike else []
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
            pairs += effects.comparisons(part, here, [head.winner], others)
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
    return [Against(v.candidate, v.baseline, v.word, _ratios(here, v)) for v in verdicts(here)]


def _ratios(found: Sequence[Effect], verdict: Verdict) -> str:
    main = (e for e in found if e.baseline == verdict.baseline and e.metric in effects.MAIN)
    return ", ".join(f"{effect.title} {effect.shown}" for effect in main)

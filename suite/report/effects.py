"""Candidate against baselines: the ratio of each number, its interval, and a verdict a person can read.

The ratio is that of the means over seeds. Its interval comes from a paired bootstrap (`suite.metrics.paired`)
and from Student's t with one degree of freedom less than there are seeds, more where several settings tell
what spread is usual (`suite.metrics.bootstrap.moderated`). A comparison makes many intervals, metrics x
settings x baselines; their level is such that of those that exclude 1, 5 % may be wrong on average, and
Bonferroni's where none does (`suite.metrics.bootstrap.level`). "wins" and "loses" mean that the interval
excludes 1 on the good or the bad side.

Some verdicts need no interval, and have none: a candidate that breaks off, starves requests or is otherwise
not valid where the baseline is loses; a latency that is infinite for one arm loses to one that is not. A
candidate whose run failed where the baseline's did not loses; a baseline whose run failed is not won against.
`suite.report.verdicts` sums up by setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from suite.metrics import paired
from suite.metrics.bootstrap import ALPHA, Estimate, level, moderated
from suite.metrics.paired import SOONER, Pairs, Sample
from suite.metrics.summary import Value
from suite.metrics.validity import SHORT
from suite.report.experiment import Cell, Experiment, Failure

Word: TypeAlias = Literal["wins", "loses", "no difference seen", "none"]


@dataclass(frozen=True)
class Metric:
    """What is compared: a column of the summary (or `SOONER`), what people call it, which end is better."""

    column: str
    title: str
    better: Literal["max", "min"]
    window: str | None = None
    """The window it is taken in, if that can be empty or short."""
    none: str = ""
    """The summary's column that says why there is no such number."""


METRICS = (
    Metric("client_service_per_s", "throughput", "max", none="rates_none"),
    Metric("jain_client_all_active", "Jain (all active)", "max", "all_active", "all_active_none"),
    Metric("jain_actual_backlogged", "Jain (backlogged)", "max", "backlogged", "backlogged_none"),
    Metric("hit_rate", "hit rate", "max"),
    Metric("well_ttft_p50", "TTFT P50", "min"),
    Metric("well_ttft_p99", "TTFT P99", "min"),
    Metric("worst_ttft_p99", "worst client's TTFT P99", "min"),
    Metric(SOONER, "first token sooner", "max"),
)
"""TTFT P50 and P99 are those of the well-behaved clients."""

MAIN = ("client_service_per_s", "jain_client_all_active", "well_ttft_p99")
"""What decides the word over a whole setting: throughput, fairness, and the well-behaved clients' tail."""


@dataclass(frozen=True)
class Effect:
    """One metric of one candidate against one baseline in one setting.

    The values are means over the seeds that both have. `ratio` is candidate / baseline; of `SOONER`, whose
    baseline is the 0.5 of no difference, it is the share / 0.5. `low` and `high` bound it, see the module.
    `reason` says why there is no interval or how far it reaches.
    """

    setting: str
    metric: str
    title: str
    better: Literal["max", "min"]
    candidate: str
    baseline: str
    candidate_value: float | None
    baseline_value: float | None
    ratio: float | None
    low: float | None
    high: float | None
    seeds: int
    verdict: Word
    reason: str | None
    half_width: float | None = None
    """Half the width of the logarithm's interval at Bonferroni's level, which no outcome has a part in."""

    @property
    def shown(self) -> str:
        """Ratio and interval as text: "1.52 x [1.48, 1.56]"; of `SOONER` the share, "83 % [79, 87]"."""
        if self.ratio is None:
            return "none"
        ratios = [ratio for ratio in (self.ratio, self.low, self.high) if ratio is not None]
        share = self.metric == SOONER
        value, *interval = [f"{50 * ratio:.0f}" if share else _number(ratio) for ratio in ratios]
        return f"{value} {'%' if share else 'x'}" + (f" [{', '.join(interval)}]" if interval else "")


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 999.5 else f"{value:.0e}"


# -- from a folder ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One candidate beside one baseline in one setting: the runs of the seeds that both have, by seed.

    `failed` says why the candidate, and why the baseline, failed under a seed that the other finished.
    """

    setting: str
    candidate: str
    baseline: str
    runs: Mapping[int, tuple[Sample, Sample]]
    failed: tuple[str | None, str | None] = (None, None)


def effects(
    experiment: Experiment, frame: pd.DataFrame, candidate: str, baselines: Sequence[str]
) -> list[Effect]:
    """Every metric of the candidate against each baseline in each setting.

    `frame` is what `tables.collected` returns of the experiment; candidate and baselines are schedulers as it
    shows them.
    """
    return compared(comparisons(experiment, frame, [candidate], baselines))


def comparisons(
    experiment: Experiment, frame: pd.DataFrame, candidates: Sequence[str], baselines: Sequence[str]
) -> list[Comparison]:
    """What there is to compare, candidate by candidate, see `effects`. Each run is read once."""
    rows = {str(row["cell"]): _summary(row) for _, row in frame.iterrows()}
    arms: dict[tuple[str, str], dict[int, Sample]] = {}
    settings = list(dict.fromkeys((*experiment.settings, *(one.setting for one in experiment.failed))))
    for setting in settings:
        cells = experiment.by_scheduler(setting)
        for name in (*candidates, *baselines):
            arms[setting, name] = _arm(cells.get(name, []), rows)
    return [
        _comparison(setting, candidate, baseline, arms, experiment.failed)
        for candidate, setting, baseline in product(candidates, settings, baselines)
    ]


def _comparison(
    setting: str,
    candidate: str,
    baseline: str,
    arms: Mapping[tuple[str, str], Mapping[int, Sample]],
    failures: Iterable[Failure],
) -> Comparison:
    ours, theirs = arms[setting, candidate], arms[setting, baseline]
    runs = {seed: (ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())}
    here = [one for one in failures if one.setting == setting]
    failed = _failed(here, candidate, theirs), _failed(here, baseline, ours)
    return Comparison(setting, candidate, baseline, runs, failed)


def _failed(failures: Iterable[Failure], scheduler: str, others: Mapping[int, Sample]) -> str | None:
    """Why the scheduler failed under a seed under which the other did not."""
    own = (one for one in failures if one.scheduler == scheduler and one.seed in others)
    return next((f"failed: {one.reason} (seed {one.seed})" for one in own), None)


def _arm(cells: Iterable[Cell], rows: Mapping[str, Mapping[str, Value]]) -> dict[int, Sample]:
    return {cell.labels["seed"]: paired.sample(cell.run(), rows[cell.folder.name]) for cell in cells}


def _summary(row: pd.Series) -> dict[str, Value]:
    """A row of the frame as the summary it was made from: pandas turns None into NaN."""
    return {str(key): None if pd.isna(value) else value for key, value in row.items()}


# -- verdicts by metric ----------------------------------------------------------------------------------


def compared(comparisons: Sequence[Comparison]) -> list[Effect]:
    """The effects of all comparisons together: their number widens each interval."""
    found = [_effect(metric, comparison) for comparison in comparisons for metric in METRICS]
    estimates = _moderated(found)
    alpha = level(list(estimates.values()))
    judged = [
        _judged(effect, estimates[i], alpha, ALPHA / len(estimates)) if i in estimates else effect
        for i, (effect, _) in enumerate(found)
    ]
    each = (comparison for comparison in comparisons for _ in METRICS)
    return [_withheld(effect, *comparison.failed) for effect, comparison in zip(judged, each, strict=True)]


def _withheld(effect: Effect, ours: str | None, theirs: str | None) -> Effect:
    """The effect without its win, if the baseline failed: it may have failed where it would have won."""
    if effect.verdict != "wins" or theirs is None:
        return effect
    return replace(effect, verdict="none", reason=f"{effect.baseline} {theirs}")


def _moderated(found: Sequence[tuple[Effect, Estimate | None]]) -> dict[int, Estimate]:
    """The estimates by place, those of one metric moderated together, a group a setting."""
    drawn: dict[int, Estimate] = {}
    for metric in METRICS:
        own = {i: one for i, (effect, one) in enumerate(found) if one and effect.metric == metric.column}
        settings = len({found[i][0].setting for i in own})
        drawn.update(zip(own, moderated(list(own.values()), settings), strict=True))
    return drawn


def _judged(effect: Effect, estimate: Estimate, alpha: float, strictest: float) -> Effect:
    """The effect with its interval, and the verdict that follows from it."""
    low, high = estimate.interval(alpha)
    verdict: Word = "no difference seen"
    if low > 0 or high < 0:
        verdict = "wins" if (low > 0) == (effect.better == "max") else "loses"
    narrow, wide = estimate.interval(strictest)
    if effect.metric == SOONER:
        low, high = max(1 + 2 * low, 0.0), min(1 + 2 * high, 2.0)
    else:
        low, high = math.exp(low), math.exp(min(high, 700))
    return replace(effect, low=low, high=high, verdict=verdict, half_width=(wide - narrow) / 2)


def _effect(metric: Metric, comparison: Comparison) -> tuple[Effect, Estimate | None]:
    """The effect as far as it can be said without the others, and what is left to be judged with them."""
    pairs = [pair for pair in comparison.runs.values() if _valid(pair) and _both(metric, pair)]
    effect = _described(metric, comparison, pairs)
    settled = _settled(metric, comparison, pairs)
    if settled is not None:
        return replace(effect, verdict=settled[0], reason=settled[1]), None
    estimate = paired.sooner(pairs) if metric.column == SOONER else paired.log_ratio(metric.column, pairs)
    if estimate is None:
        return replace(effect, reason=_NO_PAIRS if metric.column == SOONER else _NO_NUMBER), None
    if metric.column == SOONER:
        share = 0.5 + estimate.value
        effect = replace(effect, candidate_value=share, baseline_value=0.5, ratio=2 * share)
    reason = "one seed: it speaks of this one trace only" if len(pairs) == 1 else None
    return replace(effect, reason=reason), estimate


_NO_PAIRS = "the arms replayed different traces, or no well-behaved client had a request"
_NO_NUMBER = "no finite ratio in many resamples: one of the two is 0, infinite or missing there"


def _described(metric: Metric, comparison: Comparison, pairs: Pairs) -> Effect:
    """The effect without interval and verdict."""
    ours, theirs = (_mean(metric, [pair[side] for pair in pairs]) for side in (0, 1))
    return Effect(
        setting=comparison.setting,
        metric=metric.column,
        title=metric.title,
        better=metric.better,
        candidate=comparison.candidate,
        baseline=comparison.baseline,
        candidate_value=ours,
        baseline_value=theirs,
        ratio=_ratio(ours, theirs),
        low=None,
        high=None,
        seeds=len(pairs),
        verdict="none",
        reason=None,
    )


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or not theirs or math.isinf(ours) or math.isinf(theirs):
        return None
    return ours / theirs


def _mean(metric: Metric, arm: Sequence[Sample]) -> float | None:
    if metric.column == SOONER or not arm:
        return None
    return float(np.mean([_value(metric, run) for run in arm]))


def _value(metric: Metric, run: Sample) -> float | None:
    found = run.summary.get(metric.column)
    return float(found) if isinstance(found, int | float) else None


def _both(metric: Metric, pair: tuple[Sample, Sample]) -> bool:
    return metric.column == SOONER or all(_value(metric, run) is not None for run in pair)


def _valid(pair: tuple[Sample, Sample]) -> bool:
    return not any(run.summary["invalid"] for run in pair)


# -- what needs no interval ------------------------------------------------------------------------------

_Settled: TypeAlias = tuple[Word, str] | None
"""A verdict and its reason."""


def _settled(metric: Metric, comparison: Comparison, pairs: Pairs) -> _Settled:
    """The verdict and its reason where there is no interval to be made."""
    return (
        _broken(comparison)
        or _not_valid(comparison)
        or _starving(metric, comparison)
        or _missing(metric, comparison, pairs)
        or _infinite(metric, comparison, pairs)
        or _too_little(metric, pairs)
    )


def _broken(comparison: Comparison) -> _Settled:
    """A candidate that failed loses; where no runs are left to compare, nothing is said."""
    ours, theirs = comparison.failed
    if ours is not None:
        return "loses", ours
    if not comparison.runs:
        none = "no seed under which both were run to their end"
        return "none", none if theirs is None else f"{comparison.baseline} {theirs}"
    return None


def _not_valid(comparison: Comparison) -> _Settled:
    """A candidate that is not valid where the baseline is loses; if none has both valid, nothing is said."""
    for seed, (ours, theirs) in comparison.runs.items():
        if ours.summary["invalid"] and not theirs.summary["invalid"]:
            return "loses", f"not valid under seed {seed}: {ours.summary['invalid']}"
    if not any(_valid(pair) for pair in comparison.runs.values()):
        return "none", f"{comparison.baseline} is not valid: {theirs.summary['invalid']}"
    return None


def _starving(metric: Metric, comparison: Comparison) -> _Settled:
    """Who has no such number because requests starved loses to who has it."""
    for seed, (ours, theirs) in comparison.runs.items():
        starved = _starved_of(metric, ours), _starved_of(metric, theirs)
        if starved[0] and not starved[1]:
            return "loses", f"{comparison.candidate} starved {starved[0]} requests under seed {seed}"
        if starved[1] and not starved[0]:
            return "wins", f"{comparison.baseline} starved {starved[1]} requests under seed {seed}"
    return None


def _starved_of(metric: Metric, run: Sample) -> int:
    """How many requests starved where that leaves no such number; else 0."""
    lacking = metric.column != SOONER and _value(metric, run) is None
    return int(run.summary["starved"] or 0) if lacking else 0


def _missing(metric: Metric, comparison: Comparison, pairs: Pairs) -> _Settled:
    if not pairs:
        runs = (run for pair in comparison.runs.values() for run in pair)
        why = (run.summary.get(metric.none) for run in runs if _value(metric, run) is None)
        return "none", str(next(filter(None, why), "no seed under which both have the number"))
    if metric.window is not None and any(_short(metric.window, run) for pair in pairs for run in pair):
        return "none", f"taken in less than {SHORT:.0%} of a run: too short to compare"
    return None


def _short(window: str, run: Sample) -> bool:
    return float(run.summary[f"{window}_s"] or 0) < SHORT * float(run.summary["makespan_s"] or 0)


def _infinite(metric: Metric, comparison: Comparison, pairs: Pairs) -> _Settled:
    """Infinite latency loses to any other; if both have it, nothing is said."""
    means = (_mean(metric, [pair[side] for pair in pairs]) for side in (0, 1))
    ours, theirs = (mean is not None and math.isinf(mean) for mean in means)
    if ours and theirs:
        return "none", "infinite under both: requests were never served"
    if ours:
        return "loses", f"infinite under {comparison.candidate}: requests were never served"
    if theirs:
        return "wins", f"infinite under {comparison.baseline}: requests were never served"
    return None


def _too_little(metric: Metric, pairs: Pairs) -> _Settled:
    if 0 in (_mean(metric, [pair[side] for pair in pairs]) for side in (0, 1)):
        return "none", "it is 0 under one of the two: no ratio"
    if len(pairs) == 1 and paired.needs_seeds(metric.column):
        return "none", "one seed: a number of the whole run needs two or more"
    return None

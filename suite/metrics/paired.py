"""Two arms that replayed the same traces: how much one differs from the other, and how sure that is.

An arm is one run a seed. What is drawn again within a seed (see `suite.metrics.bootstrap`) is a tenth of the
trace in its order of arrival or, where there are many clients and several seeds, a client with all its
requests. Numbers of a whole run are not taken apart: for them seeds alone are drawn.

If the arms replayed different traces of one kind, blocks pair by time only, and no request can be sooner than
itself; everything else holds as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from suite.metrics.bootstrap import (
    Estimate,
    Floats,
    Ints,
    Percentile,
    Statistic,
    constant,
    draw,
    estimate,
    largest,
    ratio_of_sums,
    replicates,
)
from suite.metrics.latency import latencies
from suite.metrics.summary import Value, misbehaving
from suite.results import Run

BLOCKS = 10
"""Parts of a trace that are drawn within a seed."""

MANY_CLIENTS = 20
"""With so many, clients are drawn within a seed for the latencies, not parts of the trace."""

SOONER = "sooner"
"""The share of the well-behaved clients' requests that get their first token sooner; of ties, half."""


@dataclass(frozen=True)
class Sample:
    """One run of an arm: its summary, the digest of its trace, and its requests in the trace's order.

    `requests` has the columns id, client, well (is its client well-behaved?), ttft (s, infinite if it was not
    served, NaN if it could not be), prompt and cached tokens (0 if it was not served).
    """

    summary: Mapping[str, Value]
    trace: str
    requests: pd.DataFrame

    @cached_property
    def ttft(self) -> Floats:
        """Seconds to the first token, one a request, in the trace's order."""
        return self.requests["ttft"].to_numpy(float)

    @cached_property
    def well(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which requests have a latency and a well-behaved client."""
        return np.asarray(self.requests["well"].to_numpy(bool) & ~np.isnan(self.ttft))


Pairs: TypeAlias = Sequence[tuple[Sample, Sample]]
"""One pair of runs a seed, the candidate's first."""


def sample(run: Run, summary: Mapping[str, Value]) -> Sample:
    """What the comparison needs of a run, given its summary."""
    requests, served = run.requests, run.requests["status"] == "finished"
    columns = {
        "id": requests["id"],
        "client": requests["client"],
        "well": ~requests["client"].isin(list(misbehaving(run))),
        "ttft": latencies(requests)["ttft"].reindex(requests.index),
        "prompt": requests["prompt_tokens"].where(served, 0),
        "cached": requests["cached_tokens"].where(served, 0),
    }
    return Sample(summary, str(run.manifest.trace["digest"]), pd.DataFrame(columns))


# -- what is drawn within a seed -------------------------------------------------------------------------


class _Units(NamedTuple):
    """Which unit each request of a run belongs to, and how many units there are."""

    of: Ints
    number: int


def _parts(run: Sample, other: Sample) -> _Units:
    return _Units(np.arange(len(run.requests)) * BLOCKS // len(run.requests), BLOCKS)


def _clients(run: Sample, other: Sample) -> _Units:
    names = pd.Index(sorted({*run.requests["client"], *other.requests["client"]}))
    return _Units(names.get_indexer(run.requests["client"]).astype(np.int64), len(names))


_Divide: TypeAlias = Callable[[Sample, Sample], _Units]


def _by_clients_if_many(pairs: Pairs) -> _Divide:
    fewest = min(run.requests["client"].nunique() for pair in pairs for run in pair)
    return _clients if fewest >= MANY_CLIENTS and len(pairs) > 1 else _parts


# -- the number of a run under many draws ----------------------------------------------------------------


def _well_ttft(q: float) -> Callable[[Sample, _Units], Statistic]:
    def statistic(run: Sample, units: _Units) -> Statistic:
        return Percentile(run.ttft[run.well], units.of[run.well], units.number, q)

    return statistic


def _worst_ttft_p99(run: Sample, units: _Units) -> Statistic:
    counted = ~np.isnan(run.ttft)
    masks = [counted & np.asarray(run.requests["client"] == name) for name in set(run.requests["client"])]
    return largest([Percentile(run.ttft[m], units.of[m], units.number, 99) for m in masks if m.any()])


def _hit_rate(run: Sample, units: _Units) -> Statistic:
    cached, prompt = run.requests["cached"].to_numpy(float), run.requests["prompt"].to_numpy(float)
    return ratio_of_sums(cached, prompt, units.of, units.number)


_BY_REQUEST: dict[str, Callable[[Sample, _Units], Statistic]] = {
    "hit_rate": _hit_rate,
    "well_ttft_p50": _well_ttft(50),
    "well_ttft_p99": _well_ttft(99),
    "worst_ttft_p99": _worst_ttft_p99,
}
"""Numbers that a part of a run has too, by column of the summary. All others are of whole runs."""

_BY_PARTS = ("hit_rate", "worst_ttft_p99")
"""Those for which parts of the trace are drawn however many clients there are: a draw without the worst
client would make the second one better."""


# -- estimates -------------------------------------------------------------------------------------------


def needs_seeds(column: str) -> bool:
    """True for a number of a whole run, of which one seed gives no estimate."""
    return column not in _BY_REQUEST and column != SOONER


def log_ratio(column: str, pairs: Pairs) -> Estimate | None:
    """The logarithm of candidate / baseline, each the mean over seeds of a column of the summary.

    The means must be above 0 and finite. None if the ratio is not finite in more than one resample of a
    hundred. A number of a whole run needs two pairs.
    """
    ours, theirs = (np.mean([_number(column, run) for run in arm]) for arm in zip(*pairs, strict=True))
    above, below = _resampled(column, pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(above / below)
    finite = np.isfinite(logs)
    if np.mean(finite) < 0.99:
        return None
    return estimate(float(np.log(ours / theirs)), logs[finite], _independent(pairs))


def _resampled(column: str, pairs: Pairs) -> Iterator[Floats]:
    """The means in each resample: first the candidate's, then the baseline's, with the same draws."""
    divide = _parts if column in _BY_PARTS else _by_clients_if_many(pairs)
    draws = draw(tuple(divide(*pair).number for pair in pairs))
    for side in (0, 1):
        runs = [(pair[side], divide(pair[side], pair[1 - side])) for pair in pairs]
        yield replicates(draws, [_statistic(column, run, units) for run, units in runs])


def _statistic(column: str, run: Sample, units: _Units) -> Statistic:
    if column in _BY_REQUEST:
        return _BY_REQUEST[column](run, units)
    return constant(_number(column, run))


def _number(column: str, run: Sample) -> float:
    value = run.summary[column]
    assert isinstance(value, int | float), f"{column} is {value!r}"
    return float(value)


def _independent(pairs: Pairs) -> int:
    """How many independent units there are: seeds, or the parts of the trace where there is one seed."""
    return len(pairs) if len(pairs) > 1 else BLOCKS


def sooner(pairs: Pairs) -> Estimate | None:
    """The share of requests whose first token is sooner under the candidate, less one half.

    Over the requests of well-behaved clients, mean over seeds. None if the arms replayed different traces, or
    if there is no such request.
    """
    if any(ours.trace != theirs.trace for ours, theirs in pairs):
        return None
    divide = _by_clients_if_many(pairs)
    runs, whole, counts = [], [], []
    for ours, theirs in pairs:
        units = divide(ours, theirs)
        both = ours.well & theirs.well
        score = _score(ours.ttft[both], theirs.ttft[both])
        runs.append(ratio_of_sums(score, np.ones(len(score)), units.of[both], units.number))
        whole.append(score)
        counts.append(units.number)
    if not all(len(score) for score in whole):
        return None
    value = float(np.mean([score.mean() for score in whole]))
    return estimate(value - 0.5, replicates(draw(tuple(counts)), runs) - 0.5, _independent(pairs))


def _score(ours: Floats, theirs: Floats) -> Floats:
    """1 for each request that is sooner for us, 0 for one that is later, one half for a tie."""
    return np.asarray((ours < theirs) + 0.5 * (ours == theirs), float)

"""Latency: TTFT, TPOT, ITL, end-to-end and program time, in seconds.

    ttft     first_token - arrival
    tpot     (finish - first_token) / (output_tokens - 1); a reply of one token has none
    itl      the time between a token and the one before it, every gap of every reply by itself: a chunk of
             k tokens counts as k equal gaps; the first chunk of a reply has none
    e2e      finish - arrival
    program  last finish - first arrival of a session of several requests (`suite.metrics.programs`)

Requests that ought to have been served and were not (`fates.unserved`) are infinitely late in each of them;
one such request stands for as many gaps as a served one has on average. Requests that could not be served
are no part of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from suite.metrics.fates import excused, unserved
from suite.metrics.programs import programs
from suite.metrics.service import Floats

MEASURES = ("ttft", "tpot", "itl", "e2e", "program")
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
STATISTICS = ("mean", *PERCENTILES)
COLUMNS = tuple(f"{measure}_{statistic}" for measure in MEASURES for statistic in STATISTICS)

Statistics: TypeAlias = dict[str, float | None]


class Sample(NamedTuple):
    """Values of one measure in ascending order, how often each counts, and whose it is."""

    values: Floats
    counts: Floats
    clients: NDArray[np.integer]
    """Place in `Samples.clients`."""

    def of(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> Sample:
        """A part of the sample, chosen by a mask or by places in order."""
        return Sample(self.values[chosen], self.counts[chosen], self.clients[chosen])


@dataclass(frozen=True)
class Samples:
    """What was measured in a run: the clients of its trace by name, and a sample for each of `MEASURES`."""

    clients: list[str]
    measures: dict[str, Sample]


def latencies(requests: pd.DataFrame) -> pd.DataFrame:
    """One row per request but the excused: client, arrival, ttft, tpot (NaN for one token), e2e.

    All three are infinite for a request that was not served; `arrival` is NaN for one that was never sent.
    """
    rows = requests[~excused(requests)]
    never = unserved(rows)
    steps = (rows["output_tokens"] - 1).where(rows["output_tokens"] > 1)
    measured = {
        "ttft": rows["first_token"] - rows["arrival"],
        "tpot": (rows["finish"] - rows["first_token"]) / steps,
        "e2e": rows["finish"] - rows["arrival"],
    }
    late = {measure: values.mask(never, np.inf) for measure, values in measured.items()}
    return rows[["client", "arrival"]].assign(**late)


def gaps(requests: pd.DataFrame, streams: pd.DataFrame) -> pd.DataFrame:
    """The gaps between the tokens of the served: client (category), itl (s), count (gaps of this length).

    One row per chunk but the first of each reply. `streams` as in `suite.results`.
    """
    place = pd.Index(requests["id"]).get_indexer(pd.Index(streams["id"]))
    order = np.argsort(place, kind="stable")
    owner, times = place[order], streams["time"].to_numpy(float)[order]
    tokens = streams["tokens"].to_numpy(float)[order]
    served = (requests["status"] == "finished").to_numpy()
    later = np.flatnonzero((owner[1:] == owner[:-1]) & (owner[1:] >= 0) & served[owner[1:]]) + 1
    clients = pd.Categorical(requests["client"])
    return pd.DataFrame(
        {
            "client": pd.Categorical.from_codes(clients.codes[owner[later]], clients.categories),
            "itl": (times[later] - times[later - 1]) / tokens[later],
            "count": tokens[later],
        }
    )


def samples(requests: pd.DataFrame, streams: pd.DataFrame | None) -> Samples:
    """Everything measured in a run. Without streams nothing is known of the ITL."""
    rows, sessions = latencies(requests), programs(requests)
    names = sorted(requests["client"].unique())
    measures = {measure: _sample(rows, measure, names) for measure in ("ttft", "tpot", "e2e")}
    measures["itl"] = _sample(_gaps(requests, streams), "itl", names)
    measures["program"] = _sample(sessions, "program", names)
    return Samples(names, measures)


def _gaps(requests: pd.DataFrame, streams: pd.DataFrame | None) -> pd.DataFrame:
    """The gaps of all requests: those of one that was not served are infinite, and an average number."""
    if streams is None:
        return pd.DataFrame({"client": [], "itl": [], "count": []})
    found = gaps(requests, streams)
    served = max(int((requests["status"] == "finished").sum()), 1)
    usual = max(np.ceil(found["count"].sum() / served), 1.0)
    never = requests.loc[unserved(requests), ["client"]].assign(itl=np.inf, count=usual)
    never["client"] = never["client"].astype(found["client"].dtype)
    return pd.concat([found, never])


def _sample(rows: pd.DataFrame, measure: str, names: list[str]) -> Sample:
    """The rows that have the measure; each counts once unless there is a column `count`."""
    rows = rows[rows[measure].notna()]
    values = rows[measure].to_numpy(float)
    counts = rows["count"].to_numpy(float) if "count" in rows else np.ones(len(rows))
    clients = pd.Categorical(rows["client"], categories=names).codes
    return Sample(values, counts, clients).of(np.argsort(values, kind="stable"))


def statistics(sample: Sample) -> Statistics:
    """Mean and percentiles of a sample by `STATISTICS`; None for each if it is empty.

    Percentiles interpolate linearly between the two nearest values, as numpy's default does on the values
    repeated as often as each counts; next to an infinite value they are infinite.
    """
    if not len(sample.values):
        return dict.fromkeys(STATISTICS)
    found = [float(np.average(sample.values, weights=sample.counts)), *_percentiles(sample)]
    return dict(zip(STATISTICS, found, strict=True))


def _percentiles(sample: Sample) -> list[float]:
    upto = np.cumsum(sample.counts)
    place = np.round((upto[-1] - 1) * np.array(list(PERCENTILES.values())) / 100, 9)
    below, above = (
        sample.values[np.searchsorted(upto, p, side="right")] for p in (np.floor(place), np.ceil(place))
    )
    with np.errstate(invalid="ignore"):
        between = below + (place - np.floor(place)) * (above - below)
    return list(map(float, np.where(above > below, between, below)))


def by_group(samples: Samples, misbehaving: Collection[str]) -> dict[str, Statistics]:
    """Statistics pooled over the requests of all, of the well-behaved and of the misbehaving clients.

    Keyed by group, then as in `COLUMNS`.
    """
    bad = np.array([client in misbehaving for client in samples.clients], dtype=bool)
    groups = {"all": np.ones_like(bad), "well": ~bad, "misbehaving": bad}
    return {
        name: {
            f"{measure}_{statistic}": value
            for measure, sample in samples.measures.items()
            for statistic, value in statistics(sample.of(chosen[sample.clients])).items()
        }
        for name, chosen in groups.items()
    }


def by_client(samples: Samples) -> pd.DataFrame:
    """Statistics of every client of the trace, index `client`, columns `COLUMNS`; NaN where it has none."""
    columns = {
        f"{measure}_{statistic}": values
        for measure, sample in samples.measures.items()
        for statistic, values in _by_client(sample, len(samples.clients)).items()
    }
    return pd.DataFrame(columns, index=pd.Index(samples.clients, name="client"), dtype=float)[list(COLUMNS)]


def _by_client(sample: Sample, clients: int) -> dict[str, list[float | None]]:
    order = np.argsort(sample.clients, kind="stable")
    edges = np.searchsorted(sample.clients[order], np.arange(clients + 1))
    rows = [statistics(sample.of(order[a:b])) for a, b in itertools.pairwise(edges)]
    return {statistic: [row[statistic] for row in rows] for statistic in STATISTICS}

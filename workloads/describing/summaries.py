"""Numbers of a trace by client: traffic and burstiness, lengths, sessions, hits of a perfect cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

WINDOW = 10.0
"""Seconds of the windows in which beginnings are counted for the index of dispersion."""
FEWEST_WINDOWS = 10
"""With fewer whole windows there is no index of dispersion."""


@dataclass(frozen=True)
class Spread:
    """A distribution in three numbers; NaN if there is nothing."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Summary:
    """One client, or all of them together.

    `share` is of all requests; `rate` is requests/s over the span of the whole trace. Burstiness is of
    beginnings: of sessions, and of requests that belong to none. `cv` is the coefficient of variation of the
    gaps between them; `dispersion` the variance over the mean of how many fall into a window of `WINDOW`
    seconds, which also sees bursts that last (index of dispersion for counts: Cox and Lewis, 1966; Gusella,
    1991). Both are 1 for a Poisson process.

    Of each session (or program: all requests of one session) `session_requests` counts the requests, `depth`
    those of the longest chain of `after` within it, `width` the most that stand equally deep; `think` is the
    think time, in seconds, of every request that waits for others. `hit_ratio` is ideal (see
    `describe`), `from_others` the part of the prompt tokens that hit what another client computed
    first. Ratios of nothing are NaN.
    """

    name: str
    requests: int
    sessions: int
    share: float
    rate: float
    cv: float
    dispersion: float
    weight: float
    input_tokens: Spread
    output_tokens: Spread
    session_requests: Spread
    depth: Spread
    width: Spread
    think: Spread
    hit_ratio: float
    from_others: float
    misbehaving: bool


@dataclass(frozen=True, eq=False)
class Tables:
    """What is summed up, each with a column `client` (a number from 0).

    `requests`: one row each with input_tokens, output_tokens, think (s, NaN without), hit_tokens,
    others_tokens. `sessions`: requests, depth, width. `beginnings`: time (s).
    """

    requests: pd.DataFrame
    sessions: pd.DataFrame
    beginnings: pd.DataFrame
    span: float

    def together(self) -> Tables:
        """The same with all clients as one."""
        return Tables(
            self.requests.assign(client=0),
            self.sessions.assign(client=0),
            self.beginnings.assign(client=0),
            self.span,
        )


def summaries(
    tables: Tables, names: Sequence[str], weights: Sequence[float], misbehaving: Collection[str]
) -> list[Summary]:
    """One summary for each client of the tables, in order of their numbers."""
    requests, sessions = tables.requests, tables.sessions
    groups = range(len(names))
    counts = requests.groupby("client").size()
    tokens = requests.groupby("client")[["input_tokens", "hit_tokens", "others_tokens"]].sum()
    columns = zip(
        names,
        counts.to_list(),
        sessions.groupby("client").size().reindex(groups, fill_value=0).to_list(),
        (counts / len(requests)).to_list(),
        (counts / tables.span if tables.span else counts * np.nan).to_list(),
        _variation(tables.beginnings, groups).to_list(),
        _dispersion(tables.beginnings, tables.span, groups).to_list(),
        weights,
        *(_spreads(requests, name, groups) for name in ("input_tokens", "output_tokens")),
        *(_spreads(sessions, name, groups) for name in ("requests", "depth", "width")),
        _spreads(requests, "think", groups),
        (tokens["hit_tokens"] / tokens["input_tokens"]).to_list(),
        (tokens["others_tokens"] / tokens["input_tokens"]).to_list(),
        (name in misbehaving for name in names),
        strict=True,
    )
    return [Summary(*row) for row in columns]


def _spreads(table: pd.DataFrame, column: str, groups: range) -> list[Spread]:
    by_client = table.groupby("client")[column]
    numbers = pd.concat([by_client.mean(), by_client.quantile(0.5), by_client.quantile(0.99)], axis=1)
    return [Spread(*row) for row in numbers.reindex(groups).to_numpy(float).tolist()]


def _variation(beginnings: pd.DataFrame, groups: range) -> pd.Series[float]:
    """The coefficient of variation of the gaps between beginnings; of two gaps at least."""
    by_time = beginnings.sort_values(["client", "time"])
    gaps = by_time.groupby("client")["time"].diff().groupby(by_time["client"])
    cv = (gaps.std(ddof=0) / gaps.mean()).where((gaps.count() > 1) & (gaps.mean() > 0))
    return cv.reindex(groups)


def _dispersion(beginnings: pd.DataFrame, span: float, groups: range) -> pd.Series[float]:
    """The variance of the counts in whole windows over their mean."""
    windows = int(span // WINDOW)
    if windows < FEWEST_WINDOWS:
        return pd.Series(np.nan, groups)
    number = (beginnings["time"] // WINDOW).astype(int)
    inside = beginnings[number < windows].assign(window=number)
    counts = inside.groupby(["client", "window"]).size()
    mean = counts.groupby("client").sum() / windows
    square = (counts**2).groupby("client").sum() / windows
    return ((square - mean**2) / mean).reindex(groups)

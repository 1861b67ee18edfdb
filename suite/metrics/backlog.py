"""The widest gap in service between two clients while both are backlogged, over every sub-interval.

A client is backlogged while it has a request waiting for its first admission: in the union of [arrival,
admitted) over its requests, for starved ones to the end of the run. One that waits again after a preemption
does not count. For each pair of clients and each maximal interval in which both are backlogged, the largest
difference in service over all its sub-intervals is the range of D(t) = W_f(t) - W_g(t) in it, W being
normalised service up to t.

D changes where the service log has rows: at each of its times first by the outputs that ended there, then by
the prompts whose work begins there (see `suite.metrics.service`). These are its *states*, two for each time.
An interval begins with the first time of the log in it: a stretch of output that had begun before it is no
part of it. Against a real engine `arrival` is the client's clock, a little before the engine knew of the
request; what it did in between is counted as if it had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from suite.metrics.service import Floats, Kind, Weights
from suite.metrics.windows import overlap
from suite.results import Run

MOST_CLIENTS = 64
"""With more clients, only the pairs of these many that were backlogged longest are looked at."""

Pair = tuple[int, int]
_Ints = NDArray[np.intp]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Gap:
    """The widest gap of a pair of clients, and where it is."""

    clients: Pair
    """Places in `Backlog.clients`."""
    size: float
    """Normalised service units."""
    first: int
    last: int
    """States at which its common backlogged interval begins and ends."""


class Backlog:
    """Who was backlogged when in a run, and what each had been given by then."""

    def __init__(self, requests: pd.DataFrame, service: pd.DataFrame) -> None:
        self.times: Floats = np.unique(service["time"].to_numpy(float))
        spans = backlogged(requests)
        self.of = len(spans)
        """Clients that were ever backlogged."""
        longest = sorted(spans, key=lambda client: -float(np.sum(spans[client][:, 1] - spans[client][:, 0])))
        self.clients = sorted(longest[:MOST_CLIENTS])
        self._common = self._intervals([self._edges(spans[client]) for client in self.clients])
        self._service = service
        self._place = pd.Index(self.clients).get_indexer(pd.Index(service["client"]))
        self._state = 2 * np.searchsorted(self.times, service["time"].to_numpy(float))
        self._weights = requests.groupby("client")["weight"].first().astype(float)

    def weight(self, client: int) -> float:
        """Weight of a client, by its place."""
        return float(self._weights[self.clients[client]])

    def normalised(self, kind: Kind, weights: Weights) -> Floats:
        """Service units per unit of client weight up to each state, shape (clients, states)."""
        log = self._service
        prompts = log["extend"] + log["cached"] if kind == "client" else log["extend"]
        given = np.zeros((len(self.clients) + 1, 2 * len(self.times)))  # the last row: clients left out
        np.add.at(given, (self._place, self._state), weights.output * log["output"].to_numpy(float))
        np.add.at(given, (self._place, self._state + 1), weights.input * prompts.to_numpy(float))
        shares = self._weights[self.clients].to_numpy()[:, None]
        return np.asarray(np.cumsum(given[:-1], axis=1) / shares)

    def widest(self, totals: Floats, allowed: Callable[[Pair], float] = lambda pair: 1.0) -> Gap | None:
        """The gap that is largest in proportion to what is `allowed` to its pair; None if no two clients
        were backlogged at once. `totals` are as `normalised` gives them."""
        gaps = (_gap(totals, pair, runs) for pair, runs in self._common.items())
        return max(gaps, key=lambda gap: gap.size / allowed(gap.clients), default=None)

    def _intervals(self, waits: Sequence[_Mask]) -> dict[Pair, _Ints]:
        """First and last state of each interval in which both of a pair are backlogged, if there is one."""
        pairs = combinations(range(len(waits)), 2)
        common = {(one, other): _runs(waits[one] & waits[other]) for one, other in pairs}
        return {pair: runs for pair, runs in common.items() if len(runs)}

    def _edges(self, spans: Floats) -> _Mask:
        """Whether each step from one state to the next lies in these intervals."""
        waits = np.zeros(max(2 * len(self.times) - 1, 0), bool)
        before, by = (np.searchsorted(self.times, spans, side) for side in ("left", "right"))
        for start, end in zip(2 * before[:, 0], before[:, 1] + by[:, 1] - 1, strict=True):
            waits[start : max(end, 0)] = True
        return waits


def backlogged(requests: pd.DataFrame) -> dict[str, Floats]:
    """When each client is backlogged: disjoint intervals [a, b), shape (n, 2); infinite for a starved one.

    Clients that never are, because every request was admitted on arrival or never fitted, are absent.
    """
    starved = requests["status"] == "starved"
    until = requests["admitted"].where(requests["admitted"].notna() | ~starved, np.inf)
    spans = requests.assign(until=until)[until.notna()].groupby("client")[["arrival", "until"]]
    unions = {str(client): overlap(rows.to_numpy(float), 1) for client, rows in spans}
    return {client: union for client, union in unions.items() if len(union)}


def at_replica(run: Run, worker: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The requests and the service log of one replica, `arrival` being when a request was surely there.

    In a simulated run that is after the delay of dispatch, and after the last loss or return of a replica
    before its admission: it may have been sent elsewhere before.
    """
    rows = run.requests[run.requests["worker"] == worker]
    backend = run.manifest.backend
    changes = sorted(
        time for loss in backend.get("losses", ()) for time in (loss["at"], loss["back"]) if time is not None
    )
    before = np.searchsorted(changes, rows["admitted"].fillna(np.inf).to_numpy(float), side="right")
    last = np.array([-np.inf, *changes])[before]
    there = np.maximum(rows["arrival"].to_numpy(float), last) + backend.get("dispatch_delay", 0.0)
    return rows.assign(arrival=there), run.service[run.service["worker"] == worker]


def extremes(difference: Floats, gap: Gap) -> tuple[int, int]:
    """The two states between which a pair's `difference` in service grew the most, in time order."""
    within = difference[gap.first : gap.last + 1]
    ends = sorted((int(np.argmin(within)), int(np.argmax(within))))
    return gap.first + ends[0], gap.first + ends[1]


def so_far(difference: Floats, gap: Gap) -> Floats:
    """For each state of the interval the largest change of `difference` over sub-intervals ending there."""
    within = difference[gap.first : gap.last + 1]
    risen = within - np.minimum.accumulate(within)
    fallen = np.maximum.accumulate(within) - within
    return np.asarray(np.maximum(risen, fallen))


def _runs(mask: _Mask) -> _Ints:
    """First and last state of each run of steps, shape (n, 2)."""
    return np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)


def _gap(totals: Floats, pair: Pair, runs: _Ints) -> Gap:
    one, other = pair
    within = slice(runs[0, 0], runs[-1, 1] + 1)
    ranges = _ranges(totals[one, within] - totals[other, within], runs - runs[0, 0])
    worst = int(np.argmax(ranges))
    return Gap(pair, float(ranges[worst]), *runs[worst].tolist())


def _ranges(difference: Floats, runs: _Ints) -> Floats:
    """max - min of the difference in each run of states, both ends included."""
    edges = np.add(runs, [0, 1]).ravel()
    padded = np.append(difference, difference[-1])
    return np.asarray(np.maximum.reduceat(padded, edges)[::2] - np.minimum.reduceat(padded, edges)[::2])

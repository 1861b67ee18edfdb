"""Windows: where a fairness number is taken, as unions of half-open intervals [a, b) in seconds.

    whole       from the first arrival to the last finish, or to the arrival of a starved request after it
    all_active  every client has a request waiting or running (the DLPM paper's window, section 6.1)
    backlogged  every client has a request waiting: sent and not yet admitted for the first time
    trimmed     from one tenth of the sending span on, to the last arrival: the cold cache and the empty
                queues at the start, and the drain after the last arrival, are cut. It depends on arrivals
                alone, so with an open-loop trace it is the same window under every scheduler

A request that waits again after a preemption counts as active, not as waiting. A starved request waits to the
end of the run, so a client that a scheduler never serves empties no window: it stands in each with nothing.
Requests that were rejected, failed or cancelled make nobody active. An empty window carries the reason and
yields no number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from suite.metrics import fates
from suite.metrics.service import Floats

WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Window:
    """Disjoint intervals in time order, shape (n, 2), and why there are none if there are none."""

    intervals: Floats
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """Total length; 0 for an empty window."""
        return float(np.sum(self.intervals[:, 1] - self.intervals[:, 0]))

    @property
    def end(self) -> float:
        """Where the last interval ends. The window must not be empty."""
        return float(self.intervals[-1, 1])


def windows(requests: pd.DataFrame) -> dict[str, Window]:
    """The four windows of a run by name, from its `requests` frame."""
    return {
        "whole": _whole(requests),
        "all_active": _shared(requests, activity(requests), "active"),
        "backlogged": _shared(requests, _spans(requests, "admitted"), "backlogged"),
        "trimmed": _trimmed(requests),
    }


def activity(requests: pd.DataFrame) -> dict[str, Floats]:
    """When each client has a request waiting or running; clients for which that never is are absent."""
    return _spans(requests, "finish")


def overlap(intervals: Floats, depth: int) -> Floats:
    """Where at least `depth` (>= 1) of the intervals [a, b), shape (n, 2), overlap: merged, in time order."""
    some = intervals[intervals[:, 1] > intervals[:, 0]]
    if not len(some):
        return some
    times, place = np.unique(some.T.ravel(), return_inverse=True)
    depths = np.cumsum(np.bincount(place, np.repeat([1, -1], len(some))))
    change = np.diff((depths >= depth).astype(int), prepend=0)
    return np.column_stack([times[change == 1], times[change == -1]])


def _spans(requests: pd.DataFrame, until: str) -> dict[str, Floats]:
    """Per client the union of [arrival, `until`) over its requests, of starved ones to the end of the run."""
    rows = requests[requests["status"].isin(("finished", "starved"))]
    ends = rows[until].where(rows["status"] == "finished", fates.end(requests)).to_numpy(float)
    pieces = np.column_stack([rows["arrival"].to_numpy(float), ends])
    places = rows.groupby("client").indices
    unions = {str(client): overlap(pieces[places[client]], 1) for client in places}
    return {client: union for client, union in unions.items() if len(union)}


def _whole(requests: pd.DataFrame) -> Window:
    if fates.finished(requests).empty:
        return _empty("no request was served")
    first = requests.loc[requests["status"].isin(("finished", "starved")), "arrival"].min()
    return Window(np.array([[first, fates.end(requests)]], float))


def _shared(requests: pd.DataFrame, spans: dict[str, Floats], state: str) -> Window:
    """Where all clients are in a state at once, given the spans in which each is."""
    clients = sorted(requests["client"].unique())
    never = [client for client in clients if client not in spans]
    if never:
        others = f" (nor were {len(never) - 1} others)" if len(never) > 1 else ""
        return _empty(f"client {never[0]!r} was never {state}{others}")
    intervals = overlap(np.concatenate(list(spans.values())), len(clients))
    return Window(intervals) if len(intervals) else _empty(f"the clients were never all {state} at once")


def _trimmed(requests: pd.DataFrame) -> Window:
    first, last = requests["arrival"].min(), requests["arrival"].max()
    if not last > first:
        return _empty("all requests arrive at one instant")
    return Window(np.array([[first + WARM_UP_SHARE * (last - first), last]], float))


def _empty(reason: str) -> Window:
    return Window(np.empty((0, 2)), reason)

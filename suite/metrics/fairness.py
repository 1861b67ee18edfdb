"""Fairness: Jain's index, the pairwise gap, max-min entitlement, and both over time.

Everything is taken on *normalised* service: a client's service divided by its weight (weighted fairness;
with equal weights, the service itself). All clients of the trace count, also those that were given nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from suite.metrics.service import (
    DEFAULT_WEIGHTS,
    Curve,
    Curves,
    Floats,
    Kind,
    Weights,
    asked,
    cost,
    received,
)
from suite.metrics.windows import Window, activity


def jain(x: ArrayLike) -> float | None:
    """Jain's index (sum x)^2 / (n sum x^2), from 1/n (one has all) to 1 (all equal).

    None if all are zero: nothing was shared, so it was neither fairly nor unfairly.
    Source: Jain, Chiu, Hawe, DEC-TR-301 (1984).
    """
    values = np.asarray(x, float)
    squares = float(values.size * np.sum(values**2))
    return float(np.sum(values)) ** 2 / squares if squares > 0 else None


def gap(x: ArrayLike) -> float | None:
    """Largest pairwise difference, max_ij |x_i - x_j|, in the unit of x; as `jain`, None if all are zero."""
    values = np.asarray(x, float)
    return float(np.ptp(values)) if values.any() else None


def normalised(curves: Curves, window: Window, client_weights: pd.Series[float]) -> pd.Series[float]:
    """Service per unit of client weight that each client received in the window."""
    return received(curves, window.intervals) / client_weights


def accumulated(curves: Curves, client_weights: pd.Series[float], times: Floats) -> Floats:
    """VTC's accumulated difference at each time (s): max_ij |W_i(0, t) - W_j(0, t)|, in service units.

    W_i(0, t) is the normalised service that client i has had since the start. Source: VTC, section 5.1.
    """
    most, least = np.full(len(times), -np.inf), np.full(len(times), np.inf)
    for client, curve in curves.items():
        had = curve.before(times) / client_weights[client]
        most, least = np.maximum(most, had), np.minimum(least, had)
    return np.asarray(most - least)


def accumulated_gap(curves: Curves, client_weights: pd.Series[float]) -> float | None:
    """The largest accumulated difference of a run; None if nobody was served.

    The difference changes at the stamps of the log only.
    """
    stamps = np.unique(np.concatenate([t for c in curves.values() for t in (c.input_times, c.output_times)]))
    after = np.nextafter(stamps, np.inf)
    return float(accumulated(curves, client_weights, after).max()) if len(stamps) else None


def entitlement(total: float, demand: ArrayLike, client_weights: ArrayLike) -> Floats:
    """Weighted max-min shares of `total` service units: e_i = min(demand_i, level * weight_i).

    The common level is the one at which the shares add up to `total` (water-filling), or to the whole
    demand if that is less. Source: Bertsekas and Gallager, Data Networks, section 6.5.2.
    """
    wanted, weights = np.asarray(demand, float), np.asarray(client_weights, float)
    level, left, open_weight = 0.0, total, float(weights.sum())
    for i in np.argsort(wanted / weights, kind="stable"):
        level = left / open_weight
        if wanted[i] > level * weights[i]:
            break
        left -= wanted[i]
        open_weight -= weights[i]
    else:
        return wanted
    return np.asarray(np.minimum(wanted, level * weights))


def demand(
    requests: pd.DataFrame, curves: Curves, window: Window, kind: Kind, weights: Weights = DEFAULT_WEIGHTS
) -> pd.Series[float]:
    """What each client could have used in the window: what it got there, and what it still lacked at the end.

    Lacking is the cost of all requests it had sent by the end of the window less all service it had had by
    then. Rejected and cancelled requests are no demand; a starved one has the usual output (see
    `service.asked`).
    """
    wanted = requests["status"].isin(("finished", "failed", "starved"))
    sent = asked(requests[wanted])
    sent = sent[sent["arrival"] < window.end]
    costs = cost(sent, kind, weights).groupby(sent["client"]).sum().reindex(list(curves), fill_value=0.0)
    had = pd.Series({client: float(curve.before(window.end)) for client, curve in curves.items()})
    return received(curves, window.intervals) + (costs - had).clip(lower=0.0)


def jain_entitled(
    curves: Curves, window: Window, demand: pd.Series[float], client_weights: pd.Series[float]
) -> float | None:
    """Jain's index of received / entitled over the clients with demand in the window.

    The service delivered in the window is split max-min by demand. A client that wants little and gets it
    counts as fully served, so the index judges the scheduler and not the mix of demands.
    """
    wanting = demand[demand > 0]
    got = received(curves, window.intervals)[wanting.index]
    if not got.any():
        return None
    return jain(got / entitlement(float(got.sum()), wanting, client_weights[wanting.index]))


def over_time(
    requests: pd.DataFrame, curves: Curves, client_weights: pd.Series[float], centres: Floats, width: float
) -> pd.DataFrame:
    """Jain's index and gap of normalised service rates in sliding windows [t - width/2, t + width/2).

    One row per centre: `time` (s), `jain`, `gap` (service units per second). Only clients active at some
    point of a window count in it; where fewer than two are, both are NaN.
    """
    active = activity(requests)
    shares = np.array([_rates(curves[c], centres, width) / client_weights[c] for c in active])
    counts = np.array([_touches(spans, centres, width) for spans in active.values()], dtype=bool)
    values = [shares[counts[:, k], k] for k in range(len(centres))] if active else []
    rows = [(jain(x), gap(x)) if len(x) > 1 else (None, None) for x in values]
    frame = pd.DataFrame(rows, columns=["jain", "gap"], index=range(len(rows)), dtype=float)
    return frame.assign(time=centres[: len(rows)])


def _rates(curve: Curve, centres: Floats, width: float) -> Floats:
    return (curve.before(centres + width / 2) - curve.before(centres - width / 2)) / width


def _touches(spans: Floats, centres: Floats, width: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether the spans (disjoint, in order) overlap each sliding window."""
    begun = np.searchsorted(spans[:, 0], centres + width / 2, side="left")
    ends = np.concatenate([[-np.inf], spans[:, 1]])
    return np.asarray(ends[begun] > centres - width / 2)

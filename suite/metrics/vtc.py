"""VTC's windowed service difference, as the numbers of its paper's Table 2 were made.

Source: "Fairness in Serving Large Language Models" (OSDI '24, arXiv 2401.00588), section 5.1, and the
plotting code of its artifact. It needs per-request times only, so it also reads runs that have no service
log. It is not the service of `suite.metrics.service`: prompt and output cost of a request are spread evenly
between its first token and its finish.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from suite.metrics.service import DEFAULT_WEIGHTS, Floats, Weights, asked, cost

WINDOW = 60.0
WARM_UP = 30.0
INTERVALS = 20


class ServiceDifference(NamedTuple):
    """Over the windows: largest, mean and (population) variance, in service units per second."""

    max: float
    mean: float
    variance: float


def starts(duration: float, warm_up: float = WARM_UP, intervals: int = INTERVALS) -> Floats:
    """Where the artifact's windows begin: k (duration - warm_up) / intervals for k = 1 .. intervals - 1.

    Seconds. For the paper's 600 s: 19 windows, 28.5 s apart, from 28.5 s on.
    """
    return np.arange(1, intervals) * (duration - warm_up) / intervals


def service_difference(
    requests: pd.DataFrame, starts: Floats, window: float = WINDOW, weights: Weights = DEFAULT_WEIGHTS
) -> ServiceDifference:
    """max, mean, variance over windows [x, x + window] of sum_j min(s_max - s_j, |r_j - s_j|).

    s_j is the service rate client j received in the window, r_j the rate it requested there by arrivals, both
    in service units per second of client service. `requests` has the columns client, arrival, first_token,
    finish, prompt_tokens, output_tokens, status; requests without a first token (aborted) are dropped, as in
    the artifact, but not the starved and failed: what they asked for (see `service.asked`) was not received.
    `starts` must not be empty, nor all requests dropped.
    """
    served = requests[requests["first_token"].notna() | requests["status"].isin(("starved", "failed"))]
    clients = pd.factorize(served["client"])[0]
    costs = cost(asked(served), "client", weights).to_numpy(float)
    arrivals = served["arrival"].to_numpy(float)

    def difference(start: float) -> float:
        sent = (arrivals >= start) & (arrivals <= start + window)
        r = np.bincount(clients, costs * sent) / window
        s = np.bincount(clients, costs * _share_within(served, start, start + window)) / window
        return float(np.minimum(s.max() - s, np.abs(r - s)).sum())

    per_window = np.array([difference(start) for start in starts])
    return ServiceDifference(float(per_window.max()), float(per_window.mean()), float(per_window.var()))


def _share_within(served: pd.DataFrame, start: float, end: float) -> Floats:
    """The part of each request's span from first token to finish that lies in the window.

    A request of one token has no span: it lies in the window or not. None of one that was not served does.
    """
    first, finish = served["first_token"].to_numpy(float), served["finish"].to_numpy(float)
    span = finish - first
    inside = np.clip(np.minimum(finish, end) - np.maximum(first, start), 0.0, None)
    at_once = (first >= start) & (first <= end)
    return np.where(span > 0, inside / np.where(span > 0, span, 1.0), at_once)

"""How evenly the replicas were loaded."""

from __future__ import annotations

import pandas as pd

from suite.metrics.service import DEFAULT_WEIGHTS, Weights
from suite.results import Run


def by_replica(run: Run, weights: Weights = DEFAULT_WEIGHTS) -> pd.Series[float]:
    """Actual service that each replica gave in the whole run, in their order, zero for one that gave none.

    Service that no replica is known to have given is left out, so it is empty for a bare endpoint.
    """
    log = run.service
    given = (weights.input * log["extend"] + weights.output * log["output"]).groupby(log["worker"]).sum()
    names = {*map(str, given.index), *run.manifest.engine.get("workers", ())}
    return given.reindex(sorted(names, key=lambda name: (len(name), name)), fill_value=0.0).astype(float)


def imbalance(run: Run, weights: Weights = DEFAULT_WEIGHTS) -> float | None:
    """Largest over mean of the replicas' actual service: 1 if they did alike, D if one of D did all.

    None if there is one replica, or none that gave any.
    """
    given = by_replica(run, weights)
    return float(given.max() / given.mean()) if len(given) > 1 and given.sum() > 0 else None

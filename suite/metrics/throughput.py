"""Throughput: rates over the makespan, cache hits, and what became of the requests."""

from __future__ import annotations

import pandas as pd

from suite.metrics.fates import FATES, finished, starved
from suite.metrics.service import DEFAULT_WEIGHTS, Weights, cost


def makespan(requests: pd.DataFrame) -> float:
    """Seconds from the first arrival to the last finish of the served requests; 0 if none was served."""
    served = finished(requests)
    return float(served["finish"].max() - served["arrival"].min()) if len(served) else 0.0


def no_rates(requests: pd.DataFrame) -> str | None:
    """Why rates and hit rates would say nothing of this run; None if they do.

    Where requests starved, less was asked of the engine than in other runs of the trace, and perhaps only the
    easiest of it.
    """
    if lost := len(starved(requests)):
        return f"{lost:,} of {len(requests):,} requests starved, so the run did other work than was asked for"
    return None if makespan(requests) > 0 else "no request was served"


def rates(requests: pd.DataFrame, weights: Weights = DEFAULT_WEIGHTS) -> dict[str, float | None]:
    """Per second of makespan: tokens (in and out), output tokens, both services, requests; served only.

    None where `no_rates` has a reason.
    """
    served = finished(requests)
    seconds = makespan(requests)
    amounts = {
        "tokens_per_s": served["prompt_tokens"].sum() + served["output_tokens"].sum(),
        "output_tokens_per_s": served["output_tokens"].sum(),
        "client_service_per_s": cost(served, "client", weights).sum(),
        "actual_service_per_s": cost(served, "actual", weights).sum(),
        "requests_per_s": len(served),
    }
    if no_rates(requests) is not None:
        return dict.fromkeys(amounts)
    return {name: float(amount) / seconds for name, amount in amounts.items()}


def hit_rates(requests: pd.DataFrame, sharing: pd.DataFrame | None) -> dict[str, float | None]:
    """Cached prompt tokens at first admission over all prompt tokens of the served requests.

    `hit_rate` is of all, `hit_rate_own` of what the request's own client had computed last, `hit_rate_shared`
    of what another had (None without `sharing`). None where `no_rates` has a reason.
    """
    served = finished(requests)
    found: dict[str, float | None] = dict.fromkeys(("hit_rate", "hit_rate_own", "hit_rate_shared"))
    if no_rates(requests) is not None:
        return found
    prompt = int(served["prompt_tokens"].sum())
    found["hit_rate"] = int(served["cached_tokens"].sum()) / prompt
    if sharing is not None:
        own = sharing["payer"] == sharing["client"]
        found["hit_rate_own"] = int(sharing.loc[own, "tokens"].sum()) / prompt
        found["hit_rate_shared"] = int(sharing.loc[~own, "tokens"].sum()) / prompt
    return found


def counts(requests: pd.DataFrame) -> dict[str, int]:
    """Requests by what became of them, preemptions, and tokens computed again because of them."""
    return {
        "requests": len(requests),
        **{status: int((requests["status"] == status).sum()) for status in FATES},
        "preemptions": int(requests["preemptions"].sum()),
        "recomputed_tokens": int(requests["recomputed_tokens"].sum()),
    }

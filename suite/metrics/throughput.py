"""Throughput: rates over the makespan, cache hits, and what became of the requests."""

from __future__ import annotations

import pandas as pd

from suite.metrics.service import DEFAULT_WEIGHTS, Weights, cost

FATES = ("finished", "rejected", "failed", "cancelled")
"""What can become of a request: the statuses of `suite.results`."""


def makespan(requests: pd.DataFrame) -> float:
    """Seconds from the first arrival to the last finish of the served requests; 0 if none was served."""
    served = requests[requests["status"] == "finished"]
    return float(served["finish"].max() - served["arrival"].min()) if len(served) else 0.0


def hit_rate(requests: pd.DataFrame) -> float | None:
    """Cached prompt tokens at first admission over all prompt tokens of the served; None if none was."""
    served = requests[requests["status"] == "finished"]
    prompt = int(served["prompt_tokens"].sum())
    return float(served["cached_tokens"].sum()) / prompt if prompt else None


def rates(requests: pd.DataFrame, weights: Weights = DEFAULT_WEIGHTS) -> dict[str, float | None]:
    """Per second of makespan: tokens (in and out), output tokens, both services, requests; served only."""
    served = requests[requests["status"] == "finished"]
    seconds = makespan(requests)
    amounts = {
        "tokens_per_s": served["prompt_tokens"].sum() + served["output_tokens"].sum(),
        "output_tokens_per_s": served["output_tokens"].sum(),
        "client_service_per_s": cost(served, "client", weights).sum(),
        "actual_service_per_s": cost(served, "actual", weights).sum(),
        "requests_per_s": len(served),
    }
    return {name: float(amount) / seconds if seconds > 0 else None for name, amount in amounts.items()}


def counts(requests: pd.DataFrame) -> dict[str, int]:
    """Requests by what became of them, preemptions, and tokens computed again because of them."""
    return {
        "requests": len(requests),
        **{status: int((requests["status"] == status).sum()) for status in FATES},
        "preemptions": int(requests["preemptions"].sum()),
        "recomputed_tokens": int(requests["recomputed_tokens"].sum()),
    }

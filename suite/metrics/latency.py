"""Latency of the requests that were served: TTFT, TPOT and end-to-end time, in seconds.

    ttft = first_token - arrival
    tpot = (finish - first_token) / (output_tokens - 1); a reply of one token has none
    e2e  = finish - arrival

Requests that were never served have no latency: they are counted beside, never averaged in.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

MEASURES = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90, 99)
STATISTICS = ("mean", *(f"p{q}" for q in PERCENTILES))
COLUMNS = tuple(f"{measure}_{statistic}" for measure in MEASURES for statistic in STATISTICS)


def latencies(requests: pd.DataFrame) -> pd.DataFrame:
    """One row per served request: client, arrival, ttft, tpot (NaN for one token), e2e."""
    served = requests[requests["status"] == "finished"]
    gaps = (served["output_tokens"] - 1).where(served["output_tokens"] > 1)
    return pd.DataFrame(
        {
            "client": served["client"],
            "arrival": served["arrival"],
            "ttft": served["first_token"] - served["arrival"],
            "tpot": (served["finish"] - served["first_token"]) / gaps,
            "e2e": served["finish"] - served["arrival"],
        }
    )


def statistics(latencies: pd.DataFrame) -> dict[str, float | None]:
    """Mean, P50, P90 and P99 of each measure over the rows of `latencies`, keyed as in `COLUMNS`.

    Percentiles interpolate linearly (numpy's default). None where no request has the measure.
    """
    return {
        f"{measure}_{statistic}": value
        for measure in MEASURES
        for statistic, value in _statistics(latencies[measure].dropna()).items()
    }


def _statistics(values: pd.Series[float]) -> dict[str, float | None]:
    if values.empty:
        return dict.fromkeys(STATISTICS)
    found = [float(values.mean()), *np.percentile(values, PERCENTILES).tolist()]
    return dict(zip(STATISTICS, found, strict=True))


def by_group(requests: pd.DataFrame, misbehaving: Collection[str]) -> dict[str, dict[str, float | None]]:
    """`statistics` pooled over the requests of all, of the well-behaved and of the misbehaving clients."""
    rows = latencies(requests)
    bad = rows["client"].isin(list(misbehaving))
    groups = {"all": rows, "well": rows[~bad], "misbehaving": rows[bad]}
    return {name: statistics(group) for name, group in groups.items()}


def by_client(requests: pd.DataFrame) -> pd.DataFrame:
    """`statistics` of each client that was served, index `client`, columns `COLUMNS`."""
    rows = {client: statistics(group) for client, group in latencies(requests).groupby("client")}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS), dtype=float)
    return frame.rename_axis("client")

"""What became of the requests, and whose fault it was.

A request that never fits the KV pool is rejected, and what comes after it in its session is cancelled: that
is the workload's doing, and such requests are no part of any latency. A request that starved or failed, and
what was cancelled after it, is the scheduler's or the run's doing: it counts as *unserved*, with infinite
latency, so that serving few requests well earns no good number.
"""

from __future__ import annotations

from typing import TypeAlias

import pandas as pd

FATES = ("finished", "rejected", "failed", "starved", "cancelled")
"""What can become of a request: the statuses of `suite.results`."""

Mask: TypeAlias = "pd.Series[bool]"


def finished(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that were served to the end."""
    return requests[requests["status"] == "finished"]


def excused(requests: pd.DataFrame) -> Mask:
    """Which requests no scheduler could have served: rejected, and the cancelled whose session holds such."""
    rejected = requests["status"] == "rejected"
    followers = requests["session"].isin(requests.loc[rejected, "session"].dropna())
    return rejected | (followers & (requests["status"] == "cancelled"))


def unserved(requests: pd.DataFrame) -> Mask:
    """Which requests ought to have been served and were not: starved, failed, and cancelled after such."""
    return (requests["status"] != "finished") & ~excused(requests)


def starved(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that the scheduler never admitted although nothing else was left to run."""
    return requests[requests["status"] == "starved"]


def end(requests: pd.DataFrame) -> float:
    """When the run ended: at the last finish or, if that is later, when the last starved request came.

    Seconds; NaN if nothing was served and nothing starved.
    """
    last = pd.concat([finished(requests)["finish"], starved(requests)["arrival"]]).max()
    return float(last)

"""The fairness audit: was the gap in service between backlogged clients what theory allows the policy?

The widest gap over every interval in which two clients are backlogged (`suite.metrics.backlog`) beside the
bound of the policy (`suite.metrics.bounds`), both from the run folder alone. With several replicas there are
two such checks: of the service of all of them while both clients are backlogged anywhere, which is what the
papers promise and may be broken where they wait at different replicas; and of each replica's own service
while both wait at that very one, which is what the proofs stand on: if that is broken, the scheduler is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from suite.metrics.backlog import Backlog, Gap, Pair, at_replica, extremes, so_far
from suite.metrics.bounds import Bound, bound, replica_bounds
from suite.metrics.fates import starved
from suite.metrics.service import DEFAULT_WEIGHTS, KINDS, Floats
from suite.results import Run

Value: TypeAlias = float | int | str | None

COLUMNS = (
    "backlogged_gap_actual", "backlogged_gap_client", "bound_service", "bound", "bound_gap", "bound_held",
    "bound_window", "bound_none", "bound_pairs",
    "worker_bound", "worker_gap", "worker_held", "worker_window",
)  # fmt: skip

ALONE = "no two clients were backlogged at once"
ROUNDING = 1e-9
"""Share of a bound by which sums of floating-point service may pass it."""


def audit(run: Run) -> dict[str, Value]:
    """`COLUMNS` of a run; None where there is nothing to say.

    backlogged_gap_*    widest gap in normalised service, weights 1 and 2, over all intervals in which two
                        clients are backlogged; None where a request starved, as whom a scheduler serves at
                        once is not backlogged beside those whom it never serves
    bound_service       the service that the policy charges: "actual" or "client"
    bound, bound_gap    of the pair that comes nearest to its bound, on the policy's own weights
    bound_held          whether the gap is within the bound
    bound_window        who broke it, from when to when
    bound_none          why there is no bound
    bound_pairs         how many pairs were looked at, if not all
    worker_*            the same of one replica among several, of the one and the pair that come nearest to
                        their bound; None where no two clients were backlogged at one replica at once
    """
    backlog = Backlog(run.requests, run.service)
    row: dict[str, Value] = dict.fromkeys(COLUMNS)
    for kind in KINDS:
        if len(starved(run.requests)):
            continue
        gap = backlog.widest(backlog.normalised(kind, DEFAULT_WEIGHTS))
        row[f"backlogged_gap_{kind}"] = gap.size if gap else None
    row["bound_pairs"] = _pairs(backlog)
    return {**row, **_verdict(run, backlog), **_replicas(run)}


def curve(run: Run) -> pd.DataFrame | None:
    """How the gap went in the backlogged interval of the pair that comes nearest to its bound.

    Columns time (s), gap: the largest difference in normalised service over all sub-intervals that end then,
    so its peak is `bound_gap` and it passes the bound just when the bound is broken; bound; client, other:
    the pair. Without a bound (NaN) it is the pair with the widest gap in actual service, if no request
    starved. None if there is no such pair.
    """
    limit = bound(run)
    if isinstance(limit, str) and len(starved(run.requests)):
        return None
    backlog = Backlog(run.requests, run.service)
    totals, gap = _worst(backlog, limit)
    if gap is None:
        return None
    one, other = (backlog.clients[place] for place in gap.clients)
    columns = {
        "time": backlog.times[np.arange(gap.first, gap.last + 1) // 2],
        "gap": so_far(_difference(totals, gap), gap),
        "bound": _allowed(backlog, limit, gap.clients) if isinstance(limit, Bound) else np.nan,
    }
    return pd.DataFrame({**columns, "client": one, "other": other})


def _verdict(run: Run, backlog: Backlog) -> dict[str, Value]:
    limit = bound(run)
    if isinstance(limit, str):
        return {"bound_none": limit}
    worst = _finding(backlog, limit)
    if worst is None:
        return {"bound_service": limit.service, "bound_none": ALONE}
    return {
        "bound_service": limit.service,
        "bound": worst.allowed,
        "bound_gap": worst.gap,
        "bound_held": worst.window is None,
        "bound_window": worst.window,
    }


def _replicas(run: Run) -> dict[str, Value]:
    found = {
        worker: _finding(Backlog(*at_replica(run, worker)), limit)
        for worker, limit in replica_bounds(run).items()
    }
    findings = [(one, worker) for worker, one in found.items() if one]
    if not findings:
        return {}
    worst, worker = max(findings, key=lambda finding: finding[0].gap / finding[0].allowed)
    return {
        "worker_bound": worst.allowed,
        "worker_gap": worst.gap,
        "worker_held": worst.window is None,
        "worker_window": f"{worker}: {worst.window}" if worst.window else None,
    }


@dataclass(frozen=True)
class _Finding:
    """The gap that comes nearest to its bound, and who broke it when, if it was broken."""

    allowed: float
    gap: float
    window: str | None


def _finding(backlog: Backlog, limit: Bound) -> _Finding | None:
    """None if no two clients were backlogged at once."""
    totals, gap = _worst(backlog, limit)
    if gap is None:
        return None
    allowed = _allowed(backlog, limit, gap.clients)
    held = gap.size <= allowed * (1 + ROUNDING)
    return _Finding(allowed, gap.size, None if held else _window(backlog, totals, gap))


def _worst(backlog: Backlog, limit: Bound | str) -> tuple[Floats, Gap | None]:
    """Service by state, and the gap in it that is largest in proportion to its bound, if there is one."""
    if isinstance(limit, str):
        totals = backlog.normalised("actual", DEFAULT_WEIGHTS)
        return totals, backlog.widest(totals)
    totals = backlog.normalised(limit.service, limit.weights)
    return totals, backlog.widest(totals, lambda pair: _allowed(backlog, limit, pair))


def _allowed(backlog: Backlog, limit: Bound, pair: Pair) -> float:
    one, other = pair
    return limit.between(backlog.weight(one), backlog.weight(other))


def _difference(totals: Floats, gap: Gap) -> Floats:
    one, other = gap.clients
    return np.asarray(totals[one] - totals[other])


def _window(backlog: Backlog, totals: Floats, gap: Gap) -> str:
    difference = _difference(totals, gap)
    begin, end = extremes(difference, gap)
    ahead, behind = gap.clients if difference[end] > difference[begin] else reversed(gap.clients)
    names = backlog.clients
    since, until = backlog.times[begin // 2], backlog.times[end // 2]
    return f"{names[ahead]!r} ahead of {names[behind]!r} from {since:.6g} s to {until:.6g} s"


def _pairs(backlog: Backlog) -> str | None:
    looked, all_pairs = (count * (count - 1) // 2 for count in (len(backlog.clients), backlog.of))
    if looked == all_pairs:
        return None
    return f"{looked:,} of {all_pairs:,} pairs: the {len(backlog.clients)} clients that waited longest"

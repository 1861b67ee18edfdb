"""The published bounds on how far apart two backlogged clients may drift, from a run's own parameters.

    VTC      U/w_f + U/w_g           OSDI '24, Theorem 4.4: 2U for equal weights
    DLPM     2 Q_u + U/w_f + U/w_g   arXiv 2501.14312, Theorem 4.1: 2 (U + Q_u)

in units of the service that the policy charges, divided by the client's weight: VTC's is client service with
`charge: full` and actual service with `charge: extend`, DLPM's is actual service.

U = w_e L + w_q M is what a client may get beyond its turn: w_e L for the prompt that uses it up, L being the
longest that was admitted, and w_q M for what the requests that then run still generate. M is the most
output tokens that running requests had yet to generate, at any time of the run. The KV pool is no bound on
it: requests that end one after another make room for the rest to grow, so that together they generate more
than it ever holds. VTC's paper has max(w_e L, w_q M), with an M that counts the prompts of a batch too.

Weights w_f: the papers prove the bounds for equal ones. VTC divides each charge by its client's weight, so
client f's counter, which is its normalised service, may overshoot the least by U/w_f instead of U. Our DLPM
multiplies f's quantum by w_f and refills all alike that wait: f's deficit over w_f is always between -U/w_f
and Q_u, so that in an interval with K refills its normalised service is within Q_u + U/w_f of K Q_u. The sum
over both clients is the bound.

Of D replicas, each with its own scheduler, every one holds this bound for the service that it gives while two
clients both wait at it: that needs nothing of the router (`replica_bounds`). For the service of all replicas
together the papers promise D times the bound, with the router d2lpm (Theorem 5.1; any fair scheduler at the
replicas) and for VTC with client-round-robin (Theorem A.6). Their proofs add up the replicas, so they hold
while both clients are backlogged at every replica. `bound` is that promise in the paper's words, for clients
that are backlogged: one that waits at some replicas only is given nothing by the others, so that a broken
bound is a finding about the workload and the router, and no error of the schedulers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from suite.metrics.service import Kind, Weights
from suite.results import Run

_VTC, _DLPM = "baselines.vtc:VTC", "baselines.dlpm:DLPM"
_ROUTED = {
    "baselines.d2lpm:D2LPM": (_VTC, _DLPM),
    "baselines.client_round_robin:ClientRoundRobin": (_VTC,),
}
"""The classes that have a bound: schedulers, and those before whose replicas theirs holds D times. What a
policy is shown as does not matter."""


@dataclass(frozen=True)
class Bound:
    """A bound on the gap in normalised service of a pair of clients, see `between`."""

    service: Kind
    weights: Weights
    """Of the service that the policy charges."""
    overshoot: float
    """U: what a client of weight 1 may get beyond its turn at one replica, in service units."""
    quantum: float
    """Q_u; 0 for VTC."""
    replicas: int

    def between(self, weight: float, other: float) -> float:
        """The bound for two clients of these weights, in normalised service units."""
        return self.replicas * (2 * self.quantum + self.overshoot / weight + self.overshoot / other)


def bound(run: Run) -> Bound | str:
    """The bound on the service of all replicas together, or why there is none.

    That of D replicas is D times the largest bound of one.
    """
    scheduler, replicas = run.manifest.scheduler, _replicas(run)
    target, router = scheduler["target"], scheduler["router"]
    if target not in (_VTC, _DLPM):
        return f"no bound is known for {scheduler['name']}"
    if replicas > 1 and target not in _ROUTED.get(router["target"], ()):
        return f"no bound is known for {target.partition(':')[2]} behind {router['name']}"
    bounds = list(_by_replica(run).values())
    if not bounds:
        return "no request was admitted"
    return replace(max(bounds, key=lambda one: one.overshoot), replicas=replicas)


def replica_bounds(run: Run) -> dict[str, Bound]:
    """The bound of each replica that admitted a request, by its name, on the service of that replica alone.

    None where there is one replica, where it is not known at which a request was or since when (a front sent
    it to another one again), and for schedulers without a bound.
    """
    known = run.requests["worker"].notna() | run.requests["admitted"].isna()
    if _replicas(run) == 1 or not known.all() or run.manifest.engine.get("retries"):
        return {}
    if run.manifest.scheduler["target"] not in (_VTC, _DLPM):
        return {}
    return _by_replica(run)


def yet_to_come(admitted: pd.DataFrame, service: pd.DataFrame) -> float:
    """M: the most output tokens that running requests had yet to generate; it peaks at an admission.

    `admitted` are the requests that were, at least one. One that waits again after a preemption counts as
    running.
    """
    order = np.argsort(admitted["admitted"].to_numpy(float), kind="stable")
    promised = np.cumsum(admitted["output_tokens"].to_numpy(float)[order])
    generated = np.concatenate([[0.0], np.cumsum(service["output"].to_numpy(float))])
    times = admitted["admitted"].to_numpy(float)[order]
    by_then = generated[np.searchsorted(service["time"].to_numpy(float), times, side="right")]
    return float(np.max(promised - by_then))


def _replicas(run: Run) -> int:
    return int(run.manifest.backend.get("replicas") or 1)


def _by_replica(run: Run) -> dict[str, Bound]:
    """The bound of each replica, from its own requests; those whose replica is not known are one more."""
    parameters: dict[str, Any] = run.manifest.scheduler["parameters"]
    weights = Weights(parameters["input_weight"], parameters["output_weight"])
    common = Bound(
        service="client" if parameters.get("charge") == "full" else "actual",
        weights=weights,
        overshoot=0.0,
        quantum=parameters.get("quantum", 0.0),
        replicas=1,
    )
    admitted = run.requests[run.requests["admitted"].notna()]
    logs = run.service["worker"].fillna("")
    return {
        str(worker): replace(common, overshoot=_overshoot(rows, run.service[logs == worker], weights))
        for worker, rows in admitted.groupby(admitted["worker"].fillna(""))
    }


def _overshoot(admitted: pd.DataFrame, service: pd.DataFrame, weights: Weights) -> float:
    """U."""
    longest = float(admitted["prompt_tokens"].max())
    return weights.input * longest + weights.output * yet_to_come(admitted, service)

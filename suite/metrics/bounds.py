"""The published bounds on how far apart two backlogged clients may drift, from a run's own parameters.

    VTC      U/w_f + U/w_g           OSDI '24, Theorem 4.4: 2U for equal weights
    DLPM     2 Q_u + U/w_f + U/w_g   arXiv 2501.14312, Theorem 4.1: 2 (U + Q_u)
    D2LPM    |W| times DLPM's        the same, Theorem 5.1

in units of the service that the policy charges, divided by the client's weight: VTC's is client service with
`charge: full` and actual service with `charge: extend`, DLPM's and D2LPM's is actual service. With several
replicas, each under a policy of its own, every bound is multiplied by their number (DLPM's Theorem A.6 says
it for VTC).

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from suite.metrics.service import Kind, Weights
from suite.results import Run

_POLICIES = ("baselines.vtc:VTC", "baselines.dlpm:DLPM", "baselines.d2lpm:D2LPM")
"""The classes that have a bound; what a policy is shown as does not matter."""


@dataclass(frozen=True)
class Bound:
    """A bound on the gap in normalised service of a pair of clients, see `between`."""

    service: Kind
    weights: Weights
    """Of the service that the policy charges."""
    overshoot: float
    """U: what a client of weight 1 may get beyond its turn, in service units."""
    quantum: float
    """Q_u; 0 for VTC."""
    replicas: int

    def between(self, weight: float, other: float) -> float:
        """The bound for two clients of these weights, in normalised service units."""
        return self.replicas * (2 * self.quantum + self.overshoot / weight + self.overshoot / other)


def bound(run: Run) -> Bound | str:
    """The bound of the policy that a run was made under, or why there is none."""
    scheduler = run.manifest.scheduler
    if scheduler["target"] not in _POLICIES:
        return f"no bound is known for {scheduler['name']}"
    admitted = run.requests[run.requests["admitted"].notna()]
    if admitted.empty:
        return "no request was admitted"
    parameters: dict[str, Any] = scheduler["parameters"]
    weights = Weights(parameters["input_weight"], parameters["output_weight"])
    longest = float(admitted["prompt_tokens"].max())
    return Bound(
        service="client" if parameters.get("charge") == "full" else "actual",
        weights=weights,
        overshoot=weights.input * longest + weights.output * yet_to_come(admitted, run.service),
        quantum=parameters.get("quantum", 0.0),
        replicas=int(run.manifest.backend.get("replicas") or 1),
    )


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

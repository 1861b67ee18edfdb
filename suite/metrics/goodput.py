"""Goodput: the requests that were served as well as a service level objective asks for.

Source: DistServe (OSDI '24, arXiv 2401.09670), section 2: a request counts if it meets every bound.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from suite.metrics.latency import latencies

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Slo(BaseModel):
    """A service level objective: upper bounds in seconds, at least one. A request meets all, or misses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft: _Seconds | None = None
    tpot: _Seconds | None = None
    e2e: _Seconds | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if not self.bounds:
            raise ValueError("an SLO needs a bound; give ttft, tpot or e2e in seconds")
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by measure."""
        return self.model_dump(exclude_none=True)


def attainment(requests: pd.DataFrame, slo: Slo) -> float | None:
    """The share of the requests that meet every bound, of all that could be served (see `fates.excused`).

    Requests that were not served miss. A reply of one token has no TPOT and meets its bound. None if there
    are no such requests.
    """
    met = _met(requests, slo)
    return float(met.mean()) if len(met) else None


def goodput(requests: pd.DataFrame, slo: Slo, seconds: float) -> float | None:
    """Requests per second that meet every bound, over a run of so many seconds; None for a run of none."""
    return float(_met(requests, slo).sum()) / seconds if seconds > 0 else None


def _met(requests: pd.DataFrame, slo: Slo) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = latencies(requests)
    missed = [found[measure].to_numpy() > bound for measure, bound in slo.bounds.items()]
    return np.asarray(~np.logical_or.reduce(missed))

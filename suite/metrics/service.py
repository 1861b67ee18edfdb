"""Service: what a client was given, in cost units, as a cumulative curve over time.

Two services come from one service log (see `suite.results`):

    actual = w_input * extend            + w_output * output      what DLPM equalises
    client = w_input * (extend + cached) + w_output * output      what a client sees; VTC's and DLPM's y axis

with w = (1, 2) in both papers (DLPM section 3, VTC section 3). Tokens computed again after a preemption are
never service.

An admission is stamped when the work on the prompt begins, an output when it has been generated. Service in
a half-open interval [a, b) therefore holds the prompts stamped in [a, b) and the outputs stamped in (a, b]:
each counts where its work was done, and adjacent intervals share nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["actual", "client"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Weights(NamedTuple):
    """Service units of one input token and of one output token."""

    input: float = 1.0
    output: float = 2.0


DEFAULT_WEIGHTS = Weights()


@dataclass(frozen=True)
class Curve:
    """Cumulative service of one client: two step functions, of prompts and of outputs."""

    input_times: Floats
    input_totals: Floats
    """One longer than the times: totals[k] after the first k stamps."""
    output_times: Floats
    output_totals: Floats

    def before(self, time: ArrayLike) -> Floats:
        """Service units up to `time` (seconds, any shape): prompts begun before it, outputs made by it."""
        begun = np.searchsorted(self.input_times, time, side="left")
        made = np.searchsorted(self.output_times, time, side="right")
        return np.asarray(self.input_totals[begun] + self.output_totals[made])


Curves: TypeAlias = Mapping[str, Curve]


def curves(
    service: pd.DataFrame, clients: list[str], kind: Kind, weights: Weights = DEFAULT_WEIGHTS
) -> dict[str, Curve]:
    """The curve of every client named in `clients`; a client that is not in the log has a flat one."""
    logs = dict(iter(service.groupby("client", sort=False)))
    return {client: _curve(logs.get(client, service.iloc[:0]), kind, weights) for client in clients}


def _curve(log: pd.DataFrame, kind: Kind, weights: Weights) -> Curve:
    prompt = log["extend"] + log["cached"] if kind == "client" else log["extend"]
    return Curve(
        *_steps(log["time"], weights.input * prompt),
        *_steps(log["time"], weights.output * log["output"]),
    )


def _steps(times: pd.Series[float], amounts: pd.Series[float]) -> tuple[Floats, Floats]:
    some = amounts != 0
    totals = np.zeros(int(some.sum()) + 1)
    np.cumsum(np.asarray(amounts[some]), out=totals[1:])
    return np.asarray(times[some], np.float64), totals


def received(curves: Curves, intervals: Floats) -> pd.Series[float]:
    """Service units each client received in a union of half-open intervals, shape (n, 2), seconds."""
    starts, ends = intervals[:, 0], intervals[:, 1]
    return pd.Series(
        {client: float(np.sum(c.before(ends) - c.before(starts))) for client, c in curves.items()},
        dtype=float,
    )


def cost(requests: pd.DataFrame, kind: Kind, weights: Weights = DEFAULT_WEIGHTS) -> pd.Series[float]:
    """Service units of each request as it was served: what its rows in the service log add up to."""
    prompt = requests["prompt_tokens"]
    if kind == "actual":
        prompt = prompt - requests["cached_tokens"]
    return weights.input * prompt + weights.output * requests["output_tokens"]


def asked(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests with the output that they asked for, as far as it is known.

    Of one that did not finish it is not: it stands for as much as the finished ones of its client have on
    average, or those of all clients if its own has none.
    """
    made = requests["output_tokens"].where(requests["status"] == "finished")
    usual = made.groupby(requests["client"]).transform("mean").fillna(made.mean())
    return requests.assign(output_tokens=made.fillna(usual).fillna(0.0))

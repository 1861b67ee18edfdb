"""Fig. 3 of the VTC paper: two clients that both ask for more than the engine can give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from suite.errors import BadInput
from suite.metrics import fairness
from suite.metrics.service import Floats, cost
from suite.report import style
from suite.report.experiment import Experiment
from suite.reproduce import artifact, hosts
from suite.reproduce.reproduction import Comparison, Reproduction
from suite.reproduce.values import (
    Quantity,
    Table,
    Value,
    distance,
    furthest,
    listed,
    orders,
    percent,
    within,
)

JAIN, GAP = Quantity("Jain", 4), Quantity("gap", 0)
LARGEST, TPOT = Quantity("largest difference", 0), Quantity("ms/token", 1)
QUANTITIES = (JAIN, GAP, LARGEST, TPOT)
SCHEDULERS = ("fcfs", "vtc")
_LINES: dict[str, tuple[str, str]] = {
    "raw results": ("#000000", "-"),
    hosts.AUTHORS: ("#009e73", "-"),
    hosts.SLOWED: ("#0072b2", "--"),
    hosts.SGLANG: ("#d55e00", "-."),
    hosts.VLLM: ("#cc79a7", ":"),
}


class VTCFig3(Reproduction):
    """The overload test from the authors' raw results, and from the simulator on the same arrivals."""

    name = "vtc-fig3"
    title = "Fig. 3 of the VTC paper: two clients that ask for too much"
    shows = """
*Fairness in Serving Large Language Models* (OSDI '24, arXiv 2401.00588), Fig. 3: client 0 sends 90 requests
a minute, client 1 180, all of 256 tokens in and 256 out, which is more than the engine can serve. The figure
shows the absolute difference of the two clients' accumulated service (input + 2 output tokens) over time: it
grows under FCFS and stays bounded under VTC. The values called the paper's here are computed from the
authors' raw results (artifact Ying1123/VTC-artifact, looked for in the folder that `SUITE_TRACES` names),
their FCFS run of 600 s and their VTC run of 360 s; the paper prints none.

At the end of the authors' arrivals (600 s under FCFS, 360 s under the others; what arrives later makes no
difference to that): *Jain* and *gap* are of the service of the requests that had ended; the *largest
difference*, at any second until then, is of service spread evenly between a request's first token and its
end. *ms/token* is the median time per output token over all requests of the run.
"""
    assumptions = hosts.ASSUMPTIONS
    experiments = ("vtc-fig3",)
    files = (artifact.file("FCFS_overload"), artifact.file("VTC_overload"))

    def compare(self, runs: Mapping[str, Experiment]) -> Comparison:
        """The measures of both, and the figure."""
        theirs = {name: _Run(*artifact.results(f"{name.upper()}_overload")) for name in SCHEDULERS}
        ours = {
            (host, name): [_Run(one, theirs.get(name, theirs["vtc"]).horizon) for one in requests]
            for (host, name), requests in hosts.simulated(runs["vtc-fig3"], "vtc_overload").items()
        }
        table = Table("Overload", "host, scheduler", tuple(_values(theirs, ours)))
        return Comparison((table,), tuple(_findings(table, theirs, ours)), _figure(theirs, ours), _READING)


_READING = (
    "Absolute difference of the two clients' accumulated service over time, the simulator's under its first "
    "seed. The panels have scales of their own."
)


class _Run(NamedTuple):
    """The requests of a run, and when it is looked at: at the end of the authors' arrivals, in seconds."""

    requests: pd.DataFrame
    horizon: float


_Ours = Mapping[tuple[str, str], list[_Run]]
"""Runs of the seeds by host and scheduler."""


def differences(requests: pd.DataFrame, times: Floats) -> Floats:
    """Largest difference of two clients' accumulated service at each time, in service units.

    A request's service is spread evenly between its first token and its end, as the artifact does.
    """
    served = requests[requests["status"] == "finished"]
    first, finish = served["first_token"].to_numpy(float), served["finish"].to_numpy(float)
    span = np.maximum(finish - first, 1e-9)
    done = np.clip((times[:, None] - first) / span, 0.0, 1.0) * cost(served, "client").to_numpy(float)
    totals = pd.DataFrame(done.T).groupby(served["client"].to_numpy()).sum().to_numpy()
    return np.asarray(np.ptp(totals, axis=0), float)


def completed(requests: pd.DataFrame, horizon: float) -> pd.Series[float]:
    """Service of each client's requests that had ended at `horizon`; 0 for a client with none."""
    ended = requests[requests["finish"] <= horizon]
    clients = sorted(requests["client"].unique())
    return cost(ended, "client").groupby(ended["client"]).sum().reindex(clients, fill_value=0.0)


def measured(requests: pd.DataFrame, horizon: float) -> tuple[float, ...]:
    """`QUANTITIES` of one run at a horizon in seconds. Some request must have ended by then."""
    shares = completed(requests, horizon)
    jain, gap = fairness.jain(shares), fairness.gap(shares)
    if jain is None or gap is None:
        raise BadInput(f"vtc-fig3: no request had ended after {horizon:g} s; give the artifact's own files")
    largest = float(differences(requests, _seconds(horizon)).max())
    return jain, gap, largest, 1e3 * hosts.median_tpot(requests)


def _seconds(horizon: float) -> Floats:
    return np.arange(0.0, horizon + 1.0)


def _values(theirs: Mapping[str, _Run], ours: _Ours) -> Iterator[Value]:
    paper = {name: measured(*run) for name, run in theirs.items()}
    for (host, name), runs in ours.items():
        found = np.array([measured(*run) for run in runs])
        columns = zip(QUANTITIES, found.mean(axis=0), found.std(axis=0, ddof=1), strict=True)
        for i, (quantity, value, spread) in enumerate(columns):
            yield Value(f"{host}: {name}", quantity, value, paper[name][i] if name in paper else None, spread)


def _findings(table: Table, theirs: Mapping[str, _Run], ours: _Ours) -> Iterator[str]:
    for host in hosts.HOSTS:
        values = table.of(host, JAIN, GAP, LARGEST)
        yield f"Simulated {host}: {orders(values)}; {within(values)}; {furthest(values)}."
    for name in SCHEDULERS:
        told = [f"{_growth(ours[host, name][0]):.2f} {host}" for host in hosts.HOSTS]
        yield (
            f"Under {name} the largest difference of the second half of the time is "
            f"{_growth(theirs[name]):.2f} times that of the first in the raw results, and {listed(told)} (2 "
            "is steady growth, 1 none)."
        )
    speeds = [f"{percent(distance(table.of(host, TPOT)))} {host}" for host in hosts.HOSTS]
    yield (
        f"The time per output token is off by {listed(speeds)}. That of *{hosts.SLOWED}* under fcfs is no "
        f"finding: the factor {hosts.slowdown():.3f} was taken from it."
    )


def _growth(run: _Run) -> float:
    """Largest difference of the second half of the time until the horizon over that of the first half."""
    first, second = np.array_split(differences(run.requests, _seconds(run.horizon)), 2)
    return float(second.max() / first.max())


def _figure(theirs: Mapping[str, _Run], ours: _Ours) -> Figure:
    figure = style.panels(len(SCHEDULERS), 4.2, 2.8)
    for axes, name in zip(figure.axes, SCHEDULERS, strict=True):
        _draw(axes, "raw results", theirs[name])
        for host in hosts.HOSTS:
            _draw(axes, host, ours[host, name][0])
        axes.set(title=name, xlabel="time (s)", ylabel="difference in service")
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names))
    return figure


def _draw(axes: Axes, host: str, run: _Run) -> None:
    color, dashes = _LINES[host]
    times = _seconds(run.horizon)
    axes.plot(
        times, differences(run.requests, times), linestyle=dashes, color=color, label=host, markersize=0
    )

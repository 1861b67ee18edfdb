"""Table 2 of the VTC paper: how far clients are from an equal share on the real trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from suite.metrics import throughput, vtc
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

LARGEST, MEAN = Quantity("max difference", 2), Quantity("mean difference", 2)
VARIANCE, TOKENS = Quantity("variance", 2), Quantity("tokens/s", 0)
QUANTITIES = (LARGEST, MEAN, VARIANCE, TOKENS)

PAPER = {
    "fcfs": dict(zip(QUANTITIES, (759.97, 433.53, 32112.00, 777.0), strict=True)),
    "vtc": dict(zip(QUANTITIES, (368.40, 251.66, 6549.16, 779.0), strict=True)),
}
"""Rows FCFS and VTC of Table 2, as printed."""

DURATION = 600.0
"""Seconds in which the trace's requests arrive."""


class VTCTable2(Reproduction):
    """The table from the authors' raw results, and from the simulator."""

    name = "vtc-table2"
    title = "Table 2 of the VTC paper: FCFS and VTC on a real trace"
    shows = """
*Fairness in Serving Large Language Models* (OSDI '24, arXiv 2401.00588), Table 2: 1,500 requests of 27
clients in 600 s (Chatbot Arena; a client is a model). In windows of 60 s, the service difference is the sum
over clients of min(s_max - s_j, |r_j - s_j|), with s_j the service (input + 2 output tokens a second) that
client j received and r_j what it asked for; the table has its largest value, mean and variance over 19
windows, and throughput. The paper's values are as printed. The trace and the raw results are in the authors'
artifact (Ying1123/VTC-artifact); they are no part of this repository and are looked for in the folder that
`SUITE_TRACES` names.
"""
    assumptions = hosts.ASSUMPTIONS
    experiments = ("vtc-table2",)
    files = (
        artifact.file("FCFS_real"),
        artifact.file("VTC_real"),
        artifact.file("FCFS_overload"),
        "vtc/vtc_real_trace.csv",
    )

    def compare(self, runs: Mapping[str, Experiment]) -> Comparison:
        """Both halves of the table."""
        found = hosts.simulated(runs["vtc-table2"], "vtc_real")
        ours = tuple(
            value
            for (host, scheduler), requests in found.items()
            for value in rows(host, scheduler, [(one, DURATION) for one in requests])
        )
        tables = published(), Table("From the simulator", "host, scheduler", ours)
        return Comparison(tables, tuple(_findings(*tables)), _figure(tables[1]), _READING)


_READING = (
    "Points are the simulator's, bars their standard deviations over seeds, dashed lines the paper's values "
    "in the colours of the schedulers. Less is better, but for tokens/s."
)


def published() -> Table:
    """The table from the authors' per-request results."""
    runs = {name: artifact.results(f"{name.upper()}_real") for name in PAPER}
    values = (value for name, run in runs.items() for value in rows("raw results", name, [run]))
    return Table("From the authors' raw results", "run", tuple(values))


def rows(host: str, scheduler: str, runs: Sequence[tuple[pd.DataFrame, float]]) -> Iterator[Value]:
    """The quantities of the table, means over runs: their requests, and in how many seconds these arrive."""
    measured = np.array([_measured(*run) for run in runs])
    spreads = measured.std(axis=0, ddof=1) if len(runs) > 1 else [None] * len(QUANTITIES)
    for quantity, ours, spread in zip(QUANTITIES, measured.mean(axis=0), spreads, strict=True):
        yield Value(f"{host}: {scheduler}", quantity, ours, PAPER.get(scheduler, {}).get(quantity), spread)


def _measured(requests: pd.DataFrame, duration: float) -> tuple[float, ...]:
    """`QUANTITIES` of one run."""
    tokens = throughput.rates(requests)["tokens_per_s"]
    assert tokens is not None, "a valid run of this trace serves its requests"
    return (*vtc.service_difference(requests, vtc.starts(duration)), tokens)


# -- what agrees -----------------------------------------------------------------------------------------


def _findings(theirs: Table, ours: Table) -> Iterator[str]:
    same = sum(value.quantity.show(value.ours) == value.quantity.show(value.paper) for value in theirs.values)
    yield f"From the raw results, {same} of {len(theirs.values)} values are the paper's to its last digit."
    for host in hosts.HOSTS:
        far = furthest(ours.of(host, LARGEST, MEAN, TOKENS))
        agreed = orders(ours.of(host, LARGEST, MEAN, VARIANCE))
        yield f"Simulated {host}: {agreed}; {within(ours.of(host, *QUANTITIES))}; variance aside, {far}."
    yield _on_admission(ours)
    yield _on_speed(ours)
    yield _on_lpm(ours)


def _on_admission(ours: Table) -> str:
    """Whether the authors' rule of admission brings the service differences nearer to theirs."""
    far = {host: distance(ours.of(host, LARGEST, MEAN)) for host in (hosts.AUTHORS, hosts.SGLANG, hosts.VLLM)}
    nearest = min(far, key=far.__getitem__)
    agree = nearest == hosts.AUTHORS
    verdict = (
        "The runs agree with it" if agree else f"The runs do not agree with it: those {nearest} are nearest"
    )
    told = listed([f"{percent(share)} {host}" for host, share in far.items()])
    return (
        "Hypothesis: how far the differences are off depends on when an engine admits. Mean size of "
        f"the deviations of largest and mean difference: {told}. {verdict}."
    )


def _on_speed(ours: Table) -> str:
    """Whether the authors' longer steps, seen in another experiment, explain the throughput."""
    pair = (hosts.AUTHORS, hosts.SLOWED)
    before, after = (distance(ours.of(host, TOKENS)) for host in pair)
    then, now = (distance(ours.of(host, LARGEST, MEAN)) for host in pair)
    verdict = "agree" if after < before else "do not agree"
    nearer = "come nearer too" if now < then else "do not come nearer"
    return (
        "Hypothesis: throughput is off because the authors' steps take longer than the roofline says, by "
        f"their overload run {hosts.slowdown():.3f} times as long. With steps so long it is off by "
        f"{percent(after)} instead of {percent(before)}: the runs {verdict} with it. The largest and mean "
        f"differences {nearer}: {percent(then)} off before, {percent(now)} after."
    )


def _on_lpm(ours: Table) -> str:
    """Whether LPM does anything where no prompts share a prefix."""
    found = {(value.group, value.name, value.quantity): value.ours for value in ours.values}
    pairs = [(value, found[host, "fcfs", q]) for (host, name, q), value in found.items() if name == "lpm"]
    differing = sum(value != fcfs for value, fcfs in pairs)
    return (
        f"lpm and dlpm are not in the paper's table. Where no prompts share a prefix lpm should be fcfs: "
        f"{differing} of its {len(pairs)} values differ. What dlpm does here is deficit round robin."
    )


# -- the figure ------------------------------------------------------------------------------------------


def _figure(table: Table) -> Figure:
    looks = style.policies(())
    figure = style.panels(len(QUANTITIES), 2.6, 2.2)
    names = list(dict.fromkeys(value.name for value in table.values))
    places = {host: -i for i, host in enumerate(hosts.HOSTS)}
    for axes, quantity in zip(figure.axes, QUANTITIES, strict=True):
        for scheduler, values in PAPER.items():
            axes.axvline(values[quantity], color=looks[scheduler].color, linestyle="--", linewidth=1)
        for value in (value for value in table.values if value.quantity == quantity):
            _point(axes, value, places[value.group] - 0.15 * names.index(value.name), looks[value.name])
        axes.set(
            title=quantity.name, yticks=[place - 0.225 for place in places.values()], yticklabels=[*places]
        )
        axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
        axes.label_outer()
    handles = [Line2D([], [], color=looks[n].color, marker=looks[n].marker, linestyle="none") for n in names]
    handles.append(Line2D([], [], color="#595959", linestyle="--"))
    figure.legend(handles, [*names, "the paper's"], loc="outside lower center", ncols=len(handles))
    return figure


def _point(axes: Axes, value: Value, place: float, look: style.Look) -> None:
    axes.errorbar(
        value.ours, place, xerr=value.spread, fmt=look.marker, color=look.color, markersize=5, alpha=0.8
    )

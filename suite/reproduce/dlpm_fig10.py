"""Fig. 10 of the DLPM paper: D2LPM's quantum, between throughput and fairness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from suite.report import style
from suite.report.experiment import Experiment
from suite.reproduce import cluster
from suite.reproduce.cluster import D2LPM, HITS, JAIN, PREBLE, RR_LPM, SERVICE, VTC
from suite.reproduce.reproduction import Comparison, Reproduction
from suite.reproduce.values import Quantity, Table, Value, furthest, has_order, listed, percent

QUANTA = (2000, 5000, 10000, 20000, 40000)
ONE, NONE = "one client misbehaves", "all clients behave"
WORKLOADS = {"one-misbehaves": ONE, "all-behave": NONE}


def _name(quantum: float) -> str:
    """D2LPM with a quantum."""
    return f"{D2LPM}, Q_w = {quantum:,.0f}"


def _paper() -> dict[tuple[str, Quantity], float]:
    """By case and quantity. Jain's index of the others is not in the figure."""
    service = {
        ONE: (23276, 26421, 28404, 28897, 29734),
        NONE: (19595, 22000, 22925, 23863, 24250),
    }
    jain = {ONE: (0.855, 0.843, 0.835, 0.829, 0.830), NONE: (1.0,) * len(QUANTA)}
    others = {
        ONE: {RR_LPM: 22977, VTC: 16333, PREBLE: 17349},
        NONE: {RR_LPM: 17546, VTC: 12451, PREBLE: 22137},
    }
    found = {(f"{w}: {s}", SERVICE): float(value) for w, row in others.items() for s, value in row.items()}
    for quantity, values in ((SERVICE, service), (JAIN, jain)):
        for workload, row in values.items():
            for quantum, value in zip(QUANTA, row, strict=True):
                found[f"{workload}: {_name(quantum)}", quantity] = float(value)
    return found


PAPER = _paper()


class DLPMFig10(Reproduction):
    """The sweep of Q_w, in simulation."""

    name = "dlpm-fig10"
    title = "Fig. 10 of the DLPM paper: the quantum of D2LPM"
    shows = """
*Locality-aware Fair Scheduling in LLM Serving* (arXiv 2501.14312), Fig. 10: Llama-3.2-3B on four A10G,
trees of thoughts, with one client growing larger trees and with all well-behaved; D2LPM's quantum Q_w from
2,000 to 40,000, beside the other systems. The paper prints no values but that Jain's index falls from 0.855
to 0.83: these were read off its vector graphics. *service/s* is client service, input + 2 output tokens a
second; *Jain* that of client service while all clients are active. Ours are means ± standard deviations
over three seeds.
"""
    assumptions = f"""{cluster.ASSUMPTIONS.strip()}
- Three clients; trees begin for 20 s, half as often for each GPU as on an A100, as an A10G does about half
  as much.
"""
    experiments = ("dlpm-fig10",)

    def compare(self, runs: Mapping[str, Experiment]) -> Comparison:
        """Throughput and Jain's index by quantum, and how near the bounds were."""
        frame = cluster.valid_rows(self.name, runs)
        cases = [
            f"{WORKLOADS[r['workload']]}: "
            f"{_name(r['d2lpm.quantum']) if r['system'] == D2LPM else r['system']}"
            for r in frame.to_dict("records")
        ]
        table = Table("Throughput and fairness", "workload: system", tuple(_values(frame, cases)))
        findings = (*_findings(table), *cluster.on_bounds(frame, cases))
        return Comparison((table, cluster.audited(frame, cases)), findings, _figure(table), _READING)


_READING = (
    "Filled points are ours, hollow ones the paper's; D2LPM's are joined in the order of the quanta, the "
    "others, which have none, are level lines: solid ours, dashed the paper's."
)


def _values(frame: pd.DataFrame, cases: list[str]) -> Iterator[Value]:
    columns = {
        SERVICE: frame["client_service_per_s"],
        JAIN: frame["jain_client_all_active"],
        HITS: 100 * frame["hit_rate"],
    }
    of = pd.Series(cases, index=frame.index)
    for case in dict.fromkeys(cases):
        for quantity, found in columns.items():
            yield from cluster.over_seeds(case, quantity, found[of == case], PAPER.get((case, quantity)))


# -- what agrees -----------------------------------------------------------------------------------------


def _findings(table: Table) -> Iterator[str]:
    for workload in WORKLOADS.values():
        known = [value for value in table.of(workload, SERVICE) if value.paper is not None]
        word = "is" if has_order(known) else "is not"
        yield f"Where {workload}, the order by throughput {word} the paper's; {furthest(known)}."
        yield _sweep(table, workload)
        yield _beside(table, workload)


def _sweep(table: Table, workload: str) -> str:
    """What the largest quantum brings and costs beside the smallest."""
    first, last = (_of(table, workload, SERVICE)[_name(quantum)] for quantum in (QUANTA[0], QUANTA[-1]))
    fair, unfair = (_of(table, workload, JAIN)[_name(quantum)] for quantum in (QUANTA[0], QUANTA[-1]))
    gain, gained = last.ours / first.ours - 1, (last.paper or 0.0) / (first.paper or 1.0) - 1
    return (
        f"Where {workload}, from Q_w = {QUANTA[0]:,} to {QUANTA[-1]:,} D2LPM's throughput changes by "
        f"{percent(gain, '+')} (the paper's by {percent(gained, '+')}) and Jain's index goes from "
        f"{JAIN.show(fair.ours)} to {JAIN.show(unfair.ours)} (the paper's from {JAIN.show(fair.paper)} to "
        f"{JAIN.show(unfair.paper)})."
    )


def _beside(table: Table, workload: str) -> str:
    """D2LPM's throughput beside that of the others, at the quantum that suits it best."""
    found = _of(table, workload, SERVICE)
    best = max((_name(quantum) for quantum in QUANTA), key=lambda name: found[name].ours)
    highest = max(found[_name(quantum)].paper or 0.0 for quantum in QUANTA)
    told = [
        f"{found[best].ours / found[rival].ours:.2f} times {rival}'s "
        f"({highest / (found[rival].paper or 1.0):.2f})"
        for rival in (VTC, RR_LPM, PREBLE)
    ]
    return f"Where {workload}, D2LPM's throughput is at best {listed(told)}; the paper's in brackets."


def _of(table: Table, workload: str, quantity: Quantity) -> dict[str, Value]:
    return {value.name: value for value in table.of(workload, quantity)}


# -- the figure ------------------------------------------------------------------------------------------


def _figure(table: Table) -> Figure:
    figure = style.panels(4, 3.6, 2.5, most=2)
    for axes, (quantity, workload) in zip(
        figure.axes, product((SERVICE, JAIN), WORKLOADS.values()), strict=True
    ):
        _panel(axes, _of(table, workload, quantity))
        axes.set(title=f"{workload[0].upper()}{workload[1:]}", xlabel="Q_w", ylabel=quantity.name)
        axes.set_xscale("log")
        axes.set_xticks(QUANTA, [f"{quantum / 1000:g}k" for quantum in QUANTA])
        axes.minorticks_off()
        if quantity is JAIN:
            axes.set_ylim(0.3, 1.03)
        else:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    cluster.legend(figure)
    return figure


def _panel(axes: Axes, found: Mapping[str, Value]) -> None:
    for system, look in cluster.looks().items():
        values = (
            [found[_name(quantum)] for quantum in QUANTA]
            if system == D2LPM
            else [found[system]] * len(QUANTA)
        )
        marker = look.marker if system == D2LPM else ""
        axes.plot(QUANTA, [value.ours for value in values], color=look.color, marker=marker)
        theirs = [value.paper for value in values if value.paper is not None]
        if theirs:
            axes.plot(
                QUANTA, theirs, color=look.color, marker=marker, markerfacecolor="white", linestyle="--",
                linewidth=0.8,
            )  # fmt: skip

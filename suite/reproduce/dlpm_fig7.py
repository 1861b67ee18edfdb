"""Fig. 7 of the DLPM paper: six workloads under four systems on one to eight GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from operator import attrgetter
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from suite.report import style
from suite.report.experiment import Experiment
from suite.reproduce import cluster
from suite.reproduce.cluster import D2LPM, HITS, JAIN, PREBLE, RR_LPM, SERVICE, SYSTEMS, VTC
from suite.reproduce.dlpm_paper import FIG7, GPUS, P50, P99, QUANTITIES
from suite.reproduce.reproduction import Comparison, Reproduction
from suite.reproduce.values import Quantity, Table, Value, has_order, listed

WORKLOADS = {
    "s1-tot": "Tree of thoughts, S1: bigger trees",
    "s2-tot": "Tree of thoughts, S2: longer questions",
    "s1-judge": "LLM judge, S1: more dimensions",
    "s2-judge": "LLM judge, S2: longer prompts",
    "s1-qa": "Long-document QA, S1: more questions",
    "s2-qa": "Long-document QA, S2: longer documents",
}
EXPERIMENTS = {f"dlpm-fig7-{part}-d{gpus}": gpus for part in ("programs", "documents") for gpus in GPUS}
"""Number of GPUs of each experiment."""
HIGHER_IS_BETTER = (SERVICE, JAIN)
HIT_RATES = {4: 95, 8: 50}
"""Hit rate in per cent of RR+LPM on S2 of tree of thoughts by number of GPUs, the only ones in the paper."""


class DLPMFig7(Reproduction):
    """The main result of the paper, in simulation."""

    name = "dlpm-fig7"
    title = "Fig. 7 of the DLPM paper: four systems on one to eight GPUs"
    shows = """
*Locality-aware Fair Scheduling in LLM Serving* (arXiv 2501.14312), Fig. 7: Llama-3.1-8B on 1, 2, 4 and 8
A100-80GB; three clients, of which one misbehaves by sending more requests (S1) or longer prefixes (S2). The
paper prints no values: these were read off its vector graphics. *service/s* is client service, input + 2
output tokens a second; *Jain* that of client service while all clients are active; *P50* and *P99* are
averages over the well-behaved clients, of the time a program takes or, for long-document QA, of the TTFT.
Ours are means ± standard deviations over two seeds.
"""
    assumptions = f"""{cluster.ASSUMPTIONS.strip()}
- Three clients, as Jain's index in the paper falls to 0.33. The workloads are `workloads/specs/`'s
  `tree_of_thoughts`, `llm_judge` and `long_document_qa`, their load multiplied by the number of GPUs. The
  average prefix of the paper's Table 2 is taken to be what a program shares: the question of a tree, the
  article, the document.
- Trees begin for 20 s, articles for 100 s, which makes 10 and 50 programs for each client and GPU.
- Long-document QA: each client asks every 2 s for each GPU, for 100 s, about 24 documents for each GPU
  (Preble's own runs had 24 on two GPUs). The KV pool is what fits beside the weights. S1's factor is 3, as
  Jain's index of 0.76 under RR+LPM is that of shares of 3, 1 and 1.
- S2 of the judge: the 600 tokens that one client puts before its articles are the same each time, so that
  each of its prompts has a match. The paper does not say so; its Jain's index of 0.33 under RR+LPM suggests
  it.
- These readings of the pool, the factor and the 600 tokens were taken from values of the figure; nothing
  else was.
"""
    notes = """
## Q_w and long documents

A question on a document of 21,449 tokens costs more than a quantum of 20,000, so that D2LPM can hardly stay
with a document. On eight GPUs, with Q_w = 20,000, 100,000 and 400,000, service/s was 96,300, 101,500 and
107,100 in S1 and 71,300, 73,500 and 76,000 in S2, and the hit rate 28, 33 and 37 % in S1 and 14, 18 and 22 %
in S2, means of the two seeds. These numbers were measured once and are not made again by the command.
"""
    experiments = tuple(EXPERIMENTS)

    def compare(self, runs: Mapping[str, Experiment]) -> Comparison:
        """Six tables, how near the bounds were, and every order that is not the paper's."""
        frame = cluster.valid_rows(self.name, runs)
        frame = frame.assign(gpus=frame["experiment"].map(EXPERIMENTS))
        compared = tuple(_table(workload, frame[frame["workload"] == workload]) for workload in WORKLOADS)
        cases = [
            f"{WORKLOADS[row['workload']]}, {_gpus(row['gpus'])}: {row['system']}"
            for row in frame.to_dict("records")
        ]
        tables = (*compared, cluster.audited(frame, cases))
        findings = (*_findings(compared), *cluster.on_bounds(frame, cases))
        return Comparison(tables, findings, _figure(compared), _READING)


_READING = (
    "Rows: service/s, Jain's index, and P50 and P99 of the well-behaved clients in seconds; columns: the six "
    "workloads. Filled marks and solid lines are ours, hollow marks and dashed lines the paper's. All axes "
    "but Jain's are logarithmic."
)


def _gpus(count: int) -> str:
    return f"D = {count}"


def _table(workload: str, frame: pd.DataFrame) -> Table:
    latency = "ttft" if workload.endswith("qa") else "program"
    columns = {
        SERVICE: frame["client_service_per_s"],
        JAIN: frame["jain_client_all_active"],
        P50: frame[f"well_avg_{latency}_p50"],
        P99: frame[f"well_avg_{latency}_p99"],
        HITS: 100 * frame["hit_rate"],
    }
    values = (
        value
        for gpus in GPUS
        for system in SYSTEMS
        for quantity, found in columns.items()
        for value in cluster.over_seeds(
            f"{_gpus(gpus)}: {system}",
            quantity,
            found[(frame["gpus"] == gpus) & (frame["system"] == system)],
            FIG7.get((workload, quantity, system, gpus)),
        )
    )
    return Table(WORKLOADS[workload], "GPUs: system", tuple(values))


# -- what agrees -----------------------------------------------------------------------------------------


def _findings(tables: Sequence[Table]) -> Iterator[str]:
    yield _pairs(tables)
    yield from _ratios(tables)
    yield _hit_rates(tables[list(WORKLOADS).index("s2-tot")])
    for table in tables:
        for gpus in GPUS:
            yield from _orders(table, _gpus(gpus))


def _pairs(tables: Sequence[Table]) -> str:
    """How many pairs of systems stand in the paper's order, by quantity."""
    agree, all_pairs = Counter[Quantity](), Counter[Quantity]()
    for table in tables:
        for gpus in GPUS:
            for a, b in _comparable(table.of(_gpus(gpus), *QUANTITIES)):
                all_pairs[a.quantity] += 1
                agree[a.quantity] += has_order((a, b))
    told = [f"{agree[q]} of {all_pairs[q]} by {q.name}" for q in QUANTITIES]
    return (
        f"Of {all_pairs.total()} pairs of systems that the paper orders, on the same workload, GPUs and "
        f"quantity, {agree.total()} stand in the same order here: {listed(told)}."
    )


def _comparable(values: Iterable[Value]) -> Iterator[tuple[Value, Value]]:
    """The pairs of one quantity that the paper has both and tells apart."""
    for a, b in combinations(values, 2):
        if a.quantity == b.quantity and None not in (a.paper, b.paper) and a.paper != b.paper:
            yield a, b


def _ratios(tables: Sequence[Table]) -> Iterator[str]:
    """The paper's headlines: D2LPM's largest gains."""
    for rival in (VTC, RR_LPM, PREBLE):
        service = _gains(tables, SERVICE, rival)
        p50, p99 = _gains(tables, P50, rival), _gains(tables, P99, rival)
        yield (
            f"Against {rival}, D2LPM's throughput is {_span(service)}; the well-behaved clients' P50 under "
            f"{rival} is {_span(p50)} D2LPM's, their P99 {_span(p99)}."
        )


_Gains = Sequence[tuple[float, float]]
"""Ratios in favour of D2LPM, ours and the paper's, wherever the paper has one."""


def _gains(tables: Sequence[Table], quantity: Quantity, rival: str) -> _Gains:
    sign = 1 if quantity in HIGHER_IS_BETTER else -1
    return [
        ((a.ours / b.ours) ** sign, (a.paper / b.paper) ** sign)
        for table in tables
        for gpus in GPUS
        for a in table.of(_gpus(gpus), quantity)
        for b in table.of(_gpus(gpus), quantity)
        if (a.name, b.name) == (D2LPM, rival) and a.paper and b.paper
    ]


def _span(gains: _Gains) -> str:
    ours, paper = zip(*gains, strict=True)
    return f"{min(ours):.2f} to {max(ours):.2f} times (the paper's: {min(paper):.2f} to {max(paper):.2f})"


def _hit_rates(table: Table) -> str:
    ours = {gpus: table.of(_gpus(gpus), HITS) for gpus in HIT_RATES}
    found = {gpus: one.ours for gpus, values in ours.items() for one in values if one.name == RR_LPM}
    told = listed([f"{rate:.1f} % on {gpus}" for gpus, rate in found.items()])
    theirs = listed([f"{rate} % on {gpus}" for gpus, rate in HIT_RATES.items()])
    return f"The hit rate of RR+LPM on S2 of tree of thoughts is {told} GPUs; the paper's is {theirs}."


def _orders(table: Table, group: str) -> Iterator[str]:
    """One sentence if the systems stand in another order than the paper's by any quantity."""
    told = []
    for quantity in QUANTITIES:
        values = [value for value in table.of(group, quantity) if value.paper is not None]
        if not has_order(values):
            ours, paper = _ranking(values, "ours"), _ranking(values, "paper")
            told.append(f"{quantity.name} ({ours}; the paper {paper})")
    if told:
        yield f"{table.title}, {group}: not in the paper's order by {listed(told)}; best first."


def _ranking(values: Sequence[Value], source: Literal["ours", "paper"]) -> str:
    best_is_high = values[0].quantity in HIGHER_IS_BETTER
    ranked = sorted(values, key=attrgetter(source), reverse=best_is_high)
    return " > ".join(value.name for value in ranked)


# -- the figure ------------------------------------------------------------------------------------------


def _figure(tables: Sequence[Table]) -> Figure:
    figure = style.panels(len(QUANTITIES) * len(tables), 1.9, 1.4, most=len(tables))
    for axes, (quantity, table) in zip(figure.axes, product(QUANTITIES, tables), strict=True):
        _panel(axes, [value for value in table.values if value.quantity == quantity])
        if quantity is QUANTITIES[0]:
            axes.set_title(table.title.replace(", ", ",\n"), fontsize=8)
        if table is tables[0]:
            axes.set_ylabel(quantity.name)
        if quantity is QUANTITIES[-1]:
            axes.set_xlabel("GPUs")
    cluster.legend(figure)
    return figure


def _panel(axes: Axes, values: Sequence[Value]) -> None:
    for system, look in cluster.looks().items():
        own = {gpus: v for gpus in GPUS for v in values if v.case == f"{_gpus(gpus)}: {system}"}
        ours = {gpus: value.ours for gpus, value in own.items()}
        theirs = {gpus: value.paper for gpus, value in own.items() if value.paper is not None}
        axes.plot([*ours], [*ours.values()], color=look.color, marker=look.marker)
        axes.plot(
            [*theirs], [*theirs.values()], color=look.color, marker=look.marker, markerfacecolor="white",
            linestyle="--", linewidth=0.8,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    if values[0].quantity is JAIN:
        axes.set_ylim(0.3, 1.03)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_minor_locator(NullLocator())

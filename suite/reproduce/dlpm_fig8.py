"""Fig. 8 of the DLPM paper: two clients flood with conversations, and one of them calms down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from suite.metrics.latency import latencies
from suite.metrics.throughput import makespan
from suite.report import style
from suite.report.experiment import Cell, Experiment
from suite.reproduce import cluster
from suite.reproduce.cluster import D2LPM, RR_LPM, VTC
from suite.reproduce.reproduction import Comparison, Reproduction
from suite.reproduce.values import Quantity, Table, Value, furthest, has_order

CLIENTS = tuple(f"client-{number}" for number in range(4))
FLOODING = CLIENTS[2:]
PEAKS = tuple(Quantity(f"{client}, s", 1) for client in CLIENTS)
END = Quantity("run ends, s", 0)
PAPER = {
    D2LPM: (14.8, 16.8, 65.9, 68.4, 232.0),
    VTC: (13.4, 12.5, 47.0, 79.9, 229.0),
    RR_LPM: (51.5, 70.0, 70.9, 44.6, 221.0),
}
"""The highest response time of each client, and when the run ends, in seconds."""

WINDOW = 10.0
"""Seconds of arrivals over which response times are averaged."""


class DLPMFig8(Reproduction):
    """The recovering flooder, in simulation, on other conversations."""

    name = "dlpm-fig8"
    title = "Fig. 8 of the DLPM paper: a flooder that calms down"
    shows = """
*Locality-aware Fair Scheduling in LLM Serving* (arXiv 2501.14312), Fig. 8: Llama-3.2-3B on two A10G, real
conversations of four clients, of whom clients 2 and 3 flood and client 2 calms down midway; each client's
response time over time. The paper prints no values: the highest of each client and the end of the run were
read off its vector graphics. *Response time* is the TTFT here, averaged over the requests of a client that
arrive in the same 10 s; the table has its highest value, means ± standard deviations over three seeds.
"""
    assumptions = """
- The paper's conversations are from the Chatbot Arena, several real clients merged into one, their
  timestamps rescaled; they are not public. Ours are 272 conversations of ShareGPT (300 prompts;
  casys-kaist/LLMServingSim), looked for in the folder that `SUITE_TRACES` names. A session is one of them,
  drawn with replacement. Their prompts have 857 tokens and their replies 653 on average, the paper's 56
  (the shared prefix) and 142; few go on for a second turn, so there is little to hit, and nothing is to be
  seen here of what a router does for locality.
- The paper does not say how much the clients send. Ours: 0.5 conversations a second for clients 0 and 1,
  less than a quarter of what both GPUs serve; seven times that for the flooders, for 180 s, client 2 for 90
  s.
- *VTC* charges extend tokens, and stands behind a round robin of its own for each client; Q_w = 20,000 and
  Q_u = 2,000 are ours; Preble is not in the figure. The KV pool is what fits beside the weights. SGLang's
  loop in simulation, on the roofline of the suite's README.
"""
    experiments = ("dlpm-fig8",)
    files = ("sharegpt/sharegpt-llama-3.1-8b-300-sps10.jsonl",)

    def compare(self, runs: Mapping[str, Experiment]) -> Comparison:
        """The peaks of both, and the courses."""
        frame = cluster.valid_rows(self.name, runs)
        cells = {cell.folder.name: cell for cell in runs["dlpm-fig8"].cells}
        courses = {
            system: [_course(cells[str(name)]) for name in frame.loc[frame["system"] == system, "cell"]]
            for system in PAPER
        }
        table = Table("Highest response time", "system", tuple(_values(courses)))
        cases = list(frame["system"])
        findings = (*_findings(table), *cluster.on_bounds(frame, cases))
        return Comparison((table, cluster.audited(frame, cases)), findings, _figure(courses), _READING)


_READING = (
    "Response time of each client by time of arrival, one panel for each system, ours under the first seed; "
    "dotted lines in the clients' colours are the paper's highest values. client-2 calms down at 90 s."
)

_Course = tuple[pd.DataFrame, float]
"""Response times in s, a row for each window (its centre in s), a column for each client; the end in s."""


def _course(cell: Cell) -> _Course:
    requests = cell.run().requests
    found = latencies(requests)
    centres = (found["arrival"] // WINDOW + 0.5) * WINDOW
    course = found.groupby([centres, "client"])["ttft"].mean().unstack()
    return course, makespan(requests)


def _values(courses: Mapping[str, Sequence[_Course]]) -> Iterator[Value]:
    for system, paper in PAPER.items():
        columns = [
            *(pd.Series([course[client].max() for course, _ in courses[system]]) for client in CLIENTS),
            pd.Series([end for _, end in courses[system]]),
        ]
        for quantity, found, theirs in zip((*PEAKS, END), columns, paper, strict=True):
            yield from cluster.over_seeds(system, quantity, found, theirs)


# -- what agrees -----------------------------------------------------------------------------------------


def _findings(table: Table) -> Iterator[str]:
    for client, quantity in zip(CLIENTS, PEAKS, strict=True):
        values = [value for value in table.values if value.quantity == quantity]
        word = "is" if has_order(values) else "is not"
        yield f"By the peak of {client} the order of the systems {word} the paper's; {furthest(values)}."
    for system in PAPER:
        yield _apart(system, [v for v in table.values if v.case == system and v.quantity in PEAKS])


def _apart(system: str, values: Sequence[Value]) -> str:
    """How much longer the flooders wait, at worst, than those who do not flood."""
    calm = [place for place, client in enumerate(CLIENTS) if client not in FLOODING]
    flooding = [place for place, client in enumerate(CLIENTS) if client in FLOODING]
    ours, paper = (
        max(peaks[place] for place in flooding) / max(peaks[place] for place in calm)
        for peaks in ([value.ours for value in values], [value.paper or 0.0 for value in values])
    )
    return (
        f"Under {system} the flooders' highest response time is {ours:.1f} times that of the others, in the "
        f"paper {paper:.1f} times."
    )


# -- the figure ------------------------------------------------------------------------------------------


def _figure(courses: Mapping[str, Sequence[_Course]]) -> Figure:
    looks = style.clients(CLIENTS, FLOODING)
    figure = style.panels(len(PAPER), 3.6, 2.8)
    for axes, (system, paper) in zip(figure.axes, PAPER.items(), strict=True):
        course, _ = courses[system][0]
        for client, peak in zip(CLIENTS, paper, strict=False):
            look = looks[client]
            axes.plot(
                course.index, course[client], color=look.color, linestyle=look.dashes, marker=look.marker
            )
            axes.axhline(peak, color=look.color, linestyle=":", linewidth=1)
        axes.set(title=system, xlabel="arrival (s)")
    top = max(axes.get_ylim()[1] for axes in figure.axes)
    for axes in figure.axes:
        axes.set_ylim(0, top)
    figure.axes[0].set_ylabel("response time (s)")
    handles = {
        client: Line2D([], [], color=look.color, linestyle=look.dashes, marker=look.marker)
        for client, look in looks.items()
    }
    handles["the paper's highest"] = Line2D([], [], color="#595959", linestyle=":")
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=len(handles))
    return figure

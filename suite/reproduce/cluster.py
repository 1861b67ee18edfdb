"""The systems that the DLPM paper compares on several GPUs, and what is looked at wherever it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from suite.errors import BadInput
from suite.report import style, tables
from suite.report.experiment import Experiment
from suite.reproduce.values import Quantity, Table, Value

PREBLE, RR_LPM, VTC, D2LPM = "Preble", "RR+LPM", "VTC", "D2LPM"
POLICIES = {
    "preble+preble-groups": PREBLE,
    "round-robin+lpm": RR_LPM,
    "client-round-robin+vtc": VTC,
    "d2lpm+dlpm": D2LPM,
}
"""The paper's name of each policy, in the paper's order."""
SYSTEMS = tuple(POLICIES.values())

SERVICE, JAIN, HITS = Quantity("service/s", 0), Quantity("Jain", 3), Quantity("hit rate, %", 1)
WHOLE, REPLICA = Quantity("largest gap / bound", 3), Quantity("the same at one replica", 3)

ASSUMPTIONS = """
- The paper prints neither rates, nor how many programs, nor the Gamma process's coefficient of variation,
  nor Q_u, nor Q_w but in Fig. 10, nor the size of the KV pool. Ours: Q_w = 20,000 and Q_u = 2,000 (their
  defaults in `baselines/`), a coefficient of variation of 0.5, so that all clients begin about as many
  programs in a short time, and what follows.
- Trees and articles run on a KV pool of 20,000 tokens a GPU. It is the one that a third party's rerun of the
  authors' code was given (`--max-total 20000`), and it brings VTC, LPM and DLPM on one simulated A100 near
  the paper's throughput, which a pool of all the memory beside the weights (415,000 tokens) does not.
- Each client begins a program every 2 s for each A100, as in that rerun's LLM judge.
- *VTC* charges extend tokens, as the paper's evidently does, on each replica, behind a round robin of its
  own for each client. *RR+LPM* is SGLang's LPM behind one round robin. *Preble* is its global scheduler
  before its local priority groups; *D2LPM* runs DLPM at every replica. Routers learn of evictions when the
  step, or stretch of decode steps, that made them has ended.
- SGLang's loop, cache and eviction in simulation; how long a step takes is the roofline of the suite's
  README.
"""


def valid_rows(name: str, runs: Mapping[str, Experiment]) -> pd.DataFrame:
    """The summaries of all valid cells, with two more columns: the experiment's name, the paper's `system`.

    Raises `BadInput` if an experiment has no valid cell of a system that it ran.
    """
    frames = [_rows(name, experiment, run) for experiment, run in runs.items()]
    return pd.concat(frames, ignore_index=True)


def _rows(name: str, experiment: str, run: Experiment) -> pd.DataFrame:
    frame = tables.collected(run)
    frame = frame.assign(experiment=experiment, system=frame["policy"].map(POLICIES))
    rows = tables.valid(frame)
    cases = ["workload", "scheduler"]
    missing = set(frame[cases].itertuples(index=False)) - set(rows[cases].itertuples(index=False))
    if missing:
        workload, scheduler = min(missing)
        raise BadInput(
            f"{name}: no valid run of {scheduler} on {workload} in {experiment}; run the experiment again"
        )
    return rows


def over_seeds(
    case: str, quantity: Quantity, found: pd.Series[float], paper: float | None
) -> Iterator[Value]:
    """The mean over the seeds that have the number, and its standard deviation; nothing if none has it."""
    known = found.dropna().astype(float)
    if len(known):
        spread = float(known.std()) if len(known) > 1 else None
        yield Value(case, quantity, float(known.mean()), paper, spread)


def looks() -> dict[str, style.Look]:
    """How each system is drawn."""
    found = style.policies(POLICIES)
    return {system: found[policy] for policy, system in POLICIES.items()}


def legend(figure: Figure) -> None:
    """A legend below the panels: the systems, ours and the paper's."""
    handles = {
        system: Line2D([], [], color=look.color, marker=look.marker) for system, look in looks().items()
    }
    handles["the paper's"] = Line2D(
        [], [], color="#595959", marker="o", markerfacecolor="white", linestyle="--"
    )
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=len(handles))


# -- the bounds ------------------------------------------------------------------------------------------


def audited(frame: pd.DataFrame, cases: Sequence[str]) -> Table:
    """How near the runs that have a bound came to it; of a case (one for each row) the nearest seed."""
    rows = frame.assign(case=cases)
    values: list[Value] = []
    for case, group in rows[rows["bound"].notna()].groupby("case", sort=False):
        for quantity, gap, bound in ((WHOLE, "bound_gap", "bound"), (REPLICA, "worker_gap", "worker_bound")):
            share = (group[gap].astype(float) / group[bound].astype(float)).max()
            values += [] if pd.isna(share) else [Value(str(case), quantity, float(share))]
    return Table("The bounds on service", "run", tuple(values))


def on_bounds(frame: pd.DataFrame, cases: Sequence[str]) -> Iterator[str]:
    """In how many runs the bounds held, and where not; of each run its case."""
    rows = frame.assign(case=cases)
    in_all, at_one = _broken(rows, "bound", "bound"), _broken(rows, "worker", "worker_bound")
    yield from _told("total service", in_all, int(rows["bound"].notna().sum()))
    yield from _told("the service of each replica", at_one, int(rows["worker_bound"].notna().sum()))
    if in_all and not at_one:
        yield (
            "The paper states the bound for clients that are backlogged, and its proof goes replica by "
            "replica. A client that is backlogged somewhere may have nothing waiting at one replica, which "
            "then serves whoever has: at no replica is that a breach, and yet the totals drift apart."
        )


def _broken(rows: pd.DataFrame, column: str, bound: str) -> list[str]:
    """The runs that broke a bound, each with its window, gap and bound."""
    return [
        f"{row['case']}, seed {row['seed']}, {row[f'{column}_window']} (gap {row[f'{column}_gap']:,.0f}, "
        f"bound {row[bound]:,.0f})"
        for row in rows[rows[f"{column}_held"].eq(False)].to_dict("records")
    ]


def _told(of: str, broken: Sequence[str], runs: int) -> Iterator[str]:
    yield (
        f"The bound on {of} held in every backlogged interval of {runs - len(broken)} of the {runs} runs "
        f"that have one."
    )
    yield from (f"The bound on {of} was broken: {one}." for one in broken)

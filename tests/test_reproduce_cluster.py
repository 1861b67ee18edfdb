"""The DLPM paper's experiments on several GPUs: its values, and what is said where ours differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from synthetic_runs import requests

from suite import experiment
from suite.errors import BadInput
from suite.report import style
from suite.reproduce import cluster, dlpm_fig7, dlpm_fig8, dlpm_fig10
from suite.reproduce.cluster import D2LPM, JAIN, POLICIES, PREBLE, RR_LPM, SERVICE, VTC
from suite.reproduce.dlpm_paper import FIG7, P50, P99
from suite.reproduce.reproduction import Comparison, Reproduction

COLUMNS = {
    SERVICE: ("client_service_per_s",),
    JAIN: ("jain_client_all_active",),
    P50: ("well_avg_program_p50", "well_avg_ttft_p50"),
    P99: ("well_avg_program_p99", "well_avg_ttft_p99"),
}
POLICY_OF = {system: policy for policy, system in POLICIES.items()}


def row(workload: str, system: str, seed: int = 0, **values: Any) -> dict[str, Any]:
    """The summary of a valid cell whose bounds, where its system has them, held."""
    fair = system in (VTC, D2LPM)
    held = {"bound_held": True, "worker_held": True, "bound_window": None, "worker_window": None}
    bounds = {"bound": 100.0, "bound_gap": 40.0, "worker_bound": 50.0, "worker_gap": 45.0, **held}
    return {
        "cell": f"{workload}-{system}-{seed}", "workload": workload, "scheduler": POLICY_OF[system],
        "policy": POLICY_OF[system], "seed": seed, "invalid": None, "hit_rate": 0.5,
        **(bounds if fair else dict.fromkeys(bounds)), **values,
    }  # fmt: skip


def compared(reproduction: Reproduction, frames: Mapping[str, pd.DataFrame]) -> Comparison:
    """The comparison of experiments, of which the summaries are given by name."""
    with pytest.MonkeyPatch.context() as patch, style.styled():
        patch.setattr(cluster.tables, "collected", lambda name: frames[name])
        return reproduction.compare({name: name for name in frames})  # type: ignore[misc]


# -- Fig. 7 ------------------------------------------------------------------------------------------------


def like_the_paper(name: str, **changes: float) -> Iterator[dict[str, Any]]:
    """One row for each system that the paper has on a workload of the experiment, with the paper's values.

    `changes` are of D2LPM on S1 of the judge, on two GPUs.
    """
    gpus, part = dlpm_fig7.EXPERIMENTS[name], name.split("-")[2]
    for workload in dlpm_fig7.WORKLOADS:
        if workload.endswith("qa") == (part == "documents"):
            for system in POLICY_OF:
                known = {q: FIG7.get((workload, q, system, gpus)) for q in COLUMNS}
                values = {column: known[q] for q, columns in COLUMNS.items() for column in columns}
                if (workload, system, gpus) == ("s1-judge", D2LPM, 2):
                    values |= changes
                if any(known.values()):
                    yield row(workload, system, **values)


@cache
def fig7(**changes: float) -> Comparison:
    frames = {name: pd.DataFrame(like_the_paper(name, **changes)) for name in dlpm_fig7.EXPERIMENTS}
    return compared(dlpm_fig7.DLPMFig7(), frames)


def test_the_papers_values_are_read_to_their_places():
    assert len(FIG7) == 6 * 4 * 4 * 4 - 6 * 4 - 4, "no Preble on one GPU, no VTC on S2 of trees on eight"
    assert FIG7["s1-tot", SERVICE, D2LPM, 8] / FIG7["s1-tot", SERVICE, VTC, 8] == pytest.approx(
        2.87, abs=5e-3
    )
    assert FIG7["s2-tot", SERVICE, D2LPM, 8] / FIG7["s2-tot", SERVICE, RR_LPM, 8] == pytest.approx(
        2.22, abs=5e-3
    )
    ratios = {rival: FIG7["s2-qa", P50, rival, 2] / FIG7["s2-qa", P50, D2LPM, 2] for rival in POLICY_OF}
    assert ratios == pytest.approx({PREBLE: 7.18, RR_LPM: 9.55, VTC: 7.96, D2LPM: 1}, rel=0.01)
    assert FIG7["s2-judge", JAIN, RR_LPM, 1] == 0.33
    assert FIG7["s2-qa", P99, PREBLE, 8] == 616


def test_our_values_stand_beside_the_papers():
    *tables, audit = fig7().tables
    assert [table.title for table in tables] == list(dlpm_fig7.WORKLOADS.values())
    values = [value for table in tables for value in table.values if value.paper is not None]
    assert len(values) == len(FIG7)
    assert all(value.ours == value.paper for value in values)
    assert {value.name for value in audit.values} == {VTC, D2LPM}
    assert {(value.quantity.name, value.ours) for value in audit.values} == {
        ("largest gap / bound", 0.4), ("the same at one replica", 0.9)
    }  # fmt: skip


def test_where_all_is_as_in_the_paper_nothing_else_is_said():
    findings = fig7().findings
    assert findings[0].startswith("Of 489 pairs of systems")
    assert "489 stand in the same order here" in findings[0]
    assert not [finding for finding in findings if "not in the paper's order" in finding]
    assert "D2LPM's throughput is 1.06 to 2.90 times (the paper's: 1.06 to 2.90)" in " ".join(findings)


def test_another_order_is_told_with_both():
    findings = fig7(well_avg_program_p99=300.0).findings
    (told,) = [finding for finding in findings if "not in the paper's order" in finding]
    assert told == (
        "LLM judge, S1: more dimensions, D = 2: not in the paper's order by P99, s (VTC > D2LPM > Preble > "
        "RR+LPM; the paper D2LPM > VTC > Preble > RR+LPM); best first."
    )


def test_the_hit_rates_are_of_lpm_on_trees_with_long_questions():
    told = "is 50.0 % on 4 and 50.0 % on 8 GPUs; the paper's is 95 % on 4 and 50 % on 8"
    assert any(told in finding for finding in fig7().findings)


def test_a_system_without_a_valid_run_is_missed():
    frame = pd.DataFrame([row("s1-qa", VTC), row("s1-qa", D2LPM) | {"invalid": "client too slow"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.tables, "collected", lambda run: frame)
        with pytest.raises(BadInput, match=r"x: no valid run of d2lpm\+dlpm on s1-qa in one; run the exp"):
            cluster.valid_rows("x", {"one": None})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", dlpm_fig7.EXPERIMENTS)
def test_the_load_grows_with_the_gpus(name: str):
    gpus = dlpm_fig7.EXPERIMENTS[name]
    cells = experiment.load(name).cells
    assert {cell.settings["replicas"] for cell in cells} == {gpus}
    assert {cell.overrides["load"] for cell in cells} == {gpus}
    policies = [cell.labels["policy"] for cell in cells]
    assert set(policies) == {policy for policy in POLICIES if gpus > 1 or not policy.startswith("preble")}
    assert {cell.labels["workload"] for cell in cells} <= set(dlpm_fig7.WORKLOADS)


# -- the bounds --------------------------------------------------------------------------------------------


def bounds(**broken: Any) -> list[str]:
    """What is said of two runs with a bound, one of them broken, and of one without."""
    frame = pd.DataFrame([row("w", VTC), row("w", D2LPM, 3, **broken), row("w", RR_LPM)])
    return list(cluster.on_bounds(frame, ["one", "two", "three"]))


def test_a_broken_bound_is_told_with_its_window():
    window = "'a' ahead of 'b' from 1 s to 2 s"
    assert bounds(worker_held=False, worker_gap=60.0, worker_window=window) == [
        "The bound on total service held in every backlogged interval of 2 of the 2 runs that have one.",
        "The bound on the service of each replica held in every backlogged interval of 1 of the 2 runs that "
        "have one.",
        f"The bound on the service of each replica was broken: two, seed 3, {window} (gap 60, bound 50).",
    ]


def test_totals_may_drift_apart_where_no_replica_is_at_fault():
    both = {"bound_held": False, "bound_gap": 160.0, "bound_window": "w"}
    assert "at no replica is that a breach" in bounds(**both)[-1]
    assert "at no replica" not in bounds(**both, worker_held=False, worker_window="w")[-1]


# -- Fig. 10 -----------------------------------------------------------------------------------------------


def sweep(service: float) -> pd.DataFrame:
    """The paper's values, D2LPM's throughput at the largest quantum multiplied where one misbehaves."""
    rows = []
    for name, workload in dlpm_fig10.WORKLOADS.items():
        for system in POLICY_OF:
            for quantum in dlpm_fig10.QUANTA if system == D2LPM else (None,):
                case = f"{workload}: {system if quantum is None else dlpm_fig10._name(quantum)}"
                last = (quantum, workload) == (40000, dlpm_fig10.ONE)
                paper = dlpm_fig10.PAPER[case, SERVICE] * (service if last else 1)
                values = {
                    "client_service_per_s": paper,
                    "jain_client_all_active": 0.8,
                    "d2lpm.quantum": quantum,
                }
                rows.append(row(name, system, **values))
    return pd.DataFrame(rows)


def test_the_sweep_tells_gain_and_order():
    same = compared(dlpm_fig10.DLPMFig10(), {"dlpm-fig10": sweep(1.0)}).findings
    assert "Where one client misbehaves, the order by throughput is the paper's" in same[0]
    assert "throughput changes by +27.7 % (the paper's by +27.7 %)" in same[1]
    assert "at best 1.82 times VTC's (1.82), 1.29 times RR+LPM's (1.29) and 1.71 times" in same[2]
    other = compared(dlpm_fig10.DLPMFig10(), {"dlpm-fig10": sweep(0.5)}).findings
    assert "Where one client misbehaves, the order by throughput is not the paper's" in other[0]
    assert "throughput changes by -36.1 % (the paper's by +27.7 %)" in other[1]
    assert same[3:6] == other[3:6]


# -- Fig. 8 ------------------------------------------------------------------------------------------------


def recorded(waits: Mapping[str, float]) -> pd.DataFrame:
    """Two requests of each client in one window; it waits so long on average."""
    return requests(
        *(
            {"client": client, "arrival": 21 + i, "first_token": 21 + i + 2 * i * wait, "finish": 200,
             "prompt_tokens": 10, "output_tokens": 5}
            for client, wait in waits.items()
            for i in (0, 1)
        )
    )  # fmt: skip


def test_peaks_are_of_means_over_windows(monkeypatch: pytest.MonkeyPatch):
    waits = dict(zip(dlpm_fig8.CLIENTS, (2.0, 4.0, 8.0, 32.0), strict=True))
    rows = [row("sharegpt", system) for system in dlpm_fig8.PAPER]
    cells = [
        SimpleNamespace(folder=Path(one["cell"]), run=lambda: SimpleNamespace(requests=recorded(waits)))
        for one in rows
    ]
    monkeypatch.setattr(cluster.tables, "collected", lambda run: pd.DataFrame(rows))
    with style.styled():
        runs: Any = {"dlpm-fig8": SimpleNamespace(cells=cells)}
        found = dlpm_fig8.DLPMFig8().compare(runs)
    values = {(value.case, value.quantity.name): value.ours for value in found.tables[0].values}
    assert [values[VTC, f"{client}, s"] for client in dlpm_fig8.CLIENTS] == [2, 4, 8, 32]
    assert values[VTC, "run ends, s"] == 200 - 21
    assert (
        "Under VTC the flooders' highest response time is 8.0 times that of the others, in the paper 6.0"
        in (" ".join(found.findings))
    )

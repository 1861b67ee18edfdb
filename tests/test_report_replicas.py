"""The report of schedulers behind routers: names, looks, order, bounds of replicas, who did how much."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_runs import experiment, requests, run

from suite.report import figures, listings, style, tables
from suite.report.effects import Effect
from suite.report.experiment import load, reading_order
from suite.report.figures.effects import forest
from suite.report.figures.frontier import tradeoff
from suite.report.figures.parts import given, swept
from suite.report.figures.replicas import service_by_replica
from suite.report.terminal import rich_table
from suite.results import Run

PAPERS = (
    "round-robin+lpm",
    "client-round-robin+vtc",
    "cache-aware+lpm",
    "preble+preble-groups",
    "d2lpm+dlpm",
)
PEERS = ("sglang-router:cache_aware+lpm", "vllm-router:cache_aware+lpm", "vllm-router:random+vllm:fcfs")


def routed(
    scheduler: str, policy: str, shares: tuple[int, ...] = (300, 100), seed: int = 0, **labels: Any
) -> Run:
    """Two clients that wait until 1; each replica then computes this many prompt tokens for each of them."""
    rows = [
        {"client": client, "arrival": 0.0, "admitted": 1.0, "finish": 3.0, "worker": f"replica-{i}",
         "prompt_tokens": tokens}
        for i, tokens in enumerate(shares) for client in "ab"
    ]  # fmt: skip
    one = run(requests(*rows), scheduler=scheduler, policy=policy, seed=seed, **labels)
    word = {"replicas": len(shares), "workers": {f"replica-{i}": {"losses": 0} for i in range(len(shares))}}
    backend = {**one.manifest.backend, "replicas": len(shares)}
    target = {**one.manifest.scheduler, "router": {"name": "x", "target": "baselines.x:X"}}
    return replace(one, manifest=replace(one.manifest, engine=word, backend=backend, scheduler=target))


# -- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "parameters", "single"),
    [
        ("dlpm", {}, None),
        ("dlpm:quantum=20", {"quantum": "20"}, ("quantum", 20.0)),
        ("vtc:charge=extend", {"charge": "extend"}, None),
        ("dlpm:output_weight=3,quantum=20", {"output_weight": "3", "quantum": "20"}, None),
        ("d2lpm:quantum=20+dlpm", {"d2lpm.quantum": "20"}, ("d2lpm.quantum", 20.0)),
        ("d2lpm+dlpm:quantum=20", {"dlpm.quantum": "20"}, ("dlpm.quantum", 20.0)),
        ("d2lpm:quantum=2+dlpm:quantum=3", {"d2lpm.quantum": "2", "dlpm.quantum": "3"}, None),
        ("d2lpm:quantum=1e+20+dlpm", {"d2lpm.quantum": "1e+20"}, None),
        ("vllm-router:cache_aware+vllm:fcfs", {}, None),
    ],
)
def test_parameters_are_read_off_a_label(label: str, parameters: dict[str, str], single: Any):
    assert given(label) == parameters
    assert swept(label) == single


def test_a_swept_router_is_one_line_in_the_picture(tmp_path: Path):
    runs = [routed(f"d2lpm:quantum={q}+dlpm", "d2lpm+dlpm", (q, q)) for q in (1000, 2000)]
    figure, _ = tradeoff(
        tables.collect(experiment(tmp_path, *runs, routed("cache-aware+lpm", "cache-aware+lpm")))
    )
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "d2lpm+dlpm, by d2lpm.quantum", "cache-aware+lpm"
    }  # fmt: skip
    shown = ", ".join(text.get_text() for text in figure.axes[0].texts)
    assert {"1000", "2000"} <= set(shown.replace("†", "").split(", "))


def test_schedulers_come_alone_then_behind_routers_in_their_own_order():
    policies = [*PAPERS, "vtc", "dlpm", "lpm", "round-robin+mine", "mine"]
    assert sorted(policies, key=lambda policy: reading_order(policy, policy)) == [
        "lpm", "cache-aware+lpm", "round-robin+lpm", "preble+preble-groups", "vtc", "client-round-robin+vtc",
        "dlpm", "d2lpm+dlpm", "mine", "round-robin+mine",
    ]  # fmt: skip


# -- looks -----------------------------------------------------------------------------------------------


def test_what_stands_behind_routers_can_be_told_apart():
    policies = [*PAPERS, *PEERS, "d2lpm+vtc", "least-outstanding+lpm", "power-of-two+lpm", "mine+lpm", "vtc"]
    looks = style.policies(policies)
    for one, other in combinations(policies, 2):
        assert looks[one].color != looks[other].color, (one, other)


def test_a_routers_look_is_the_same_whoever_is_beside_it():
    alone = {policy: style.policies([policy])[policy] for policy in (*PAPERS, *PEERS)}
    together = style.policies(PAPERS + PEERS[:2])
    assert all(together[policy] == alone[policy] for policy in PAPERS + PEERS[:2])
    beside_a_stranger = style.policies((*PEERS[:2], "a-router+lpm", "a-router+lpm"))
    assert all(beside_a_stranger[policy] == alone[policy] for policy in PEERS[:2])
    assert beside_a_stranger == style.policies(("a-router+lpm", *PEERS[:2])), "however often it is named"


def test_long_names_stay_apart_in_legends():
    names = [f"client-round-robin+vtc:charge={charge}" for charge in ("full", "extend")]
    assert len(set(map(style.plain, names))) == 2


# -- numbers ---------------------------------------------------------------------------------------------


def test_throughput_is_compared_with_vtc_behind_its_router(tmp_path: Path):
    folder = experiment(
        tmp_path, routed("client-round-robin+vtc", "client-round-robin+vtc", (98, 98)),
        routed("d2lpm+dlpm", "d2lpm+dlpm", (298, 298)),
    )  # fmt: skip
    found = {row.scheduler: row.values["vs_reference"].text for row in tables.rows(tables.collect(folder))}
    assert found == {"client-round-robin+vtc": "1.00", "d2lpm+dlpm": "3.00"}


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_papers_names_stand_whole_in_the_terminal(width: int, tmp_path: Path):
    folder = experiment(tmp_path, *(routed(name, name) for name in PAPERS))
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(rich_table(tables.collect(folder), width))
    assert [name for name in PAPERS if f" {name} " not in buffer.getvalue()] == []


def test_the_name_below_a_panel_of_effects_has_room(tmp_path: Path):
    long = "d2lpm:quantum=20000+dlpm:quantum=2000"
    effect = Effect(
        "chat", "ttft", "TTFT", "min", long, "vtc", 1.0, 1.0, 1.0, 0.9, 1.1, 3, "no difference seen", None
    )
    axes = forest([effect]).figure.axes[0]
    assert axes.get_xlabel() == f"{long}\n/ baseline"


def broken(folder: Path) -> Any:
    """Three seeds of one scheduler; two broke the bound over all replicas, one that of a replica."""
    frame = tables.collect(
        experiment(folder, *(routed("d2lpm+dlpm", "d2lpm+dlpm", seed=i) for i in range(3)))
    )
    return frame.assign(
        bound=100.0, bound_gap=[130.0, 90.0, 150.0], bound_held=[False, True, False], bound_service="actual",
        bound_window=["'a' ahead of 'b' from 1 s to 2 s", None, "'[b]b' ahead of 'a' from 3 s to 4 s"],
        worker_bound=50.0, worker_gap=[10.0, 20.0, 51.0], worker_held=[True, True, False],
        worker_window=[None, None, "replica-1: 'a' ahead of 'b' from 5 s to 6 s"],
    )  # fmt: skip


def test_a_broken_bound_is_told_under_the_table(tmp_path: Path):
    frame = broken(tmp_path)
    assert tables.warnings(frame) == [
        "chat, d2lpm+dlpm: the bound on all replicas together, promised for clients that wait at each of "
        "them, was broken in 2 of 3 runs, at most 1.50 times over: seed 2, '[b]b' ahead of 'a' from 3 s "
        "to 4 s",
        "chat, d2lpm+dlpm: the bound of one replica, which the scheduler there ought to hold, was broken in "
        "1 of 3 runs, at most 1.02 times over: seed 2, replica-1: 'a' ahead of 'b' from 5 s to 6 s",
    ]
    (row,) = tables.rows(frame)
    assert (row.values["bound_share"].text, row.values["worker_share"].text) == ("1.50", "1.02")
    buffer = io.StringIO()
    Console(file=buffer, width=400).print(rich_table(frame, 80))
    assert "'[b]b' ahead of 'a'" in buffer.getvalue()


def test_the_bound_of_one_replica_alone_has_no_word_of_others(tmp_path: Path):
    frame = broken(tmp_path).assign(imbalance=None, worker_bound=None, worker_gap=None, worker_window=None)
    (warning,) = tables.warnings(frame)
    assert warning.startswith(
        "chat, d2lpm+dlpm: the bound was broken in 2 of 3 runs, at most 1.50 times over"
    )
    assert "imbalance" not in tables.caption(tables.shown_columns(frame))


def test_the_audit_lists_both_bounds_and_marks_what_broke_them(tmp_path: Path):
    listing = listings.audit(broken(tmp_path))
    assert listing.title == (
        "The bound held in 1 of 3 runs whose policy has one; that of each replica in 2 of 3"
    )
    columns = dict(zip(listing.headings, zip(*listing.rows, strict=True), strict=True))
    assert [(item.text, item.alarm) for item in columns["held"]] == [
        ("no", True),
        ("yes", False),
        ("no", True),
    ]
    assert [(item.text, item.alarm) for item in columns["held, one replica"]] == [
        ("yes", False), ("yes", False), ("no", True)
    ]  # fmt: skip
    assert "replica-1" in columns["window that broke it, one replica"][2].text
    assert set(listing.words) <= set(listing.headings)


def test_without_replicas_the_audit_has_no_columns_for_them(tmp_path: Path):
    frame = broken(tmp_path).assign(worker_held=None)
    assert not [heading for heading in listings.audit(frame).headings if "replica" in heading]


# -- the picture of the replicas -------------------------------------------------------------------------


def test_shares_of_replicas_are_drawn_as_means_over_seeds(tmp_path: Path):
    one, two = "cache-aware+lpm", "d2lpm+dlpm"
    runs = [routed(one, one, (298, 98)), routed(one, one, (98, 98), seed=1), routed(two, two, (98, 98))]
    figure, data = service_by_replica(load(experiment(tmp_path, *runs)))
    found = data.set_index(["scheduler", "replica"])
    assert found["share"].round(6).to_dict() == {
        (one, "replica-0"): 0.625, (one, "replica-1"): 0.375, (two, "replica-0"): 0.5, (two, "replica-1"): 0.5
    }  # fmt: skip
    assert found["seeds"].to_dict()[one, "replica-0"] == 2
    widths = sorted(round(bar.get_width(), 3) for bar in figure.axes[0].patches)
    assert widths == [37.5, 50, 50, 62.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["replica-0", "replica-1"]


def test_it_is_drawn_where_there_are_several_and_only_there(tmp_path: Path):
    alone = routed("round-robin+lpm", "round-robin+lpm", (98,), workload="alone")
    folder = experiment(tmp_path, routed("d2lpm+dlpm", "d2lpm+dlpm"), alone)
    frame = tables.collect(folder)
    (plan,) = figures._replicas(load(folder), frame)
    assert set(plan.draw().data["setting"]) == {"chat"}
    assert list(figures._replicas(load(folder), frame[frame["setting"] == "alone"])) == []

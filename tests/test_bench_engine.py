"""`suite bench engine`: what is measured in an engine and what is made of it. No test looks at a duration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from suite import bench_engine
from suite.bench_engine import ENGINES, Job, measure
from suite.environments import Environment
from suite.errors import BadInput

JOB = Job(model="tiny", blocks=1, requests=24, waiting=(40,), schedulers=("fcfs", "lpm"), steps=40)
VLLM, SGLANG = ENGINES["vllm"], ENGINES["sglang"]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> tuple[list[Any], list[Any]]:
    """Runs and queues of the engine that is named."""
    runs, queues = measure(request.getfixturevalue(request.param), JOB, lambda note: None)
    return list(runs), list(queues)


each_engine = pytest.mark.parametrize("found", ["vllm", "sglang"], indirect=True)


def cells(table: Table) -> list[list[str]]:
    """The rows of a table."""
    return [list(row) for row in zip(*(map(str, column.cells) for column in table.columns), strict=True)]


@each_engine
def test_the_arms_alternate_and_take_the_same_decisions(found: tuple[list[Any], list[Any]]):
    runs, _ = found
    arms = [run["arm"] for run in runs]
    assert arms == ["stock", "plugin", "stock", "plugin", "plugin", "stock"]
    for run in runs:
        assert run["schedule"] == runs[0]["schedule"]
        assert run["output_tokens"] == 24 * JOB.requests
        assert run["cpu_ns"] > 0


@pytest.mark.parametrize("found", ["vllm"], indirect=True)
def test_runs_of_vllm_start_cold_serve_everybody_and_preempt(found: tuple[list[Any], list[Any]]):
    steps = found[0][0]["schedule"]
    scheduled = [id for step in steps for id in step]
    assert set(scheduled) == {f"r{i}" for i in range(JOB.requests)}
    tokens = sum(tokens for step in steps for tokens in step.values())
    assert tokens < JOB.requests * (300 + 24), "nobody shared a document"
    assert next(iter(steps[0].items())) == ("r0", 300), "the cache was not empty"
    first = {id: next(i for i, step in enumerate(steps) if id in step) for id in scheduled}
    last = {id: max(i for i, step in enumerate(steps) if id in step) for id in scheduled}
    assert any(id not in steps[i] for id in first for i in range(first[id], last[id])), "nobody was preempted"


@pytest.mark.parametrize("found", ["sglang"], indirect=True)
def test_runs_of_sglang_put_longer_documents_first(found: tuple[list[Any], list[Any]]):
    steps = found[0][0]["schedule"]
    prefilled = [(id, tokens) for step in steps for id, tokens in step.items() if tokens > 1]
    assert {id for id, _ in prefilled} == {f"r{i}" for i in range(JOB.requests)}
    assert sum(tokens for _, tokens in prefilled) == JOB.requests * 44, "a document was not cached"
    assert sum(tokens for step in steps for tokens in step.values()) == JOB.requests * (44 + 23)
    order = [id for id, _ in prefilled]
    assert order != sorted(order, key=lambda id: int(id[1:])), "LPM had nothing to put in order"


@each_engine
def test_each_queue_is_measured_in_each_step(found: tuple[list[Any], list[Any]]):
    _, queues = found
    assert [(queue["waiting"], queue["scheduler"]) for queue in queues] == [
        (40, "stock"), (40, "fcfs"), (40, "lpm")
    ]  # fmt: skip
    for queue in queues:
        assert len(queue["scheduling"]) == JOB.steps
        assert all(cpu > 0 for cpu, _ in queue["scheduling"])
    watched = [queue for queue in queues if queue["deciding"]]
    assert [queue["scheduler"] for queue in watched[-2:]] == ["fcfs", "lpm"]
    for queue in watched:
        assert len(queue["deciding"]) == JOB.steps
        assert sum(offers for _, offers in queue["deciding"]) > 0
        assert sum(ns for ns, _ in queue["deciding"]) < sum(wall for _, wall in queue["scheduling"])


@each_engine
def test_the_tables_show_every_row(found: tuple[list[Any], list[Any]]):
    runs, queues = found
    assert len(cells(bench_engine.overhead(runs, "tiny", SGLANG))) == 4
    assert [row[:2] for row in cells(bench_engine.decisions(queues, SGLANG))] == [
        ["40", "stock"], ["40", "fcfs"], ["40", "lpm"]
    ]  # fmt: skip


@pytest.mark.parametrize(("engine", "version"), [("vllm", "0.32.0"), ("sglang", "0.5.23")])
def test_what_stopped_an_engine_is_told(engine: str, version: str, tmp_path: Path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho ImportError: no triton\nexit 1\n")
    python.chmod(0o755)
    broken = Environment(engine, version, "cpu", tmp_path)
    with pytest.raises(BadInput, match=f"{engine} stopped: ImportError: no triton"):
        measure(broken, JOB, lambda note: None)


# -- what is made of the numbers -----------------------------------------------------------------------------


def run(arm: str, cpu_us: float, seconds: float, schedule: list[dict[str, int]]) -> dict[str, Any]:
    return {
        "arm": arm, "seconds": seconds, "cpu_ns": cpu_us * 1e3, "output_tokens": 60, "schedule": schedule
    }  # fmt: skip


def runs_of(stock: list[dict[str, int]], plugin: list[dict[str, int]]) -> list[dict[str, Any]]:
    """Warm-up and three blocks; in the block number n the plugin takes 2 n microseconds more in two steps."""
    warm_up = [run("stock", 1e6, 9.0, stock), run("plugin", 1e6, 9.0, plugin)]
    for n in (1, 2, 6):
        warm_up += [
            run("stock", 90.0, 1.9, stock),
            run("plugin", 100.0 + 2 * n, 4.0, plugin),
            run("plugin", 100.0 + 2 * n, 4.0, plugin),
            run("stock", 110.0, 2.1, stock),
        ]
    return warm_up


def test_overhead_is_the_median_of_the_blocks_without_the_warm_up():
    steps = [{"a": 5}, {"a": 1}]
    cpu, share, step, rate = cells(bench_engine.overhead(runs_of(steps, steps), "made up", VLLM))
    assert cpu[1:] == ["50", "52", "+2", "+1 to +6"]
    assert share[3] == "+0.00%"
    assert step[1:] == ["1,000.00", "2,000.00", "x 2.000", "x 2.000 to x 2.000"]
    assert rate[1:4] == ["30", "15", "x 0.500"]


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ([{"a": 5}, {"b": 1}], "step 1: stock schedules {'a': 1}, plugin {'b': 1}"),
        ([{"a": 5}], "step 1: stock schedules {'a': 1}, plugin None"),
    ],
)
def test_arms_that_decide_differently_are_not_compared(plugin: list[dict[str, int]], said: str):
    with pytest.raises(RuntimeError, match=said):
        bench_engine.overhead(runs_of([{"a": 5}, {"a": 1}], plugin), "made up", VLLM)


def test_the_time_of_steps_without_an_offer_counts_in_the_next_decision():
    assert list(bench_engine.per_decision([(10, 2), (5, 0), (1, 0), (6, 3), (7, 0)])) == [5.0, 4.0]
    queue = {"waiting": 1000, "scheduler": "vtc", "deciding": [[4000, 2], [2000, 0], [6000, 1]]}
    table = bench_engine.decisions(
        [{**queue, "scheduling": [[9000, 10000], [7000, 10000], [8000, 10000]]}], VLLM
    )
    assert cells(table) == [["1,000", "vtc", "3", "4", "5", "8", "8", "8", "20%"]]


def test_the_words_are_those_of_the_engine():
    runs = runs_of([{"a": 5}], [{"a": 5}])
    table = bench_engine.overhead(runs, "made up", SGLANG)
    assert str(table.columns[1].header) == "SGLang's own"
    assert "ran LPM" in str(table.caption)


def test_an_engine_must_be_known():
    with pytest.raises(BadInput, match="unknown engine 'sglnag'"):
        bench_engine.engines(["sglnag"], lambda note: None)

"""Calibration: what is asked of the engine, what is read out of its log, and how the fit is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from suite import fit
from suite.backends import engine_log
from suite.backends.cost import Cost
from suite.backends.simulator.cost import fitted
from suite.calibrate import Limits, calibrate, grid
from suite.errors import BadInput
from suite.trace import Request, Trace

LIMITS = Limits(budget=512, running=8, pool=8192, length=8192, most=6553)
TRUTH = Cost(((8e-3, 5e-4, 2e-7, 3e-7, 2e-4),))
Duration = Callable[[int, int, int, int], float]


class Job:
    """A request in the fake engine."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.done = self.output = 0

    def share(self, budget: int) -> int:
        """New tokens in a step with so much budget left."""
        return min(budget, max(self.request.prompt_tokens - self.done, 1))

    def advance(self, new: int) -> bool:
        """Whether the step gave an output token."""
        self.done += new
        self.output += self.done >= self.request.prompt_tokens
        return self.done >= self.request.prompt_tokens


def served(trace: Trace, limits: Limits, duration: Duration) -> Iterator[list[Any]]:
    """The service log of an engine without a cache that serves the trace in steps of such durations.

    A client takes no time; when nothing runs, the engine idles for a second.
    """
    now, finished = 0.0, set[str]()
    waiting, running = [Job(request) for request in trace.requests], list[Job]()
    while waiting or running:
        now += 0 if running else 1
        ready = [job for job in waiting if finished.issuperset(job.request.after)]
        budget, work, shares = limits.budget, np.zeros(4, int), []
        for job in [*running, *ready[: limits.running - len(running)]]:
            if budget:
                if job not in running:
                    waiting.remove(job)
                    running.append(job)
                    yield ["admitted", now, job.request.id, job.request.client, job.request.prompt_tokens, 0]
                new = job.share(budget)
                budget -= new
                work += [new, new * job.done + new * (new + 1) // 2, job.done + new, 1]
                shares.append((job, new))
        now += duration(*work.tolist())
        told = {job.request.client: 1 for job, new in shares if job.advance(new)}
        yield ["generated", now, told]
        for job in [job for job in running if job.output == job.request.output_tokens]:
            running.remove(job)
            finished.add(job.request.id)
            yield ["finished", now, job.request.id, job.request.client, "stop", job.output, 0]
        yield ["step", now, *work.tolist()]


def measured_steps(duration: Duration, rounds: int = 3) -> pd.DataFrame:
    """The steps of a fake engine whose steps take so long."""
    trace, held_out = grid(LIMITS, rounds)
    return fit.steps(served(trace, LIMITS, duration), held_out)


def measured(duration: Duration, rounds: int = 3) -> fit.Fit:
    """The fit to them."""
    return fit.fitted(measured_steps(duration, rounds))


def line(found: fit.Fit) -> list[float]:
    return [value for _, value in found.coefficients]


def shapes(found: fit.Fit, held_out: bool) -> set[tuple[Any, ...]]:
    points = found.points[found.points["held_out"] == held_out]
    return set(points[["kind", "new", "sequences"]].itertuples(index=False, name=None))


# -- the grid ----------------------------------------------------------------------------------------------


@given(
    budget=st.integers(1, 4096),
    running=st.integers(1, 300),
    pool=st.integers(64, 100_000),
    length=st.integers(64, 100_000),
)
@example(budget=1, running=3, pool=480, length=128)  # no length is left for the half that is held out
@settings(max_examples=60, deadline=None)
def test_what_runs_at_once_fits_the_engine(budget: int, running: int, pool: int, length: int) -> None:
    try:
        limits = Limits(budget, running, pool, length, most=int(0.8 * pool))
    except BadInput:
        assume(False)
    trace, _ = grid(limits, rounds=1)
    groups: dict[str, list[int]] = {}
    for request in trace.requests:
        assert request.prompt_tokens + request.output_tokens <= min(length, pool)
        groups.setdefault(request.id.rpartition("-")[0], []).append(request.output_tokens)
    assert max(sum(tokens > 1 for tokens in outputs) for outputs in groups.values()) <= running


def test_a_group_begins_when_the_one_before_has_finished() -> None:
    trace, _ = grid(LIMITS, rounds=2)
    finished: set[str] = set()
    groups: dict[str, list[Request]] = {}
    for request in trace.requests:
        groups.setdefault(request.id.rpartition("-")[0], []).append(request)
    for before, group in zip([[], *groups.values()], groups.values(), strict=False):
        finished = {request.id for request in before}
        assert set(group[0].after) == finished


def test_prompts_are_fresh_but_for_the_one_prefix_that_is_shared_on_purpose() -> None:
    trace, _ = grid(LIMITS, rounds=2)
    own = [request.prompt[-1].id for request in trace.requests]
    shared = {segment.id for request in trace.requests for segment in request.prompt[:-1]}
    assert len(set(own)) == len(own)
    assert shared == {"prefix"}
    assert shared.isdisjoint(own)


def test_a_budget_that_no_two_steps_of_a_prompt_fill_is_refused() -> None:
    with pytest.raises(
        BadInput, match="token_budget: with 4096, prompts of 8192 tokens are needed and 3244 fit"
    ):
        Limits(budget=4096, running=8, pool=4096, length=8192, most=3276)


# -- the log -----------------------------------------------------------------------------------------------


def test_steps_have_the_time_since_the_last_step_the_kind_and_their_work() -> None:
    log: list[list[Any]] = [
        ["policy", 0.0, {}],
        ["admitted", 1.0, "a", "A", 12, 0],
        ["step", 2.0, 10, 55, 10, 1],  # after idleness: nobody knows when it began
        ["generated", 2.5, {"A": 1}],
        ["step", 2.5, 2, 23, 12, 1],
        ["generated", 2.75, {"A": 1}],
        ["step", 2.75, 1, 13, 13, 1],
        ["admitted", 2.8, "b", "B", 5, 0],
        ["generated", 3.75, {"A": 1, "B": 1}],
        ["finished", 3.75, "b", "B", "stop", 1, 0],
        ["step", 3.75, 6, 29, 19, 2],
        ["generated", 4.0, {"A": 1}],
        ["finished", 4.0, "a", "A", "stop", 4, 0],
        ["step", 4.0, 1, 15, 15, 1],
        ["admitted", 9.0, "c", "C", 5, 0],
        ["generated", 9.5, {"C": 1}],
        ["step", 9.5, 5, 15, 5, 1],
        ["generated", 9.75, {"C": 1}],
        ["step", 9.75, 1, 6, 6, 1],
    ]
    assert fit.steps(log, {"c"}).to_numpy().tolist() == [
        ["prefill", False, 2, 23, 12, 1, 0.5],
        ["decode", False, 1, 13, 13, 1, 0.25],
        ["mixed", False, 6, 29, 19, 2, 1.0],
        ["decode", False, 1, 15, 15, 1, 0.25],
        ["decode", True, 1, 6, 6, 1, 0.25],
    ]


def test_a_batch_that_grows_or_shrinks_is_left_out() -> None:
    log: list[list[Any]] = [
        ["admitted", 0.0, "a", "a", 1, 0],
        ["generated", 0.25, {"a": 1}],
        ["step", 0.25, 1, 1, 1, 1],
        ["generated", 0.5, {"a": 1}],
        ["step", 0.5, 1, 2, 2, 1],  # grows
        ["admitted", 0.5, "b", "b", 1, 0],
        ["generated", 1.0, {"a": 1, "b": 1}],
        ["step", 1.0, 2, 4, 4, 2],
        ["generated", 2.0, {"a": 1, "b": 1}],
        ["finished", 2.0, "b", "b", "stop", 2, 0],
        ["step", 2.0, 2, 6, 6, 2],  # whole
        ["generated", 3.0, {"a": 1}],
        ["step", 3.0, 1, 5, 5, 1],  # shrinks
        ["finished", 4.0, "a", "a", "stop", 6, 0],
        ["step", 4.0, 1, 6, 6, 1],
        ["admitted", 5.0, "c", "c", 1, 0],
        ["generated", 6.0, {"c": 1}],
        ["step", 6.0, 1, 1, 1, 1],
        ["step", 7.0, 1, 2, 2, 1],
    ]
    assert fit.steps(log, ()).to_numpy().tolist() == [
        ["mixed", False, 2, 4, 4, 2, 0.5],
        ["decode", False, 2, 6, 6, 2, 1.0],
        ["decode", False, 1, 2, 2, 1, 1.0],
    ]


# -- the fit -----------------------------------------------------------------------------------------------


def test_known_coefficients_are_found_again() -> None:
    found = measured(TRUTH.step)
    assert line(found) == pytest.approx(TRUTH.lines[0], rel=1e-3)
    assert found.errors["mean"].max() < 1e-3
    assert (found.errors["held_out"] >= 3).all()
    assert found.problem is None


def test_noise_and_rare_outliers_leave_them_where_they_are() -> None:
    random = np.random.default_rng(0)

    def noisy(*work: int) -> float:
        return float(TRUTH.step(*work) * random.lognormal(0, 0.03) * (20 if random.random() < 0.03 else 1))

    found = measured(noisy, rounds=5)
    assert line(found) == pytest.approx(TRUTH.lines[0], rel=0.1)
    assert 0 < found.errors.loc["all", "mean"] < 0.05


def test_the_error_is_that_on_points_the_fit_has_not_seen() -> None:
    steps = measured_steps(TRUTH.step)
    clean = fit.fitted(steps)
    steps.loc[steps["held_out"], "seconds"] *= 2
    found = fit.fitted(steps)
    assert shapes(found, held_out=True).isdisjoint(shapes(found, held_out=False))
    assert found.coefficients == clean.coefficients
    assert found.errors["mean"].tolist() == pytest.approx([0.5] * 4, rel=1e-2)
    assert found.points.loc[~found.points["held_out"], "error"].max() < 1e-3


def test_no_length_and_no_batch_size_is_both_fitted_and_held_out() -> None:
    points = measured(TRUTH.step).points
    decode = points[points["kind"] == "decode"].groupby("held_out")["sequences"].unique()
    prefill = points[points["kind"] == "prefill"].groupby("held_out")["new"].unique()
    assert sorted(decode[True]) == [2, 4]
    assert {1, 3, 6, 8} <= set(decode[False])
    assert {2, 4}.isdisjoint(decode[False])
    assert set(prefill[True]).isdisjoint(prefill[False])


def test_a_cost_that_no_line_follows_is_called_so_everywhere() -> None:
    found = measured(lambda new, *_: 1e-3 * new**2)
    assert found.problem is not None
    assert found.problem.startswith("does not fit: mean error above 20%: ")
    console = Console(width=200)
    with console.capture() as shown:
        console.print(fit.table(found))
    assert "does not fit" in shown.get()
    assert "# THIS FILE does not fit" in fit.as_yaml(found, [])


def test_time_passes_in_every_step_even_where_only_tokens_cost() -> None:
    found = measured(lambda new, *_: 1e-3 * new)
    assert found.coefficients.step > 0
    assert found.coefficients.token == pytest.approx(1e-3, rel=1e-3)


def test_too_few_points_are_refused() -> None:
    steps = measured_steps(TRUTH.step, rounds=1)
    with pytest.raises(BadInput, match=r"only \d points could be measured"):
        fit.fitted(steps[steps["kind"] == "prefill"])


# -- the file ----------------------------------------------------------------------------------------------


def test_the_simulator_reads_the_file_and_people_the_comments(tmp_path: Path) -> None:
    found = measured(TRUTH.step)
    path = tmp_path / "cost.yaml"
    path.write_text(fit.as_yaml(found, ["model odd\nstep: 99\x1b"]))
    assert fitted(path).lines == (tuple(line(found)),)
    comments = [text for text in path.read_text().splitlines() if text.startswith("#")]
    assert comments[0] == "# model odd step: 99 "
    for kind in fit.KINDS:
        assert any(text.startswith(f"#   {kind}: mean 0.0%, P90 0.0% on ") for text in comments)


def test_a_kind_without_held_out_steps_has_no_error() -> None:
    found = measured(TRUTH.step)
    points = found.points[~(found.points["held_out"] & (found.points["kind"] == "decode"))]
    lacking = fit.Fit(found.coefficients, points)
    assert "#   decode: none measured" in fit.as_yaml(lacking, [])
    assert np.isnan(lacking.errors.loc["decode", "mean"])


# -- the whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "chosen", "told"),
    [
        ("simulator", {}, "'simulator' is no engine that the suite starts; known: sglang, vllm"),
        ("vllm", {"replicas": 2}, "replicas: one is measured"),
        ("vllm", {"max_runing": 8}, "max_runing: unknown key; did you mean 'max_running'"),
        ("vllm", {"clock": "virtual"}, "clock: "),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, kind: str, chosen: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        calibrate(kind, chosen, tmp_path / "cost.yaml", tmp_path / "logs", lambda *_: None)
    assert not (tmp_path / "cost.yaml").exists()


def test_real_vllm_is_measured(vllm: Any, tmp_path: Path) -> None:
    chosen = {"model": "tiny", "max_running": 3, "token_budget": 64, "kv_tokens": 2048}
    out, logs = tmp_path / "cost.yaml", tmp_path / "logs"
    found = calibrate("vllm", chosen, out, logs, lambda *_: None, rounds=3)
    assert fitted(out).lines == (tuple(line(found)),)
    assert set(found.points["kind"]) == set(fit.KINDS)
    assert (found.errors.loc[["prefill", "decode"], "held_out"] > 0).all()
    assert f"vllm {vllm.version}" in out.read_text()
    assert str(tmp_path) not in out.read_text()
    log = engine_log.read(logs / "service-1.jsonl", 0.0)
    assert log.requests["preemptions"].sum() == 0
    assert log.requests["cached"].max() >= 32
    left = [process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in left if str(logs) in " ".join(command)]

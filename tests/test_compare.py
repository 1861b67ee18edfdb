"""`suite compare`: in a folder, with runs of its own, how it stops and exits; and trials of known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs
import yaml
from rich.console import Console
from test_effects import effect, failure, faster, run, with_failures
from tiny import TINY

from suite import cli, compare, runner, verify_compare
from suite.compare import Measured
from suite.errors import BadInput
from suite.report import tables
from suite.report.html import Report
from suite.verify_compare import ALIKE, FOUND, Share, Trial


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were reported on, in place of the reports."""
    written: list[Path] = []

    def write_report(out: Path) -> Report:
        written.append(out)
        return Report(out / "report.html", tables.collect(out))

    monkeypatch.setattr("suite.report.html.write_report", write_report)
    return written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of a fast scheduler, of a slow one, and of a third like the slow one."""
    arms = {"fast": faster, "slow": lambda i, random: random, "third": lambda i, random: random}
    runs = [run(seed, delay, scheduler=name) for seed in range(3) for name, delay in arms.items()]
    return synthetic_runs.experiment(tmp_path / "there", *runs)


# -- in a folder -----------------------------------------------------------------------------------------


def test_without_baselines_all_others_are(folder: Path):
    assert baselines(folder, []) == {"slow", "third"}
    assert baselines(folder, ["slow", "slow"]) == {"slow"}


def baselines(folder: Path, named: list[str]) -> set[str]:
    return {one.baseline for one in compare.in_folder(folder, "fast", named).effects}


@pytest.mark.parametrize(
    ("candidate", "baselines", "problem"),
    [
        ("fasst", [], r"there: no scheduler 'fasst' in it; did you mean 'fast'\?"),
        ("fast", ["sloow"], r"there: no scheduler 'sloow' in it; did you mean 'slow'\?"),
        ("fast", ["fast"], r"there: 'fast' needs another scheduler to be compared with"),
    ],
)
def test_who_is_not_there_cannot_be_compared(
    folder: Path, candidate: str, baselines: list[str], problem: str
):
    with pytest.raises(BadInput, match=problem):
        compare.in_folder(folder, candidate, baselines)


@pytest.mark.parametrize(("candidate", "baseline", "code"), [("fast", "slow", 0), ("slow", "fast", 3)])
def test_the_exit_code_says_who_loses(
    candidate: str,
    baseline: str,
    code: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("sys.argv", ["suite", "compare", str(folder), "-c", candidate, "-b", baseline])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out = capsys.readouterr().out
    assert stopped.value.code == code
    assert f"{candidate} against {baseline} on chat: {'loses' if code else 'wins'}: " in out
    assert f"{candidate} against {baseline}: {'loses' if code else 'wins'} 1 of 1 setting\n" in out
    assert (folder / "effects.csv").is_file()


LEFT_OUT = [
    "left out: 02-slow: it was cold",
    "left out: crash_0: failed: KeyError: 'ticket'",
    "left out: broken_1: failed: KeyError: 'ticket'",
]


def holed(tmp_path: Path) -> Path:
    """Seeds of two schedulers, one of them not valid, and two schedulers whose every cell failed."""
    runs = [run(seed, scheduler=name) for name in ("slow", "third") for seed in range(3)]
    cold = replace(runs[2], manifest=replace(runs[2].manifest, invalid=["it was cold"]))
    failed = [
        failure("crash_0", scheduler="crash", seed=0),
        failure("broken_1", scheduler="broken", seed=1),
    ]
    folder = synthetic_runs.experiment(tmp_path / "holed", *runs[:2], cold, *runs[3:])
    return with_failures(folder, *failed)


@pytest.mark.parametrize(
    ("candidate", "code", "verdict", "left_out"),
    [
        ("crash", 3, "loses: failed: KeyError: 'ticket' (seed 0)", LEFT_OUT[:2]),
        ("third", 0, "no difference seen", LEFT_OUT[:1]),
    ],
)
def test_what_failed_or_is_not_valid_is_told(
    candidate: str,
    code: int,
    verdict: str,
    left_out: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = holed(tmp_path)
    monkeypatch.setattr("sys.argv", ["suite", "compare", str(folder), "-c", candidate, "-b", "slow"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    told = capsys.readouterr().out.splitlines()
    sentence = told.index(
        next(line for line in told if line.startswith(f"{candidate} against slow on chat: "))
    )
    assert told[sentence].startswith(f"{candidate} against slow on chat: {verdict}")
    assert told[sentence + 1 : sentence + 1 + len(left_out)] == left_out
    assert told[sentence + 1 + len(left_out)].startswith(f"{candidate} against slow: ")


def test_where_nobody_finished_nothing_is_said(tmp_path: Path):
    found = compare.in_folder(holed(tmp_path), "crash", ["broken"])
    assert {one.verdict for one in found.effects} == {"none"}
    assert not compare.loses(found.effects)


def test_a_folder_is_only_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["suite", "compare", str(folder), "-c", "fast", "-w", "chat"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "error: --workload: " in capsys.readouterr().err


# -- with runs of its own --------------------------------------------------------------------------------


BUSY = {**TINY, "rate": 20, "duration": 4, "clients": 3, "documents": 9}


def measured(folder: Path, narrow: float, candidate: str = "lpm") -> Measured:
    """Four seeds at most, two requests at a time, against FCFS."""
    backend = {"kind": "simulator", "max_running": 2, "kv_tokens": 2000}
    content = {"name": "e", "workloads": [BUSY], "schedulers": ["fcfs"], "backend": backend}
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump(content))
    experiment = compare.planned(str(path), candidate, [], range(2, 6))
    out = folder / "out"
    jobs = list(runner.plan(experiment, out))
    return compare.measure(experiment, candidate, jobs, out, narrow, 2, Console(quiet=True))


def test_it_stops_when_the_widths_are_narrow_enough(tmp_path: Path, reports: list[Path]):
    early = measured(tmp_path, narrow=1e9)
    assert early.seeds == compare.FIRST_LOOK == 3
    assert {one.seeds for one in early.found.effects if one.metric == "hit_rate"} == {3}
    assert len(list((tmp_path / "out/cells").iterdir())) == 2 * 3
    assert reports == [tmp_path / "out"], "one report, at the end"

    late = measured(tmp_path, narrow=0)
    assert late.seeds == 4
    assert (late.outcome.jobs, late.outcome.skipped) == (8, 8), "what was there is kept"
    assert {(one.candidate, one.baseline) for one in late.found.effects} == {("lpm", "fcfs")}


def test_a_candidate_is_not_compared_with_itself(tmp_path: Path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"name": "e", "workloads": [TINY], "schedulers": ["fcfs"]}))
    with pytest.raises(BadInput, match=r"e\.yaml: 'fcfs' needs another scheduler to be compared with"):
        compare.planned(str(path), "fcfs", [], [0])
    assert compare.planned(str(path), "vtc", ["vtc", "lpm"], [0]).schedulers == ["vtc", "lpm"]


def test_a_failing_run_ends_it(tmp_path: Path, reports: list[Path]):
    (tmp_path / "bad.py").write_text(
        "from baselines.fcfs import FCFS\n\n"
        "class Bad(FCFS):\n    name = ''\n\n"
        "    def admitted(self, request, cached_tokens, now):\n        raise KeyError('ticket')\n"
    )
    found = measured(tmp_path, narrow=1e9, candidate=f"{tmp_path}/bad.py:Bad")
    assert found.found.effects == []
    assert len(found.outcome.failed) == 3
    assert reports == []


def test_only_widths_are_looked_at():
    def of(metric: str, verdict: Any, width: float | None) -> Any:
        return compare.effects.replace(effect(metric, verdict), half_width=width)

    throughput, tail = compare.LOOKED_AT
    for verdict in ("wins", "loses", "no difference seen"):
        assert compare.narrow_enough([of(throughput, verdict, 0.01), of(tail, verdict, 0.02)], 0.02)
        assert not compare.narrow_enough([of(throughput, verdict, 0.01), of(tail, verdict, 0.03)], 0.02)
        assert compare.narrow_enough([of(throughput, verdict, 0.01), of("hit_rate", verdict, 9)], 0.02)
    assert not compare.narrow_enough([of(throughput, "none", None)], 0.02)
    assert not compare.narrow_enough([], 0.02)


def test_a_candidate_is_known_by_what_it_is(tmp_path: Path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"name": "e", "workloads": [TINY], "schedulers": ["vtc", "dlpm"]}))
    swept = compare.experiments.load(str(path), sweep={"dlpm.quantum": [5, 7]})
    assert compare.matching(swept, ["dlpm"]) == ["dlpm:quantum=5", "dlpm:quantum=7"]
    assert compare.matching(swept, ["dlpm:quantum=7"]) == ["dlpm:quantum=7"]


def test_a_candidate_behind_a_router_is_known_by_both(tmp_path: Path):
    path = tmp_path / "e.yaml"
    schedulers = ["d2lpm+dlpm", "round-robin+dlpm", "dlpm"]
    path.write_text(yaml.safe_dump({"name": "e", "workloads": [TINY], "schedulers": schedulers}))
    swept = compare.experiments.load(str(path), sweep={"d2lpm.quantum": [5, 7]})
    routed = ["d2lpm:quantum=5+dlpm", "d2lpm:quantum=7+dlpm"]
    assert compare.matching(swept, ["d2lpm+dlpm"]) == routed
    assert compare.matching(swept, ["d2lpm:quantum=7+dlpm"]) == routed[1:]
    assert compare.matching(swept, ["dlpm"]) == ["dlpm"]


def test_a_score_card_holds_candidates_against_all_others(folder: Path):
    found = compare.card(folder, tables.collect(folder), ["fast"]).effects
    assert {(one.candidate, one.baseline) for one in found} == {("fast", "slow"), ("fast", "third")}
    assert not compare.loses(found)
    assert compare.loses(compare.card(folder, tables.collect(folder), ["third"]).effects)


def test_a_score_card_says_what_was_left_out(tmp_path: Path):
    folder = holed(tmp_path)
    found = compare.card(folder, tables.collect(folder), ["crash"])
    assert {(one.baseline, one.verdict) for one in found.effects} == {
        ("slow", "loses"), ("third", "loses"), ("broken", "none")
    }  # fmt: skip
    assert found.left_out == LEFT_OUT


# -- trials of known truth -------------------------------------------------------------------------------


def test_a_trial_sees_the_planted_slowdown_and_nothing_else():
    assert verify_compare.trial(0, lambda share: None) == Trial(seen=(), found=True)


def test_shares_are_held_against_what_is_wanted():
    trials = [Trial((), True)] * 87 + [Trial(("hit_rate",), True)] * 13
    alike, slow = verify_compare.shares(trials)
    assert (alike.count, slow.count) == (87, 100)
    assert (alike.holds, slow.holds) == (False, True)
    assert Share(88, 100, ALIKE).holds
    assert not Share(79, 100, FOUND).holds
    assert str(Share(80, 100, FOUND)) == (
        "80 of 100 trials (95 % interval 70.8 to 87.3 %; wanted 80 to 100 %)"
    )

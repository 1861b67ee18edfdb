"""Running cells: what is written, what is skipped, what happens to the others when one fails."""

from __future__ import annotations

import fcntl
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console
from tiny import TINY

from baselines import d2lpm
from suite import display, results, runner
from suite.backends.simulator import Simulator
from suite.errors import BadInput
from suite.experiment import Experiment, load
from suite.files import DRAFT, write_atomically
from suite.metrics.goodput import Slo
from suite.report import experiment as experiments
from suite.report.html import Report
from suite.runner import Job, Outcome

FRAIL = """
import os
from baselines.fcfs import FCFS
from baselines.round_robin import RoundRobin

class Raises(FCFS):
    name = ""

    def admitted(self, request, cached_tokens, now):
        raise KeyError("ticket")

class Exits(FCFS):
    name = ""

    def admitted(self, request, cached_tokens, now):
        raise SystemExit(0)

class Interrupts(FCFS):
    name = ""

    def admitted(self, request, cached_tokens, now):
        raise KeyboardInterrupt

class Dies(FCFS):
    name = ""

    def admitted(self, request, cached_tokens, now):
        os._exit(7)

class Lost(RoundRobin):
    name = ""

    def route(self, request, workers, now):
        return workers[len(workers)]
"""


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were reported on, in place of the reports: they have tests of their own."""
    written: list[Path] = []

    def write_report(out: Path) -> Report:
        written.append(out)
        return Report(out / "report.html", pd.DataFrame())

    monkeypatch.setattr("suite.report.html.write_report", write_report)
    return written


def plan(folder: Path, out: Path, command: str = "suite run e.yaml", **changes: Any) -> list[Job]:
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump({"name": "e", "workloads": [TINY], "schedulers": ["fcfs"], **changes}))
    return list(runner.plan(load(str(path)), out, command))


def run(jobs: list[Job], out: Path, slo: Slo | None = None, **options: Any) -> Outcome:
    experiment = Experiment("e", tuple(job.cell for job in jobs), slo)
    return runner.run(experiment, jobs, out, processes=2, console=Console(quiet=True), **options)


def content(out: Path) -> dict[str, Any]:
    """Every file of every cell; of manifests, all that must not change."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("cells/*/*")):
        key = str(path.relative_to(out))
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[key] = {k: v for k, v in manifest.items() if k not in ("times", "command")}
        else:
            found[key] = path.read_bytes()
    return found


def test_a_cell_leaves_a_whole_run_folder(tmp_path: Path, reports: list[Path]):
    out = tmp_path / "out"
    jobs = plan(tmp_path, out, schedulers=["dlpm:quantum=500"], seeds=[4], sweep={"workload.load": [2]})
    outcome = run(jobs, out)
    assert (outcome.finished, outcome.skipped, outcome.failed) == (1, 0, {})
    found = results.read(out / "cells" / jobs[0].cell.slug)
    assert found.manifest.labels == {
        "workload": "tiny",
        "scheduler": "dlpm:quantum=500",
        "policy": "dlpm",
        "seed": 4,
        "workload.load": 2,
    }
    assert found.manifest.scheduler["parameters"]["output_weight"] == 2.0
    assert found.manifest.trace["header"]["choices"]["load"] == 2
    assert found.manifest.backend["kind"] == "simulator"
    assert found.manifest.command == "suite run e.yaml"
    assert {"python", "suite", "numpy", "pandas", "pyarrow"} == found.manifest.versions.keys()
    assert len(found.requests) == jobs[0].requests > 0
    assert (found.requests["status"] == "finished").all()
    clients = pd.read_csv(out / "cells" / jobs[0].cell.slug / "clients.csv")
    assert clients["requests"].sum() == jobs[0].requests
    assert reports == [out]


def test_the_index_lists_the_cells_in_order(tmp_path: Path):
    out = tmp_path / "out"
    jobs = plan(tmp_path, out, schedulers=["vtc", "fcfs"])
    run(jobs, out)
    assert json.loads((out / "experiment.json").read_text()) == {
        "name": "e",
        "command": "suite run e.yaml",
        "cells": ["tiny_vtc_seed=0", "tiny_fcfs_seed=0"],
        "failed": [],
        "slo": None,
    }
    run(jobs, out, slo=Slo(ttft=5, tpot=0.2))
    assert json.loads((out / "experiment.json").read_text())["slo"] == {"ttft": 5, "tpot": 0.2}


def test_two_runs_are_the_same_but_for_times_and_command(tmp_path: Path):
    for name in ("a", "b"):
        run(plan(tmp_path, tmp_path / name, name, schedulers=["lpm", "dlpm"], seeds=2), tmp_path / name)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 4 * 6


def test_finished_cells_are_skipped_until_they_are_wanted_fresh_or_changed(tmp_path: Path):
    out = tmp_path / "out"

    def counts(**changes: Any) -> tuple[int, int]:
        fresh = changes.pop("fresh", False)
        outcome = run(plan(tmp_path, out, **changes), out, fresh=fresh)
        return outcome.finished, outcome.skipped

    assert counts() == (1, 0)
    assert counts() == (0, 1)
    assert counts(schedulers=["fcfs", "lpm"]) == (1, 1)
    assert counts(fresh=True) == (1, 0)
    assert counts(backend={"kind": "simulator", "max_running": 3}) == (1, 0), "same slug, other outcome"
    (out / "cells" / "tiny_fcfs_seed=0" / "clients.csv").unlink()
    assert counts(backend={"kind": "simulator", "max_running": 3}) == (1, 0), "not whole"


def test_a_failing_cell_is_reported_and_the_others_go_on(tmp_path: Path):
    frail = tmp_path / "frail.py"
    frail.write_text(FRAIL)
    out = tmp_path / "out"
    jobs = plan(tmp_path, out, schedulers=[f"{frail}:Raises", f"{frail}:Dies", "fcfs", "vtc"])
    outcome = run(jobs, out)
    assert outcome.finished == 2
    assert outcome.failed == {
        "tiny_Raises_seed=0": f"{frail}:10: KeyError: 'ticket'",
        "tiny_Dies_seed=0": "its process died with exit code 7 (out of memory, killed?)",
    }
    index = json.loads((out / "experiment.json").read_text())
    assert index["cells"] == ["tiny_fcfs_seed=0", "tiny_vtc_seed=0"]
    assert [path.name for path in sorted((out / "cells").iterdir())] == index["cells"]


def test_the_index_keeps_a_failure_until_the_cell_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    frail, out = tmp_path / "frail.py", tmp_path / "out"
    frail.write_text(FRAIL)

    def planned() -> list[Job]:
        return plan(tmp_path, out, schedulers=[f"{frail}:Raises", "fcfs"])

    def listed() -> list[dict[str, Any]]:
        return json.loads((out / "experiment.json").read_text())["failed"]

    jobs = planned()
    run(jobs, out)
    failure = {
        "cell": "tiny_Raises_seed=0",
        "labels": jobs[0].cell.labels,
        "reason": f"{frail}:10: KeyError: 'ticket'",
    }
    assert listed() == [failure]
    assert [one.scheduler for one in experiments.load(out).failed] == ["Raises"]

    with monkeypatch.context() as stopped:
        stopped.setattr(runner, "_work_off", interrupt)
        assert run(jobs, out).interrupted
    assert listed() == [failure], "an earlier one, not run to its end since"
    run(jobs[1:], out)
    assert listed() == [], "not of this experiment"

    run(jobs, out)
    assert listed() == [failure]
    frail.write_text(FRAIL.replace('raise KeyError("ticket")', "pass"))
    assert run(planned(), out).failed == {}
    assert listed() == []


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_cell_did_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "_work_off", interrupt)
    assert run(plan(tmp_path, tmp_path / "out"), tmp_path / "out").interrupted
    assert json.loads((tmp_path / "out" / "experiment.json").read_text())["failed"] == []


@pytest.mark.parametrize("index", ["{", '{"name": "e", "command": "", "cells": []}'])
def test_an_index_without_failures_is_written_anew(index: str, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "experiment.json").write_text(index)
    assert run(plan(tmp_path, tmp_path / "out"), tmp_path / "out").finished == 1


def test_whatever_a_scheduler_raises_is_its_reason(tmp_path: Path):
    frail = tmp_path / "frail.py"
    frail.write_text(FRAIL)
    jobs = plan(tmp_path, tmp_path / "out", schedulers=[f"{frail}:Exits", f"{frail}:Interrupts"])
    assert run(jobs, tmp_path / "out").failed == {
        "tiny_Exits_seed=0": f"{frail}:16: SystemExit: 0",
        "tiny_Interrupts_seed=0": f"{frail}:22: KeyboardInterrupt",
    }


def test_a_routers_fault_is_told_with_its_line(tmp_path: Path):
    frail = tmp_path / "frail.py"
    frail.write_text(FRAIL)
    jobs = plan(tmp_path, tmp_path / "out", schedulers=[f"{frail}:Lost+fcfs"])
    assert run(jobs, tmp_path / "out").failed == {
        "tiny_Lost+fcfs_seed=0": f"{frail}:34: IndexError: tuple index out of range"
    }


def test_the_manifest_holds_the_router_beside_the_scheduler(tmp_path: Path):
    out = tmp_path / "out"
    schedulers, backend = ["d2lpm:quantum=9+vtc", "fcfs"], {"kind": "simulator", "replicas": 1}
    jobs = plan(tmp_path, out, schedulers=schedulers, backend=backend)
    assert run(jobs, out).finished == 2
    routed, bare = (results.read_manifest(out / "cells" / job.cell.slug) for job in jobs)
    assert bare.scheduler["router"] is None
    assert (routed.scheduler["name"], routed.scheduler["target"]) == (
        "d2lpm:quantum=9+vtc",
        "baselines.vtc:VTC",
    )
    assert routed.labels["policy"] == "d2lpm+vtc"
    source = routed.scheduler["router"].pop("source")
    assert source == sha256(Path(d2lpm.__file__).read_bytes()).hexdigest()
    assert routed.scheduler["router"] == {
        "name": "d2lpm",
        "target": "baselines.d2lpm:D2LPM",
        "parameters": {"quantum": 9.0, "input_weight": 1.0, "output_weight": 2.0},
    }


def test_an_estimate_knows_of_replicas(tmp_path: Path):
    backend = {"kind": "simulator", "replicas": 2}
    jobs = plan(tmp_path, tmp_path / "out", schedulers=["d2lpm+vtc"], backend=backend)
    assert runner.estimate(jobs)[jobs[0].cell.slug] > 0


def test_only_the_suites_own_drafts_are_swept(tmp_path: Path):
    cells = tmp_path / "out" / "cells"
    theirs = [cells / ".git" / "config", cells / ".env", cells / "tiny" / ".keep"]
    drafts = [cells / f"{DRAFT}1" / "requests.parquet", cells / "tiny" / f"{DRAFT}2.csv"]
    for path in [*theirs, *drafts]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert run(plan(tmp_path, tmp_path / "out"), tmp_path / "out").finished == 1
    assert all(path.exists() for path in theirs)
    assert not list(cells.rglob(f"{DRAFT}*"))


def test_every_draft_has_the_suites_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(plan(tmp_path, tmp_path / "out"), tmp_path / "out")
    whole = results.read(tmp_path / "out" / "cells" / "tiny_fcfs_seed=0")
    seen: list[str] = []
    monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda frame, path, **_: seen.append(path.parent.name))
    results.write(whole, tmp_path / "again")
    write_atomically(tmp_path / "file.txt", lambda draft: seen.append(draft.name))
    assert len(seen) == 5
    assert all(name.startswith(DRAFT) for name in seen)


@pytest.mark.parametrize("place", ["out", "out/below", "cells", "figures", "report.html", "/proc/x"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / place if place.startswith(("out", "/")) else tmp_path / "out"
    if place.startswith("out"):
        (tmp_path / "out").touch()
    elif place == "report.html":
        (out / place).mkdir(parents=True)
    elif not place.startswith("/"):
        out.mkdir()
        (out / place).touch()
    monkeypatch.setattr(runner, "_work_off", lambda *_: pytest.fail("work was done"))
    with pytest.raises(BadInput, match=rf"{place}.*: cannot be written: .*; (free the place|move it)"):
        run(plan(tmp_path, out), out)


def test_a_run_that_cannot_be_written_is_told(tmp_path: Path):
    run(plan(tmp_path, tmp_path / "out"), tmp_path / "out")
    whole = results.read(tmp_path / "out" / "cells" / "tiny_fcfs_seed=0")
    with pytest.raises(BadInput, match=r"/proc/x: cannot be written: "):
        results.write(whole, Path("/proc/x"))


def test_without_a_finished_cell_there_is_no_report(tmp_path: Path, reports: list[Path]):
    (tmp_path / "frail.py").write_text(FRAIL)
    jobs = plan(tmp_path, tmp_path / "out", schedulers=[f"{tmp_path}/frail.py:Raises"])
    assert run(jobs, tmp_path / "out").report is None
    assert reports == []


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"token_budget": 8}, r"backend: token_budget \(8\) must be at least max_running"),
        ({"gpu": "h10"}, r"backend: gpu: unknown gpu 'h10'; did you mean 'h100'\?"),
        ({"cost": "nowhere.yaml"}, r"backend: nowhere.yaml: cannot be read"),
    ],
)
def test_backend_settings_that_cannot_work_stop_the_plan(
    tmp_path: Path, setting: dict[str, object], problem: str
):
    with pytest.raises(BadInput, match=problem):
        plan(tmp_path, tmp_path / "out", backend={"kind": "simulator", **setting})


def test_an_estimate_grows_with_the_trace(tmp_path: Path):
    jobs = plan(tmp_path, tmp_path / "out", sweep={"workload.load": [1, 50]})
    seconds = runner.estimate(jobs)
    assert 0 < seconds[jobs[0].cell.slug] < seconds[jobs[1].cell.slug]


def test_planning_generates_but_writes_nothing(tmp_path: Path):
    jobs = plan(tmp_path, tmp_path / "out")
    assert not jobs[0].is_finished
    assert not (tmp_path / "out").exists()


def test_a_workload_that_cannot_be_read_stops_the_plan(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text("not a trace\n")
    with pytest.raises(BadInput, match=r"t\.jsonl:1: the header is not JSON"):
        plan(tmp_path, tmp_path / "out", workloads=[str(tmp_path / "t.jsonl")])


def test_cells_that_need_the_machine_fail_one_by_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suite.backends.simulator.Simulator.exclusive", True)
    (tmp_path / "frail.py").write_text(FRAIL)
    jobs = plan(tmp_path, tmp_path / "out", schedulers=[f"{tmp_path}/frail.py:Raises", "fcfs"])
    assert "in 1 processes" in str(display.plan(jobs, runner.estimate(jobs), 4).title)
    outcome = run(jobs, tmp_path / "out")
    assert outcome.finished == 1
    (reason,) = outcome.failed.values()
    assert "frail.py:10: KeyError: 'ticket'" in reason


def test_schedulers_take_turns_at_being_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suite.backends.simulator.Simulator.exclusive", True)
    served: list[tuple[int, str]] = []

    def attempt(job: Job, progress: Any) -> None:
        served.append((job.cell.seed, job.cell.scheduler.label))

    monkeypatch.setattr(runner, "_attempt", attempt)
    jobs = plan(tmp_path, tmp_path / "out", schedulers=["vtc", "dlpm"], seeds=[5, 3, 9])
    run(jobs, tmp_path / "out")
    assert served == [(5, "vtc"), (5, "dlpm"), (3, "dlpm"), (3, "vtc"), (9, "vtc"), (9, "dlpm")]
    served.clear()
    experiment = Experiment("e", tuple(job.cell for job in jobs))
    part = [job for job in jobs if job.cell.seed == 3]
    runner.run(experiment, part, tmp_path / "out", processes=1, console=Console(quiet=True))
    assert served == [(3, "dlpm"), (3, "vtc")], "a part keeps the order of the whole"


def test_a_folder_has_one_run_at_a_time(tmp_path: Path, reports: list[Path]):
    out = tmp_path / "out"
    jobs = plan(tmp_path, out)
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match=r"out: another run writes here; wait for it, or choose another"):
            run(jobs, out)
    assert (run(jobs, out).finished, reports) == (1, [out])


def test_a_report_is_written_when_wanted(tmp_path: Path, reports: list[Path]):
    assert run(plan(tmp_path, tmp_path / "out"), tmp_path / "out", report=False).report is None
    assert reports == []


def test_an_estimate_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def logging(self: Simulator, trace: Any, scheduler: Any, logs: Path, progress: Any) -> None:
        (logs / "service-0.jsonl").touch()
        written.append(logs)

    written: list[Path] = []
    monkeypatch.setattr(Simulator, "run", logging)
    monkeypatch.chdir(tmp_path)
    jobs = plan(tmp_path, tmp_path / "out")
    runner.estimate(jobs)
    assert [logs.exists() for logs in written] == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["e.yaml"]

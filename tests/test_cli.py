"""The command line, as a user meets it: what works, what is refused in one line, what an interrupt leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from suite import cli, results, trace
from suite.files import DRAFT
from suite.report import tables
from suite.report.html import Report

SUITE = Path(sys.executable).with_name("suite")
README = Path(__file__).resolve().parents[1] / "README.md"

TINY = """
family: shared_document
duration: 20
rate: 2
documents: 2
document_tokens: 500
question_tokens: 20
output_tokens: 10
"""

PATIENT = """
import os
import time
from baselines.fcfs import FCFS

class Patient(FCFS):
    name = ""

    def candidates(self, waiting, now):
        time.sleep(float(os.environ.get("PATIENCE", 0)))
        return super().candidates(waiting, now)
"""


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


Suite = Callable[..., Finished]


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Suite:
    """Call the entry point with these arguments, in an empty folder that holds tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> Finished:
        monkeypatch.setattr("sys.argv", ["suite", *arguments])
        try:
            with pytest.raises(SystemExit) as stopped:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return Finished(int(stopped.value.code or 0), *capfd.readouterr())

    return call


def example(language: str, containing: str) -> str:
    """The one block of code in the README that is in this language and contains this text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return found


def without_figures(folder: Path) -> Report:
    """What `write_report` returns, without the page."""
    return Report(folder / "report.html", tables.collect(folder))


# -- what works ------------------------------------------------------------------------------------------


def test_the_readmes_scheduler_runs_beside_the_baselines(suite: Suite, tmp_path: Path):
    (tmp_path / "my_idea.py").write_text(example("python", "(Scheduler)"))
    done = suite("run", "-w", "tiny.yaml", "-s", "vtc", "-s", "my_idea.py:MyIdea:patience=5", "-o", "out")
    assert done.code == 0, done.err
    assert json.loads(Path("out/experiment.json").read_text())["cells"] == [
        "tiny_vtc_seed=0", "tiny_my-idea-patience=5_seed=0"
    ]  # fmt: skip
    theirs, mine = (results.read(folder) for folder in sorted(Path("out/cells").iterdir(), reverse=True))
    assert theirs.manifest.scheduler["target"] == "baselines.vtc:VTC"
    assert mine.manifest.scheduler["target"] == "my_idea.py:MyIdea"
    assert mine.manifest.scheduler["parameters"] == {"patience": 5.0}
    assert mine.manifest.trace == theirs.manifest.trace
    assert (mine.requests["status"] == "finished").all()
    for shown in ("my-idea:patience=5", "out/report.html", "2 run, 0 kept"):
        assert shown in done.out
    assert Path("out/report.html").is_file()

    Path("out/report.html").unlink()
    again = suite("report", "out", "--slo", "ttft=5,tpot=0.2")
    assert again.code == 0
    assert "goodput" in again.out
    assert "my-idea:patience=5" in again.out
    assert Path("out/report.html").is_file()


def test_the_readmes_router_runs_before_replicas(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("suite.report.html.write_report", without_figures)
    (tmp_path / "my_router.py").write_text(example("python", "(Router)"))
    mine, theirs = "my_router.py:MyRouter+fcfs", "d2lpm:quantum=500+dlpm"
    done = suite(
        "run", "-w", "tiny.yaml", "-s", mine, "-s", theirs, "--set", "backend.replicas=2", "-o", "out"
    )
    assert done.code == 0, done.err
    for shown in ("my-router+fcfs", theirs, "imbalance"):
        assert shown in done.out
    runs = {run.manifest.labels["policy"]: run for run in map(results.read, Path("out/cells").iterdir())}
    assert runs["d2lpm+dlpm"].manifest.scheduler["router"]["parameters"]["quantum"] == 500
    served = runs["my-router+fcfs"].requests
    assert set(served["worker"]) == {"replica-0", "replica-1"}
    assert (served.groupby("client")["worker"].nunique() == 1).all()


def test_the_readmes_experiment_of_routers_resolves(suite: Suite, tmp_path: Path):
    (tmp_path / "my_router.py").write_text(example("python", "(Router)"))
    (tmp_path / "routed.yaml").write_text(example("yaml", "name: routed"))
    done = suite("run", "routed.yaml", "--dry-run")
    assert done.code == 0, done.err
    assert "15 cells, 15 to run" in done.out


def test_the_readmes_workload_generates(suite: Suite):
    spec = example("yaml", "family:")
    Path("mine.yaml").write_text(spec)
    done = suite("workload", "generate", "mine.yaml", "-o", "mine.jsonl", "--set", "duration=30")
    assert done.code == 0, done.err
    assert trace.read(Path("mine.jsonl")).header.choices["duration"] == 30
    assert yaml.safe_load(spec)["duration"] != 30


def test_the_readmes_experiment_resolves(suite: Suite):
    Path("mine.yaml").write_text(example("yaml", "name: mine"))
    Path("my_idea.py").write_text(example("python", "(Scheduler)"))
    done = suite("run", "mine.yaml", "--dry-run")
    assert done.code == 0, done.err
    assert not Path("results").exists(), "a dry run writes nothing"


def test_a_dry_run_lists_cells_with_their_size_and_time(suite: Suite):
    done = suite("run", "-w", "tiny.yaml", "-s", "fcfs", "-s", "lpm", "--seed", "3", "--dry-run")
    assert done.code == 0
    assert re.search(r"2 cells, 2 to run: about [\d.]+ s", done.out)
    for policy in ("fcfs", "lpm"):
        assert re.search(rf"tiny_{policy}_seed=3 +│ +\d+ +│ [\d.]+ s", done.out)
    assert not Path("results").exists()


def test_a_trace_is_generated_described_and_drawn(suite: Suite):
    assert suite("workload", "generate", "tiny.yaml", "-o", "a.jsonl", "--seed", "1").code == 0
    assert suite("workload", "generate", "tiny.yaml", "-o", "b.parquet", "--seed", "1").code == 0
    first, second = trace.read(Path("a.jsonl")), trace.read(Path("b.parquet"))
    assert first.digest == second.digest
    described = suite("workload", "describe", "a.jsonl", "--picture", "a.png")
    assert described.code == 0, described.err
    for client in first.clients:
        assert client in described.out
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_a_public_trace_is_imported(suite: Suite):
    rows = [
        {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 3000, "input_length": 600, "output_length": 9, "hash_ids": [0, 2]},
    ]
    Path("public.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--set", "shape.assign.clients=2")
    done = suite("workload", "import", "mooncake", "public.jsonl", "-o", "ours.jsonl", *given)
    assert done.code == 0, done.err
    imported = trace.read(Path("ours.jsonl"))
    assert [request.prompt_tokens for request in imported.requests] == [700, 600]
    assert imported.header.choices["shape"][0]["parameters"]["clients"] == 2


def test_an_import_says_what_became_of_the_rows(suite: Suite):
    rows = ["2023-11-16 18:15:46.68,374,44", "2023-11-16 18:15:50.99,0,109"]
    Path("azure.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    done = suite("workload", "import", "azure", "azure.csv", "-o", "ours.jsonl")
    assert done.out.splitlines()[1:] == ["counts: 1 rows without tokens"]
    made = trace.read(Path("ours.jsonl"))
    trace.write(replace(made, header=replace(made.header, choices={"counts": [3]})), Path("other.jsonl"))
    assert suite("workload", "generate", "other.jsonl", "-o", "again.jsonl").code == 0


def test_a_finished_trace_is_shaped_in_every_command(suite: Suite):
    assert suite("workload", "generate", "tiny.yaml", "-o", "a.jsonl").code == 0
    done = suite("workload", "generate", "a.jsonl", "-o", "b.jsonl", "--set", "shape.stretch=3")
    assert done.code == 0, done.err
    fast, slow = (trace.read(Path(name)).requests[-1].arrival for name in ("a.jsonl", "b.jsonl"))
    assert slow == pytest.approx(3 * fast)
    done = suite("run", "-w", "a.jsonl", "-s", "fcfs", "--set", "workload.shape.stretch=[1,4]", "--dry-run")
    assert done.code == 0, done.err
    assert "2 cells, 2 to run" in done.out


def test_lists_name_what_there_is(suite: Suite):
    schedulers = suite("schedulers").out
    for expected in ("fcfs", "lpm", "vtc", "dlpm", "quantum=2000", "Serve by longest prefix"):
        assert expected in schedulers
    routers = suite("routers").out
    for expected in ("round-robin", "d2lpm", "quantum=20000", "vllm-router:sticky_least_loaded"):
        assert expected in routers
    workloads = suite("workload", "list").out
    for expected in ("chat", "document", "mixed", "shared_document"):
        assert expected in workloads


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["schedulers"],
        ["routers"],
        ["report"],
        ["compare"],
        ["verify", "compare"],
        ["bench", "simulator"],
    ]
    + [["workload", name] for name in ("generate", "describe", "import", "export", "fetch", "list")],
)
def test_help_teaches_by_example(command: list[str], suite: Suite):
    done = suite(*command, "--help")
    assert done.code == 0
    assert re.search(
        rf"suite {' '.join(command) or 'run'}", done.out.partition("Usage")[2].partition("\n")[2]
    )


def test_the_installed_script_starts_without_the_heavy_libraries():
    code = "import sys, suite.cli; print([m for m in ('numpy', 'pandas', 'pyarrow') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"[]\n"
    assert re.fullmatch(rb"suite \d+\.\d+\.\d+\n", subprocess.check_output([SUITE, "--version"]))


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run -w tiny.yaml -s dlmp", "unknown scheduler 'dlmp'; did you mean 'dlpm'?"),
        ("run -w wrong.jsonl -s fcfs", "wrong.jsonl:3: output_tokens: "),
        ("run -w negative.yaml -s fcfs", "negative.yaml: rate: "),
        ("run -w tiny.yaml -s fcfs --set workload.rate=-1", "rate: "),
        ("run gone.yaml", "gone.yaml: not an experiment; no such file"),
        ("run typo.yaml", "typo.yaml: schedulars: unknown key; did you mean 'schedulers'?"),
        ("run -w tiny.yaml -s d2lmp+dlpm", "d2lmp+dlpm: unknown router 'd2lmp'; did you mean 'd2lpm'?"),
        ("run -w tiny.yaml -s lpm+dlpm", "'lpm' is a scheduler, not a router; write ROUTER+SCHEDULER"),
        (
            "run -w tiny.yaml -s lpm --set backend.replicas=2",
            "2 replicas need a router; write round-robin+lpm",
        ),
        ("run -w tiny.yaml -s fcfs --set load", "'load': not an assignment; write KEY=VALUE"),
        ("run -w gone.yaml -s fcfs", "gone.yaml: no such workload"),
        ("run -w tiny.yaml -s gone.py:Gone", "gone.py: no such file"),
        ("run", "give an experiment (ready: "),
        ("workload generate tiny.yaml -o tiny.csv", "tiny.csv: a trace file ends in"),
        ("workload describe wrong.jsonl", "wrong.jsonl:3: output_tokens: "),
        ("workload import mooncak x.jsonl -o x.parquet", "did you mean 'mooncake'?"),
        (
            "workload generate tiny.yaml -o x.jsonl --set shape.thin.client=1",
            "shape.thin: unknown key 'client'",
        ),
        ("workload fetch mooncake-conv", "'mooncake-conv'; did you mean 'mooncake-conversation'?"),
        ("report .", "experiment.json"),
        ("report . --slo tttf=1", "--slo: tttf: unknown key; did you mean 'ttft'?"),
        ("run e -s vtc --against quickstart", "--against stands in for EXPERIMENT, and needs a scheduler"),
        ("run --against quickstart", "--against stands in for EXPERIMENT, and needs a scheduler"),
        ("compare gone -c dlpm", "gone: not an experiment; "),
        ("compare quickstart", "Missing option '--candidate' / '-c'"),
        ("run --seed x", "Invalid value for '--seed': "),
        ("run -j 0", "Invalid value for '--jobs' / '-j': "),
        ("run --nonsense", "No such option: --nonsense"),
        ("run -w", "requires an argument"),
        ("runn", "No such command 'runn'. Did you mean 'run'?"),
        ("workload generate tiny.yaml", "Missing option '--out' / '-o'"),
        ("run -w tiny.yaml -s fcfs -s dlpm:quantum=1,quantum=2", "'quantum': stands twice; drop one"),
        ("run -w tiny.yaml -s fcfs --set workload.rate=2024-13-45", "rate: "),
        (
            "run -w tiny.yaml -s fcfs -o tiny.yaml --fresh",
            "tiny.yaml/cells: cannot be written: Not a directory; ",
        ),
        ("workload generate tiny.yaml -o /proc/x.jsonl", "/proc/x.jsonl: cannot be written: "),
        ("workload generate tiny.yaml -o folder.jsonl", "folder.jsonl: cannot be written: Is a directory; "),
        ("workload generate tiny.yaml -o tiny.yaml/x.parquet", "tiny.yaml/x.parquet: cannot be written: "),
        ("run -w tiny.yaml -s [red]\x1b[2J", r"unknown scheduler '[red]\x1b[2J'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments: str, message: str, suite: Suite):
    Path("folder.jsonl").mkdir()
    Path("negative.yaml").write_text(TINY.replace("rate: 2", "rate: -2"))
    Path("typo.yaml").write_text("name: typo\nworkloads: [tiny.yaml]\nschedulars: [fcfs]\n")
    assert suite("workload", "generate", "tiny.yaml", "-o", "wrong.jsonl").code == 0
    lines = Path("wrong.jsonl").read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"output_tokens":10', '"output_tokens":-10')
    Path("wrong.jsonl").write_text("".join(lines))

    refused = suite(*arguments.split(" "))
    assert refused.code == 2
    assert message in refused.err
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    assert refused.out == ""


@pytest.mark.parametrize("command", [[], ["workload"], ["bench"]])
def test_a_command_without_arguments_shows_its_help(command: list[str], suite: Suite):
    shown = suite(*command)
    assert shown.code == 2
    assert "Usage: suite" in shown.out
    assert shown.err == ""


def test_an_error_of_the_system_is_one_line_too(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "some.file")

    monkeypatch.setattr("workloads.spec.ready", full)
    refused = suite("workload", "list")
    assert (refused.code, refused.err) == (2, "error: some.file: No space left on device\n")


def test_nobody_reading_is_no_error_worth_words():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [SUITE, "workload", "list"],
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # buffered, as in a pipe: it fails only at the end
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_the_terminal_cannot_spell_is_replaced(tmp_path: Path):
    (tmp_path / "tüny.yaml").write_text(TINY)
    for command in (["run", "-w", "tüny.yaml", "-s", "fcfs"], ["workload", "describe", "tüny.yaml"]):
        done = subprocess.run(
            [SUITE, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
        assert b"t?ny" in done.stdout


def test_a_variation_leaves_the_report_of_the_experiment_alone(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suite.report.html.write_report", without_figures)
    Path("e.yaml").write_text("name: e\nworkloads: [tiny.yaml]\nschedulers: [fcfs]\n")
    for arguments in (["e.yaml"], ["e.yaml", "-s", "lpm"], ["e.yaml", "-s", "vtc"], ["e.yaml", "-s", "vtc"]):
        assert suite("run", *arguments).code == 0
    found = {
        path.parent.name: json.loads(path.read_text())["cells"] for path in Path("results").rglob("exp*.json")
    }
    assert found.pop("e") == ["tiny_fcfs_seed=0"]
    assert sorted(found.values()) == [["tiny_lpm_seed=0"], ["tiny_vtc_seed=0"]]
    assert all(re.fullmatch(r"e-[0-9a-f]{6}", name) for name in found)


def test_a_candidate_is_held_against_an_experiment_and_shares_its_cells(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("suite.report.html.write_report", without_figures)
    Path("e.yaml").write_text("name: e\nworkloads: [tiny.yaml]\nschedulers: [fcfs, vtc]\nseeds: 2\n")
    assert suite("run", "e.yaml").code == 0
    done = suite("run", "-s", "lpm", "--against", "e.yaml")
    assert done.code == 0, done.err
    assert "2 run, 4 kept from before, in results/runs/e/cells" in done.out
    card = done.out.partition("score card")[2]
    assert re.search(r"against fcfs .*against vtc ", card)
    for baseline in ("fcfs", "vtc"):
        assert re.search(rf"^lpm against {baseline}: .* 1 of 1 setting$", card, re.MULTILINE)
    assert len(pd.read_csv("results/runs/e/effects.csv")) == 2 * 8
    assert "score card" not in suite("run", "e.yaml").out


def test_a_candidate_that_fails_does_not_get_by(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suite.report.html.write_report", without_figures)
    Path("e.yaml").write_text("name: e\nworkloads: [tiny.yaml]\nschedulers: [fcfs]\n")
    Path("bad.py").write_text(PATIENT.replace("time.sleep", "time.slip"))
    done = suite("run", "-s", "bad.py:Patient", "--against", "e.yaml")
    assert done.code == 1
    assert "left out: tiny_Patient_seed=0: failed: " in done.out
    assert "Patient against fcfs: loses 1 of 1 setting" in done.out
    done = suite("compare", "results/runs/e", "-c", "Patient")
    assert done.code == 3
    assert re.search(r"^Patient against fcfs on tiny: loses: failed: .*'slip' \(seed 0\)$", done.out, re.M)
    assert suite("compare", "results/runs/e", "-c", "fcfs", "-b", "Patient").code == 0


def test_a_failed_cell_is_told_and_exits_with_1(suite: Suite):
    Path("bad.py").write_text(PATIENT.replace("time.sleep", "time.slip"))
    done = suite("run", "-w", "tiny.yaml", "-s", "bad.py:Patient", "-o", "out")
    assert done.code == 1
    (line,) = done.err.splitlines()[-1:]
    assert line.startswith("failed: tiny_Patient_seed=0: ")
    assert "bad.py:10: AttributeError: module 'time' has no attribute 'slip'" in line


# -- interrupts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("send", "sent"),
    [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)],
    ids=["Ctrl-C in a terminal", "SIGTERM to the parent alone"],
)
def test_an_interrupt_keeps_what_is_finished_and_breaks_nothing(
    send: Callable[[int, int], None], sent: signal.Signals, tmp_path: Path
):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "patient.py").write_text(PATIENT)
    command = [SUITE, "run", "-w", "tiny.yaml", "-s", "patient.py:Patient", "-s", "fcfs", "-j2", "-o", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PATIENCE": "60"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    finished = tmp_path / "out/cells/tiny_fcfs_seed=0"
    wait_until(lambda: (finished / "clients.csv").exists())
    send(process.pid, sent)
    _, err = process.communicate(timeout=30)  # returns when no worker holds the other end any more

    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted: 1 of 2 cells are kept; the same command resumes"
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "out/cells").iterdir()] == [finished.name]
    assert not list((tmp_path / "out").rglob(f"{DRAFT}*")), "drafts are left behind"
    assert len(results.read(finished).requests) > 0


def test_the_same_command_resumes(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suite.report.html.write_report", without_figures)
    Path("patient.py").write_text(PATIENT)
    arguments = ["run", "-w", "tiny.yaml", "-s", "fcfs", "-s", "patient.py:Patient", "-o", "out"]
    assert suite("run", "-w", "tiny.yaml", "-s", "fcfs", "-o", "out").code == 0
    kept = Path("out/cells/tiny_fcfs_seed=0/manifest.json")
    before = kept.stat().st_mtime_ns
    resumed = suite(*arguments)
    assert resumed.code == 0
    assert "1 run, 1 kept from before" in resumed.out
    assert kept.stat().st_mtime_ns == before
    clients = [pd.read_csv(folder / "clients.csv") for folder in Path("out/cells").iterdir()]
    pd.testing.assert_frame_equal(*clients)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)

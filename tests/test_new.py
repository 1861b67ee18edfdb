"""`suite new ...`: a file that is refused where it cannot be, teaches, and runs as it stands."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY

from suite import cli, policies, templates
from suite.backends.simulator import Simulator
from suite.errors import BadInput
from workloads.spec import load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def suite(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["suite", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_class_is_named_after_the_file_and_the_name_too(here: Path):
    assert templates.scheduler(Path("ideas/my_own_idea.py")) == "MyOwnIdea"
    spec = policies.parse("ideas/my_own_idea.py:MyOwnIdea:slack=12")
    assert (spec.name, spec.full_parameters) == ("my-own-idea", {"slack": 12.0})


def test_it_serves_every_request_of_a_workload(here: Path):
    templates.scheduler(Path("my_idea.py"))
    trace = load({**TINY, "rate": 50}).generate(0)
    served = Simulator().run(trace, policies.parse("my_idea.py:MyIdea"), here, lambda share, note="": None)
    assert (served.requests["status"] == "finished").all()
    assert len(served.requests) == len(trace.requests) > 500


def test_its_slack_trades_fairness_for_the_cache(here: Path):
    templates.scheduler(Path("my_idea.py"))
    trace = load("document", {"duration": 60, "load": 2}).generate(0)

    def hits(slack: float) -> int:
        spec = policies.parse(f"my_idea.py:MyIdea:slack={slack}")
        served = Simulator().run(trace, spec, here, lambda share, note="": None)
        return int(served.requests["cached_tokens"].sum())

    assert hits(1) < hits(1e6)


def test_the_routers_slack_lets_it_follow_the_cache(here: Path):
    templates.router(Path("my_router.py"))
    trace = load("document", {"duration": 60, "load": 3, "documents": 32}).generate(0)

    def hits(slack: float) -> int:
        spec = policies.parse(f"my_router.py:MyRouter:slack={slack}+fcfs")
        served = Simulator(replicas=4).run(trace, spec, here, lambda share, note="": None)
        assert (served.requests["status"] == "finished").all()
        return int(served.requests["cached_tokens"].sum())

    assert hits(1) < hits(1e6)


KINDS = pytest.mark.parametrize(
    ("write", "modules"),
    [
        (templates.scheduler, {"baselines.scheduler"}),
        (templates.router, {"baselines.router", "baselines.prefix_index", "baselines.scheduler"}),
    ],
    ids=["scheduler", "router"],
)


@KINDS
def test_it_imports_only_the_interface_and_the_standard_library(
    write: Callable[[Path], str], modules: set[str], here: Path
):
    write(Path("my_idea.py"))
    tree = ast.parse(Path("my_idea.py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert found == {"__future__", "collections.abc"} | modules
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


@KINDS
def test_it_passes_the_house_s_own_checks(write: Callable[[Path, str], str], modules: set[str], here: Path):
    write(Path("a_rather_long_name_of_an_idea.py"), "ARatherLongNameOfAnIdea")
    tools = (
        ["ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        ["ruff", "format", "--no-cache", "--check", "--config", str(ROOT / "pyproject.toml")],
        ["mypy", "--strict", "--cache-dir", str(here / "mypy"), "--config-file", str(here / "none")],
    )
    (here / "none").write_text("[mypy]\n")
    for tool in tools:
        command = [sys.executable, "-m", *tool, "a_rather_long_name_of_an_idea.py"]
        environment = {**os.environ, "MYPYPATH": str(ROOT)}
        checked = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_command_says_how_to_try_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert suite(monkeypatch, "new", "scheduler", "my_idea.py") == 0
    assert "suite run --scheduler my_idea.py:MyIdea --against standard" in capsys.readouterr().out
    before = (here / "my_idea.py").read_bytes()
    assert suite(monkeypatch, "new", "scheduler", "my_idea.py") == 2
    assert capsys.readouterr().err == (
        "error: my_idea.py: is there already; choose another name, or remove it\n"
    )
    assert (here / "my_idea.py").read_bytes() == before


def test_the_lines_to_try_a_router_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert suite(monkeypatch, "new", "router", "my_router.py") == 0
    said = capsys.readouterr().out + Path("my_router.py").read_text()
    lines = re.findall(r"suite run .*", said)
    assert len(lines) == 2
    for line in lines:
        assert suite(monkeypatch, *shlex.split(line)[1:], "--dry-run") == 0
        assert "my-router" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "cls", "reason"),
    [
        ("my-idea.py", None, "a name such as my_idea.py"),
        ("9lives.py", None, "a name such as my_idea.py"),
        ("my_idea.txt", None, "a name such as my_idea.py"),
        ("my_idea.py", "class", "'class' cannot be the name of its class"),
        ("my_idea.py", "My Idea", "'My Idea' cannot be the name of its class"),
        ("my_idea.py", "Scheduler", "'Scheduler' cannot be the name of its class"),
        ("__.py", None, "'' cannot be the name of its class"),
        ("vtc.py", None, "there is a scheduler 'vtc' already"),
        ("d2lpm.py", None, "there is a router 'd2lpm' already"),
    ],
)
def test_what_cannot_be_a_scheduler_s_file_is_refused(here: Path, file: str, cls: str | None, reason: str):
    with pytest.raises(BadInput, match=reason):
        templates.scheduler(Path(file), cls)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("file", "cls", "reason"),
    [
        ("my-router.py", None, "a router is a Python file with a name such as my_router.py"),
        ("d2lpm.py", None, "there is a router 'd2lpm' already"),
        ("vtc.py", None, "there is a scheduler 'vtc' already"),
        ("my_router.py", "Router", "'Router' cannot be the name of its class"),
    ],
)
def test_what_cannot_be_a_routers_file_is_refused(here: Path, file: str, cls: str | None, reason: str):
    with pytest.raises(BadInput, match=reason):
        templates.router(Path(file), cls)
    assert not list(here.iterdir())

"""The simulator against the engines' own schedulers and caches, decision for decision."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import typer

from baselines.decisions import replayed
from baselines.dlpm import DLPM
from suite import verify
from suite.backends.base import KEPT, Outcome
from suite.backends.simulator import Simulator
from suite.backends.simulator.batch import Batch
from suite.backends.simulator.vllm import VLLMEngine
from suite.commands import verify as command
from suite.environments import Environment
from suite.errors import BadInput
from suite.policies import parse
from suite.trace import Header, Request, Segment, Trace


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left() -> Iterator[None]:
    """End what the tests have left running."""
    yield
    KEPT.close()


def quiet(share: float, note: str = "") -> None:
    """Progress that nobody watches."""


@pytest.fixture(params=verify.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine that is installed."""
    request.getfixturevalue(request.param)
    return str(request.param)


def test_the_engine_and_the_simulator_decide_alike(engine: str) -> None:
    found = verify.simulator([engine], verify.SCHEDULERS, range(20), quiet)
    assert [one.scheduler.partition(":")[0] for one in found] == ["fcfs", "lpm", "vtc", "vtc", "dlpm"]
    for one in found:
        assert (one.engine, one.cases) == (engine, 20)
        assert not one.differences, one
        assert not one.unseen, one


def test_a_simulator_that_is_wrong_is_caught(vllm: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that caches a prompt only when it has been computed, and so misses it within a step."""
    monkeypatch.setattr(VLLMEngine, "_cache", lambda engine, live, tokens: None)
    (found,) = verify.simulator(["vllm"], ["lpm"], range(3), quiet)
    assert len(found.differences) == 3


def test_the_order_after_a_retraction_is_compared(
    sglang: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests that SGLang keeps in a retraction are in another order afterwards, and end in that."""
    monkeypatch.setattr(Batch, "reorder", lambda batch, members: None)
    (found,) = verify.simulator(["sglang"], ["fcfs"], [11], quiet)
    assert found.differences == [
        "seed 11: event 22: the engine has ['finished', 5, 'stop', 16, 0], "
        "the simulator ['finished', 4, 'stop', 16, 0]"
    ]


def test_nothing_is_compared_where_no_engine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_ENGINES", str(tmp_path))
    with pytest.raises(BadInput, match=r"no engine is installed .* run: suite engines install vllm --device"):
        verify.installed()
    with pytest.raises(BadInput, match="sglang is not installed for cpu; run: suite engines install sglang"):
        verify.simulator(["sglang"], ["fcfs"], [0], quiet)
    with pytest.raises(BadInput, match="unknown engine 'sgland'; did you mean 'sglang'"):
        verify.simulator(["sgland"], ["fcfs"], [0], quiet)


def test_what_differs_and_what_was_not_seen_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = Counter(dict.fromkeys(verify.HAPPENINGS[1:], 1))
    found = [verify.Comparison("sglang", "fcfs", 2, seen, ["seed 1: event 3: the engine has 1, ..."])]
    monkeypatch.setattr(verify, "installed", lambda: ["sglang"])
    monkeypatch.setattr(verify, "simulator", lambda *_: found)
    with pytest.raises(typer.Exit) as stopped:
        command.simulator(None, None, 2)
    assert stopped.value.exit_code == 1
    errors = capfd.readouterr().err
    assert "sglang, fcfs: seed 1: event 3: the engine has 1, ..." in errors
    assert "sglang, fcfs: no trace shows: preempted" in errors


def test_a_whole_run_on_the_virtual_clock(engine: str, tmp_path: Path) -> None:
    """Real scheduler, unreal time: all there is in a run folder, and a log that a fresh policy gives back."""
    case = verify.random_case({"vllm": 10, "sglang": 9}[engine])  # somebody is preempted in it
    limits: dict[str, Any] = {"max_running": case.running, "token_budget": case.tokens}
    limits |= {"kv_tokens": case.kv_tokens, "clip_tokens": case.clip}
    spec = parse("dlpm:quantum=60")
    real = verify.ENGINES[engine](**limits).run(case.trace, spec, tmp_path, quiet)
    simulated = Simulator(**limits, engine=engine).run(case.trace, spec, tmp_path, quiet)
    for frame in ("requests", "service"):
        ours, theirs = getattr(simulated, frame), getattr(real, frame)
        assert list(ours.columns) == list(theirs.columns)
    columns = ["id", "client", "status", "cached_tokens", "output_tokens", "preemptions", "recomputed_tokens"]
    assert real.requests[columns].equals(simulated.requests[columns])
    assert real.requests["recomputed_tokens"].any()
    totals = ["extend", "cached", "recomputed", "output"]
    assert (
        real.service.groupby("client")[totals].sum().equals(simulated.service.groupby("client")[totals].sum())
    )
    first = json.loads((tmp_path / "service-0.jsonl").read_text().splitlines()[0])
    assert first[:2] == ["policy", 0.0]
    assert first[2]["engine"] == engine
    log = [json.loads(line) for line in (tmp_path / "decisions-0.jsonl").read_text().splitlines()]
    assert replayed(log, DLPM(quantum=60)) == log


def one_request(tmp_path: Path, engine: str, scheduler: str) -> Outcome:
    """A run of a trace of one request."""
    trace = Trace(Header("one", 0, "test"), (Request("a", "x", 0.0, (Segment("p", 20),), 2),))
    return verify.ENGINES[engine]().run(trace, parse(scheduler), tmp_path / "logs", quiet)


def bad(tmp_path: Path, decision: str) -> str:
    """A scheduler that does something wrong, by its name."""
    file = tmp_path / "bad.py"
    file.write_text(
        "from baselines.scheduler import Scheduler\n\n\n"
        "class Bad(Scheduler):\n"
        "    def candidates(self, waiting, now):\n"
        f"        {decision}\n"
    )
    return f"{file}:Bad"


def test_a_scheduler_that_raises_is_named(engine: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"{engine} stopped: .*bad\.py:6: KeyError: 0 \(log: .*engine\.log\)"):
        one_request(tmp_path, engine, bad(tmp_path, "yield {}[0]"))
    outcome = one_request(tmp_path, engine, "fcfs")
    assert outcome.requests["status"].tolist() == ["finished"], "the next run gets a new process"


def test_whom_a_scheduler_never_offers_starves(engine: str, tmp_path: Path) -> None:
    """As in the simulator, so that the run ends; with what comes after it."""
    file = tmp_path / "favourite.py"
    file.write_text(FAVOURITE)
    parts = (Segment("p", 20),)
    trace = Trace(
        Header("favourite", 0, "test"),
        (
            Request("b", "b", 0.0, parts, 2),
            Request("turn", "a", 0.0, (*parts, Segment("reply:b", 2)), 2, after=("b",)),
            Request("a", "a", 5.0, parts, 2),
        ),
    )
    spec = parse(f"{file}:Favourite")
    real = verify.ENGINES[engine]().run(trace, spec, tmp_path / "logs", quiet)
    simulated = Simulator(engine=engine).run(trace, spec, tmp_path, quiet)
    assert real.requests["status"].tolist() == ["starved", "cancelled", "finished"]
    assert real.engine["starved"] == 1
    columns = ["arrival", "admitted", "first_token", "finish", "output_tokens", "status"]
    pd.testing.assert_frame_equal(real.requests[columns], simulated.requests[columns])
    assert real.streams is not None
    assert simulated.streams is not None
    pd.testing.assert_frame_equal(real.streams, simulated.streams, check_dtype=False)


FAVOURITE = """
from baselines.scheduler import Scheduler


class Favourite(Scheduler):
    def candidates(self, waiting, now):
        for request in list(waiting.by_arrival()):
            if request.client == "a" and not (yield request):
                return
"""

ENDLESS = """
from baselines.fcfs import FCFS


class Endless(FCFS):
    def arrived(self, request, now):
        open(__file__ + ".began", "w").close()
        while True:
            pass
"""

RUN = """
    import sys
    from pathlib import Path
    from suite.backends.virtual import VirtualVLLM
    from suite.policies import parse
    from suite.trace import Header, Request, Segment, Trace

    folder = Path(sys.argv[1])
    trace = Trace(Header("one", 0, "test"), (Request("a", "x", 0.0, (Segment("p", 20),), 2),))
    VirtualVLLM().run(trace, parse(f"{folder}/endless.py:Endless"), folder / "logs", lambda *_: None)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_no_policy_keeps_its_process_alive(vllm: Environment, ending: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "main.py").write_text(textwrap.dedent(RUN))
    (tmp_path / "tmp").mkdir()
    suite = subprocess.Popen(
        [sys.executable, tmp_path / "main.py", tmp_path],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (tmp_path / "endless.py.began").exists():
        assert suite.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    (driver,) = psutil.Process(suite.pid).children()
    suite.send_signal(ending)
    suite.wait(30)
    assert psutil.wait_procs([driver], timeout=10)[1] == []
    if ending != signal.SIGKILL:
        assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("engine", verify.ENGINES)
@pytest.mark.parametrize("policy", ["stock", "vllm:fcfs", "sglang:lpm"])
def test_the_engines_own_scheduler_is_not_on_a_virtual_clock(
    engine: str, policy: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=f"scheduler '{policy}': .*name one of ours"):
        one_request(tmp_path, engine, policy)
    assert not (tmp_path / "logs").exists()

"""The simulator against vLLM's own scheduler and cache, decision for decision."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from baselines.decisions import replayed
from baselines.dlpm import DLPM
from suite import verify
from suite.backends.base import KEPT
from suite.backends.simulator import Simulator
from suite.backends.simulator.vllm import VLLMEngine
from suite.backends.virtual import VirtualVLLM
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


def test_vllm_and_the_simulator_decide_alike(vllm: Environment) -> None:
    found = verify.simulator(verify.SCHEDULERS, range(20), quiet)
    assert [one.scheduler.partition(":")[0] for one in found] == ["fcfs", "lpm", "vtc", "vtc", "dlpm"]
    for one in found:
        assert one.cases == 20
        assert not one.differences, one
        assert not one.unseen, one


def test_a_simulator_that_is_wrong_is_caught(vllm: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that caches a prompt only when it has been computed, and so misses it within a step."""
    monkeypatch.setattr(VLLMEngine, "_cache", lambda engine, live, tokens: None)
    (found,) = verify.simulator(["lpm"], range(3), quiet)
    assert len(found.differences) == 3


def test_a_whole_run_on_the_virtual_clock(vllm: Environment, tmp_path: Path) -> None:
    """Real scheduler, unreal time: all there is in a run folder, and a log that a fresh policy gives back."""
    case = verify.random_case(10)
    limits = {"max_running": case.running, "token_budget": case.tokens, "kv_tokens": case.kv_tokens}
    spec = parse("dlpm:quantum=60")
    real = VirtualVLLM(**limits).run(case.trace, spec, tmp_path, quiet)
    simulated = Simulator(**limits).run(case.trace, spec, tmp_path, quiet)
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
    log = [json.loads(line) for line in (tmp_path / "decisions-0.jsonl").read_text().splitlines()]
    assert replayed(log, DLPM(quantum=60)) == log


def test_a_scheduler_that_raises_is_named(vllm: Environment, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(
        "from baselines.scheduler import Scheduler\n\n\n"
        "class Bad(Scheduler):\n"
        "    def candidates(self, waiting, now):\n"
        "        yield {}[0]\n"
    )
    trace = Trace(Header("one", 0, "test"), (Request("a", "x", 0.0, (Segment("p", 20),), 2),))
    with pytest.raises(BadInput, match=r"bad\.py:6: KeyError: 0 \(log: .*engine\.log\)"):
        VirtualVLLM().run(trace, parse(f"{file}:Bad"), tmp_path / "logs", quiet)
    outcome = VirtualVLLM().run(trace, parse("fcfs"), tmp_path / "logs", quiet)
    assert outcome.requests["status"].tolist() == ["finished"], "the next run gets a new process"


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


def test_the_engines_own_scheduler_is_not_on_a_virtual_clock(tmp_path: Path) -> None:
    trace = Trace(Header("one", 0, "test"), (Request("a", "x", 0.0, (Segment("p", 20),), 2),))
    with pytest.raises(BadInput, match="scheduler 'stock': only a real engine has a scheduler of its own"):
        VirtualVLLM().run(trace, parse("stock"), tmp_path / "logs", quiet)
    assert not (tmp_path / "logs").exists()

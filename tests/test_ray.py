"""Cells on a Ray cluster of several nodes, one of which is lost: nothing but time is."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import psutil
import pytest
import yaml
from rich.console import Console
from tiny import TINY

from baselines import d2lpm
from suite import fingerprint, ray_cluster, results, runner, workers
from suite.environments import Environment
from suite.errors import BadInput
from suite.experiment import Experiment, load
from suite.metrics import summary
from suite.policies import parse
from suite.report.html import Report
from suite.runner import Job, Outcome
from workloads import spec

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ.update(LOOPBACK)  # before Ray is imported

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import RayTaskError  # noqa: E402

from suite import ray_workers  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")  # one cluster at a time
ENGINE_LOGS = ("server.log", "service.jsonl", "decisions.jsonl")
COST = "{step: 0.02, token: 1.0e-5, attended: 0, read: 0, sequence: 0}"
NODE = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
CLI = "from suite.cli import main; main()"

MINE = """
import os, time
from contextlib import suppress
from pathlib import Path
from baselines.fcfs import FCFS

HERE = Path({here!r})

class Waits(FCFS):
    name = ""

    def __init__(self):
        self.doomed = "DOOMED" in os.environ

    def admitted(self, request, cached_tokens, now):
        if self.doomed:
            (HERE / "reached").touch()
            time.sleep(600)
        super().admitted(request, cached_tokens, now)

class Tells(FCFS):
    name = ""

    def admitted(self, request, cached_tokens, now):
        (HERE / "told").write_text(f"{{__file__}} in {{os.getcwd()}}")
        super().admitted(request, cached_tokens, now)

class Raises(FCFS):
    name = ""

    def admitted(self, request, cached_tokens, now):
        raise KeyError("ticket")

class Dies(FCFS):
    name = ""

    def admitted(self, request, cached_tokens, now):
        os._exit(7)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, where we are, and a node with one."""
    folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with folder, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", folder.name)
        environment.setenv("TMPDIR", folder.name)  # what processes that die leave is removed with it
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "no_monitor": True})
        try:
            cluster.add_node(num_cpus=1, **NODE)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have tests of their own."""
    report = Report(Path("report.html"), pd.DataFrame())
    monkeypatch.setattr("suite.report.html.write_report", lambda out: report)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's file."""
    path = tmp_path / "mine.py"
    path.write_text(MINE.format(here=str(tmp_path)))
    return path


def plan(folder: Path, out: Path, **changes: Any) -> list[Job]:
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump({"name": "e", "workloads": [TINY], "schedulers": ["fcfs"], **changes}))
    return list(runner.plan(load(str(path)), out))


def run(jobs: list[Job], out: Path, ray: str | None = None, console: Console | None = None) -> Outcome:
    experiment = Experiment("e", tuple(job.cell for job in jobs))
    console = console or Console(quiet=True)
    return runner.run(experiment, jobs, out, processes=1, ray=ray, console=console)


def content(out: Path) -> dict[str, Any]:
    """Every file of every cell; of manifests, all that must not change."""
    found: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in out.glob("cells/*/*")}
    for name in found:
        if name.endswith("manifest.json"):
            found[name] = {key: value for key, value in json.loads(found[name]).items() if key != "times"}
    return found


def wait_for(true: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.05)


def test_a_lost_node_costs_its_cells_a_retry_and_nothing_else(tmp_path: Path, mine: Path, cluster: Cluster):
    schedulers = [f"{mine}:Waits", f"round-robin+{mine}:Waits"]
    there, here = tmp_path / "there", tmp_path / "here"
    doomed = cluster.add_node(num_cpus=1, env_vars={"DOOMED": "1"}, **NODE)

    def lose_it() -> None:
        wait_for((tmp_path / "reached").exists, "a cell on the node")
        cluster.remove_node(doomed, allow_graceful=False)

    enemy = threading.Thread(target=lose_it)
    enemy.start()
    console = Console(record=True, file=io.StringIO(), width=200)
    outcome = run(plan(tmp_path, there, schedulers=schedulers, seeds=4), there, cluster.address, console)
    enemy.join()
    assert (outcome.finished, outcome.failed) == (8, {})
    assert "Waits_seed=" in (said := console.export_text())
    assert "its machine was lost; begun again (2 of 3)" in said
    run(plan(tmp_path, here, schedulers=schedulers, seeds=4), here)
    assert content(there) == content(here)
    assert len(content(there)) == 8 * 6


def test_files_of_the_user_go_along(
    tmp_path: Path, mine: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cost.yaml").write_text(COST)
    backend = {"kind": "simulator", "cost": str(tmp_path / "cost.yaml")}
    for name, ray in (("there", cluster.address), ("here", None)):
        out = Path(name)
        assert run(plan(tmp_path, out, schedulers=["mine.py:Tells"], backend=backend), out, ray).failed == {}
        told = (tmp_path / "told").read_text()
        assert (told == f"{mine} in {tmp_path}") == (ray is None)
        assert f"{mine} in " in told
        assert told.endswith(str(tmp_path))
    assert content(Path("there")) == content(Path("here"))


def test_a_failing_scheduler_is_named(
    tmp_path: Path, mine: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("suite.ray_workers.TRIES", 2)  # a process takes seconds to start
    out = tmp_path / "out"
    jobs = plan(tmp_path, out, schedulers=[f"{mine}:Raises", f"{mine}:Dies", "fcfs"])
    outcome = run(jobs, out, cluster.address)
    assert outcome.finished == 1
    assert outcome.failed == {
        "tiny_Raises_seed=0": f"{mine}:32: KeyError: 'ticket'",
        "tiny_Dies_seed=0": "its process was lost (out of memory, killed? Ray says WorkerCrashedError), "
        "the last of 2 times",
    }
    assert [path.name for path in (out / "cells").iterdir()] == ["tiny_fcfs_seed=0"]
    assert run(jobs, out, cluster.address).skipped == 1


def test_another_suite_is_refused(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suite.ray_workers.suite_digest", lambda: "ours")
    with pytest.raises(BadInput, match=r"127\.0\.0\.1: has other sources of the suite"):
        run(plan(tmp_path, tmp_path / "out"), tmp_path / "out", cluster.address)


def test_every_source_makes_another_suite(monkeypatch: pytest.MonkeyPatch):
    whole, read = fingerprint.suite_digest.__wrapped__, Path.read_bytes
    before, changed = whole(), Path()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path == changed))
    assert whole() == before
    for module in (summary, runner, spec, d2lpm):
        changed = Path(module.__file__)
        assert whole() != before, changed


@pytest.mark.parametrize(
    ("bundles", "problem"),
    [
        ([{"CPU": 2}, {"CPU": 2}, {"CPU": 1}], "a cell needs 5 CPUs at once, the cluster has 4"),
        ([{"CPU": 1}, {"CPU": 1, "GPU": 1}], "a cell needs 1 GPUs at once, the cluster has 0"),
        ([{"CPU": 1}, {"CPU": 3}], "a cell needs 3 CPUs on one machine, the largest has 2"),
    ],
)
def test_a_cluster_that_is_too_small_is_told(bundles: list[dict[str, float]], problem: str):
    machines = [{"CPU": 2.0, "memory": 9.0}, {"CPU": 2.0}]
    with pytest.raises(BadInput, match=f"^--ray: {problem}$"):
        ray_workers._check_room(bundles, machines)
    ray_workers._check_room([{"CPU": 2}, {"CPU": 1}, {"CPU": 1}], machines)


def test_a_retry_for_which_there_is_no_room_left_costs_its_item_and_no_other(cluster: Cluster):
    asked: list[str] = []

    def needs(item: str) -> list[dict[str, float]]:
        asked.append(item)
        return [{"CPU": 9.0 if asked.count(item) > 1 else 1.0}]

    def work(item: str, place: ray_workers.Place, report: Callable[..., None]) -> str:
        if item == "unlucky":
            raise ray_workers.MachineLost("its machine was lost")
        return item

    with ray_cluster.connected(cluster.address, cpus=1):
        events = list(ray_workers.run(work, ["unlucky", "lucky"], needs))
    assert [type(event) for event in events] == [workers.Lost, workers.Finished]
    assert events[0].reason.startswith("its machine was lost, and what is left is too small: --ray: a cell ")
    assert "needs 9 CPUs" in events[0].reason


def test_what_hinders_a_machine_is_no_other_suite():
    def told(error: Exception) -> str:
        with pytest.raises(BadInput) as caught:
            ray_workers._how(RayTaskError("_work", "ray::_work() (pid=7, ip=10.0.0.7)", error))
        return str(caught.value)

    assert (
        told(OSError(28, "No space left on device")) == "--ray: 10.0.0.7: [Errno 28] No space left on device"
    )
    assert "10.0.0.7: has other sources of the suite than this machine; install" in told(
        RuntimeError("has other sources of the suite than this machine")
    )


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:1", r"127\.0\.0\.1:1: nobody answers there: .*; start a cluster with `ray start --head`"),
        ("10.0.0.1", r"10\.0\.0\.1: write HOST:PORT .* or local"),
        ("ray://10.0.0.1:10001", r"ray://10\.0\.0\.1:10001: write HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_told(address: str, problem: str, tmp_path: Path):
    with pytest.raises(BadInput, match=problem):
        run(plan(tmp_path, tmp_path / "out"), tmp_path / "out", address)


def test_replicas_of_an_engine_are_actors_on_several_nodes(
    tmp_path: Path, mine: Path, cluster: Cluster, vllm: Environment
):
    node = cluster.add_node(num_cpus=2, **NODE)
    out = tmp_path / "out"
    backend = {"kind": "vllm", "model": "tiny", "max_running": 4, "kv_tokens": 1024, "replicas": 2}
    jobs = plan(
        tmp_path,
        out,
        workloads=[{**TINY, "duration": 4}],
        schedulers=[f"round-robin+{mine}:Waits"],
        backend=backend,
    )
    try:
        assert run(jobs, out, cluster.address).failed == {}
    finally:
        cluster.remove_node(node)
    found = results.read(jobs[0].folder)
    assert (found.requests["status"] == "finished").all()
    assert set(found.requests["worker"]) == set(found.service["worker"]) == {"replica-0", "replica-1"}
    assert found.manifest.engine["policy"]["target"] == f"{mine}:Waits"
    assert found.manifest.invalid == []
    logs = {str(path.relative_to(jobs[0].logs)) for path in jobs[0].logs.rglob("*") if path.is_file()}
    servers = {f"replica-{number}/{name}" for number in (0, 1) for name in ENGINE_LOGS}
    assert logs >= {"client.jsonl", "routes.jsonl", *servers}


def test_a_replica_on_another_machine_finds_the_files_under_the_same_paths(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "there" / "root"
    with ray_cluster.connected(cluster.address, cpus=1):
        from suite.backends.ray import Holder, Home

        files = ray.put({Path("home/me/mine.py"): b"here"})
        one, other = Holder(), Holder()
        for holder in (one, other):
            holder.settle(Home({}, parse("fcfs"), root, root / "home/me", files))
    assert Path("mine.py").read_bytes() == b"here"
    other.leave()
    assert root.exists(), "the other did not make it"
    one.leave()
    assert not root.parent.exists()


def test_a_replica_that_cannot_start_leaves_nothing_on_its_machine(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUITE_ENGINES", str(tmp_path / "none"))
    root = tmp_path / "there" / "root"
    with ray_cluster.connected(cluster.address, cpus=1):
        from suite.backends.ray import Holder, Home

        home = Home({"kind": "vllm"}, parse("fcfs"), root, root / "home/me", ray.put({}))
        with pytest.raises(BadInput, match=r"127\.0\.0\.1: .*suite engines install"):
            Holder().start(home)
    assert not root.parent.exists()


def test_signals_stay_ours(cluster: Cluster):
    ours = signal.getsignal(signal.SIGTERM)
    with ray_cluster.connected(cluster.address, cpus=1):
        assert signal.getsignal(signal.SIGTERM) == ours


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_local_cluster_ends_with_us(stop: signal.Signals, tmp_path: Path, mine: Path):
    plan(tmp_path, tmp_path / "out", schedulers=["fcfs", f"{mine}:Waits"])
    mark = str(uuid4())
    with tempfile.TemporaryDirectory() as temporary:
        driver = subprocess.Popen(
            [sys.executable, "-c", CLI, "run", "e.yaml", "--ray=local", "--jobs=1", "--out=out"],
            cwd=tmp_path,
            env={**os.environ, "SUITE_TEST": mark, "DOOMED": "1", "TMPDIR": temporary},
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        wait_for((tmp_path / "reached").exists, "a cell that runs")
        wait_for((tmp_path / "out/cells/tiny_fcfs_seed=0").exists, "a cell that is finished")
        assert len(marked(mark)) > 3
        (os.kill if stop == signal.SIGKILL else os.killpg)(driver.pid, stop)
        _, said = driver.communicate(timeout=60)
        if stop != signal.SIGKILL:
            assert driver.returncode == 130
            assert "interrupted: 1 of 2 cells are kept" in said
            assert marked(mark) == []
            assert os.listdir(temporary) == []
        wait_for(lambda: not marked(mark), "the end of the cluster")
    assert [path.name for path in (tmp_path / "out" / "cells").iterdir()] == ["tiny_fcfs_seed=0"]


def marked(mark: str) -> list[str]:
    """The processes with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SUITE_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
    return found

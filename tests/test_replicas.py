"""Several replicas behind a router: stand-ins for the engines everywhere, vLLM itself where it is there."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from suite import policies
from suite.backends.base import Incomplete, Outcome
from suite.backends.engine import EngineBackend
from suite.backends.engines import ENGINES
from suite.backends.servers import POOL, ask
from suite.commands.serve import naming
from suite.errors import BadInput
from suite.trace import Trace
from tests.stand_ins import (
    a_trace,
    environment,
    fake_pids,
    flags,
    installed,
    quiet,
    rows_of,
    served,
)

RELEASES = {"vllm": "0.32.0", "sglang": "0.5.23"}


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the environments of both stand-ins."""
    root = tmp_path_factory.mktemp("engines")
    for engine, release in RELEASES.items():
        environment(engine, release, root)
    return root


@pytest.fixture
def fake(engines: Path, tmp_path: Path) -> Iterator[None]:
    """The stand-ins are what is installed; afterwards nothing of them may run."""
    with installed(engines, tmp_path):
        yield


def backend(engine: str = "vllm", **settings: Any) -> EngineBackend:
    given = {"model": "tiny", "max_running": 4, "kv_tokens": 1024, "timeout_s": 60.0, "replicas": 2}
    return ENGINES[engine](**{"kind": engine, **given, **settings})


def run(settings: EngineBackend, name: str, logs: Path, trace: Trace | None = None) -> Outcome:
    return settings.run(trace or a_trace(), policies.parse(name), logs, quiet)


# -- a run -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("engine", RELEASES)
def test_round_robin_deals_the_requests_and_every_row_names_its_replica(engine: str, tmp_path: Path):
    outcome = run(backend(engine), "round-robin+fcfs", tmp_path)
    assert outcome.invalid == ()
    assert set(outcome.requests["status"]) == {"finished"}
    assert outcome.service["output"].sum() == 43
    assert outcome.service["time"].is_monotonic_increasing
    assert sorted(Counter(outcome.requests["worker"]).items()) == [("replica-0", 5), ("replica-1", 4)]
    by_worker = outcome.service.groupby("worker")["output"].sum().to_dict()
    assert by_worker == outcome.requests.groupby("worker")["output_tokens"].sum().to_dict()
    workers = outcome.engine["workers"]
    assert {name: word["requests"] for name, word in workers.items()} == {"replica-0": 5, "replica-1": 4}
    assert {name: word["output"] for name, word in workers.items()} == by_worker
    assert outcome.engine["router"]["name"] == "round-robin"
    assert set(outcome.requests["client"]) == {"a", "b"}, "by the engine's account: no disagreement above"


@pytest.mark.usefixtures("fake")
def test_the_routers_log_and_the_engines_stay_with_the_run(tmp_path: Path):
    run(backend(), "round-robin+fcfs", tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept >= {"client.jsonl", "replica-0", "replica-1", "routes.jsonl"}
    for replica in ("replica-0", "replica-1"):
        files = {path.name for path in (tmp_path / replica).iterdir()}
        assert files == {"decisions.jsonl", "server.log", "service.jsonl"}


@pytest.mark.usefixtures("fake")
def test_one_replica_may_stand_behind_a_router(tmp_path: Path):
    outcome = run(backend(replicas=1), "round-robin+fcfs", tmp_path)
    assert outcome.invalid == ()
    assert set(outcome.requests["worker"]) == {"replica-0"}


@pytest.mark.usefixtures("fake")
def test_servers_outlive_their_router_and_serve_behind_the_next(tmp_path: Path):
    run(backend(), "round-robin+fcfs", tmp_path / "one")
    servers = fake_pids()
    second = run(backend(), "least-outstanding+fcfs", tmp_path / "two")
    assert sorted(fake_pids()) == sorted(servers)
    assert second.invalid == (), "their caches were cold again"
    assert second.engine["router"]["name"] == "least-outstanding"


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("router", "told"), [("round-robin", False), ("d2lpm", True)])
def test_vllm_tells_of_its_cache_where_the_router_listens(router: str, told: bool, tmp_path: Path):
    run(backend(), f"{router}+dlpm", tmp_path)
    addresses = []
    for replica in ("replica-0", "replica-1"):
        config = json.loads(flags(tmp_path / replica).get("--kv-events-config", "{}"))
        assert bool(config.get("enable_kv_cache_events")) == told
        addresses.append(config.get("endpoint", ""))
    assert all(address.startswith("ipc://") == told for address in addresses), "no port of the machine"
    assert len(set(addresses)) == (2 if told else 1)


# -- what cannot work ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
def test_replicas_without_a_router_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"^2 replicas need a router; write round-robin\+dlpm:quantum=500$"):
        run(backend(), "dlpm:quantum=500", tmp_path)


@pytest.mark.usefixtures("fake")
def test_a_client_whom_no_header_can_name_is_refused(tmp_path: Path):
    trace = a_trace()
    strange = tuple(replace(request, client="two\nlines") for request in trace.requests)
    with pytest.raises(BadInput, match=r"^client 'two\\nlines': no header can hold this name"):
        run(backend(), "round-robin+fcfs", tmp_path, replace(trace, requests=strange))


@pytest.mark.usefixtures("fake")
def test_a_router_that_is_not_installed_comes_with_the_command(tmp_path: Path):
    with pytest.raises(BadInput, match=r"run: suite engines install vllm-router$"):
        run(backend(), "vllm-router:round_robin+fcfs", tmp_path)


# -- faults ----------------------------------------------------------------------------------------------


def crowd(requests: int, output_tokens: int) -> Trace:
    """So many requests at once: most of them wait when a replica is lost."""
    trace = a_trace(requests, output_tokens)
    return replace(
        trace, requests=tuple(replace(request, arrival=0.0) for request in trace.requests[:requests])
    )


def lost(outcome: Outcome) -> list[str]:
    """Why requests failed."""
    return list(outcome.requests.loc[outcome.requests["status"] == "failed", "error"])


@pytest.mark.usefixtures("fake")
def test_a_replica_that_is_killed_costs_what_it_had_begun_and_nothing_else(tmp_path: Path):
    killed: list[str] = []

    def progress(share: float, note: str = "") -> None:
        if share > 0.2 and not killed:
            killed.append(config(tmp_path)["workers"][0]["url"])  # where all were sent: they share a document
            kill(killed[0])

    with pytest.raises(Incomplete, match=r"broke off: was killed by SIGKILL") as broken:
        backend().run(crowd(60, 60), policies.parse("d2lpm+dlpm"), tmp_path, progress)
    check_loss(broken.value.outcome, slots=4)


def check_loss(outcome: Outcome, slots: int) -> None:
    """Only requests that had begun to answer failed, no more than had a place, by their replica's name."""
    counts = Counter(outcome.requests["status"])
    assert set(counts) <= {"finished", "failed"}
    assert counts["finished"] >= len(outcome.requests) - slots
    assert all("replica-" in error for error in lost(outcome))
    begun = outcome.requests.loc[outcome.requests["status"] == "failed", "first_token"]
    assert begun.notna().all(), "what had not begun was served by the other"
    after = outcome.requests.groupby("worker")["finish"].max()
    assert len(after) == 2


BROKEN = """
import sys
from baselines.fcfs import FCFS

class Mine(FCFS):
    name = "mine"

    def arrived(self, request, now):
        if request.client == "b" and "replica-1" in " ".join(sys.argv):
            raise RuntimeError("out of ideas")
"""


@pytest.mark.usefixtures("fake")
def test_a_scheduler_that_fails_on_one_replica_is_told_with_the_log_of_that_one(tmp_path: Path):
    (tmp_path / "mine.py").write_text(BROKEN)
    with pytest.raises(Incomplete, match=r"RuntimeError: out of ideas \(log: \S*replica-1/server.log\)"):
        run(backend(), f"round-robin+{tmp_path}/mine.py:Mine", tmp_path / "logs")


# -- suite serve -----------------------------------------------------------------------------------------


def ask_as(url: str, client: str) -> None:
    """A request by a client that is not the suite's, and does not know of vLLM's extra fields."""
    import urllib.request

    body = {"model": "tiny", "prompt": [10] * 50, "max_tokens": 4, "ignore_eos": True}
    headers = {"X-Client-Id": client, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4


@pytest.mark.usefixtures("fake")
def test_serve_puts_a_front_before_several(tmp_path: Path):
    def use(url: str) -> None:
        with ThreadPoolExecutor() as clients:
            list(clients.map(lambda who: ask_as(url, who), ["alice", "alice", "bob"]))

    code, out, err = served("-s", "d2lpm+dlpm", "--set", "replicas=2", folder=tmp_path / "logs", use=use)
    assert code == 0, err
    assert {client: requests for client, requests, *_ in rows_of(out)} == {"alice": "2", "bob": "1"}


@pytest.mark.parametrize(
    ("engine", "router", "said"),
    [
        ("vllm", "d2lpm", "X-Client-Id"),
        ("sglang", "d2lpm", "X-Client-Id"),
        ("vllm", "vllm-router:random", "vllm_xargs"),
        ("sglang", "sglang-router:random", '"rid"'),
    ],
)
@pytest.mark.usefixtures("fake")
def test_clients_are_told_how_to_name_themselves_so_that_it_arrives(engine: str, router: str, said: str):
    launch = backend(engine).launch(policies.parse(f"{router}+fcfs"))
    assert said in naming(launch)


# -- vLLM itself -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("vllm")
def test_a_vllm_that_is_killed_under_load_costs_what_it_had_begun(tmp_path: Path):
    """D2LPM's accounts settle: nothing is outstanding anywhere when all is over."""
    states: list[dict[str, Any]] = []

    def progress(share: float, note: str = "") -> None:
        if share > 0.1 and not states:
            states.append(state(tmp_path))
            kill(config(tmp_path)["workers"][0]["url"])
        if share == 1:
            states.append(state(tmp_path))

    try:
        with pytest.raises(Incomplete, match="broke off: was killed by SIGKILL") as broken:
            backend().run(crowd(48, 100), policies.parse("d2lpm+dlpm"), tmp_path, progress)
    finally:
        POOL.close()
    check_loss(broken.value.outcome, slots=4)
    before, after = states[0], states[-1]
    assert before["router"]["outstanding"]["replica-0"] > 10, "it had much to do when it was killed"
    assert set(after["router"]["outstanding"].values()) == {0}
    assert {row["in_flight"] for row in after["clients"]} == {0}
    assert after["word"]["retries"] > 10
    assert after["word"]["eviction_reports"] == "events"
    assert after["word"]["workers"]["replica-1"]["events"]["unreadable"] == 0


def config(logs: Path) -> dict[str, Any]:
    """What the front was told."""
    found: dict[str, Any] = json.loads((logs / "front.json").read_text())
    return found


def state(logs: Path) -> dict[str, Any]:
    """What the front tells of itself."""
    _, admin_port = (logs / "front.log").read_text().split("serving on ")[1].split()[:2]
    found: dict[str, Any] = ask(f"http://127.0.0.1:{admin_port}/state")
    return found


def kill(url: str) -> None:
    """Kill -9 whatever listens at an address."""
    port = int(url.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            os.kill(connection.pid, signal.SIGKILL)

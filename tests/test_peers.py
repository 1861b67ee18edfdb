"""Other projects' routers: as they are where they are installed, their commands and word everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from suite import environments, policies
from suite.backends import peers
from suite.backends.front.config import WorkerAddress
from suite.backends.peers import Peer
from suite.backends.servers import ask
from suite.content import Content
from suite.errors import BadInput
from suite.policies import PEERS, PeerRouter
from suite.replay import Replayed, Target, replay
from suite.trace import Header, Request, Segment, Trace


def router(name: str) -> PeerRouter:
    found = policies.parse_router(name)
    assert isinstance(found, PeerRouter)
    return found


@pytest.fixture(params=PEERS)
def program(request: pytest.FixtureRequest) -> str:
    """Each router in turn, where it is installed."""
    try:
        environments.find(request.param, "cpu")
    except BadInput as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture
def workers() -> Iterator[list[WorkerAddress]]:
    """Two instant mock workers."""
    command = [sys.executable, "-m", "suite.mock_server", "0"]
    started = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    try:
        urls = [f"http://127.0.0.1:{int(one.stdout.readline())}" for one in started if one.stdout]
        yield [WorkerAddress(name=f"replica-{i}", url=url) for i, url in enumerate(urls)]
    finally:
        for one in started:
            one.communicate(timeout=20)


def listening(process: psutil.Process) -> set[str]:
    """The addresses that a process, or one of its children, listens at."""
    family = [process, *process.children(recursive=True)]
    connections = [each for one in family for each in one.net_connections("tcp")]
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


def replayed(url: str) -> Replayed:
    """Ten requests, as text, which both take."""
    requests = (Request(str(i), "alice", 0.0, (Segment(str(i), 20),), 3) for i in range(10))
    return replay(
        Trace(Header("test", 0, "test"), tuple(requests)),
        Content(0, 2048),
        Target(url, "mock", "vllm", "completions", "words", peer=True),
        progress=lambda share, note="": None,
        timeout_s=20.0,
    )


def test_a_router_deals_the_requests_listens_on_loopback_and_ends(
    program: str, workers: list[WorkerAddress], tmp_path: Path
):
    with Peer.start(router(f"{program}:round_robin"), workers, logs=tmp_path) as peer:
        for worker in workers:
            ask(f"{worker.url}/report")
        result = replayed(peer.url)
        warden = psutil.Process(peer._server._warden.pid)
        assert listening(warden) == {"127.0.0.1"}
        assert peer.alive() is None
    assert list(result.requests["status"]) == ["finished"] * 10
    assert list(result.requests["output_tokens"]) == [3] * 10
    assert [ask(f"{worker.url}/report")["tokens"] for worker in workers] == [15, 15]
    assert not warden.is_running()
    assert (tmp_path / peers.LOG).stat().st_size > 0


def test_its_word_names_policy_and_release(program: str, workers: list[WorkerAddress], tmp_path: Path):
    with Peer.start(router(f"{program}:cache_aware"), workers, logs=tmp_path) as peer:
        word = peer.word()
    release = environments.find(program, "cpu").version
    assert word["router"] == {"name": f"{program}:cache_aware", "version": release}
    assert word["eviction_reports"].startswith("none: ")


def test_a_router_that_is_killed_says_so(program: str, workers: list[WorkerAddress], tmp_path: Path):
    with Peer.start(router(f"{program}:random"), workers, logs=tmp_path) as peer:
        for child in psutil.Process(peer._server._warden.pid).children():
            child.kill()
        peer._server._warden.wait(timeout=20)
        assert f"{program}:random was killed by SIGKILL" in (peer.alive() or "")


# -- where none is installed -----------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose Python prints what it is asked to do, and ends."""
    python = tmp_path / "engines" / "sglang-router-0.3.2-cpu" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\necho "ValueError: no such policy"\nexit 3\n')
    python.chmod(0o755)
    marker = '{"engine": "sglang-router", "version": "0.3.2", "device": "cpu"}'
    (python.parents[1] / environments.MARKER).write_text(marker)
    monkeypatch.setenv("SUITE_ENGINES", str(tmp_path / "engines"))
    return python


@pytest.mark.usefixtures("stand_in")
def test_a_router_that_does_not_start_is_told_with_its_last_words(tmp_path: Path):
    worker = WorkerAddress(name="replica-0", url="http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"^sglang-router:random exited with code 3: ValueError: no such"):
        Peer.start(router("sglang-router:random"), [worker], logs=tmp_path, timeout_s=7.5)
    words = (tmp_path / peers.LOG).read_text().splitlines()[0].split()
    assert words[:2] == ["-m", "sglang_router.launch_router"]
    flags = dict(zip(words[2::2], words[3::2], strict=False))
    assert (flags["--policy"], flags["--host"], flags["--prometheus-host"]) == (
        "random",
        "127.0.0.1",
        "127.0.0.1",
    )
    assert flags["--request-timeout-secs"] == "8"
    assert flags["--worker-urls"] == worker.url


def test_one_that_does_not_know_its_workers_is_not_waited_for_in_vain(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peers, "START", 2.0)
    nobody = WorkerAddress(name="replica-0", url="http://127.0.0.1:9")
    with pytest.raises(BadInput, match="knows 0 of 1 replicas after 2 s"):
        Peer.start(router(f"{program}:random"), [nobody], logs=tmp_path)


def test_nothing_is_wrong_with_their_environments(program: str):
    assert environments.problems(environments.find(program, "cpu")) == []

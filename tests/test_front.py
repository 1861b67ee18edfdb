"""The front as a process before stand-ins for replicas: what passes through it, and who is told what."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from suite.backends.front.config import Identity, WorkerAddress
from suite.backends.router import Front
from suite.backends.servers import ask
from suite.errors import BadInput
from suite.policies import parse_router
from tests.fake_workers import FakeWorker
from tests.fronts import Call, charged, front, fronted, in_flight, said, wanting, worker_counts
from tests.stand_ins import until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, Sequence[FakeWorker]]]:
    with fronted(tmp_path_factory.mktemp("front"), 2, "d2lpm:quantum=1000") as both:
        yield both


@pytest.fixture
def two(shared: tuple[Front, Sequence[FakeWorker]]) -> Iterator[tuple[Front, Sequence[FakeWorker]]]:
    """A front before two workers that are well."""
    for worker in shared[1]:
        worker.mode, worker.pause = "well", 0.0
        worker.go.clear()
        worker.asked.clear()
    yield shared
    for worker in shared[1]:
        worker.go.set()
    until(lambda: in_flight(shared[0]) == 0)


def all_asked(workers: Sequence[FakeWorker]) -> list[str]:
    return [asked.path for worker in workers for asked in worker.asked]


# -- what passes through -------------------------------------------------------------------------------------


def test_a_token_reaches_the_client_before_the_worker_makes_the_next(
    two: tuple[Front, Sequence[FakeWorker]],
):
    front, workers = two
    for worker in workers:
        worker.mode = "gated"
    call = Call(front.url, wanting(3))
    assert call.begin() == 200
    assert call.response
    assert call.response.headers["Content-Type"] == "text/event-stream"
    assert call.some().count(b"data:") == 1
    for worker in workers:
        worker.go.set()
    assert call.rest().count("data:") == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "text " * 40}),
        ("/v1/completions", {"prompt": [[1, 2, 3]]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ("/generate", {"input_ids": [1, 2, 3]}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_every_route_passes_the_body_on_and_the_reply_back(
    two: tuple[Front, Sequence[FakeWorker]], path: str, body: dict[str, object], stream: bool
):
    front, workers = two
    sent = {**body, "max_tokens": 2, "stream": stream}
    status, text = said(front.url, sent, {"X-Client-Id": "ann"}, path)
    assert status == 200
    assert ("[DONE]" in text) == stream
    [asked] = [asked for worker in workers for asked in worker.asked]
    assert asked.path == path
    assert asked.body == sent | {"vllm_xargs": {"client_id": "ann"}}


def test_long_prompts_pass(two: tuple[Front, Sequence[FakeWorker]]):
    front, workers = two
    assert said(front.url, wanting(1, prompt=list(range(300_000))))[0] == 200
    assert len(next(worker for worker in workers if worker.asked).asked[0].body["prompt"]) == 300_000


def test_models_and_health_are_told(two: tuple[Front, Sequence[FakeWorker]]):
    front, _ = two
    assert ask(f"{front.url}/v1/models") == {"data": [{"id": "fake"}]}
    assert ask(f"{front.url}/health") == ""
    with pytest.raises(OSError, match=r"404 .*no such route"):
        ask(f"{front.url}/v1/embeddings", {})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"vllm_xargs": 1}', b"\xff"])
def test_a_body_that_is_no_request_is_refused_by_the_front(
    two: tuple[Front, Sequence[FakeWorker]], body: bytes
):
    front, workers = two
    status, text = said(front.url, body)
    assert status == 400
    assert "message" in json.loads(text)["error"]
    assert all_asked(workers) == []
    assert front.alive() is None


def headed(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"", b"Host: x", b"Connection: close", *headers, b"", body])


def posted(body: bytes, *headers: bytes) -> bytes:
    return b"POST /v1/completions HTTP/1.1" + headed(body, b"Content-Length: %d" % len(body), *headers)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 garbage\r\n\r\n",
        b"OPTIONS * HTTP/1.1" + headed(b""),
        b"CONNECT h:1 HTTP/1.1" + headed(b""),
        b"POST http://elsewhere/v1/completions HTTP/1.1" + headed(b"{}", b"Content-Length: 2"),
        b"POST /v1/%ff HTTP/1.1" + headed(b"", b"Content-Length: 0"),
        b"POST /v1/completions HTTP/1.1" + headed(b"zz\r\n", b"Transfer-Encoding: chunked"),
        posted(b"{}", b"Content-Encoding: gzip"),
        posted(b"{}", b"X-Client-Id: \xff\xfe"),
        posted(b"{}", b"X-Client-Id: ann", b"x-client-id: bob"),
        posted(b'{"max_tokens": 1}', b"X-Request-Id: \xff\xfe", b"traceparent: \xc3("),
        posted(b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}"),
        posted(b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b', "vllm_xargs": {"client_id": "other"}}'),
        posted(b'{"vllm_xargs": {"request_id": ' + b"[" * 900 + b"]" * 900 + b"}}"),
        posted(b'{"max_tokens": 1, "prompt": "\\ud800", "vllm_xargs": {"weight": "1e999"}}'),
        posted(b'{"max_tokens": 1, "prompt": [1, -1, 1e99, true, null, 99999999999999999999]}'),
    ],
)
def test_nothing_that_a_client_sends_brings_the_front_down(
    two: tuple[Front, Sequence[FakeWorker]], data: bytes
):
    front, _ = two
    host, port = front.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        while connection.recv(2**16):
            pass
    assert said(front.url, wanting(1))[0] == 200
    assert front.alive() is None


def test_a_client_that_leaves_ends_its_request_at_the_worker(two: tuple[Front, Sequence[FakeWorker]]):
    front, workers = two
    for worker in workers:
        worker.pause = 0.02
    before = front.state()["word"]["requests"]
    aborted = sum(worker_counts(front, name)["aborted"] for name in ("replica-0", "replica-1"))
    call = Call(front.url, wanting(10_000))
    call.begin()
    call.some()
    call.some()
    call.hang_up()
    until(lambda: all(worker.running == 0 for worker in workers))
    until(lambda: in_flight(front) == 0)
    assert front.state()["word"]["requests"] == before + 1
    assert sum(worker_counts(front, name)["aborted"] for name in ("replica-0", "replica-1")) == aborted + 1


def test_a_client_that_leaves_before_the_first_byte_ends_its_request_too(
    two: tuple[Front, Sequence[FakeWorker]],
):
    front, workers = two
    for worker in workers:
        worker.mode = "mute"
    call = Call(front.url, wanting(5))
    until(lambda: sum(worker.running for worker in workers) == 1)
    call.hang_up()
    until(lambda: sum(worker.running for worker in workers) == 0)
    until(lambda: in_flight(front) == 0)


def test_a_slow_reader_slows_its_worker_down(two: tuple[Front, Sequence[FakeWorker]]):
    front, workers = two
    total = 96 * 2**20
    call = Call(front.url, wanting(96, pad="x" * 2**20))
    call.begin()
    worker = next(worker for worker in workers if worker.running)
    seen = [-1, worker.written]
    until(lambda: seen.append(worker.written) is None and seen[-1] == seen[-20:][0] and len(seen) > 40)
    assert worker.written < total / 2
    assert len(call.rest()) > total / 2


# -- who is who ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, Sequence[FakeWorker], Path]]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys.yaml").write_text("open-sesame: ann\nknock-knock: {client: bob, weight: 2}\n")
    with fronted(folder / "logs", 1, identity=Identity(keys=folder / "keys.yaml")) as (front, workers):
        yield front, workers, folder / "logs"


def test_with_a_table_of_keys_nobody_can_be_another(keyed: tuple[Front, Sequence[FakeWorker], Path]):
    front, [worker], logs = keyed
    forged = {"client_id": "bob", "weight": 99, "priority": -1, "request_id": "mine"}
    headers = {
        "Authorization": "Bearer open-sesame", "X-Client-Id": "bob", "X-SMG-Routing-Key": "bob",
        "X-Request-Id": "mine",
    }  # fmt: skip
    assert said(front.url, wanting(2, vllm_xargs=forged, priority=-5), headers)[0] == 200
    asked = worker.asked[-1]
    assert asked.body == wanting(2, vllm_xargs={"client_id": "ann", "weight": 1.0})
    assert not {"authorization", "x-client-id", "x-smg-routing-key", "x-request-id"} & {
        name.lower() for name in asked.headers
    }
    assert said(front.url, wanting(2), {"Authorization": "Bearer knock-knock"})[0] == 200
    assert worker.asked[-1].body["vllm_xargs"] == {"client_id": "bob", "weight": 2.0}
    assert {row["client"] for row in front.state()["clients"]} == {"ann", "bob"}
    front.stop()
    left = b"".join(path.read_bytes() for path in logs.iterdir())
    assert b"ann" in left
    assert b"sesame" not in left


def test_without_a_known_key_nothing_passes(tmp_path: Path):
    (tmp_path / "keys.yaml").write_text("open-sesame: ann\n")
    with fronted(tmp_path / "logs", 1, identity=Identity(keys=tmp_path / "keys.yaml")) as (front, [worker]):
        for headers in ({}, {"X-Client-Id": "ann"}, {"Authorization": "Bearer guess"}):
            assert said(front.url, wanting(), headers)[0] == 401
        with pytest.raises(OSError, match="401"):
            ask(f"{front.url}/v1/models")
        assert worker.asked == []


def test_sglang_is_told_the_client_in_its_header_and_in_the_body(tmp_path: Path):
    with fronted(tmp_path, 1, engine="sglang") as (front, [worker]):
        headers = {"X-Client-Id": "ann", "X-SMG-Routing-Key": "bob"}
        assert said(front.url, wanting(2), headers)[0] == 200
        assert worker.asked[-1].headers["X-SMG-Routing-Key"] == "ann"
        assert worker.asked[-1].body == wanting(2, custom_params={"client_id": "ann"})


# -- what is told --------------------------------------------------------------------------------------------


def test_metrics_and_log_tell_who_got_what(tmp_path: Path):
    with fronted(tmp_path, 2) as (front, _):
        body = wanting(3, stream_options={"include_usage": True}, vllm_xargs={"request_id": 'r"1\n'})
        assert said(front.url, body, {"X-Client-Id": 'a"b'})[0] == 200
        assert said(front.url, wanting(2), {"X-Client-Id": 'a"b'})[0] == 200
        with urllib.request.urlopen(f"{front.admin_url}/metrics") as answer:
            metrics = answer.read().decode()
        assert 'front_output_tokens_total{client="a\\"b",worker="replica-0"} 3.0' in metrics
        assert 'front_requests_total{client="a\\"b",worker="replica-1"} 1.0' in metrics
        assert 'front_worker_up{worker="replica-1"} 1.0' in metrics
        assert "front_router_decision_seconds_count 2.0" in metrics
    lines = [json.loads(line) for line in (tmp_path / "routes.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["joined", "joined", "sent", "ended", "sent", "ended"]
    about = {"id": 'r"1\n', "client": 'a"b', "worker": "replica-0"}
    assert lines[3] == {"event": "ended", "t": lines[3]["t"], **about, "end": "stop", "tokens": 3}
    assert [line["t"] for line in lines] == sorted(line["t"] for line in lines)


@pytest.mark.parametrize(
    ("router", "word"),
    [("round-robin", "none: the router does not listen"), ("d2lpm", "none: replica-0: nothing was heard")],
)
def test_events_that_nobody_sends_or_hears_are_not_claimed(tmp_path: Path, router: str, word: str):
    with FakeWorker() as worker:
        address = WorkerAddress(name="replica-0", url=worker.url, events=f"ipc://{tmp_path}/nobody")
        with Front.start(
            parse_router(router), [address], engine="vllm", block_tokens=16, logs=tmp_path / "logs"
        ) as front:
            assert said(front.url, wanting())[0] == 200
            assert front.word()["eviction_reports"] == word


def test_accounts_hold_what_was_served_and_nothing_else(tmp_path: Path):
    with fronted(tmp_path, 2, "d2lpm") as (front, workers):
        for number in range(6):
            said(front.url, wanting(4, prompt=[number] * 32), {"X-Client-Id": "ab"[number % 2]})
        workers[0].mode = workers[1].mode = "400"
        assert said(front.url, wanting(4))[0] == 400
        assert sum(charged(front).values()) == 6 * (32 + 2 * 4)
        assert front.state()["router"]["outstanding"] == {"replica-0": 0, "replica-1": 0}


# -- starting and ending -------------------------------------------------------------------------------------


def test_a_front_that_cannot_start_says_why(tmp_path: Path):
    (tmp_path / "keys.yaml").write_text("a: [1]\n")
    with pytest.raises(BadInput, match=r"keys.yaml: entry 1"):
        fronted(tmp_path / "logs", 1, identity=Identity(keys=tmp_path / "keys.yaml")).__enter__()


def test_a_port_that_is_taken_is_named(tmp_path: Path):
    with FakeWorker() as worker, pytest.raises(BadInput, match=f"port {worker.port}: cannot be used"):
        Front.start(
            parse_router("d2lpm"), [], engine="vllm", block_tokens=16, logs=tmp_path, port=worker.port
        )


def test_a_router_that_fails_ends_the_front_with_its_reason(tmp_path: Path):
    file = tmp_path / "bad.py"
    file.write_text(
        "from baselines.router import Router\n\nclass Bad(Router):\n    name = 'bad'\n"
        "    def route(self, request, workers, now):\n        raise KeyError('who?')\n"
    )
    with fronted(tmp_path / "logs", 1, f"{file}:Bad") as (front, _):
        assert said(front.url, wanting())[0] == 500
        until(lambda: front.alive() is not None)
        assert "KeyError: 'who?'" in (front.alive() or "")


def test_without_a_worker_requests_are_turned_away_at_once(tmp_path: Path):
    with front(tmp_path, ["http://127.0.0.1:9"]) as alone:
        status, text = said(alone.url, wanting())
        assert (status, json.loads(text)["error"]["message"]) == (503, "no worker is up")


# -- suite route ---------------------------------------------------------------------------------------------


SUITE = Path(sys.executable).with_name("suite")


def test_route_puts_a_router_before_servers_and_tells_what_each_client_got(tmp_path: Path):
    with FakeWorker() as worker:
        words = ["-w", worker.url, "-w", "http://127.0.0.1:9", "--logs", str(tmp_path / "logs")]
        process = subprocess.Popen([SUITE, "route", *words], stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout
            lines = list(iter(process.stdout.readline, "the front is up; Ctrl-C ends it\n"))
            assert lines[:2] == ["replica-0: up\n", "replica-1: down\n"]
            url = lines[2].split()[1].removesuffix("/v1")
            assert said(url, wanting(3), {"X-Client-Id": "[b]ann"})[0] == 200
            process.send_signal(signal.SIGINT)
            told = process.stdout.read()
        assert process.returncode == 0
        [row] = [line for line in told.splitlines() if "[b]ann" in line]
        assert row.split()[1:-1:2] == ["[b]ann", "replica-0", "1", "1", "0", "0", "32", "3"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-w", "127.0.0.1"], "--worker '127.0.0.1': url: '127.0.0.1' is no HTTP address"),
        (["-w", "http://h,evnts=tcp://h:1"], "evnts: unknown key; did you mean 'events'"),
        (["-w", "http://h", "-r", "sglang-router:random"], "name one of ours"),
    ],
)
def test_route_refuses_what_cannot_work_in_one_line(tmp_path: Path, words: list[str], problem: str):
    found = subprocess.run([SUITE, "route", "--logs", tmp_path, *words], capture_output=True, text=True)
    assert found.returncode == 2
    assert problem in found.stderr
    assert found.stderr.count("\n") == 1

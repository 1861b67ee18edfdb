"""The front when things go wrong: workers that fail, die, hang, come and go, and its own death."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from itertools import count
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
import psutil
import pytest
import zmq
import zmq.asyncio

from suite.backends.front.config import WorkerAddress
from suite.backends.front.kv_events import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Listener
from suite.backends.front.prompts import keys
from suite.backends.router import Front
from suite.backends.servers import ask
from suite.policies import parse_router
from tests.fake_workers import FakeWorker
from tests.fronts import CALM, QUICK, Call, charged, front, fronted, in_flight, said, wanting, worker_counts
from tests.stand_ins import until

MINE = {"X-Client-Id": "ann"}


@contextmanager
def worker_process(port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A stand-in in a process of its own, and its port, which is a free one or `port`."""
    command = [sys.executable, "-m", "tests.fake_workers", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}"


class Load:
    """Requests one after the other from several threads, each for `tokens`, until `end`.

    Every one ends in `served`, in `failed` (with the error that it was told), or breaks the test.
    """

    def __init__(self, url: str, tokens: int = 20, threads: int = 8) -> None:
        self.served = 0
        self.failed: list[str] = []
        self._url = url
        self._tokens = tokens
        self._over = threading.Event()
        self._numbers = count()
        self._pool = ThreadPoolExecutor(threads)
        self._threads = [self._pool.submit(self._run) for _ in range(threads)]

    def end(self) -> None:
        """Return when all have ended; raises what any of them raised."""
        self._over.set()
        self._pool.shutdown()
        for thread in self._threads:
            thread.result()

    def _run(self) -> None:
        while not self._over.is_set():
            number = next(self._numbers)
            status, text = said(
                self._url, wanting(self._tokens, prompt=[number % 7] * 64), {"X-Client-Id": f"c{number % 3}"}
            )
            if text.endswith("[DONE]\n\n"):
                assert status == 200
                assert text.count("data:") == self._tokens + 1
                self.served += 1
            else:
                self.failed.append(json.loads(text.split("data: ")[-1])["error"]["message"])


# -- a worker that fails a request ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["early", "500"])
def test_what_had_not_begun_is_tried_elsewhere_and_charged_there(tmp_path: Path, mode: str):
    with fronted(tmp_path, 2, "d2lpm") as (front, (bad, good)):
        bad.mode = mode
        status, text = said(front.url, wanting(4), MINE)
        assert (status, text.count("data:")) == (200, 5)
        assert len(bad.asked) == len(good.asked) == 1
        assert charged(front) == {"replica-0": 0, "replica-1": 32 + 2 * 4}
        assert worker_counts(front, "replica-0")["returned"] == 1
        assert front.state()["word"]["retries"] == 1


def test_each_worker_is_tried_once_and_what_the_last_said_is_told(tmp_path: Path):
    with fronted(tmp_path, 3) as (front, workers):
        for worker in workers:
            worker.mode = "500"
        status, text = said(front.url, wanting(), MINE)
        assert status == 500
        assert re.match(r"replica-\d: .*no, thanks", json.loads(text)["error"]["message"])
        assert [len(worker.asked) for worker in workers] == [1, 1, 1]
        assert worker_counts(front, "replica-1")["returned"] == 1


def test_what_a_worker_refuses_is_not_tried_elsewhere(tmp_path: Path):
    with fronted(tmp_path, 2) as (front, workers):
        workers[0].mode = "400"
        status, text = said(front.url, wanting(), MINE)
        assert (status, json.loads(text)) == (400, {"error": {"message": "no, thanks"}})
        assert workers[1].asked == []


def test_a_reply_that_breaks_off_ends_with_an_error_that_names_the_worker(tmp_path: Path):
    with fronted(tmp_path, 2, "d2lpm") as (front, workers):
        for worker in workers:
            worker.mode = "late"
        status, text = said(front.url, wanting(9), MINE)
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert status == 200
        assert len(events) == 3
        assert "replica-0" in json.loads(events[-1])["error"]["message"]
        assert charged(front) == {"replica-0": 32 + 2 * 2, "replica-1": 0}
        assert [len(worker.asked) for worker in workers] == [1, 0]


# -- a worker that dies --------------------------------------------------------------------------------------


def test_a_worker_killed_under_load_loses_only_what_had_begun_there(tmp_path: Path):
    with (
        worker_process() as (victim, first),
        worker_process() as (_, second),
        front(tmp_path, [at(first), at(second)], "d2lpm:quantum=500") as alone,
    ):
        load = Load(alone.url)
        until(lambda: load.served > 16)
        victim.kill()
        until(lambda: worker_counts(alone)["state"] == "down")
        then = load.served
        until(lambda: load.served > then + 16)
        load.end()
        assert 0 < len(load.failed) <= 8
        assert all(error.startswith("replica-0 ") for error in load.failed)
        counts = alone.state()["word"]["workers"]
        assert counts["replica-0"]["aborted"] == len(load.failed)
        assert sum(one["stopped"] for one in counts.values()) == load.served
        assert alone.state()["router"]["outstanding"] == {"replica-1": 0}
        assert charged(alone) == {"replica-1": counts["replica-1"]["stopped"] * (64 + 2 * 20)}


def test_a_worker_that_comes_back_is_sent_requests_again(tmp_path: Path):
    with (
        FakeWorker() as steady,
        worker_process() as (first, port),
        front(tmp_path, [at(port), steady.url]) as alone,
    ):
        first.kill()
        until(lambda: worker_counts(alone)["state"] == "down")
        assert said(alone.url, wanting(), MINE)[0] == 200
        assert worker_counts(alone)["requests"] == 0
        with worker_process(port):
            until(lambda: worker_counts(alone)["state"] == "up")
            for _ in range(2):
                assert said(alone.url, wanting(), MINE)[0] == 200
            assert worker_counts(alone)["stopped"] == 1
            assert worker_counts(alone)["losses"] == 1


def test_a_worker_that_is_ill_is_lost_after_three_answers(tmp_path: Path):
    with fronted(tmp_path, 2) as (front, (ill, _)):
        ill.health = 503
        until(lambda: worker_counts(front)["state"] == "down")
        assert said(front.url, wanting(), MINE)[0] == 200
        assert ill.asked == []


# -- a worker that hangs -------------------------------------------------------------------------------------


def test_what_a_hanging_worker_has_is_given_to_another_once_it_is_deaf_too(tmp_path: Path):
    with fronted(tmp_path, 2, "d2lpm", timeouts=QUICK) as (front, (hanging, other)):
        hanging.mode = "mute"
        call = Call(front.url, wanting(4), MINE)
        until(lambda: hanging.running == 1)
        hanging.deaf = True
        assert call.begin() == 200
        assert call.rest().endswith("[DONE]\n\n")
        assert len(other.asked) == 1
        until(lambda: hanging.running == 0)
        assert charged(front) == {"replica-1": 32 + 2 * 4}
        hanging.deaf = False
        until(lambda: worker_counts(front)["state"] == "up")


def test_a_reply_that_stalls_at_a_deaf_worker_ends_by_name(tmp_path: Path):
    with fronted(tmp_path, 1, timeouts=QUICK) as (front, [hanging]):
        hanging.mode = "gated"
        call = Call(front.url, wanting(4), MINE)
        call.begin()
        assert call.some()
        hanging.deaf = True
        assert "replica-0 was lost" in call.rest()
        until(lambda: in_flight(front) == 0)
        assert worker_counts(front)["aborted"] == 1


def test_a_worker_that_is_well_but_slow_is_not_lost(tmp_path: Path):
    with fronted(tmp_path, 2, timeouts=QUICK) as (front, (slow, other)):
        slow.mode = "mute"
        call = Call(front.url, wanting(4), MINE)
        until(lambda: slow.running == 1)
        time.sleep(2 * QUICK.stall_s)
        slow.go.set()
        assert call.begin() == 200
        assert call.rest().endswith("[DONE]\n\n")
        assert other.asked == []
        assert worker_counts(front)["losses"] == 0


# -- workers that come and go --------------------------------------------------------------------------------


def admin(front: Front, method: str, path: str, body: object = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    said = {"Content-Type": "application/json"}
    with urlopen(Request(f"{front.admin_url}{path}", data, said, method=method)) as answer:
        return int(answer.status)


def state_of(front: Front, name: str) -> str:
    return next(str(one["state"]) for one in ask(f"{front.admin_url}/workers") if one["name"] == name)


def test_workers_are_added_and_removed_under_load_and_nothing_fails(tmp_path: Path):
    with fronted(tmp_path, 2, "d2lpm:quantum=500") as (front, workers), FakeWorker(pause=0.005) as third:
        for worker in workers:
            worker.pause = 0.005
        load = Load(front.url)
        until(lambda: load.served > 8)
        assert admin(front, "POST", "/workers", {"name": "replica-2", "url": third.url}) == 201
        until(lambda: len(third.asked) > 4)
        assert admin(front, "DELETE", "/workers/replica-0") == 202
        until(lambda: state_of(front, "replica-0") == "removed")
        then = len(workers[0].asked)
        until(lambda: load.served > 60)
        assert len(workers[0].asked) == then
        assert admin(front, "POST", "/workers", {"name": "replica-0", "url": workers[0].url}) == 201
        until(lambda: len(workers[0].asked) > then)
        load.end()
        assert load.failed == []
        assert set(front.state()["router"]["outstanding"].values()) == {0}


def test_a_worker_that_is_removed_first_ends_what_it_has(tmp_path: Path):
    with fronted(tmp_path, 1) as (front, [worker]):
        worker.mode = "gated"
        call = Call(front.url, wanting(4), MINE)
        call.begin()
        call.some()
        admin(front, "DELETE", "/workers/replica-0")
        assert state_of(front, "replica-0") == "draining"
        assert said(front.url, wanting(), MINE)[0] == 503
        worker.go.set()
        assert call.rest().endswith("[DONE]\n\n")
        until(lambda: state_of(front, "replica-0") == "removed")


@pytest.mark.parametrize(
    ("method", "path", "body", "problem"),
    [
        ("POST", "/workers", {"name": "replica-0", "url": "http://h"}, "400 .*there is a worker 'replica-0'"),
        ("POST", "/workers", {"name": "x", "uri": "http://h"}, "400 .*uri: unknown key; did you mean 'url'"),
        ("POST", "/workers", [], "400 .*write an object"),
    ],
)
def test_a_worker_that_cannot_be_added_is_refused(
    tmp_path: Path, method: str, path: str, body: object, problem: str
):
    with fronted(tmp_path, 1) as (front, _):
        with pytest.raises(OSError, match=problem):
            ask(f"{front.admin_url}{path}", body)  # type: ignore[arg-type]
        assert [one["name"] for one in ask(f"{front.admin_url}/workers")] == ["replica-0"]


def test_a_web_page_in_the_operators_browser_cannot_add_a_worker(tmp_path: Path):
    with fronted(tmp_path, 1) as (front, _):
        body = json.dumps({"name": "replica-1", "url": "http://127.0.0.1:1"}).encode()
        with pytest.raises(HTTPError, match="415") as caught:
            urlopen(Request(f"{front.admin_url}/workers", body, {"Content-Type": "text/plain"}))
        caught.value.close()
        assert [one["name"] for one in ask(f"{front.admin_url}/workers")] == ["replica-0"]


# -- the front itself ----------------------------------------------------------------------------------------


def test_a_front_that_is_killed_leaves_nothing_and_its_workers_see_it(tmp_path: Path):
    with fronted(tmp_path, 2) as (front, workers):
        for worker in workers:
            worker.pause = 0.01
        calls = [Call(front.url, wanting(10_000), MINE) for _ in range(4)]
        until(lambda: sum(worker.running for worker in workers) == 4)
        mine = psutil.Process(front._server._warden.pid)
        [process] = mine.children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: front.alive() is not None)
        assert "SIGKILL" in (front.alive() or "")
        until(lambda: sum(worker.running for worker in workers) == 0)
        for call in calls:
            with pytest.raises((OSError, HTTPException)):
                print(call.begin(), call.rest())
            call.hang_up()
    assert not psutil.pid_exists(process.pid)


def test_a_front_that_is_stopped_ends_at_once_with_its_log_written(tmp_path: Path):
    with fronted(tmp_path, 1) as (front, [worker]):
        worker.mode = "mute"
        call = Call(front.url, wanting(), MINE)
        until(lambda: worker.running == 1)
        front.stop()
        assert front.alive() is not None
        call.hang_up()
    events = [json.loads(line)["event"] for line in (tmp_path / "routes.jsonl").read_text().splitlines()]
    assert events == ["joined", "sent", "ended"]
    assert "Traceback" not in (tmp_path / "front.log").read_text()


def test_clients_that_leave_in_the_middle_of_a_reply_fill_no_log(tmp_path: Path):
    with fronted(tmp_path, 1) as (front, _):
        for _ in range(20):
            call = Call(front.url, wanting(2_000, pad="x" * 2_000), MINE)
            call.begin()
            call.some()
            call.hang_up()
        until(lambda: in_flight(front) == 0)
        assert worker_counts(front)["aborted"] > 10
    assert (tmp_path / "front.log").read_text().count("\n") == 1


# -- events of engines ---------------------------------------------------------------------------------------


BLOCK = 16


class Publisher:
    """An engine's publisher of events."""

    def __init__(self) -> None:
        self._socket = zmq.Context.instance().socket(zmq.PUB)
        self._socket.set_hwm(0)
        self.address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._numbers = count()
        self._encode: Callable[[Batch], bytes] = msgspec.msgpack.Encoder().encode

    def say(self, *events: BlockStored | BlockRemoved | AllBlocksCleared) -> None:
        """Publish a batch."""
        data = self._encode(Batch(0.0, list(events)))
        self._socket.send_multipart([b"kv-events", next(self._numbers).to_bytes(8, "big"), data])

    def close(self) -> None:
        self._socket.close(linger=0)


@pytest.fixture
def told() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


def heard(front: Front) -> int:
    return int(worker_counts(front)["events"]["messages"])


def stored(tokens: list[int], first: int) -> BlockStored:
    """Full blocks of a prompt, with the hashes `first`, `first` + 1, ..."""
    hashes = [first + i for i in range(len(tokens) // BLOCK)]
    return BlockStored(list(hashes), None, tokens, BLOCK)


def test_a_storm_of_evictions_leaves_decisions_right_and_requests_served(tmp_path: Path, told: Publisher):
    """Of two documents replica-0 loses one, amid tens of thousands of other evictions."""
    lost, kept = list(range(10 * BLOCK)), list(range(1000, 1000 + 10 * BLOCK))
    with FakeWorker() as first, FakeWorker() as second:
        addresses = [
            WorkerAddress(name="replica-0", url=first.url, events=told.address),
            WorkerAddress(name="replica-1", url=second.url),
        ]
        with Front.start(
            parse_router("d2lpm"), addresses, engine="vllm", block_tokens=BLOCK, logs=tmp_path, timeouts=CALM
        ) as alone:
            while heard(alone) == 0:  # who subscribes late misses what was said before
                told.say(AllBlocksCleared())
            for document in (lost, kept):
                said(alone.url, wanting(1, prompt=document), MINE)
            told.say(stored(lost, 1), stored(kept, 101))
            assert len(first.asked) == 2
            until_over = heard(alone) + STORM
            storm = threading.Thread(target=_storm, args=(told,))
            storm.start()
            during = 0
            while heard(alone) < until_over:
                assert said(alone.url, wanting(1, prompt=[7]), MINE)[0] == 200
                during += 1
            storm.join()
            assert during > 10
            first.mode = "gated"
            busy = [Call(alone.url, wanting(3, prompt=kept), MINE)]
            until(lambda: first.running == 1)
            assert said(alone.url, wanting(1, prompt=lost), MINE)[0] == 200
            assert len(second.asked) == 1, "what replica-0 has lost is no reason to wait for it"
            busy.append(Call(alone.url, wanting(3, prompt=kept), MINE))
            until(lambda: first.running == 2)
            first.go.set()
            for call in busy:
                call.begin()
                assert call.rest().endswith("[DONE]\n\n")
            word = alone.state()["word"]
            assert word["workers"]["replica-0"]["events"] == {
                "messages": word["workers"]["replica-0"]["events"]["messages"], "missed": 0, "unreadable": 0,
            }  # fmt: skip
            assert word["eviction_reports"] == "none: no events from replica-1"


STORM = 10_000
"""Messages, each of which stores and removes four blocks."""


def _storm(told: Publisher) -> None:
    for number in range(STORM):
        hashes: list[bytes | int] = [10_000 + 4 * number + i for i in range(4)]
        told.say(BlockStored(hashes, None, [number] * 4 * BLOCK, BLOCK), BlockRemoved([*hashes]))
        if number == STORM // 2:
            told.say(BlockRemoved([1]), BlockRemoved([10]))
        if number % 100 == 0:
            time.sleep(0.001)


PUBLISH = """
import importlib.abc, importlib.util, pathlib, sys, threading, time
from unittest.mock import MagicMock

engine, file, address = sys.argv[1:]
root = pathlib.Path(importlib.util.find_spec(engine).origin).parent


class Rest(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    '''All else of the engine, which takes long to import.'''

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name.partition(".")[0] == engine else None

    def create_module(self, spec):
        return MagicMock(__path__=[])

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Rest())
spec = importlib.util.spec_from_file_location("events", root / file)
events = sys.modules["events"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(events)
from events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch, ZmqEventPublisher

publisher = ZmqEventPublisher(0, endpoint=address, topic="kv-events")
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
stored = dict(token_ids=list(range(32)), block_size=16, lora_id=None, medium="GPU", lora_name=None)
while not over.is_set():
    chain = BlockStored(block_hashes=[FIRST, SECOND], parent_block_hash=None, **stored)
    publisher.publish(KVEventBatch(ts=time.time(), events=[chain]))
    removed = BlockRemoved(block_hashes=[SECOND], medium="GPU")
    publisher.publish(KVEventBatch(ts=time.time(), events=[removed]))
    publisher.publish(KVEventBatch(ts=time.time(), events=[AllBlocksCleared()]))
    time.sleep(0.02)
publisher.shutdown()
"""


@pytest.mark.parametrize(
    ("engine", "file", "first", "second"),
    [
        ("vllm", "distributed/kv_events.py", b"a" * 32, b"b" * 32),
        ("sglang", "srt/disaggregation/kv_events.py", 1, -(2**63)),
    ],
    ids=["vllm", "sglang"],
)
def test_what_the_engines_own_publishers_send_is_understood(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str, file: str, first: object, second: object
):
    environment = request.getfixturevalue(engine)
    address = f"ipc://{tmp_path}/events"
    script = PUBLISH.replace("FIRST", repr(first)).replace("SECOND", repr(second))
    told: list[tuple[Sequence[Hashable], int]] = []
    process = subprocess.Popen(
        [environment.python, "-c", script, engine, file, address],
        stdin=subprocess.PIPE,
        env={**os.environ, **environment.variables},
    )
    try:
        listener = asyncio.run(_listened(address, told, lambda: process.poll() is None))
    finally:
        process.communicate()
    both = keys(list(range(32)), 16)
    assert (both, 1) in told
    assert (both[:1], 0) in [(list(blocks), kept) for blocks, kept in told]
    assert listener.problem() is None


async def _listened(
    address: str, told: list[tuple[Sequence[Hashable], int]], alive: Callable[[], bool]
) -> Listener:
    """Listen until a few evictions were told, or the publisher has ended."""
    listener = Listener(address, 16, lambda blocks, kept: told.append((blocks, kept)))
    with zmq.asyncio.Context() as context:
        listening = asyncio.create_task(listener.listen(context))
        while len(told) < 4 and alive() and not listening.done():
            await asyncio.sleep(0.01)
        listening.cancel()
        await asyncio.wait([listening])
    return listener

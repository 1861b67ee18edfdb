"""What the benchmark of the front reads and reckons; its figures are of the machine and not tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from suite import bench_front, bench_load
from suite.backends.front.config import WorkerAddress
from suite.backends.servers import ask
from suite.bench_front import NONE, Kind, Measured, Place, bodies
from suite.bench_load import Loaded, closed, opened, request
from suite.errors import BadInput
from tests.mock_server import MockServer, Reply

INSTANT = Kind(32, 3, 0)


@pytest.fixture
def workers() -> Iterator[list[WorkerAddress]]:
    with bench_front._workers(INSTANT.interval) as found:
        yield found


def test_an_open_loop_sends_each_request_once_when_it_is_due(workers: list[WorkerAddress]):
    url = workers[0].url
    ask(f"{url}/report")
    found = opened(url, bodies(INSTANT), [0.0, 0.0, 0.2])
    assert len(found.lag) == len(found.first) == len(found.whole) == 3
    assert (found.lag >= 0).all()
    assert (found.whole >= found.first).all()
    assert found.rate < 3 / 0.2, "it waited for the last"
    report = ask(f"{url}/report")
    assert report["tokens"] == 9
    assert 0 < report["late_p99_s"] <= report["late_max_s"], "instant replies prove it too"


def test_a_closed_loop_goes_on_until_the_time_is_over(workers: list[WorkerAddress]):
    url = workers[0].url
    ask(f"{url}/report")
    found = closed(url, bodies(INSTANT), 4, 0.3)
    assert ask(f"{url}/report")["tokens"] == 3 * len(found.whole) > 12
    assert found.rate <= len(found.whole) / 0.3


@pytest.mark.parametrize(
    ("reply", "said"),
    [(Reply(status=503, message="no worker"), "503 Service Unavailable"), (Reply(end="reset"), "cut")],
)
def test_a_reply_that_is_none_ends_the_bench_with_what_was_said(reply: Reply, said: str):
    with MockServer({"None": reply}) as server, pytest.raises(BadInput, match=said):
        opened(server.url, [request("/v1/completions", "alice", b'{"max_tokens": 2}')], [0.0])


def test_a_reply_that_does_not_end_ends_the_bench_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_load, "PATIENCE", 0.2)
    hanging = {"None": Reply(end="hang")}
    with MockServer(hanging) as server, pytest.raises(BadInput, match=r"no end of a reply within 0\.2 s"):
        opened(server.url, [request("/v1/completions", "alice", b'{"max_tokens": 2}')], [0.0])


def test_requests_of_a_client_share_half_a_prompt_and_have_all_its_tokens():
    made = [body.partition(b"\r\n\r\n")[2] for body in bodies(INSTANT)]
    prompts = [words_of(body) for body in made]
    assert {len(prompt) for prompt in prompts} == {32}
    same, other = prompts[bench_front.CLIENTS], prompts[1]
    assert prompts[0][:16] == same[:16]
    assert prompts[0][16:] != same[16:]
    assert prompts[0][:16] != other[:16]
    assert len(set(map(tuple, prompts))) == bench_front.BODIES


def words_of(body: bytes) -> list[str]:
    words: list[str] = orjson.loads(body)["prompt"].split(" ")
    return words


def test_the_front_passes_all_on_and_its_own_cpu_time_is_told(workers: list[WorkerAddress], tmp_path: Path):
    with bench_front._started("round-robin", workers, tmp_path) as place:
        found = bench_front._measured(place, workers, lambda: opened(place.url, bodies(INSTANT), [0.0] * 40))
    assert len(found.load.whole) == 40
    told = orjson.loads((tmp_path / "round-robin" / "front.json").read_bytes())
    assert told["engine"] == "vllm", "it writes the client, as it does before an engine"
    assert found.cpu > 0
    assert found.late > 0


def test_each_is_measured_there_and_back(monkeypatch: pytest.MonkeyPatch):
    order = []

    def measure(place: Place) -> Measured:
        order.append(place.name)
        return loaded(0.001)

    monkeypatch.setattr(bench_front, "ROUNDS", 2)
    found = bench_front._in_turn([Place("a", "", None), Place("b", "", None)], measure)
    assert order == ["a", "b", "b", "a"]
    assert {name: len(runs) for name, runs in found.items()} == {"a": 2, "b": 2}


def loaded(seconds: float, rate: float = 100.0) -> Measured:
    """A load whose replies all took so long."""
    times = np.full(10, seconds)
    return Measured(Loaded(np.full(10, 0.002), times, 2 * times, rate), 5e-5, 0.003)


def test_what_a_router_adds_is_told_beside_no_router():
    most, half, without = [loaded(0.1, 1000.0)], [loaded(0.005)], [loaded(0.003)]
    cells = list(bench_front._cells(INSTANT, Place("d2lpm", "", 1), most, half, without, 500.0))
    assert cells == ["32", "3", "d2lpm", "1,000", "50", "500", "2.00 / 2.00", "4.00 / 4.00", "2.0", "3.0"]
    alone = list(bench_front._cells(INSTANT, Place(NONE, "", None), most, without, without, 500.0))
    assert alone[4:8] == ["", "500", "3.00 / 3.00", "6.00 / 6.00"]

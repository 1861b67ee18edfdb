"""The endpoint backend: a trace against a server that is already running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from suite import results
from suite.backends.base import Outcome
from suite.backends.endpoint import Endpoint
from suite.errors import BadInput
from suite.experiment import load
from suite.metrics import summary
from suite.policies import parse
from suite.results import Manifest, Run
from suite.trace import Header, Request, Segment, Trace
from suite.validation import validated
from tests.mock_server import MockServer, Reply

STOCK = parse("stock")


def trace_of(*requests: Request) -> Trace:
    return Trace(Header("test", 1, "test"), requests)


def request(id: str, client: str = "alice", tokens: int = 4, **more: Any) -> Request:
    return Request(id, client, 0.0, (Segment("shared", 10), Segment(id, 2)), tokens, **more)


def run(server: MockServer, trace: Trace, logs: Path, **settings: Any) -> Outcome:
    endpoint = validated(Endpoint, {"url": server.url, **settings})
    return endpoint.run(trace, STOCK, logs, lambda share, note="": None)


def test_a_run_is_served_and_its_service_log_adds_up(tmp_path: Path):
    trace = trace_of(request("a"), request("b", "bob", 6), request("c"))
    with MockServer({"b": Reply(cached=8), "c": Reply(400, "longer than the context length")}) as server:
        outcome = run(server, trace, tmp_path, dialect="vllm", prompts="tokens")
    assert list(outcome.requests.columns) == list(results.REQUEST_COLUMNS)
    assert list(outcome.requests["status"]) == ["finished", "finished", "rejected"]
    served = outcome.requests[:2]
    assert (served["admitted"] == served["arrival"]).all()
    assert pd.isna(outcome.requests["admitted"][2])
    assert list(outcome.service.columns) == list(results.SERVICE_COLUMNS)
    assert outcome.service["time"].is_monotonic_increasing
    sums = outcome.service.groupby("client")[["extend", "cached", "recomputed", "output"]].sum()
    assert sums.loc["alice"].tolist() == [12, 0, 0, 4]
    assert sums.loc["bob"].tolist() == [4, 8, 0, 6]
    prompts = outcome.service[outcome.service["extend"] > 0]
    assert sorted(prompts["time"]) == sorted(served["first_token"])
    assert outcome.engine["service_log"] == "client"
    assert outcome.engine["cached_tokens"] == "reported"
    assert outcome.engine["model"] == "mock"
    assert len((tmp_path / "client.jsonl").read_text().splitlines()) == 3


def test_its_results_are_read_and_measured_like_any_others(tmp_path: Path):
    with MockServer(dict.fromkeys(("alice", "bob"), Reply(pause=0.02))) as server:
        outcome = run(server, trace_of(request("a"), request("b", "bob")), tmp_path)
    scheduler = {"name": STOCK.label, "target": STOCK.target, "router": None}
    manifest = Manifest("cell", {}, {"header": {}}, scheduler, {}, outcome.engine, {})
    results.write(Run(manifest, outcome.requests, outcome.service, outcome.streams), tmp_path / "cell")
    found = summary.summarise(results.read(tmp_path / "cell"))
    assert (found["finished"], found["failed"]) == (2, 0)
    assert found["jain_client_whole"] == pytest.approx(1.0)


def test_what_a_plain_server_does_not_tell_is_said(tmp_path: Path):
    with MockServer({"alice": Reply(cached=None, tokens=3)}) as server:
        outcome = run(server, trace_of(request("a"), request("b")), tmp_path)
    assert outcome.engine["cached_tokens"] == "not reported, counted as 0"
    assert outcome.engine["replies_of_other_length"] == 2
    assert not any("failed" in reason for reason in outcome.invalid)


def test_failures_make_the_run_invalid_and_are_counted(tmp_path: Path):
    trace = trace_of(request("a"), request("b", "bob"), request("c", "bob"))
    with MockServer({"bob": Reply(500, "out of memory")}) as server:
        outcome = run(server, trace, tmp_path)
    assert "2 of 3 requests failed, 2 of them: HTTP 500: out of memory" in outcome.invalid
    assert outcome.requests["status"].tolist() == ["finished", "failed", "failed"]


def test_its_scheduler_cannot_be_chosen(tmp_path: Path):
    endpoint = Endpoint(url="http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"write `schedulers: \[stock\]`"):
        endpoint.run(trace_of(request("a")), parse("dlpm"), tmp_path, lambda share, note="": None)


def test_the_model_is_asked_for_or_checked(tmp_path: Path):
    trace = trace_of(request("a"))
    with MockServer(models=("llama-8b", "llama-70b")) as server:
        with pytest.raises(BadInput, match="model: missing; the server has: llama-8b, llama-70b"):
            run(server, trace, tmp_path)
        with pytest.raises(BadInput, match="model: the server has no 'llama-8c'; did you mean 'llama-8b'"):
            run(server, trace, tmp_path, model="llama-8c")
        run(server, trace, tmp_path, model="llama-70b")
    assert [asked.body["model"] for asked in server.asked] == ["llama-70b"]


def test_nobody_there_is_told_before_the_replay(tmp_path: Path):
    with MockServer() as server:
        pass
    with pytest.raises(BadInput, match=f"url: {server.url}: .*refused|Cannot connect.*is the server up"):
        run(server, trace_of(request("a")), tmp_path)
    assert not (tmp_path / "client.jsonl").exists()


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b"\xff\xfe"])
def test_a_web_page_where_the_models_should_be_is_told(answer: bytes, tmp_path: Path):
    with (
        MockServer(models=answer) as server,
        pytest.raises(BadInput, match=f"url: {server.url}/v1: gives no JSON at /models; is it an OpenAI API"),
    ):
        run(server, trace_of(request("a")), tmp_path)


def test_a_list_of_models_that_is_none_is_an_empty_one(tmp_path: Path):
    with (
        MockServer(models=b'{"data": 5}') as server,
        pytest.raises(BadInput, match="model: missing; the server has: none that it names"),
    ):
        run(server, trace_of(request("a")), tmp_path)


def test_a_key_that_a_server_repeats_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_API_KEY", "sk-secret")
    with MockServer({"alice": Reply(400, reason="no, sk-secret")}) as server:
        outcome = run(server, trace_of(request("a")), tmp_path)
    assert outcome.requests["error"].tolist() == ["HTTP 400: no, ***"]
    assert b"sk-secret" not in (tmp_path / "client.jsonl").read_bytes()


def test_a_key_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_API_KEY", "two\nlines")
    with MockServer() as server, pytest.raises(BadInput, match="SUITE_API_KEY: holds a control character"):
        run(server, trace_of(request("a")), tmp_path)


def test_the_key_comes_from_the_environment_and_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with MockServer(key="sk-secret") as server:
        with pytest.raises(BadInput, match="HTTP 401: Incorrect API key provided; set SUITE_API_KEY"):
            run(server, trace_of(request("a")), tmp_path)
        monkeypatch.setenv("SUITE_API_KEY", "sk-secret")
        outcome = run(server, trace_of(request("a")), tmp_path)
    manifest = Manifest("cell", {}, {"header": {}}, {}, {}, outcome.engine, {})
    results.write(Run(manifest, outcome.requests, outcome.service, outcome.streams), tmp_path / "cell")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert not any(b"sk-secret" in path.read_bytes() for path in files)


def test_replies_as_token_ids_need_a_server_that_gives_them(tmp_path: Path):
    child = Request("b", "alice", 0.0, (Segment("reply:a", 4), Segment("b", 1)), 1, after=("a",))
    with (
        MockServer() as server,
        pytest.raises(BadInput, match="only `dialect: vllm` gives them as token ids"),
    ):
        run(server, trace_of(request("a"), child), tmp_path, prompts="tokens")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "localhost:8000"}, "url: 'localhost:8000' is no URL of a server"),
        ({"url": "http://me:pw@host/v1"}, "a key goes into SUITE_API_KEY"),
        ({"url": "http://host/v1?key=abc"}, "a key goes into SUITE_API_KEY"),
        ({"url": "http://host", "route": "chat", "prompts": "tokens"}, "a chat takes no token ids"),
        ({"url": "http://host", "modle": "x"}, "modle: unknown key; did you mean 'model'"),
        ({"url": "http://host", "processes": 0}, "processes: "),
        ({"url": "http://host:99999"}, "url: Port out of range"),
        ({"url": "http://host?"}, "leave out all but http://HOST:PORT/PATH"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(BadInput) as refusal:
        validated(Endpoint, settings)
    assert told in str(refusal.value)
    assert "pw" not in str(refusal.value)
    assert "abc" not in str(refusal.value)


def test_an_experiment_names_it_by_kind(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nworkloads: [chat]\nschedulers: [stock]\n"
        "backend: {kind: endpoint, url: 'http://127.0.0.1:8000', dialect: vllm}\n"
    )
    (cell,) = load(str(file)).cells
    assert cell.backend() == Endpoint(url="http://127.0.0.1:8000", dialect="vllm")

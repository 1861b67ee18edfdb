"""Traces of the VTC artifact: by hand-made rows, and by the published files where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from suite.errors import BadInput
from suite.trace import Trace
from workloads.spec import load
from workloads.vtc_trace import published

HEAD = "arrival_s,client,input_tokens,output_tokens"
ROWS = [HEAD, "0.0,13,13,199", "0.25,2,36,137", "0.5,13,13,1"]


def saved(folder: Path, rows: list[str] = ROWS) -> Path:
    path = folder / "rows.csv"
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def response(**changes: Any) -> dict[str, Any]:
    return {
        "adapter_dir": "dummy-lora-7b-rank-8-4", "prompt_len": 20, "output_len": 5, "req_time": 1.5,
        "request_latency": 3.0, "first_token_latency": 1.0, **changes,
    }  # fmt: skip


def results(folder: Path, *responses: dict[str, Any], **config: Any) -> Path:
    path = folder / "results.jsonl"
    record = {
        "config": {"duration": 60, "mode": "real", **config},
        "result": {"total_time": 70.5, "throughput": 1.0, "responses": responses},
    }
    path.write_text(json.dumps(record))
    return path


def imported(path: Path | str, seed: int = 0, **parameters: Any) -> Trace:
    return load({"family": "vtc_trace", "file": str(path), **parameters}).generate(seed)


def test_rows_become_requests(tmp_path: Path) -> None:
    requests = imported(saved(tmp_path)).requests
    assert [request.arrival for request in requests] == [0, 0.25, 0.5]
    assert [request.client for request in requests] == ["13", "2", "13"]
    assert [request.prompt_tokens for request in requests] == [13, 36, 13]
    assert [request.output_tokens for request in requests] == [199, 137, 1]


def test_equal_prompts_of_a_client_share_nothing_and_the_header_says_so(tmp_path: Path) -> None:
    trace = imported(saved(tmp_path))
    assert len({request.prompt[0].id for request in trace.requests}) == len(trace.requests)
    assert trace.header.choices["prefix_rule"] == "each prompt is a segment of its own; nothing is shared"
    assert len(trace.header.choices["file_sha256"]) == 64


def test_a_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    requests = imported(saved(tmp_path), limit=2).requests
    assert [request.arrival for request in requests] == [0, 0.25]
    requests = imported(results(tmp_path, response(), response(req_time=2)), limit=1).requests
    assert [request.arrival for request in requests] == [1.5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0.1,2,36", "3 values for 4 columns"),
        ("", "0 values for 4 columns"),
        ("soon,2,36,137", "arrival_s: .*number"),
        ("-1,2,36,137", "arrival_s: .*greater than or equal to 0.*'-1'"),
        ("nan,2,36,137", "arrival_s: .*finite"),
        ("0.1,,36,137", "client: .*at least 1 character"),
        ("0.1,2,0,137", "input_tokens: .*greater than or equal to 1"),
        ("0.1,2,36,1.5", "output_tokens: .*integer"),
        ("0.1,2,36,10000001", "output_tokens: .*less than or equal to 10000000"),
    ],
)
def test_a_wrong_row_is_told_by_line_and_field(tmp_path: Path, row: str, message: str) -> None:
    path = saved(tmp_path, [*ROWS[:2], row])
    with pytest.raises(BadInput, match=r"rows\.csv:3: " + message) as caught:
        imported(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [[], ["a,b"], ["client,arrival_s,input_tokens,output_tokens"]])
def test_wrong_columns_are_named_beside_the_right_ones(tmp_path: Path, rows: list[str]) -> None:
    with pytest.raises(BadInput, match=rf"rows\.csv:1: .*they must be '{HEAD}'"):
        imported(saved(tmp_path, rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [(b"0,caf\xe9,36,137", "'utf-8' codec"), (b"0," + 200_000 * b"x" + b",36,137", "field larger than")],
)
def test_a_file_that_is_no_csv(tmp_path: Path, row: bytes, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEAD.encode() + b"\n" + row + b"\n")
    with pytest.raises(BadInput, match=r"rows\.csv: cannot be read as CSV: " + message):
        imported(path)


def test_a_result_file_gives_what_was_asked_also_of_aborted_requests(tmp_path: Path) -> None:
    aborted = response(first_token_latency=-1, request_latency=-1, req_time=2.0)
    requests = imported(results(tmp_path, response(), aborted)).requests
    assert [(r.arrival, r.client, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (1.5, "4", 20, 5),
        (2.0, "4", 20, 5),
    ]
    run = published(tmp_path / "results.jsonl")
    assert (run.duration, run.total_time) == (60, 70.5)
    assert [one.served for one in run.responses] == [True, False]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            lambda folder: results(folder, response(prompt_len=0)),
            "result.responses.0.prompt_len: .*1.*got '0'",
        ),
        (lambda folder: results(folder, response(surprise=1)), "result.responses.0.surprise: unexpected"),
        (
            lambda folder: results(folder, response(adapter_dir="rank-")),
            "result.responses.0.adapter_dir: .*match pattern",
        ),
        (
            lambda folder: results(folder, response(adapter_dir="x" * 600)),
            "result.responses.0.adapter_dir: .*at most 512",
        ),
        (lambda folder: results(folder, response(), duration=0), "config.duration: .*greater than 0"),
    ],
)
def test_a_wrong_result_file_is_told_by_field(tmp_path: Path, path: Any, message: str) -> None:
    with pytest.raises(BadInput, match=r"results\.jsonl: " + message):
        published(path(tmp_path))


def test_a_result_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("nothing of the kind")
    with pytest.raises(BadInput, match=r"results\.jsonl: row: invalid JSON"):
        published(path)


def test_a_file_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_TRACES", str(tmp_path))
    with pytest.raises(BadInput, match=r"vtc/vtc_real_trace.csv' is neither in .* set SUITE_TRACES to"):
        load("vtc_real")


# -- the published files -----------------------------------------------------------------------------------


@pytest.fixture
def artifact(traces: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (traces / "vtc").is_dir():
        pytest.skip(
            f"no files of the VTC artifact in {traces}: set SUITE_TRACES to the folder that holds them"
        )
    monkeypatch.setenv("SUITE_TRACES", str(traces))
    return traces / "vtc"


def test_the_real_trace_is_whole(artifact: Path) -> None:
    trace = load("vtc_real").generate(0)
    assert len(trace.requests) == 1500
    assert len(trace.clients) == 27
    assert trace.requests[-1].arrival == 600
    assert sum(request.prompt_tokens for request in trace.requests) == 204_398


def test_the_published_runs_replayed_the_real_trace(artifact: Path) -> None:
    """The trace comes from a file of its own, the results say what they replayed: both must agree."""

    def asked(trace: Trace) -> list[tuple[float, str, int, int]]:
        rows = [(round(r.arrival, 3), r.client, r.prompt_tokens, r.output_tokens) for r in trace.requests]
        return sorted(rows)

    real = asked(load("vtc_real").generate(0))
    assert asked(imported(artifact / "results/FCFS_real.jsonl")) == real
    assert asked(imported(artifact / "results/VTC_real.jsonl")) == real


def test_the_overload_test_has_the_papers_rates(artifact: Path) -> None:
    requests = load("vtc_overload").generate(0).requests
    counts = {client: sum(r.client == client for r in requests) for client in ("0", "1")}
    assert counts == {"0": 900, "1": 1800}
    assert {(r.prompt_tokens, r.output_tokens) for r in requests} == {(256, 256)}

"""The Mooncake importer: by hand-made rows, and by the published trace where it is at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from suite.errors import BadInput
from suite.trace import Request, Segment, Trace
from workloads.spec import load

ROWS: list[dict[str, Any]] = [
    {"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 0, "input_length": 600, "output_length": 6, "hash_ids": [0, 3]},
    {"timestamp": 3000, "input_length": 1536, "output_length": 7, "hash_ids": [0, 1, 4]},
    {"timestamp": 9000, "input_length": 512, "output_length": 8, "hash_ids": [0]},
]


def saved(folder: Path, rows: list[Any] = ROWS) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def imported(path: Path | str, seed: int = 0, **parameters: Any) -> Trace:
    return load({"family": "mooncake", "file": str(path), **parameters}).generate(seed)


def test_rows_become_requests(tmp_path: Path) -> None:
    requests = imported(saved(tmp_path), spread="none").requests
    assert [request.arrival for request in requests] == [0, 0, 3, 9]
    assert [request.output_tokens for request in requests] == [5, 6, 7, 8]
    assert [request.prompt_tokens for request in requests] == [1030, 600, 1536, 512]
    assert requests[0].prompt == (Segment("block:0", 512), Segment("block:1", 512), Segment("block:2", 6))
    assert requests[3].prompt == (Segment("block:0", 512),)
    assert all(not request.after for request in requests)
    assert {request.client for request in requests} == {"anonymous"}


def test_sessions_agree_in_their_first_block_of_their_own(tmp_path: Path) -> None:
    sessions = [request.session for request in imported(saved(tmp_path), spread="none").requests]
    assert sessions[0] == sessions[2]
    assert len(set(sessions)) == 3


def test_without_a_common_block_the_first_block_makes_the_session(tmp_path: Path) -> None:
    rows = [row | {"hash_ids": [9 if i == 1 else 0, *row["hash_ids"][1:]]} for i, row in enumerate(ROWS)]
    sessions = [request.session for request in imported(saved(tmp_path, rows), spread="none").requests]
    assert sessions == ["session-0", "session-9", "session-0", "session-0"]


def test_quantised_arrivals_spread_within_the_gap_to_the_next_tick(tmp_path: Path) -> None:
    rows = [dict(ROWS[0], timestamp=tick) for tick in (0, 3000, 9000) for _ in range(200)]
    requests = imported(saved(tmp_path, rows)).requests
    by_tick = [[r.arrival for r in requests if int(r.id[4:]) // 200 == tick] for tick in range(3)]
    for arrivals, (begin, end) in zip(by_tick, [(0, 3), (3, 9), (9, 13.5)], strict=True):
        assert begin <= min(arrivals) < max(arrivals) < end
        assert sum(arrivals) / 200 == pytest.approx((begin + end) / 2, abs=0.1 * (end - begin))
    assert imported(saved(tmp_path, rows), seed=1).requests != requests


def test_a_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    assert len(imported(saved(tmp_path), limit=2).requests) == 2
    one = imported(saved(tmp_path), limit=1).requests
    assert [request.arrival for request in one] == [0]


def test_every_synthetic_choice_is_in_the_header(tmp_path: Path) -> None:
    header = imported(saved(tmp_path), seed=3, limit=2).header
    assert (header.seed, header.generator) == (3, "mooncake")
    told = {"file": "rows.jsonl", "limit": 2, "spread": "uniform"}
    assert told.items() <= header.choices.items()
    assert {"session_rule", "arrival_rule", "file_sha256"} <= set(header.choices)
    assert header.choices["provenance"] == (
        "kvcache-ai/Mooncake, FAST25-release/traces; licence Apache-2.0; rows.jsonl, the first 2 rows"
    )
    assert str(tmp_path) not in json.dumps(header.choices)


def test_files_are_looked_up_here_and_then_among_the_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("SUITE_TRACES", str(there))
    saved(there)
    assert len(imported("rows.jsonl").requests) == 4
    monkeypatch.setenv("SUITE_TRACES", "../there")
    assert len(imported("rows.jsonl").requests) == 4
    saved(here, ROWS[:1])
    assert len(imported("rows.jsonl").requests) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROWS[0], "input_length": 0}, "input_length: .*greater than or equal to 1"),
        ({**ROWS[0], "input_length": 1537}, "hash_ids: 3 ids, but input_length 1537 makes 4 blocks of 512"),
        ({**ROWS[0], "hash_ids": ["x", 1, 2]}, r"hash_ids\.0: .*valid integer"),
        ({**ROWS[0], "hash_ids": [0, 1, 2**64]}, r"hash_ids\.2: .*less than"),
        ({**ROWS[0], "output_length": -2}, "output_length: "),
        ({**ROWS[0], "timestamp": -1}, "timestamp: "),
        ({"timestamp": 0}, "input_length: "),
        ("{", "row: invalid JSON"),
        ("", "row: invalid JSON"),
        ("[]", "row: "),
    ],
)
def test_wrong_rows_are_named_by_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    path = saved(tmp_path, [ROWS[0], ROWS[1], row])
    with pytest.raises(BadInput, match=r"rows\.jsonl:3: " + message) as caught:
        imported(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_TRACES", str(tmp_path))
    with pytest.raises(BadInput, match=r"file: 'no\.jsonl' is neither in .* nor in /.*; set SUITE_TRACES to"):
        imported("no.jsonl")
    with pytest.raises(BadInput, match="came out without requests"):
        imported(saved(tmp_path, []))
    with pytest.raises(BadInput, match=r"file: '.*' is a folder; this family reads a file"):
        imported(tmp_path)


# -- the published trace -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversation(traces: Path) -> Trace:
    path = traces / "mooncake/conversation_trace.jsonl"
    if not path.is_file():
        pytest.skip(f"no Mooncake trace at {path}: set SUITE_TRACES to the folder that holds it")
    return imported(path)


def test_the_conversation_trace_is_whole(conversation: Trace) -> None:
    requests = conversation.requests
    assert len(requests) == 12_031
    assert sum(request.prompt_tokens for request in requests) / 12_031 == pytest.approx(12_035, abs=1)
    assert max(request.prompt_tokens for request in requests) == 126_195
    assert len({request.session for request in requests}) == 7_373
    assert 3_537 <= requests[-1].arrival <= 3_541


def hits(requests: Sequence[Request]) -> tuple[float, float]:
    """The shares of blocks and of tokens that stood after the same beginning in an earlier prompt."""
    known: dict[tuple[int, Segment], int] = {}
    blocks = [0, 0]
    tokens = [0, 0]
    for request in requests:
        before = -1
        for segment in request.prompt:
            hit = (before, segment) in known
            before = known.setdefault((before, segment), len(known))
            blocks[hit] += 1
            tokens[hit] += segment.tokens
    return blocks[1] / sum(blocks), tokens[1] / sum(tokens)


def test_its_ideal_hit_ratio_is_the_published_one_of_blocks(conversation: Trace) -> None:
    """In file order, which the spread of arrivals changes."""
    assert round(hits(sorted(conversation.requests, key=lambda request: request.id))[0], 3) == 0.366


def test_its_ideal_hit_ratio_of_tokens_is_a_little_higher(conversation: Trace) -> None:
    """Partial last blocks, nearly always new, weigh less in tokens than in blocks."""
    assert round(hits(conversation.requests)[1], 3) == 0.374

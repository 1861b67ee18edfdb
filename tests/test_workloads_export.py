"""Exporters: what a reader of the formats gets is the trace, but for what is said to be lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import cli
from suite.environments import Environment
from suite.errors import BadInput
from suite.trace import Header, Request, Segment, Trace, checked
from workloads import export
from workloads.export import FORMATS, HashIds
from workloads.programs import earliest
from workloads.spec import load

READERS = {"mooncake": {"family": "mooncake", "spread": "none"}, "timed-trace": {"family": "bailian"}}


def trace_of(*requests: Request) -> Trace:
    return checked(Trace(Header("made", 0, "test"), requests))


def request(number: int, prompt: Sequence[tuple[str, int]], **fields: Any) -> Request:
    segments = tuple(Segment(*segment) for segment in prompt)
    usual = {"id": f"r{number}", "client": "c", "arrival": 0.0, "prompt": segments, "output_tokens": 5}
    return Request(**usual | fields)


def written(trace: Trace, path: Path, format: str, block: int | None = None) -> list[dict[str, Any]]:
    export.write(trace, path, FORMATS[format], block or FORMATS[format].block)
    return [json.loads(line) for line in path.read_text().splitlines()]


def imported(path: Path, format: str) -> Trace:
    return load({**READERS[format], "file": str(path)}).generate(0)


def shared(one: Request, other: Request) -> int:
    """Tokens that two prompts have in common from the beginning."""
    tokens = 0
    for (id, mine), (their_id, theirs) in zip(one.prompt, other.prompt, strict=False):
        if id != their_id:
            break
        tokens += min(mine, theirs)
        if mine != theirs:
            break
    return tokens


# -- hash ids ----------------------------------------------------------------------------------------------


def test_equal_ids_are_equal_beginnings() -> None:
    ids = HashIds(4)
    assert ids.of((Segment("a", 6), Segment("b", 6))) == [0, 1, 2]
    assert ids.of((Segment("a", 6), Segment("b", 2))) == [0, 1]
    assert ids.of((Segment("a", 6), Segment("c", 2))) == [0, 3]
    assert ids.of((Segment("b", 4), Segment("a", 4))) == [4, 5]
    assert len(ids) == 6


def test_the_last_block_may_be_partial_and_has_an_id_of_its_own() -> None:
    ids = HashIds(4)
    assert ids.of((Segment("a", 6),)) == [0, 1]
    assert ids.of((Segment("a", 8),)) == [0, 2]
    assert ids.of((Segment("a", 6),)) == [0, 1]


def test_a_segment_that_begins_anew_is_not_one_that_goes_on() -> None:
    """Both prompts end with token 8 of `a` in their second block, after the same first block."""
    ids = HashIds(6)
    assert ids.of((Segment("x", 3), Segment("a", 8))) == [0, 1]
    assert ids.of((Segment("x", 3), Segment("a", 3), Segment("a", 8))) == [0, 2, 3]


_prompts = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=4)


@given(st.lists(_prompts, min_size=2, max_size=6), st.integers(1, 20))
def test_ids_agree_exactly_where_blocks_of_tokens_do(
    prompts: list[list[tuple[str, int]]], block: int
) -> None:
    ids = HashIds(block)
    found = [ids.of([Segment(*segment) for segment in prompt]) for prompt in prompts]
    tokens = [[(id, place) for id, count in prompt for place in range(count)] for prompt in prompts]
    for one, its in zip(tokens, found, strict=True):
        assert len(its) == -(-len(one) // block)
        for other, theirs in zip(tokens, found, strict=True):
            for end, (mine, yours) in enumerate(zip(its, theirs, strict=False), start=1):
                assert (mine == yours) == (one[: end * block] == other[: end * block])


# -- readers of others -------------------------------------------------------------------------------------


def test_vllms_own_loader_makes_prompts_that_share_as_much(vllm: Environment, tmp_path: Path) -> None:
    trace = load("mixed", {"duration": 5}).generate(0)
    written(trace, tmp_path / "rows.jsonl", "timed-trace")
    done = subprocess.run(
        [vllm.python, Path(__file__).with_name("in_vllm") / "timed_trace.py", tmp_path / "rows.jsonl"],
        env={**os.environ, **vllm.variables},
        capture_output=True,
        check=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()[-len(trace.requests) :]]
    pairs = list(zip(trace.requests, rows, strict=True))
    assert [row["time"] for row in rows] == pytest.approx([r.arrival for r in trace.requests])
    assert [row["output_tokens"] for row in rows] == [one.output_tokens for one in trace.requests]
    assert [len(row["prompt"]) for row in rows] == [one.prompt_tokens for one in trace.requests]
    assert max(shared(one, other) for one in trace.requests for other in trace.requests if one != other) > 16
    for one, mine in pairs:
        for other, theirs in pairs:
            tokens = shared(one, other) // 16 * 16
            assert mine["prompt"][:tokens] == theirs["prompt"][:tokens]
            assert one is other or mine["prompt"][: tokens + 16] != theirs["prompt"][: tokens + 16]


# -- round trips -------------------------------------------------------------------------------------------


_requests = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1500)), min_size=1, max_size=3),
        st.floats(0, 100),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=50)
@given(drawn=_requests)
def test_what_is_read_back_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, format: str, drawn: list[Any]
) -> None:
    drawn.sort(key=lambda row: row[1])
    trace = trace_of(*(
        request(number, prompt, arrival=arrival, output_tokens=output)
        for number, (prompt, arrival, output) in enumerate(drawn)
    ))  # fmt: skip
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    written(trace, path, format)
    back = imported(path, format).requests
    assert [one.arrival for one in back] == pytest.approx(
        [one.arrival for one in trace.requests], abs=5.01e-4
    )
    assert [one.prompt_tokens for one in back] == [one.prompt_tokens for one in trace.requests]
    assert [one.output_tokens for one in back] == [one.output_tokens for one in trace.requests]
    block = FORMATS[format].block
    pairs = list(zip(trace.requests, back, strict=True))
    for one, mine in pairs:
        for other, theirs in pairs:
            tokens = shared(one, other)
            whole = tokens == one.prompt_tokens == other.prompt_tokens
            assert shared(mine, theirs) == (tokens if whole else tokens - tokens % block)


@pytest.mark.parametrize("format", FORMATS)
def test_a_closed_loop_stands_at_its_earliest_times(tmp_path: Path, format: str) -> None:
    trace = load("chat", {"duration": 30}).generate(0)
    written(trace, tmp_path / "rows.jsonl", format)
    times = sorted(earliest(trace.requests))
    back = imported(tmp_path / "rows.jsonl", format).requests
    assert any(one.after for one in trace.requests)
    assert [one.arrival for one in back] == pytest.approx(times, abs=5.01e-4)


def test_timed_trace_keeps_what_comes_after_what(tmp_path: Path) -> None:
    trace = load("tree_of_thoughts", {"duration": 10}).generate(0)
    written(trace, tmp_path / "rows.jsonl", "timed-trace")
    back = imported(tmp_path / "rows.jsonl", "timed-trace")
    times = earliest(trace.requests)
    order = sorted(range(len(times)), key=times.__getitem__)
    places = {trace.requests[place].id: number for number, place in enumerate(order)}
    assert any(one.after for one in back.requests)
    for place, theirs in zip(order, sorted(back.requests, key=lambda one: int(one.id[5:])), strict=True):
        mine = trace.requests[place]
        last = max((places[parent] for parent in mine.after), default=None)
        assert theirs.after == (() if last is None else (f"chat-{last}",))


def test_rows_have_the_published_fields_and_units(tmp_path: Path) -> None:
    trace = trace_of(
        request(0, [("a", 700)], arrival=1.2345678), request(1, [("a", 900)], after=("r0",), think=2.0)
    )
    rows = written(trace, tmp_path / "m.jsonl", "mooncake")
    assert rows == [
        {"timestamp": 1235, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 3235, "input_length": 900, "output_length": 5, "hash_ids": [0, 2]},
    ]
    rows = written(trace, tmp_path / "t.jsonl", "timed-trace", block=400)
    assert rows == [
        {"chat_id": 0, "parent_chat_id": -1, "timestamp": 1.234568, "input_length": 700, "output_length": 5,
         "turn": 1, "hash_ids": [0, 1]},
        {"chat_id": 1, "parent_chat_id": 0, "timestamp": 3.234568, "input_length": 900, "output_length": 5,
         "turn": 2, "hash_ids": [0, 2, 3]},
    ]  # fmt: skip


def test_what_is_lost_is_said() -> None:
    assert export.lost(trace_of(request(0, [("a", 1)]))) == []
    one = request(0, [("a", 1)], weight=2.0, priority=1, session="s")
    two = request(1, [("a", 1), ("reply:r0", 5)], client="d", after=("r0",))
    assert export.lost(trace_of(one, two)) == [
        "the names of 2 clients",
        "weights",
        "priorities",
        "the sessions of 1 of 2",
        "how 1 of 2 wait for replies (they stand at their earliest times)",
        "that 1 of 2 prompts hold replies (as tokens like any others)",
    ]


def test_the_command_writes_and_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    command = ["workload", "export", "mooncake", "chat", "-o", str(out), "--set", "duration=20"]
    monkeypatch.setattr("sys.argv", ["suite", *command, "--block", "16"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 16) for row in rows)
    assert f"{len(rows)} requests" in said
    assert "not in the file: the names of 4 clients" in said


def test_a_format_that_is_not_there() -> None:
    with pytest.raises(BadInput, match=r"no format 'moncake'; did you mean 'mooncake'\?"):
        export.named("moncake")

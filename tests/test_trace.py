"""suite.trace: what is written is what is read, in every format, and what is wrong is said on one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.errors import BadInput
from suite.trace import Header, Request, Segment, Trace, checked, read, write

FORMATS = (".jsonl", ".jsonl.gz", ".parquet")


def chat() -> Trace:
    """Two turns of alice, one request of bob: every field of a request is used."""
    first = Request("a/0", "alice", 0.5, (Segment("sys", 10), Segment("u0", 3)), 7, "a", weight=2.0)
    prompt = (*first.prompt, Segment("reply:a/0", 7), Segment("u1", 4))
    second = Request("a/1", "alice", 2.5, prompt, 5, "a", ("a/0",), 2.0, weight=2.0, priority=-1)
    bob = Request("b/0", "bøb \U0001f600", 3.0, (Segment("sys", 8),), 1)
    return Trace(Header("t", 3, "hand", {"skew": [1, 0.5]}, ("alice",)), (first, second, bob))


def saved(tmp_path: Path, lines: list[Any]) -> Path:
    """A JSON-lines file; strings are written as they stand."""
    path = tmp_path / "t.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def records(**changes: Any) -> list[Any]:
    """Header without digest and two valid requests; `changes` are made to the second (None drops a key)."""
    header = {"suite_trace": 1, "name": "t", "seed": 0, "generator": "hand"}
    good = {"id": "a", "client": "c", "arrival": 0.0, "prompt": [["s", 4]], "output_tokens": 2}
    changed = {**good, "id": "b", **changes}
    return [header, good, {key: value for key, value in changed.items() if value is not None}]


# -- round trips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_written_is_read_back_equal(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"deep/er/t{ending}"
    write(chat(), path)
    assert read(path) == chat()
    assert read(path).digest == chat().digest


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
segments = st.builds(Segment, names.map("s{}".format), st.integers(1, 10_000_000))
seconds = st.floats(0, 1e9, allow_nan=False)
requests = st.lists(
    st.builds(
        Request,
        id=names,
        client=names,
        arrival=seconds,
        prompt=st.lists(segments, min_size=1, max_size=4).map(tuple),
        output_tokens=st.integers(1, 100),
        session=st.none() | names,
        think=seconds,
        priority=st.integers(-5, 5),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda request: request.id,
)


@settings(max_examples=25, deadline=None)
@given(requests=requests, choices=st.dictionaries(names, st.integers() | names | st.booleans()))
def test_any_valid_trace_survives_all_formats(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Request], choices: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    chained = [replace(request, after=(before.id,)) for before, request in pairwise(requests)]
    trace = Trace(Header("n", 1, "g", choices), (requests[0], *chained))
    for ending in FORMATS:
        write(trace, folder / f"t{ending}")
        again = read(folder / f"t{ending}")
        assert again == trace
        assert again.digest == trace.digest


@pytest.mark.parametrize("ending", FORMATS)
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    write(chat(), tmp_path / f"a{ending}")
    write(chat(), tmp_path / f"b{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_the_digest_is_of_all_content_and_fixed_for_ever() -> None:
    assert chat().digest == "1982f4d0c69ee50490a2185db89bbe612696fd6b642bd85cca77cb69d5cab302"
    other = replace(chat().requests[2], output_tokens=2)
    assert replace(chat(), requests=(*chat().requests[:2], other)).digest != chat().digest
    assert replace(chat(), header=replace(chat().header, seed=4)).digest != chat().digest


def test_whole_numbers_and_floats_of_seconds_are_one(tmp_path: Path) -> None:
    assert (
        read(saved(tmp_path, records(arrival=1))).digest == read(saved(tmp_path, records(arrival=1.0))).digest
    )


def test_derived_facts() -> None:
    assert chat().clients == ("alice", "bøb \U0001f600")
    assert [request.prompt_tokens for request in chat().requests] == [13, 24, 8]


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"t\.csv: a trace file ends in \.jsonl, \.jsonl\.gz or \.parquet"):
        write(chat(), tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


# -- wrong content -----------------------------------------------------------------------------------------

reply = [["reply:a", 2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a"}, "id 'a' stands twice"),
        ({"id": ""}, "id: .*at least 1 character"),
        ({"client": None}, "client: "),
        ({"client": 7}, "client: .*valid string"),
        ({"arrival": -1}, "arrival: .*greater than or equal to 0"),
        ({"arrival": float("nan")}, "arrival: .*finite"),
        ({"arrival": float("inf")}, "arrival: .*finite"),
        ({"prompt": []}, "prompt: .*at least 1 item"),
        ({"prompt": [["s", 0]]}, r"prompt\.0\.1: .*greater than or equal to 1"),
        ({"prompt": [["s", 1.5]]}, r"prompt\.0\.1: .*valid integer"),
        ({"prompt": [["s", "4"]]}, r"prompt\.0\.1: .*valid integer"),
        ({"prompt": [["", 4]]}, r"prompt\.0\.0: .*at least 1 character"),
        ({"prompt": "s"}, "prompt: "),
        ({"output_tokens": 0}, "output_tokens: .*greater than or equal to 1"),
        ({"output_tokens": 10_000_001}, "output_tokens: .*less than or equal to"),
        ({"output_tokens": True}, "output_tokens: .*valid integer"),
        ({"think": -0.1}, "think: .*greater than or equal to 0"),
        ({"weight": 0}, r"weight: .*greater than or equal to 0\.000001"),
        ({"weight": 1.1e6}, "weight: .*less than or equal to 1000000"),
        ({"arrival": 1.1e9}, "arrival: .*less than or equal to"),
        ({"priority": 2**70}, "priority: .*less than or equal to 2147483648"),
        ({"priority": -(2**31) - 1}, "priority: .*greater than or equal to -2147483648"),
        ({"priority": 0.5}, "priority: .*valid integer"),
        ({"colour": "red"}, "colour: .*nexpected keyword"),
        ({"after": ["z"]}, "`after` names 'z', which is not an earlier request"),
        ({"after": ["b"]}, "`after` names 'b', which is not an earlier request"),
        ({"weight": 2.0}, "client 'c' has weight 2 here and 1 before"),
        ({"prompt": reply}, "segment 'reply:a' is the reply to a request that this one does not come after"),
        (
            {"prompt": [["reply:a", 3]], "after": ["a"]},
            "segment 'reply:a' has 3 tokens, but .* 2",
        ),
    ],
)
def test_a_wrong_request_is_named_by_file_line_and_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=r"t\.jsonl:3: " + message) as caught:
        read(saved(tmp_path, records(**changes)))
    assert "\n" not in str(caught.value)


def test_a_reply_may_come_from_further_back(tmp_path: Path) -> None:
    lines = records(after=["a"])
    lines.append({**lines[1], "id": "c", "prompt": [["s", 4], *reply], "after": ["b"]})
    assert len(read(saved(tmp_path, lines)).requests) == 3


@pytest.mark.parametrize("line", ["", "{", "[]", '{"id": "b"'])
def test_a_line_that_is_no_request(tmp_path: Path, line: str) -> None:
    with pytest.raises(BadInput, match=r"t\.jsonl:4: "):
        read(saved(tmp_path, [*records(), line]))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("not json", "the header is not JSON"),
        ("[1]", "not a trace of this suite"),
        ({"name": "t", "seed": 0, "generator": "g"}, "not a trace of this suite.*suite workload import"),
        ({"timestamp": 0, "input_length": 1}, "not a trace of this suite"),
        ({"suite_trace": 2, "name": "t", "seed": 0, "generator": "g"}, "trace schema is not 1"),
        ({"suite_trace": 1, "seed": 0, "generator": "g"}, "name: "),
        ({"suite_trace": 1, "name": "t", "seed": "x", "generator": "g"}, "seed: "),
        ({"suite_trace": 1, "name": "t", "seed": 0, "generator": "g", "sed": 1}, "sed: "),
    ],
)
def test_a_wrong_header_is_named_by_file_and_line(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(BadInput, match=r"t\.jsonl:1: " + message):
        read(saved(tmp_path, [header, *records()[1:]]))


def test_a_trace_without_requests(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"t\.jsonl:2: the trace holds no requests"):
        read(saved(tmp_path, records()[:1]))


def test_a_trace_in_memory_is_checked_the_same() -> None:
    twice = replace(chat(), requests=chat().requests[:1] * 2)
    with pytest.raises(BadInput, match="request 2: id 'a/0' stands twice"):
        checked(twice)
    assert checked(chat()) == chat()


# -- damaged files -----------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.jsonl: no such trace file"):
        read(tmp_path / "none.jsonl")


def test_an_edit_breaks_the_digest_unless_it_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(chat(), path)
    edited = path.read_text().replace('"output_tokens":1,', '"output_tokens":2,')
    path.write_text(edited)
    with pytest.raises(BadInput, match=r"t\.jsonl: the content does not match the header's digest"):
        read(path)
    header, rest = edited.split("\n", 1)
    without = {key: value for key, value in json.loads(header).items() if key != "digest"}
    path.write_text(json.dumps(without) + "\n" + rest)
    assert read(path).requests[2].output_tokens == 2


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def overwritten(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 20 + content[middle + 20 :]


def foreign(content: bytes) -> bytes:
    return b"not what the ending says"


@pytest.mark.parametrize("ending", [".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("damage", [truncated, overwritten, foreign, lambda content: b""])
def test_damage_is_told_in_one_line(tmp_path: Path, ending: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"t{ending}"
    write(chat(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=rf"t\{ending}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = saved(tmp_path, records())
    path.write_bytes(path.read_bytes() + b'{"id":"\xff"}\n')
    with pytest.raises(BadInput, match=r"t\.jsonl:4: "):
        read(path)


def test_compressed_lines_are_numbered_too(tmp_path: Path) -> None:
    plain = saved(tmp_path, records(output_tokens=0))
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(BadInput, match=r"t\.jsonl\.gz:3: output_tokens"):
        read(path)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.schema.names.index(name), name, pa.array(values))


def test_nulls_and_other_widths_in_parquet_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    plain = replace(chat(), requests=(chat().requests[0], chat().requests[2]))
    write(plain, path)
    table = pq.read_table(path)
    for name in ("after", "think", "priority"):
        table = with_column(table, name, [None, None])
    output = pa.array([7, 1], pa.int32())
    table = table.set_column(table.schema.names.index("output_tokens"), "output_tokens", output)
    pq.write_table(table, path)
    assert read(path) == plain


@pytest.mark.parametrize(("ending", "place"), [(".jsonl", ":1"), (".parquet", r" \(header\)")])
def test_misbehaving_names_clients_of_the_trace(tmp_path: Path, ending: str, place: str) -> None:
    wrong = replace(chat(), header=replace(chat().header, misbehaving=("alise",)))
    write(wrong, tmp_path / f"t{ending}")
    with pytest.raises(BadInput, match=rf"t\{ending}{place}: misbehaving: 'alise' .*did you mean 'alice'"):
        read(tmp_path / f"t{ending}")


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    pq.write_table(change(pq.read_table(path)), path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.replace_schema_metadata(None),
            r"\(header\): not a trace of this suite: the schema's",
        ),
        (lambda table: table.drop_columns(["client"]), ": column 'client': missing; it must be string"),
        (
            lambda table: with_column(table, "prompt", ["a", "b", "c"]),
            ": column 'prompt': is string; it must be",
        ),
        (
            lambda table: with_column(table, "prompt", [1, 2, 3]),
            ": column 'prompt': is int64; it must be list<",
        ),
        (
            lambda table: with_column(table, "prompt", [[["s", "4"]]] * 3),
            ": column 'prompt': is list<.*list<.*; it must be list<.*struct<id: string, tokens: int64>",
        ),
        (
            lambda table: with_column(table, "client", [1, 2, 3]),
            ": column 'client': is int64; it must be string",
        ),
        (lambda table: with_column(table, "client", ["a", None, "b"]), ":2: client: .*required"),
        (lambda table: table.append_column("x", pa.array([1, 2, 3])), ": column 'x': unknown; known: "),
        (lambda table: table.slice(1), ":1: `after` names 'a/0'"),
        (lambda table: table.slice(0, 2), ": the content does not match the header's digest"),
        (
            lambda table: table.set_column(4, "output_tokens", pa.array([7, 0, 1])),
            ":2: output_tokens: .*greater than or equal to 1",
        ),
    ],
)
def test_a_wrong_parquet_file_is_named_by_row(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    path = tmp_path / "t.parquet"
    write(chat(), path)
    with pytest.raises(BadInput, match=r"t\.parquet ?" + message):
        read(rewritten(path, change))

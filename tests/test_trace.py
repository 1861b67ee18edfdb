"""suite.trace: what is written is what is read, in every format, and what is wrong is said on one line."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import trace_parquet
from suite.errors import BadInput
from suite.trace import HEAVIEST, Header, Request, Segment, Trace, checked, read, stream, write

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


# -- real token ids ----------------------------------------------------------------------------------------


def told(**changes: Any) -> Trace:
    """Two requests, and real token ids for two of their three segments; `changes` are made to these."""
    ids = {"text:b": np.arange(5, dtype=np.int32), "text:a": np.array([7, 2**31 - 1, 0], np.int32)} | changes
    first = Request("r", "c", 0.0, (Segment("text:b", 3), Segment("text:a", 3)), 3)
    second = Request("s", "c", 1.0, (Segment("text:b", 5), Segment("made", 2)), 1)
    return Trace(Header("t", 3, "hand"), (first, second), ids)


@pytest.mark.parametrize("ending", FORMATS)
def test_real_token_ids_are_read_back_equal(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    write(told(), path)
    again = read(path)
    assert again == told()
    assert again.digest == told().digest
    assert {id: (tokens.dtype, tokens.tolist()) for id, tokens in again.tokens.items()} == {
        "text:a": (np.int32, [7, 2**31 - 1, 0]),
        "text:b": (np.int32, [0, 1, 2, 3, 4]),
    }


def test_real_token_ids_are_part_of_a_trace_and_of_its_digest() -> None:
    other = told(**{"text:b": np.array([0, 1, 2, 3, 5], np.int32)})
    assert other != told()
    assert other.digest != told().digest
    without = replace(told(), tokens={})
    assert without != told()
    assert len({trace.digest for trace in (told(), other, without)}) == 3


def test_the_order_in_which_token_ids_were_given_does_not_matter(tmp_path: Path) -> None:
    turned = replace(told(), tokens=dict(reversed(told().tokens.items())))
    for name, trace in (("a.parquet", told()), ("b.parquet", turned)):
        write(trace, tmp_path / name)
    assert turned.digest == told().digest
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_trace_without_real_token_ids_has_no_columns_for_them(tmp_path: Path) -> None:
    write(chat(), tmp_path / "t.parquet")
    assert {"segment", "tokens"}.isdisjoint(pq.read_schema(tmp_path / "t.parquet").names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text:b": np.arange(4, dtype=np.int32)},
            "request 2: segment 'text:b' has 5 tokens here, but only 4",
        ),
        ({"text:b": np.array([], np.int32)}, "request 1: segment 'text:b' has 3 tokens here, but only 0"),
        (
            {"text:c": np.arange(3, dtype=np.int32)},
            "header: segment 'text:c' has token ids, but stands in no",
        ),
        ({"reply:r": np.arange(3, dtype=np.int32)}, "header: segment 'reply:r' is a reply, whose tokens the"),
        ({"text:a": np.array([1, -1, 2], np.int32)}, "header: segment 'text:a': token ids are whole numbers"),
        ({"text:a": np.array([1, 2, 3], np.int64)}, "header: segment 'text:a': token ids are whole numbers"),
        ({"text:a": np.zeros((3, 1), np.int32)}, "header: segment 'text:a': token ids are whole numbers"),
    ],
)
def test_token_ids_that_do_not_fit_the_prompts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        checked(told(**changes))


def spelling(segment: Any = "s", tokens: Any = (1, 2, 3, 4), **more: Any) -> dict[str, Any]:
    return {"segment": segment, "tokens": tokens, **more}


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ([spelling(tokens=[])], 2, "tokens: .*at least 1 item"),
        ([spelling(tokens=[1, -1])], 2, r"tokens\.1: .*greater than or equal to 0"),
        ([spelling(tokens=[2**31])], 2, r"tokens\.0: .*less than 2147483648"),
        ([spelling(tokens=[10**30])], 2, r"tokens\.0: .*less than 2147483648"),
        ([spelling(tokens=[1.5])], 2, r"tokens\.0: .*valid integer"),
        ([spelling(tokens=["1"])], 2, r"tokens\.0: .*valid integer"),
        ([spelling(tokens=[True])], 2, r"tokens\.0: .*valid integer"),
        ([spelling(tokens=[None])], 2, r"tokens\.0: .*valid integer"),
        ([spelling(tokens="1 2")], 2, "tokens: .*valid array"),
        ([spelling(tokens=None)], 2, "tokens: .*valid array"),
        ([{"segment": "s"}], 2, "tokens: missing"),
        ([spelling(segment=7)], 2, "segment: .*valid string"),
        ([spelling(segment="")], 2, "segment: .*at least 1 character"),
        ([spelling(colour="red")], 2, "colour: .*nexpected keyword"),
        ([spelling(), spelling()], 3, "segment 's' stands after 's'; list them by id, each once"),
        ([spelling("t"), spelling("s")], 3, "segment 's' stands after 't'; list them by id, each once"),
        ([spelling(tokens=[1, 2, 3])], 3, "segment 's' has 4 tokens here, but only 3 token ids"),
        ([spelling(), spelling("x")], 1, "segment 'x' has token ids, but stands in no prompt"),
        ([spelling(f"x{i:02}") for i in range(50)], 1, "segment 'x00' has token ids, but stands in no"),
        ([spelling("reply:a")], 2, "segment 'reply:a' is a reply"),
    ],
)
def test_a_wrong_row_of_token_ids_is_named_by_file_line_and_field(
    tmp_path: Path, rows: list[Any], line: int, message: str
) -> None:
    header, *requests = records()
    with pytest.raises(BadInput, match=rf"t\.jsonl:{line}: {message}") as caught:
        read(saved(tmp_path, [header, *rows, *requests]))
    assert "\n" not in str(caught.value)


def test_rows_of_token_ids_come_before_the_requests(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"t\.jsonl:4: segment 's' stands after a request"):
        read(saved(tmp_path, [*records(), spelling()]))
    header, *requests = records()
    assert read(saved(tmp_path, [header, spelling(), *requests])).tokens["s"].tolist() == [1, 2, 3, 4]


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


@pytest.mark.parametrize("line", ["", "{", "[]", "[" * 100_000, '{"id": "b"'])
def test_a_line_that_is_no_request(tmp_path: Path, line: str) -> None:
    with pytest.raises(BadInput, match=r"t\.jsonl:4: "):
        read(saved(tmp_path, [*records(), line]))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("not json", "the header is not JSON"),
        ("[" * 100_000, "the header is not JSON: recursion limit exceeded"),
        (
            r'{"suite_trace": 1, "name": "t", "seed": 0, "generator": "g", "choices": {"a": "\ud800"}}',
            "the header is not JSON: .*hex escape",
        ),
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


LONG = "x" * 513


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": LONG}, "id: string should have at most 512 characters"),
        ({"client": LONG}, "client: .*at most 512 characters"),
        ({"client": ""}, "client: .*at least 1 character"),
        ({"session": LONG}, "session: .*at most 512 characters"),
        ({"session": ""}, "session: .*at least 1 character"),
        ({"prompt": ()}, "prompt: .*at least 1 item"),
        ({"prompt": (Segment("s", 1), Segment(LONG, 1))}, r"prompt\.1\.0: .*at most 512 characters"),
        ({"prompt": (Segment("s", 0),)}, r"prompt\.0\.1: .*greater than or equal to 1"),
        ({"prompt": (Segment("s", 10_000_001),)}, r"prompt\.0\.1: .*less than or equal to 10000000"),
        ({"output_tokens": 0}, "output_tokens: .*greater than or equal to 1"),
        ({"output_tokens": 10_000_001}, "output_tokens: .*less than or equal to 10000000"),
        ({"arrival": -1.0}, "arrival: .*greater than or equal to 0"),
        ({"arrival": float("nan")}, "arrival: .*finite"),
        ({"think": 1.1e9}, "think: .*less than or equal to 1000000000"),
        ({"weight": 0.0}, "weight: .*greater than or equal to"),
        ({"priority": 2**31 + 1}, "priority: .*less than or equal to 2147483648"),
    ],
)
def test_what_could_not_be_read_again_is_refused_in_memory(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    wrong = Trace(Header("t", 0, "hand"), (replace(chat().requests[2], **changes),))
    with pytest.raises(BadInput, match=f"^request 1: {message}") as caught:
        checked(wrong)
    write(wrong, tmp_path / "t.parquet")
    field = str(caught.value).split(": ")[1]
    with pytest.raises(BadInput, match=rf"t\.parquet:1: {field}: "):
        read(tmp_path / "t.parquet")


def test_the_widest_trace_that_can_be_read_again_is_held(tmp_path: Path) -> None:
    name = LONG[1:]
    prompt = (Segment(name, 10_000_000),)
    widest = Request(name, name, 1e9, prompt, 10_000_000, name, (), 1e9, HEAVIEST, -(2**31))
    trace = checked(Trace(Header("t", 0, "hand"), (widest,)))
    write(trace, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == trace


def test_more_token_ids_than_can_be_read_again_are_refused() -> None:
    with pytest.raises(BadInput, match="header: segment 'text:b': 10000001 token ids are more than 10000000"):
        checked(told(**{"text:b": np.zeros(10_000_001, np.int32)}))


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
        (lambda table: with_column(table, "client", ["a", None, "b"]), ":2: client: missing"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: with_column(table, "tokens", [[1, -1, 0], [0, 1, 2, 3, 4], None, None]),
            ":1: tokens: -1 is no token id",
        ),
        (
            lambda table: with_column(table, "tokens", [[1, 2**31, 0], [0, 1, 2, 3, 4], None, None]),
            ":1: tokens: 2147483648 is no token id",
        ),
        (
            lambda table: with_column(table, "tokens", [[1, 2, None], [0, 1, 2, 3, 4], None, None]),
            ":1: tokens: missing",
        ),
        (lambda table: with_column(table, "tokens", [[], None, None, None]), ":1: tokens: missing"),
        (lambda table: table.drop_columns(["tokens"]), ":1: tokens: missing"),
        (
            lambda table: with_column(table, "tokens", [[1.5], [1.0], None, None]),
            ": column 'tokens': is list<.*double>; it must be list<.*int32>",
        ),
        (lambda table: table.drop_columns(["segment"]), ":1: segment: a name has from 1"),
        (
            lambda table: with_column(table, "segment", ["text:a", "text:a", None, None]),
            ":2: segment 'text:a' stands after 'text:a'",
        ),
        (
            lambda table: with_column(table, "segment", ["text:a", "", None, None]),
            ":2: segment: a name has from 1 to 512 characters, this one 0",
        ),
        (
            lambda table: with_column(table, "client", ["c", None, "c", "c"]),
            ":1: client: stands in a row of token ids; fill `segment` and `tokens` alone",
        ),
        (
            lambda table: with_column(table, "segment", ["text:a", "text:b", None, "text:c"]),
            ":4: id: stands in a row of token ids",
        ),
        (
            lambda table: pa.concat_tables([table.slice(2), table.slice(0, 2)]),
            ":3: segment 'text:a' stands after a request",
        ),
        (lambda table: table.slice(1), ": the content does not match the header's digest"),
    ],
)
def test_a_wrong_row_of_token_ids_in_parquet(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    path = tmp_path / "t.parquet"
    write(told(), path)
    with pytest.raises(BadInput, match=r"t\.parquet ?" + message):
        read(rewritten(path, change))


def test_token_ids_of_another_width_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write(told(), path)
    wide = pa.array([[7, 2**31 - 1, 0], [0, 1, 2, 3, 4], None, None], pa.large_list(pa.uint64()))
    rewritten(path, lambda table: table.set_column(table.schema.names.index("tokens"), "tokens", wide))
    assert read(path) == told()


# -- streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS)
def test_a_stream_gives_what_reading_gives(tmp_path: Path, ending: str) -> None:
    for trace in (chat(), told()):
        write(trace, tmp_path / f"t{ending}")
        header, requests = stream(tmp_path / f"t{ending}")
        assert header == trace.header
        assert tuple(requests) == trace.requests


@pytest.mark.parametrize(
    ("line", "changed", "given", "message"),
    [
        (2, {"output_tokens": 0}, 1, r"t\.jsonl:3: output_tokens"),
        (2, {"id": "a"}, 1, r"t\.jsonl:3: id 'a' stands twice"),
        (0, {"misbehaving": ["x"]}, 2, r"t\.jsonl:1: misbehaving: 'x' is no client"),
        (0, {"digest": "0"}, 2, r"t\.jsonl: the content does not match"),
    ],
)
def test_a_stream_says_what_is_wrong_when_it_comes_to_it(
    tmp_path: Path, line: int, changed: dict[str, Any], given: int, message: str
) -> None:
    lines = records()
    lines[line] |= changed
    _, requests = stream(saved(tmp_path, lines))
    assert [next(requests).id for _ in range(given)] == ["a", "b"][:given]
    with pytest.raises(BadInput, match=message):
        next(requests)


def test_the_header_of_a_stream_is_read_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.jsonl: no such trace file"):
        stream(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match=r"t\.jsonl:1: the header is not JSON"):
        stream(saved(tmp_path, ["no"]))


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_stream_keeps_little_of_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A long chain of requests with long prompts: what stays of each is its id and its place."""
    monkeypatch.setattr(trace_parquet, "_BATCH", 64)
    prompt = tuple(Segment(f"{part:0100}", 1) for part in range(20))
    chain = tuple(
        Request(f"{i:08}", "c", float(i), prompt, 1, "s", (f"{i - 1:08}",) if i else ()) for i in range(4000)
    )
    write(Trace(Header("t", 0, "hand"), chain), tmp_path / f"t{ending}")
    _, requests = stream(tmp_path / f"t{ending}")
    next(requests)
    tracemalloc.start()
    try:
        assert sum(1 for _ in requests) == len(chain) - 1
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / len(chain) < 800, "a prompt alone has 20 segments of some 200 bytes"

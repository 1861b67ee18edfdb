"""Logs of serving: tables in the columns of Chutes and of one's own, and requests in the shapes of OpenAI."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_models import saved_model

from suite.backends.simulator import Simulator
from suite.content import Content
from suite.errors import BadInput
from suite.policies import parse
from suite.trace import REPLY, Request, Trace, read, write
from workloads.reading.text import Tokenizer
from workloads.spec import load

# -- serving logs ------------------------------------------------------------------------------------------

COLUMNS = {"arrival": "at", "client": "tenant", "input_tokens": "in", "output_tokens": "out"}
ROWS: list[dict[str, Any]] = [
    {"at": 105.5, "tenant": "b", "in": 30, "out": 3, "chat": "x", "head": "h1", "known": 0},
    {"at": 100.0, "tenant": "a", "in": 20, "out": 2, "chat": "y", "head": "h1", "known": 20},
    {"at": 107.25, "tenant": "a", "in": 50, "out": 5, "chat": "y", "head": "h2", "known": 40},
    {"at": 108.0, "tenant": "a", "in": 40, "out": 4, "chat": "z", "head": "h2", "known": 90},
]


def saved(path: Path, rows: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def served(file: Path, columns: Mapping[str, Any] = COLUMNS, **changes: Any) -> Trace:
    return load({"family": "serving_log", "file": str(file), "columns": columns} | changes).generate(0)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_rows_become_requests_in_order_of_their_times(tmp_path: Path, name: str) -> None:
    trace = served(saved(tmp_path / name))
    first, other, *later = trace.requests
    assert (first.id, first.client, first.arrival) == ("row-000002", "a", 0.0)
    assert (other.id, other.client, other.arrival) == ("row-000001", "b", 5.5)
    assert [(request.id, request.arrival) for request in later] == [("row-000003", 7.25), ("row-000004", 8.0)]
    assert [request.prompt_tokens for request in trace.requests] == [20, 30, 50, 40]
    assert [request.output_tokens for request in trace.requests] == [2, 3, 5, 4]
    assert len({request.prompt[0].id for request in trace.requests}) == 4, "nothing is shared"
    assert trace.header.choices["prefix_rule"].endswith("nothing is shared")
    assert trace.header.choices["provenance"] == "serving log; local copy; licence its owner's; all rows"


def test_sessions_are_those_of_the_table(tmp_path: Path) -> None:
    trace = served(saved(tmp_path / "x.csv"), COLUMNS | {"session": ["tenant", "chat"]})
    assert [request.session for request in trace.requests] == ["a/y", "b/x", "a/y", "a/z"]


def test_prompts_begin_with_what_had_been_seen(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.csv")
    first, other, second, third = served(file, COLUMNS | {"prefix_tokens": "known"}).requests
    assert [*first.prompt] == [("prefix:a", 20)]
    assert [*other.prompt] == [("prompt:row-000001", 30)]
    assert [*second.prompt] == [("prefix:a", 40), ("prompt:row-000003", 10)]
    assert [*third.prompt] == [("prefix:a", 40)], "no more than the whole prompt"
    named = served(file, COLUMNS | {"prefix_tokens": "known", "prefix": "head"})
    assert [request.prompt[0].id for request in named.requests] == [
        "prefix:h1", "prompt:row-000001", "prefix:h2", "prefix:h2",
    ]  # fmt: skip
    assert named.header.choices["prefix_rule"] == (
        "a prompt begins with the first known tokens of the stream of its head"
    )


def test_units_of_time(tmp_path: Path) -> None:
    seconds = served(saved(tmp_path / "x.csv"))
    times: list[Any] = [
        ("milliseconds", [row["at"] * 1000 for row in ROWS]),
        ("seconds", [datetime.fromtimestamp(row["at"]).isoformat() for row in ROWS]),
        ("seconds", [f"2024-05-10 00:01:{row['at'] - 60:09.6f}+02:00" for row in ROWS]),
    ]
    for unit, moments in times:
        rows = [row | {"at": moment} for row, moment in zip(ROWS, moments, strict=True)]
        for name in ("y.csv", "y.jsonl"):
            assert served(saved(tmp_path / name, rows), time=unit).requests == seconds.requests


CHUTES = "154ad01c-a431-5744-83c8-651215124360"


def chutes_rows() -> list[dict[str, Any]]:
    """The columns and types of harvardMadsys/chutes_metadata: times since the first, floats, empty cells."""
    start = datetime(1970, 1, 1)
    lengths = [(43.0, 8.0, None), (5296.0, 607.0, 4096.0), (3742.0, 500.0, None), (235.0, None, None)]
    return [
        {
            "invocation_id": i + 1,
            "function_name": "chat_stream",
            "chute_id": "de510462-c319-543b-9c67-00bcf807d2a7" if i == 2 else CHUTES,
            "user_id": f"u1_{i % 2:07}",
            "rehash_round": 1 + i // 4,
            "instance_id": "i0005910",
            "started_at": start + timedelta(microseconds=25_000 * i),
            "completed_at": start + timedelta(seconds=i),
            "it": it,
            "ot": ot,
            "ct": ct,
            "ttft": None,
        }
        for i, (it, ot, ct) in enumerate([*lengths, *lengths[:2]])
    ]


def test_the_ready_spec_reads_chutes(tmp_path: Path) -> None:
    file = saved(tmp_path / "chutes.parquet", chutes_rows())
    trace = load("chutes", {"file": str(file)}).generate(0)
    assert [(r.client, r.arrival, r.prompt_tokens) for r in trace.requests] == [
        ("u1_0000000/1", 0.0, 43), ("u1_0000001/1", 0.025, 5296),
        ("u1_0000000/2", 0.1, 43), ("u1_0000001/2", 0.125, 5296),
    ]  # fmt: skip
    shared = f"prefix:u1_0000001/1/{CHUTES}"
    assert [*trace.requests[1].prompt] == [(shared, 4096), ("prompt:row-000002", 1200)]
    assert trace.header.choices["counts"] == {"other_rows": 1, "rows_without_tokens": 1}
    assert trace.header.choices["provenance"].startswith(
        "harvardMadsys/chutes_metadata; local copy; licence CC"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tenant": None}, "tenant: input should be a valid string"),
        ({"in": -3}, "in: input should be greater than or equal to 0 (got '-3')"),
        ({"out": 2.5}, "out: input should be a valid integer, got a number with a fractional part"),
        ({"at": -1}, "at: input should be greater than or equal to 0"),
    ],
    ids=str,
)
def test_wrong_rows_are_named_by_number_and_column(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = saved(tmp_path / "x.jsonl", [ROWS[0], ROWS[1] | row])
    with pytest.raises(BadInput, match=re.escape(f"{file}, row 2: {message}")) as caught:
        served(file)
    assert "\n" not in str(caught.value)


def test_a_time_that_is_none_is_named(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jsonl", [ROWS[0] | {"at": "2024-05-10T00:00"}, ROWS[1] | {"at": "soon"}])
    with pytest.raises(BadInput, match=r"x\.jsonl, row 2: at: Invalid isoformat string: 'soon'"):
        served(file)


def test_times_that_are_no_seconds_are_told_of(tmp_path: Path) -> None:
    """Unix milliseconds taken for seconds would make a trace a thousand times as long."""
    rows = [row | {"at": (1_717_171_717 + row["at"]) * 1000} for row in ROWS]
    with pytest.raises(BadInput, match=r"x\.jsonl, row 1: at: \S+ seconds are .* milliseconds"):
        served(saved(tmp_path / "x.jsonl", rows))
    texts = [row | {"at": str(row["at"])} for row in rows]
    for name in ("x.jsonl", "x.csv"):
        trace = served(saved(tmp_path / name, texts), time="milliseconds")
        assert [request.arrival for request in trace.requests] == [0.0, 5.5, 7.25, 8.0]


def test_rows_of_impossible_length_are_left_out_and_counted(tmp_path: Path) -> None:
    """Chutes has prompts of up to 15.4 million tokens; no trace holds more than ten."""
    file = saved(tmp_path / "x.parquet", [*chutes_rows(), chutes_rows()[0] | {"it": 15.4e6}])
    trace = load("chutes", {"file": str(file)}).generate(0)
    assert trace.header.choices["counts"] == {"other_rows": 1, "rows_too_long": 1, "rows_without_tokens": 1}
    assert len(trace.requests) == 4


def test_half_a_name_is_none(tmp_path: Path) -> None:
    rows = [row | {"chat": None if row["chat"] == "y" else row["chat"]} for row in ROWS]
    file = saved(tmp_path / "x.jsonl", rows)
    sessions = served(file, COLUMNS | {"session": ["tenant", "chat"]}).requests
    assert [request.session for request in sessions] == [None, "b/x", None, "a/z"]
    with pytest.raises(BadInput, match=r"x\.jsonl, row 2: tenant\+chat: "):
        served(file, COLUMNS | {"client": ["tenant", "chat"]})


def test_whole_numbers_are_found_in_columns_with_gaps(tmp_path: Path) -> None:
    """A column of whole numbers with an empty cell is one of floats in CSV."""
    rows = [row | {"model": n or None} for n, row in enumerate([*ROWS, *ROWS[:1]])]
    trace = served(saved(tmp_path / "x.csv", rows), COLUMNS | {"client": "model"}, only={"model": 2})
    assert [(request.id, request.client) for request in trace.requests] == [("row-000003", "2")]


def test_rows_are_picked_by_truth(tmp_path: Path) -> None:
    rows = [row | {"streamed": row["out"] > 3} for row in ROWS]
    for name in ("x.csv", "x.jsonl"):
        trace = served(saved(tmp_path / name, rows), only={"streamed": True})
        assert [request.output_tokens for request in trace.requests] == [5, 4]


def test_missing_columns_are_met_with_those_there_are(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jsonl")
    with pytest.raises(BadInput, match=r"no column 'tenants', which `columns\.client` names; did you mean"):
        served(file, COLUMNS | {"client": "tenants"})
    with pytest.raises(BadInput, match=r"no column 'model', which `only\.model` names; known: at, chat"):
        served(file, only={"model": "x"})


def test_a_spec_must_say_what_to_read(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jsonl")
    with pytest.raises(BadInput, match=r"columns: prefix: it says nothing without `prefix_tokens`"):
        served(file, COLUMNS | {"prefix": "head"})
    with pytest.raises(BadInput, match=r"columns\.arrival: missing"):
        served(file, {"client": "tenant", "input_tokens": "in", "output_tokens": "out"})
    with pytest.raises(BadInput, match=r"columns\.client: .*\[\]"):
        served(file, COLUMNS | {"client": []})
    with pytest.raises(BadInput, match="file: missing; name a local file, or a `data_set` on the hub"):
        load({"family": "serving_log", "columns": COLUMNS})


# -- logs in the shapes of OpenAI's API --------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served model's tokenizer."""
    return saved_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(str(model))


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
    }


def chat(
    time: Any, user: str | None, said: Sequence[dict[str, Any]], reply: str | None, **used: Any
) -> dict[str, Any]:
    """A request to /v1/chat/completions and its response, as the API's reference shows them."""
    body = {"model": "small", "messages": [*said], "max_tokens": 100, "temperature": 0.7}
    response = {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "small",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        **used,
    }
    return {"timestamp": time, "request": body | ({"user": user} if user else {}), "response": response}


SYSTEM = message("system", "the fox asks the dog what time it is, and the dog says it is late")
FIRST = [SYSTEM, message("user", "what time is it")]
SECOND = [*FIRST, message("assistant", "it is late"), message("user", "how late")]


def conversation() -> list[dict[str, Any]]:
    """Two users with one system prompt; the first goes on. Later rows stand first, as logs are written."""
    return [
        chat(1741569960.5, "ann", SECOND, "very late", usage=usage(60, 4)),
        chat(1741569952.25, "ann", FIRST, "it is late", usage=usage(40, 5)),
        chat(
            1741569954, "bob", [SYSTEM, message("user", "good night")], "good night fox", usage=usage(41, 3)
        ),
    ]


def logged(folder: Path, rows: Sequence[Any], **changes: Any) -> Trace:
    file = folder / "log.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return load({"family": "openai_log", "file": str(file)} | changes).generate(0)


def test_prompts_are_those_that_were_sent(tmp_path: Path, model: Path, tokenizer: Tokenizer) -> None:
    first, other, second = logged(tmp_path, conversation(), tokenizer=str(model)).requests
    assert [(r.client, r.arrival) for r in (first, other, second)] == [
        ("ann", 0),
        ("bob", 1.75),
        ("ann", 8.25),
    ]
    trace = logged(tmp_path, conversation(), tokenizer=str(model))
    content = Content.of(trace, 400)
    assert content.prompt(first, {}) == tokenizer.chat(FIRST)
    assert content.prompt(second, {first.id: tokenizer.ids("it is late")}) == tokenizer.chat(SECOND)


def test_a_prompt_that_goes_on_from_a_reply_waits_for_it(
    tmp_path: Path, model: Path, tokenizer: Tokenizer
) -> None:
    first, other, second = logged(tmp_path, conversation(), tokenizer=str(model)).requests
    assert (first.after, other.after, second.after) == ((), (), (first.id,))
    reply = len(tokenizer.ids("it is late"))
    assert (f"{REPLY}{first.id}", reply) in second.prompt
    assert (first.output_tokens, other.output_tokens, second.output_tokens) == (reply, 3, 4)
    assert first.session == second.session != other.session


def test_a_reply_that_merges_with_the_space_before_it_is_waited_for(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.content if m.role != 'assistant' else ' ' + m.content + ' <|im_end|>' }}"
        "{{ ' [/INST]' if m.role == 'user' }}{% endfor %}"
    )
    model = saved_model(tmp_path / "inst", template)
    first, _, second = logged(tmp_path, conversation(), tokenizer=str(model)).requests
    assert second.after == (first.id,)
    reply = len(Tokenizer.load(str(model)).ids(" it is late"))
    assert (f"{REPLY}{first.id}", reply) in second.prompt
    assert first.output_tokens == reply


def test_another_users_reply_is_not_waited_for(tmp_path: Path, model: Path) -> None:
    rows = conversation()
    rows[0]["request"]["user"] = "bob"
    assert all(not request.after for request in logged(tmp_path, rows, tokenizer=str(model)).requests)


def test_prompts_share_what_their_ids_do(tmp_path: Path, model: Path) -> None:
    texts = ["what time is it", "what time is late", "what", "the dog says it", "what time is it fox"]
    rows = [chat(i, f"user-{i % 2}", [SYSTEM, message("user", text)], "no") for i, text in enumerate(texts)]
    trace = logged(tmp_path, rows, tokenizer=str(model))
    content = Content.of(trace, 400)
    for one, other in combinations(trace.requests, 2):
        same = [a == b for a, b in zip(content.prompt(one, {}), content.prompt(other, {}), strict=False)]
        assert _shared(one, other) == [*same, False].index(False)


def _shared(one: Request, other: Request) -> int:
    pairs = [*zip(one.prompt, other.prompt, strict=False)]
    same = [a == b for a, b in pairs]
    return sum(a.tokens for a, _ in pairs[: [*same, False].index(False)])


def test_completions_by_text_and_by_ids(tmp_path: Path, model: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.ids("what time is it")
    rows = [
        {
            "created": "2024-05-10T00:00:00.500Z",
            "body": {"prompt": prompt, "max_tokens": 7, "safety_identifier": "ann"},
            "response": {"choices": [{"text": "it is late", "index": 0}]},
        }
        for prompt in ("what time is it", ids, ["what time is it"])
    ]
    one, other, third = logged(tmp_path, rows, tokenizer=str(model)).requests
    assert one.prompt == other.prompt == third.prompt
    assert one.prompt_tokens == len(ids)
    assert one.client == "ann"
    assert one.output_tokens == len(tokenizer.ids("it is late"))


def test_without_text_lengths_are_kept_and_nothing_is_shared(tmp_path: Path) -> None:
    rows = conversation()
    for row in rows:
        del row["request"]["messages"], row["response"]["choices"]
    trace = logged(tmp_path, rows)
    assert [(r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(40, 5), (41, 3), (60, 4)]
    assert len({request.prompt for request in trace.requests}) == 3
    assert {request.session for request in trace.requests} == {None}, "which of them go on is not known"
    assert not trace.tokens
    assert trace.header.choices["counts"] == {"lengths_only": 3}
    assert "share nothing" in trace.header.choices["prefix_rule"]


def test_a_log_of_long_prompts_takes_little_memory(tmp_path: Path) -> None:
    """All prompts are held at once, to find what they share: in some bytes a token."""
    tokens, rows = 2_000, 300
    ids = np.random.default_rng(0).integers(1_000, 100_000, (rows, tokens)).tolist()
    log = [
        {"timestamp": i, "request": {"prompt": prompt}, "response": {"usage": usage(tokens, 5)}}
        for i, prompt in enumerate(ids)
    ]
    file = saved(tmp_path / "x.jsonl", log)
    workload = load({"family": "openai_log", "file": str(file)})
    tracemalloc.start()
    trace = workload.generate(0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert trace.tokens[trace.requests[0].prompt[-1].id].tolist() == ids[0]
    assert most < 30 * tokens * rows, most


def test_envelopes_of_the_batch_api_are_opened(tmp_path: Path, model: Path) -> None:
    rows = conversation()
    wrapped = [
        {
            "custom_id": "request-1",
            "timestamp": row["timestamp"],
            "request": {"method": "POST", "url": "/v1/chat/completions", "body": row["request"]},
            "response": {"status_code": 200, "request_id": "req_123", "body": row["response"]},
            "error": None,
        }
        for row in rows
    ]
    plain = logged(tmp_path, rows, tokenizer=str(model))
    assert logged(tmp_path, wrapped, tokenizer=str(model)).requests == plain.requests


def test_rows_without_a_request_to_replay_are_counted(tmp_path: Path, model: Path) -> None:
    picture = message(
        "user", [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "x"}}]
    )
    failed = chat(3, "ann", FIRST, None) | {"response": {"status_code": 429, "body": {"error": {"code": 1}}}}
    rows = [
        *conversation(),
        failed,
        chat(4, "ann", [picture], "a dog"),
        chat(5, "ann", FIRST, "", usage=usage(40, 0)),
    ]
    trace = logged(tmp_path, rows, tokenizer=str(model))
    assert len(trace.requests) == 3
    assert trace.header.choices["counts"] == {
        "failed": 1,
        "not_text_alone": 1,
        "with_text": 3,
        "without_output": 1,
    }


def test_requests_that_a_batch_did_not_get_to_have_failed(tmp_path: Path, model: Path) -> None:
    """In the files of the Batch API the error stands beside an empty response."""
    expired = {"code": "batch_expired", "message": "This request could not be executed in time."}
    row = conversation()[0] | {"response": None, "error": expired}
    trace = logged(tmp_path, [*conversation(), row], tokenizer=str(model))
    assert trace.header.choices["counts"] == {"failed": 1, "with_text": 3}


def test_texts_in_pieces_and_tools_are_part_of_the_prompt(
    tmp_path: Path, model: Path, tokenizer: Tokenizer
) -> None:
    tools = [{"type": "function", "function": {"name": "time", "parameters": {}}}]
    call = [{"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}}]
    pieces = message("user", [{"type": "text", "text": "what "}, {"type": "text", "text": "time"}])
    said = [
        message("developer", "be short"),
        pieces,
        message("assistant", None) | {"tool_calls": call},
        message("tool", "late") | {"tool_call_id": "call_1"},
    ]
    row = chat(1, "ann", said, "it is late")
    row["request"]["tools"] = tools
    trace = logged(tmp_path, [row], tokenizer=str(model))
    expected = [
        message("system", json.dumps(tools)),
        message("system", "be short"),
        message("user", "what time"),
        message("assistant", json.dumps(call)),
        message("tool", "late"),
    ]
    assert Content.of(trace, 400).prompt(trace.requests[0], {}) == tokenizer.chat(expected)


@pytest.mark.parametrize("name", ["", "x" * 600, None, 1.5, ["ann"]], ids=str)
def test_a_field_that_names_no_client_is_told_of(tmp_path: Path, name: Any) -> None:
    rows = [{"team": name, "timestamp": 1, "request": {}, "response": {"usage": usage(40, 5)}}]
    with pytest.raises(BadInput, match=r"log\.jsonl:1: team: names no client"):
        logged(tmp_path, rows, client_field="team")


def test_a_users_name_is_data(tmp_path: Path) -> None:
    names = [
        "reply:row-000000",
        "../../x",
        "[red]x[/red]",
        "a\nb",
        "\x1b[2J",
        "客户",
        "anonymous/1",
        "x" * 512,
    ]
    rows = [chat(i, name, FIRST, None, usage=usage(40, 5)) for i, name in enumerate(names)]
    for row in rows:
        del row["request"]["messages"]
    trace = logged(tmp_path, rows)
    write(trace, tmp_path / "x.jsonl")
    assert [request.client for request in read(tmp_path / "x.jsonl").requests] == names


def test_a_client_may_be_any_field_of_the_row(tmp_path: Path, model: Path) -> None:
    rows = [row | {"headers": {"x-team": f"team-{i % 2}"}} for i, row in enumerate(conversation())]
    trace = logged(tmp_path, rows, tokenizer=str(model), client_field="headers.x-team")
    assert [request.client for request in trace.requests] == ["team-1", "team-0", "team-0"]
    assert trace.header.choices["client_rule"] == "'headers.x-team' of the row"
    with pytest.raises(BadInput, match=r"log\.jsonl:1: headers\.x-user: names no client"):
        logged(tmp_path, rows, tokenizer=str(model), client_field="headers.x-user")
    for row in rows:
        del row["request"]["user"]
    assert logged(tmp_path, rows, tokenizer=str(model)).clients == ("anonymous",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"timestamp": "soon"}, "timestamp: Invalid isoformat string: 'soon'"),
        ({"timestamp": None}, "timestamp: input should be a valid number"),
        ({"timestamp": 1741569952000}, "timestamp: 1.74e+12 seconds are "),
        ({"request": None}, "request: input should be"),
        ({"request": {"messages": [{"content": "x"}]}}, "request.messages.0.role: missing"),
        ({"request": {"prompt": ["a", "b"]}}, "request.prompt: 2 prompts in one request; log a row for each"),
        ({"request": {"prompt": "x"}, "response": {}}, "response: neither `usage` nor `choices`"),
        (
            {"request": {}, "response": {"choices": [{"text": "x"}]}},
            "request: neither `messages` nor `prompt`",
        ),
        ({"response": {"usage": {"prompt_tokens": 3}}}, "response.usage.completion_tokens: missing"),
        ({"response": {"usage": usage(3, 10**9)}}, "response.usage.completion_tokens: input should be less"),
        (
            {"request": {}, "response": {"usage": usage(10**9, 3)}},
            "response.usage.prompt_tokens: input should",
        ),
        ({"request": {}, "response": {"usage": usage(0, 3)}}, "request: neither `messages` nor `prompt`"),
        ({"request": {"prompt": "x", "user": "x" * 600}}, "request.user: string should have at most 512"),
    ],
    ids=str,
)
def test_wrong_log_rows_are_named(tmp_path: Path, model: Path, row: dict[str, Any], message: str) -> None:
    rows = [*conversation(), conversation()[0] | row]
    with pytest.raises(BadInput, match=re.escape(f"log.jsonl:4: {message}")) as caught:
        logged(tmp_path, rows, tokenizer=str(model))
    assert "\n" not in str(caught.value)


def test_a_log_without_a_request_to_replay_says_what_its_rows_are(tmp_path: Path) -> None:
    rows = [chat(i, "ann", FIRST, None, usage=usage(40, 0)) for i in range(3)]
    with pytest.raises(BadInput, match=r"log\.jsonl: no row is left to replay \(3 without output\)"):
        logged(tmp_path, rows)
    file = saved(tmp_path / "x.csv")
    with pytest.raises(BadInput, match=r"x\.csv: no row is left to replay \(4 other rows\)"):
        served(file, only={"tenant": "c"})


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"log\.jsonl:1: the log holds text; `tokenizer` must name"):
        logged(tmp_path, conversation())
    with pytest.raises(BadInput, match=r"log\.jsonl:1: row: invalid JSON"):
        logged(tmp_path, ["{"])


def test_the_simulator_finds_what_is_shared(tmp_path: Path, model: Path) -> None:
    trace = logged(tmp_path, conversation(), tokenizer=str(model))
    simulator = Simulator(block_tokens=1)
    frame = simulator.run(trace, parse("dlpm"), Path(), lambda share, note="": None).requests
    cached = frame.set_index("id")["cached_tokens"]
    first, other, second = trace.requests
    assert (frame["status"] == "finished").all()
    assert cached[first.id] == 0
    assert cached[other.id] == _shared(first, other) > 0
    assert cached[second.id] == first.prompt_tokens + first.output_tokens - 1

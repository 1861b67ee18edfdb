"""Chats of public data sets, from rows in their published columns: who sends what when, what is shared."""

from __future__ import annotations

import json
import signal
import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from text_models import saved_model

from suite import cli, results
from suite.content import Content
from suite.errors import BadInput
from suite.replay import Target, replay
from suite.report import tables
from suite.report.html import Report
from suite.trace import REPLY, Request, Trace, read, write
from tests.mock_server import MockServer
from workloads.reading.chats import Said, cleaned
from workloads.reading.text import Tokenizer
from workloads.spec import load

TALK = [
    "what time is it",
    "it is late",
    "how late",
    "the dog says it is very late",
    "good night",
    "good night fox",
]
OTHER = ["what time is it", "it is not late"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "small")


def openai(texts: list[str], **more: Any) -> list[dict[str, Any]]:
    """Messages as the data sets of LMSYS and AI2 have them: content first, roles by turns."""
    return [
        {"content": text, "role": "assistant" if i % 2 else "user", **more} for i, text in enumerate(texts)
    ]


def spelled(tokenizer: Tokenizer, trace: Trace, request: Request) -> str:
    """The prompt as the engine gets it, each reply to an earlier request as <ID>."""
    parts = [
        f"<{id.removeprefix(REPLY)}>"
        if id.startswith(REPLY)
        else tokenizer.inner.decode(trace.tokens[id].tolist(), skip_special_tokens=False)
        for id, _ in request.prompt
    ]
    return "".join(parts)


def in_file(trace: Trace) -> list[Request]:
    """The requests by id."""
    return sorted(trace.requests, key=lambda request: request.id)


# -- which messages count ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        ("uaua", "uaua"),
        ("suaua", "suaua"),
        ("aua", "ua"),
        ("asua", "ua"),
        ("uau", "ua"),
        ("uaa", "ua"),
        ("uu", ""),
        ("uaxua", "ua"),
        ("a", ""),
        ("s", ""),
        ("", ""),
    ],
)
def test_questions_and_replies_in_turn_are_kept(roles: str, kept: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "x": "narrator"}
    said = [Said(names[role], f" {role}{i}\n") for i, role in enumerate(roles)]
    found = cleaned(said)
    assert [one.role for one in found] == [names[role] for role in kept]
    assert all(one.content == one.content.strip() for one in found)


def test_a_chat_ends_before_an_empty_message() -> None:
    said = [Said("user", "a"), Said("assistant", "b"), Said("user", "c"), Said("assistant", " \n")]
    assert [one.content for one in cleaned(said)] == ["a", "b"]
    assert [one.role for one in cleaned([Said("system", ""), *said])] == ["user", "assistant"]


# -- ShareGPT ----------------------------------------------------------------------------------------------


def sharegpt_rows(count: int = 12) -> list[dict[str, Any]]:
    """As in ShareGPT_V3_unfiltered_cleaned_split.json; some rows have more keys, some begin in the middle."""
    rows = []
    for i in range(count):
        texts = [f"fox {i} asks" if j == 0 else text for j, text in enumerate(TALK[: 2 + 2 * (i % 3)])]
        said = [{"from": "gpt" if j % 2 else "human", "value": text} for j, text in enumerate(texts)]
        rows.append({"id": f"QWJhYvA_{i}", "conversations": said})
    rows[1]["conversations"][0] |= {"markdown": None, "text": "x"}
    rows[2]["conversations"].insert(0, {"from": "gpt", "value": "and so on"})
    rows[3]["conversations"] = []
    return rows


def spec_of_sharegpt(tmp_path: Path, model: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    file = tmp_path / "ShareGPT.json"
    file.write_text(json.dumps(rows))
    spec = {"family": "sharegpt", "file": str(file), "tokenizer": str(model), "duration": 50, "rate": 0.3}
    return spec | {"clients": 2, "think": 3}


def sharegpt(tmp_path: Path, model: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Trace:
    spec = spec_of_sharegpt(tmp_path, model, sharegpt_rows() if rows is None else rows)
    return load(spec | changes).generate(0)


def test_sharegpts_prompts_are_the_conversation_so_far(tmp_path: Path, model: Path) -> None:
    trace, tokenizer = sharegpt(tmp_path, model), Tokenizer.load(str(model))
    last = next(request for request in trace.requests if request.id.endswith("/2"))
    row, first, second = last.session, f"{last.session}/0", f"{last.session}/1"
    assert row is not None
    assert spelled(tokenizer, trace, last) == (
        f"<|im_start|>user\nfox {int(row[4:])} asks<|im_end|>\n<|im_start|>assistant\n<{first}><|im_end|>\n"
        f"<|im_start|>user\nhow late<|im_end|>\n<|im_start|>assistant\n<{second}><|im_end|>\n"
        f"<|im_start|>user\ngood night<|im_end|>\n<|im_start|>assistant\n"
    )
    assert last.output_tokens == len(tokenizer.ids("good night fox"))
    assert (last.after, last.think) == ((second,), 3)


def test_chats_are_dealt_by_rate_and_none_twice(tmp_path: Path, model: Path) -> None:
    clients = [{"name": "a", "rate": 0.3}, {"name": "b", "rate": 0.1}]
    trace = sharegpt(tmp_path, model, sharegpt_rows(90), clients=clients, rate=None)
    sessions = Counter((request.session, request.client) for request in trace.requests)
    assert len({session for session, _ in sessions}) == len(sessions), "a chat has one client"
    assert {client for _, client in sessions} == {"a", "b"}
    assert trace.requests != sharegpt(
        tmp_path, model, sharegpt_rows(90), clients=clients, rate=None, duration=49
    )


def test_more_chats_than_there_are_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(
        BadInput, match="clients would begin about 215 chats, but there are only 11; raise `lim"
    ):
        sharegpt(tmp_path, model, rate=9)


def test_a_client_that_happens_to_run_out_begins_no_more(tmp_path: Path, model: Path) -> None:
    spec = spec_of_sharegpt(tmp_path, model, sharegpt_rows()) | {"clients": 1, "rate": 0.4}
    made = [load(spec).generate(seed).requests for seed in range(12)]
    begun = [len({request.session for request in requests}) for requests in made]
    assert max(begun) == 11
    assert min(begun) < 11


@pytest.mark.parametrize("family", ["sharegpt", "lmsys_chat", "wildchat", "chatbot_arena"])
def test_no_text_is_kept(tmp_path: Path, family: str) -> None:
    """Neither that of chats that count nor that of those the template refuses; 200 of each, 20 KB a chat."""
    picky = "{% if messages[0].content == 'no' %}{{ raise_exception('no') }}{% endif %}a"
    model = saved_model(tmp_path / "picky", picky)
    said = [["no", "x" * 20_000], ["fox", "dog", "x" * 20_000]] * 200
    rows = [
        {
            "conversations": [{"from": one["role"], "value": one["content"]} for one in openai(texts)],
            "conversation": openai(texts),
            "conversation_a": openai(texts),
            "conversation_b": [],
            "model": "m",
            "judge": "j",
            "tstamp": 1.0,
            "hashed_ip": "i",
            "timestamp": "2024-01-01T00:00:00",
        }
        for texts in said
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    spec = {"family": family, "file": str(tmp_path / "x.json"), "tokenizer": str(model)}
    dealt = {"rate": 0.1, "duration": 10, "clients": 1}
    more = {"think": 1} | (dealt if family in ("sharegpt", "lmsys_chat") else {})
    load(spec | more | {"limit": 2}).choices()  # and what it imports
    tracemalloc.start()
    assert load(spec | more).choices()["counts"]["chats_refused"] == 200
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * 2**20


@pytest.mark.parametrize("name", ["sharegpt_hub", "lmsys_chat", "wildchat", "chatbot_arena"])
def test_ready_specs_take_a_copy(tmp_path: Path, model: Path, name: str) -> None:
    sharegpt(tmp_path, model), lmsys(tmp_path, model), wildchat(tmp_path, model), arena(tmp_path, model)
    copies = {"sharegpt_hub": "ShareGPT.json", "wildchat": "wildchat.parquet", "chatbot_arena": "arena.jsonl"}
    file = tmp_path / copies.get(name, "train-00000-of-00006.parquet")
    short = {"duration": 2} if name in ("sharegpt_hub", "lmsys_chat") else {}
    trace = load(name, {"file": str(file), "tokenizer": str(model)} | short).generate(0)
    assert trace.tokens
    assert trace.header.choices["tokenizer"] == "small"


def test_a_tokenizer_that_is_not_there_is_no_fault_of_a_chat(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for once, not for each of a million chats."""
    asked = []

    def load_tokenizer(name: str) -> Tokenizer:
        asked.append(name)
        raise BadInput(f"tokenizer: {name}: not there")

    monkeypatch.setattr(Tokenizer, "load", load_tokenizer)
    with pytest.raises(BadInput, match=rf"^tokenizer: {model}: not there$"):
        sharegpt(tmp_path, model)
    assert asked == [str(model)]


def test_what_was_left_out_is_counted(tmp_path: Path, model: Path) -> None:
    choices = sharegpt(tmp_path, model).header.choices
    assert choices["counts"] == {
        "messages_dropped": 1,
        "turns_too_long": 0,
        "chats_dropped": 1,
        "chats_refused": 0,
        "later_turns": 12 - 1 + 1,
        "later_turns_that_repeat_the_reply": 12,
    }
    assert choices["provenance"].startswith(
        "anon8231489123/ShareGPT_Vicuna_unfiltered; local copy; licence Apache"
    )
    assert choices["prompt_rule"] == "the tokenizer's chat template"
    assert choices["client_rates"] == {"client-0": 0.15, "client-1": 0.15}


def test_a_limit_reads_the_first_rows_only(tmp_path: Path, model: Path) -> None:
    trace = sharegpt(tmp_path, model, limit=2, rate=0.02, clients=1)
    assert {request.session for request in trace.requests} <= {"row-000000", "row-000001"}
    assert trace.header.choices["provenance"].endswith("the first 2 rows")


def test_what_is_too_long_for_the_model_ends_a_chat(tmp_path: Path, model: Path) -> None:
    whole = sharegpt(tmp_path, model)
    sizes = sorted({request.prompt_tokens + request.output_tokens for request in whole.requests})
    short = sharegpt(tmp_path, model, longest=sizes[-2], rate=0.2)
    assert max(request.prompt_tokens + request.output_tokens for request in short.requests) <= sizes[-2]
    assert short.header.choices["counts"]["turns_too_long"] > 0
    with pytest.raises(BadInput, match="no chat in it has a question and a reply of at most 3 tokens"):
        sharegpt(tmp_path, model, longest=3)


def test_a_template_that_rewrites_history_leaves_the_recorded_words(tmp_path: Path) -> None:
    loud = "{% for m in messages %}{{ m.role }}:{{ m.content | upper }};{% endfor %}"
    folder = saved_model(tmp_path / "loud", loud)
    trace, tokenizer = sharegpt(tmp_path, folder), Tokenizer.load(str(folder))
    assert trace.header.choices["counts"]["later_turns_that_repeat_the_reply"] == 0
    later = next(request for request in trace.requests if request.after)
    assert "assistant:IT IS LATE;user:HOW LATE;" in spelled(tokenizer, trace, later)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"misbehaviour": {"client": 0, "kind": "longer_prefix", "factor": 2}}, "no recorded text longer"),
        (
            {"misbehaviour": {"client": 0, "kind": "bigger_program", "factor": 2}},
            "no session of this workload",
        ),
        ({"tokenizer": None}, "tokenizer: "),
        ({"limit": 0}, "limit: "),
    ],
)
def test_what_real_chats_cannot_do_is_told(
    tmp_path: Path, model: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        sharegpt(tmp_path, model, **changes)


# -- LMSYS-Chat-1M -----------------------------------------------------------------------------------------


def lmsys(tmp_path: Path, model: Path, seed: int = 0, **changes: Any) -> Trace:
    rows = [
        {
            "conversation_id": f"{i:032x}",
            "model": "vicuna-13b" if i % 4 else "koala-13b",
            "conversation": openai([f"fox {i}", *TALK[1 : 2 + 2 * (i % 2)]]),
            "turn": 1 + i % 2,
            "language": "English",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        }
        for i in range(80)
    ]
    path = tmp_path / "train-00000-of-00006.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    spec = {"family": "lmsys_chat", "file": str(path), "tokenizer": str(model), "duration": 40, "rate": 1}
    return load(spec | {"think": 2} | changes).generate(seed)


def test_models_are_clients_if_asked(tmp_path: Path, model: Path) -> None:
    trace = lmsys(tmp_path, model, client="model")
    assert trace.clients == ("koala-13b", "vicuna-13b")
    rows = {int(request.session[4:]): request.client for request in trace.requests if request.session}
    assert all((client == "koala-13b") == (row % 4 == 0) for row, client in rows.items())
    assert trace.header.choices["client_rates"] == {"koala-13b": 0.25, "vicuna-13b": 0.75}
    assert "clients" not in trace.header.choices


def test_else_clients_are_drawn(tmp_path: Path, model: Path) -> None:
    assert lmsys(tmp_path, model, clients=3).clients == ("client-0", "client-1", "client-2")
    with pytest.raises(BadInput, match="clients: they are the data set's models; drop it"):
        lmsys(tmp_path, model, clients=3, client="model")


def test_seeds_shuffle_the_chats(tmp_path: Path, model: Path) -> None:
    one, other = (lmsys(tmp_path, model, seed, clients=1) for seed in (0, 1))
    assert [r.session for r in one.requests] != [r.session for r in other.requests]
    assert lmsys(tmp_path, model, clients=1) == one


# -- WildChat ----------------------------------------------------------------------------------------------

BEGIN = datetime(2023, 4, 9, 0, 2, 53, tzinfo=UTC)


def wildchat_rows() -> list[dict[str, Any]]:
    """Three chats of two users; assistants' messages alone have times, as on the hub."""
    rows = []
    for i, (user, texts, minutes) in enumerate([("ip-a", TALK, 3), ("ip-b", OTHER, 0), ("ip-a", OTHER, 5)]):
        said = openai(texts, country="x", hashed_ip=user, toxic=False, turn_identifier=i)
        for j, message in enumerate(said):
            late = timedelta(minutes=minutes, seconds=10 * j)
            message["timestamp"] = BEGIN + late if j % 2 else None
        rows.append(
            {
                "conversation_hash": "not unique",
                "model": "gpt-4",
                "timestamp": said[-1]["timestamp"],
                "conversation": said,
                "turn": len(texts) // 2,
                "hashed_ip": user,
                "country": "x",
            }
        )
    return rows


def wildchat(tmp_path: Path, model: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Trace:
    file = tmp_path / "wildchat.parquet"
    pq.write_table(pa.Table.from_pylist(wildchat_rows() if rows is None else rows), file)
    spec = {"family": "wildchat", "file": str(file), "tokenizer": str(model)}
    return load(spec | changes).generate(0)


def test_wildchats_users_and_times_are_the_real_ones(tmp_path: Path, model: Path) -> None:
    trace = wildchat(tmp_path, model)
    assert [(r.id, r.client, r.arrival) for r in trace.requests] == [
        ("row-000001/0", "ip-b", 0),
        ("row-000000/0", "ip-a", 180),
        ("row-000000/1", "ip-a", 200),
        ("row-000000/2", "ip-a", 220),
        ("row-000002/0", "ip-a", 300),
    ]
    assert [r.after for r in in_file(trace)] == [(), ("row-000000/0",), ("row-000000/1",), (), ()]
    assert {r.think for r in trace.requests} == {0}
    assert trace.header.choices["provenance"] == "allenai/WildChat-1M; local copy; licence ODC-BY; all rows"


def test_what_chats_share_is_found_across_users(tmp_path: Path, model: Path) -> None:
    first, _, _, other, again = in_file(wildchat(tmp_path, model))
    assert first.prompt == other.prompt == again.prompt, "all three open with the same question"


def test_with_a_think_time_later_turns_follow_their_replies(tmp_path: Path, model: Path) -> None:
    turns = in_file(wildchat(tmp_path, model, think=7))[:3]
    assert [(r.arrival, r.think) for r in turns] == [(180, 0), (187, 7), (194, 7)]


def test_a_reply_without_a_time_has_that_of_its_row(tmp_path: Path, model: Path) -> None:
    rows = wildchat_rows()
    rows[0]["conversation"][1]["timestamp"] = None
    assert [r.arrival for r in in_file(wildchat(tmp_path, model, rows))[:3]] == [220, 220, 220]


def test_times_as_text_are_utc(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, default=datetime.isoformat) + "\n" for row in wildchat_rows()))
    trace = wildchat(tmp_path, model, file=str(file))
    assert trace.requests == wildchat(tmp_path, model).requests


def test_the_engine_gets_the_real_token_ids(tmp_path: Path, model: Path) -> None:
    trace, tokenizer = wildchat(tmp_path, model), Tokenizer.load(str(model))
    write(trace, tmp_path / "trace.parquet")
    trace = read(tmp_path / "trace.parquet")
    content, (first, second, *_) = Content.of(trace, 400), in_file(trace)
    assert content.prompt(first, {}) == tokenizer.chat(openai(TALK[:1]))
    reply = tokenizer.ids(TALK[1])
    assert len(reply) == first.output_tokens
    assert content.prompt(second, {first.id: reply}) == tokenizer.chat(openai(TALK[:3]))


def test_blended_shaped_written_and_replayed_it_is_still_the_chats_own_token_ids(
    tmp_path: Path, model: Path
) -> None:
    wildchat(tmp_path, model)
    part = {"name": "wild", "family": "wildchat", "tokenizer": str(model)}
    part["file"] = str(tmp_path / "wildchat.parquet")
    shape = {"replicate": {"copies": 2, "prefixes": "shared"}, "stretch": 0.001}
    write(load({"family": "blend", "parts": [part], "shape": shape}).generate(0), tmp_path / "x.jsonl.gz")
    trace, tokenizer = read(tmp_path / "x.jsonl.gz"), Tokenizer.load(str(model))
    with MockServer() as server:
        target = Target(server.url, "mock", "vllm", "completions", "tokens")
        replay(trace, Content.of(trace, 400), target, progress=lambda *_: None, timeout_s=20.0, processes=2)
    assert len(server.asked) == len(trace.requests) == 10
    for mark in ("", "~1"):
        prompts = [
            server.by_id()[f"wild/{id}{mark}"].body["prompt"] for id in ("row-000000/0", "row-000000/1")
        ]
        assert prompts[0] == tokenizer.chat(openai(TALK[:1]))
        said = len(tokenizer.ids(TALK[1]))
        again = tokenizer.chat(openai(TALK[:3]))
        again[len(prompts[0]) : len(prompts[0]) + said] = server.reply_ids(f"wild/row-000000/0{mark}", said)
        assert prompts[1] == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hashed_ip": ""}, "row 2: hashed_ip: string should have at least 1 character"),
        ({"hashed_ip": None}, "row 2: hashed_ip: input should be a valid string"),
        ({"timestamp": None}, "row 2: timestamp: input should be a valid datetime"),
        ({"conversation": None}, "row 2: conversation: input should be a valid list"),
        (
            {"conversation": [{"role": "user", "content": None, "timestamp": None}]},
            r"row 2: conversation\.0\.content: input should be a valid string",
        ),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, model: Path, change: dict[str, Any], message: str) -> None:
    rows = wildchat_rows()
    rows[1] |= change
    with pytest.raises(BadInput, match=rf"wildchat\.parquet, {message}"):
        wildchat(tmp_path, model, rows)


def test_the_simulator_serves_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = {
        "family": "wildchat",
        "file": "wildchat.parquet",
        "tokenizer": str(model),
        "shape": {"stretch": 0.1},
    }
    wildchat(tmp_path, model)
    (tmp_path / "wild.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["suite", "run", "-w", "wild.yaml", "-s", "vtc", "-s", "dlpm", "-o", "out"]
    )
    monkeypatch.setattr("suite.report.html.write_report", lambda out: Report(out, tables.collect(out)))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 0, capfd.readouterr().err
    for cell in (tmp_path / "out/cells").iterdir():
        requests = results.read(cell).requests
        assert (requests["status"] == "finished").all()
        assert set(requests["client"]) == {"ip-a", "ip-b"}
        assert requests["cached_tokens"].sum() > 0, "a later turn finds the one before it"


def test_without_a_network_it_is_the_data_set_that_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        BadInput, match=r"^lmsys/lmsys-chat-1m: .* no connection: .*; it is gated: .* `file`$"
    ):
        load("lmsys_chat")


def test_a_template_that_refuses_a_chat_names_it(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "strict", "{{ raise_exception('not today') }}")
    with pytest.raises(BadInput, match=r"wildchat\.parquet, row-000000: tokenizer 'strict': .* not today"):
        wildchat(tmp_path, folder)


def test_a_chat_that_the_template_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    """As templates do that know no system message, Gemma's for one."""
    strict = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    folder = saved_model(tmp_path / "strict", strict + "{{ m.content }}|{% endfor %}")
    rows = wildchat_rows()
    system = rows[0]["conversation"][0] | {"role": "system"}
    rows[0]["conversation"].insert(0, system)
    trace = wildchat(tmp_path, folder, rows)
    assert {request.session for request in trace.requests} == {"row-000001", "row-000002"}
    assert trace.header.choices["counts"]["chats_refused"] == 1
    assert trace.header.choices["counts"]["chats_dropped"] == 0


def test_rows_without_a_chat_are_refused(tmp_path: Path, model: Path) -> None:
    rows = [row | {"conversation": row["conversation"][:1]} for row in wildchat_rows()]
    with pytest.raises(BadInput, match="no chat in it has a question and a reply"):
        wildchat(tmp_path, model, rows)


# -- Chatbot Arena -----------------------------------------------------------------------------------------


def arena(tmp_path: Path, model: Path, **changes: Any) -> Trace:
    battles = [("arena_user_1", 1682351591.5, TALK, OTHER), ("arena_user_2", 1682351601.5, OTHER, OTHER)]
    rows = [
        {
            "question_id": f"{i:032x}",
            "model_a": "chatglm-6b",
            "model_b": "koala-13b",
            "winner": "model_b",
            "judge": judge,
            "conversation_a": openai(a),
            "conversation_b": openai(b),
            "turn": len(a) // 2,
            "anony": True,
            "language": "English",
            "tstamp": time,
        }
        for i, (judge, time, a, b) in enumerate(battles)
    ]
    file = tmp_path / "arena.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"family": "chatbot_arena", "file": str(file), "tokenizer": str(model), "think": 4}
    return load(spec | changes).generate(0)


def test_a_battle_is_two_chats_of_one_user_at_once(tmp_path: Path, model: Path) -> None:
    requests = {r.id: r for r in arena(tmp_path, model).requests}
    assert {id: (r.client, r.arrival, r.session) for id, r in requests.items()} == {
        "row-000000/a/0": ("arena_user_1", 0, "row-000000/a"),
        "row-000000/b/0": ("arena_user_1", 0, "row-000000/b"),
        "row-000000/a/1": ("arena_user_1", 4, "row-000000/a"),
        "row-000000/a/2": ("arena_user_1", 8, "row-000000/a"),
        "row-000001/a/0": ("arena_user_2", 10, "row-000001/a"),
        "row-000001/b/0": ("arena_user_2", 10, "row-000001/b"),
    }
    assert requests["row-000000/a/0"].prompt == requests["row-000000/b/0"].prompt
    assert set(requests["row-000000/a/1"].after) == {"row-000000/a/0", "row-000000/b/0"}
    assert requests["row-000000/a/2"].after == ("row-000000/a/1",), "the other side has ended"


@pytest.mark.parametrize(("models", "count"), [("a", 4), ("b", 2)])
def test_one_model_alone(tmp_path: Path, model: Path, models: str, count: int) -> None:
    requests = arena(tmp_path, model, models=models).requests
    assert len(requests) == count
    assert {r.session.rpartition("/")[2] for r in requests if r.session} == {models}

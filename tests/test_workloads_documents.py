"""Documents, mathematics and tools: rows in the columns of the public data sets, and what comes of them."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from text_models import saved_model

from suite.content import Content
from suite.errors import BadInput
from suite.trace import REPLY, Request, Trace, read, write
from workloads.reading.text import Tokenizer
from workloads.spec import load

DOCUMENTS = [f"the {fox} fox says that the dog {n} is late. " * (3 + n) for n, fox in enumerate("abcdef")]
PER_DOCUMENT = 5
QUESTIONS = [
    {"document": document, "question": f"who is late in {n}, question {q}?", "answer": "the dog " * (1 + q)}
    for n, document in enumerate(DOCUMENTS)
    for q in range(PER_DOCUMENT)
]
SPEC: dict[str, Any] = {
    "duration": 10,
    "clients": [{"name": "a", "rate": 0.5}, {"name": "b", "rate": 0.5}],
    "arrivals": {"kind": "constant"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served model's tokenizer."""
    return saved_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(str(model))


def saved(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines, or as the one JSON array that a .json file holds."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return path


def made(family: str, file: Path, model: Path, seed: int = 0, **changes: Any) -> Trace:
    spec = SPEC | {"family": family, "file": str(file), "tokenizer": str(model)}
    return load(spec | changes).generate(seed)


def ids(trace: Trace, request: Request) -> list[int]:
    """The token ids of a prompt without replies, as an engine gets it."""
    return Content.of(trace, 400).prompt(request, {})


def of(trace: Trace, client: str) -> list[Request]:
    return [request for request in trace.requests if request.client == client]


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def shared_tokens(one: Request, other: Request) -> int:
    """Tokens of the segments that both prompts begin with."""
    return sum(segment.tokens for segment in one.prompt[: common(one.prompt, other.prompt)])


def user(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.chat([{"role": "user", "content": text}])


# -- LooGLE ------------------------------------------------------------------------------------------------


def loogle_rows() -> list[dict[str, Any]]:
    """The columns of bigai-nlco/LooGLE since 2024: a row for each question."""
    return [
        {
            "id": f"shortdep_qa_{i}",
            "doc_id": str(i // PER_DOCUMENT),
            "task": "shortdep_qa",
            "context": one["document"],
            "question": one["question"],
            "answer": one["answer"],
            "evidence": "['the dog is late']",
            "title": f"title {i // PER_DOCUMENT}",
        }
        for i, one in enumerate(QUESTIONS)
    ]


def older_loogle_rows(spelled: bool) -> list[dict[str, Any]]:
    """Those before: a row for each document, its questions a list or the Python text of one."""
    rows = []
    for n, document in enumerate(DOCUMENTS):
        mine = QUESTIONS[n * PER_DOCUMENT : (n + 1) * PER_DOCUMENT]
        pairs = [{"Q": one["question"], "A": one["answer"], "S": ['it\'s "late"']} for one in mine]
        pairs[0]["type"] = "Timeline reorder"  # type: ignore[assignment]
        asked: Any = repr(pairs) if spelled else pairs
        rows.append({"input": document, "title": f"title {n}", "qa_pairs": asked, "output": "none"})
    return rows


@pytest.fixture
def loogle(tmp_path: Path) -> Path:
    return saved(tmp_path / "shortdep_qa.jsonl", loogle_rows())


def test_a_prompt_is_the_document_and_the_question(loogle: Path, model: Path, tokenizer: Tokenizer) -> None:
    trace = made("loogle", loogle, model)
    asked = {tuple(user(tokenizer, f"{one['document']}\n\n{one['question']}")): one for one in QUESTIONS}
    assert len(trace.requests) >= 8
    for request in trace.requests:
        one = asked.pop(tuple(ids(trace, request)))
        assert request.output_tokens == len(tokenizer.ids(one["answer"]))


def test_prompts_share_what_their_ids_do(loogle: Path, model: Path) -> None:
    trace = made("loogle", loogle, model)
    known = [ids(trace, request) for request in trace.requests]
    for (a, one), (b, other) in combinations(enumerate(trace.requests), 2):
        assert shared_tokens(one, other) == common(known[a], known[b])


@pytest.mark.parametrize("spelled", [True, False])
def test_older_copies_of_loogle_give_the_same_requests(
    tmp_path: Path, loogle: Path, model: Path, spelled: bool
) -> None:
    older = saved(tmp_path / "older.jsonl", older_loogle_rows(spelled))
    one, other = made("loogle", loogle, model), made("loogle", older, model)
    assert one.requests == other.requests
    assert one.tokens.keys() == other.tokens.keys()


def test_an_answer_of_several_gaps_is_an_object(tmp_path: Path, model: Path, tokenizer: Tokenizer) -> None:
    """The task shortdep_cloze: `A` has a text for each gap, and so has the reply that is asked for."""
    answer = {"<mask-0>": "the dog", "<mask-1>": "the fox"}
    row = {"title": "x", "qa_pairs": repr([{"Q": "<mask-0> meets <mask-1>", "A": answer}]), "output": "None"}
    rows = [row | {"input": f"paper {n} on the dog"} for n in range(8)]
    trace = made("loogle", saved(tmp_path / "x.jsonl", rows), model, duration=2, task="shortdep_cloze")
    assert {one.output_tokens for one in trace.requests} == {len(tokenizer.ids(json.dumps(answer)))}


def test_documents_without_questions_are_to_be_summed_up(tmp_path: Path, model: Path) -> None:
    row = {"title": "x", "qa_pairs": "none", "output": "the dog is late " * 9}
    rows = [row | {"input": f"paper {n} on the dog"} for n in range(8)]
    trace = made("loogle", saved(tmp_path / "x.jsonl", rows), model, duration=2)
    assert {request.output_tokens for request in trace.requests} == {
        len(Tokenizer.load(str(model)).ids(row["output"]))
    }


def asked(trace: Trace, client: str, tokenizer: Tokenizer) -> list[int]:
    """The questions of a client, in its order, as numbers of `QUESTIONS`."""
    known = [user(tokenizer, f"{one['document']}\n\n{one['question']}") for one in QUESTIONS]
    return [known.index(ids(trace, request)) for request in of(trace, client)]


def test_each_document_is_of_one_client_and_no_question_is_asked_twice(
    loogle: Path, model: Path, tokenizer: Tokenizer
) -> None:
    rates = [{"name": "a", "rate": 0.3}, {"name": "b", "rate": 0.15}]
    trace = made("loogle", loogle, model, clients=rates, duration=30)
    numbers = {name: asked(trace, name, tokenizer) for name in "ab"}
    documents = {name: {number // PER_DOCUMENT for number in found} for name, found in numbers.items()}
    assert (len(documents["a"]), len(documents["b"])) == (4, 2), "in proportion to the rates"
    assert not documents["a"] & documents["b"]
    assert all(len(found) == len(set(found)) for found in numbers.values())
    other = made("loogle", loogle, model, seed=1, clients=rates, duration=30)
    assert asked(other, "a", tokenizer) != numbers["a"]


def test_the_order_of_questions_is_a_parameter(loogle: Path, model: Path, tokenizer: Tokenizer) -> None:
    orders = {
        order: asked(made("loogle", loogle, model, order=order, duration=18), "a", tokenizer)
        for order in ("grouped", "round_robin", "shuffled")
    }
    grouped, turns, shuffled = ([number // PER_DOCUMENT for number in found] for found in orders.values())
    assert len(grouped) == 9
    assert sum(one != other for one, other in pairwise(grouped)) == 1, "one document, then the next"
    assert len({*turns[:3]}) == 3
    assert turns[:3] == turns[3:6] == turns[6:9], "one question on each document in turn"
    assert [n % PER_DOCUMENT for n in orders["round_robin"]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [n % PER_DOCUMENT for n in orders["grouped"]] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert shuffled not in (grouped, turns)


def test_documents_that_are_too_long_are_left_out_and_counted(
    loogle: Path, model: Path, tokenizer: Tokenizer
) -> None:
    lengths = [len(tokenizer.ids(document)) for document in DOCUMENTS]
    assert lengths == sorted(lengths)
    trace = made("loogle", loogle, model, longest=lengths[3], duration=19)
    assert trace.header.choices["counts"] == {"documents": 4, "documents_too_long": 2}
    numbers = asked(trace, "a", tokenizer) + asked(trace, "b", tokenizer)
    assert {number // PER_DOCUMENT for number in numbers} == {0, 1, 2, 3}


def test_documents_that_are_all_too_long_are_told_of(loogle: Path, model: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(f"{loogle}: all 6 documents have more than 3 tokens")):
        made("loogle", loogle, model, longest=3)


def test_a_client_that_has_asked_everything_is_told_of(loogle: Path, model: Path) -> None:
    message = "client 'a' asks more than the 15 questions on the 3 documents dealt to it; raise `limit`"
    with pytest.raises(BadInput, match=message):
        made("loogle", loogle, model, duration=100)


def test_recorded_text_is_made_no_longer(loogle: Path, model: Path) -> None:
    with pytest.raises(BadInput, match="misbehaviour: longer_prefix makes no recorded text longer"):
        made("loogle", loogle, model, misbehaviour={"client": "a", "kind": "longer_prefix", "factor": 2})
    bad = made("loogle", loogle, model, misbehaviour={"client": "a", "kind": "added_prefix", "tokens": 7})
    assert all(request.prompt[0] == ("added:a", 7) for request in of(bad, "a"))
    assert bad.header.misbehaving == ("a",)


def test_the_header_says_where_text_comes_from(loogle: Path, model: Path) -> None:
    choices = made("loogle", loogle, model, limit=20).header.choices
    assert choices["provenance"] == (
        "bigai-nlco/LooGLE, shortdep_qa; local copy; licence CC BY-SA 4.0; the first 20 rows"
    )
    assert choices["counts"] == {"documents": 4, "documents_too_long": 0}
    assert (choices["file"], choices["tokenizer"]) == ("shortdep_qa.jsonl", "small")
    assert len(choices["tokenizer_sha256"]) == 64
    assert str(loogle.parent) not in json.dumps(choices)


def test_a_trace_with_text_is_written_and_read(loogle: Path, model: Path, tmp_path: Path) -> None:
    trace = made("loogle", loogle, model)
    write(trace, tmp_path / "x.parquet")
    again = read(tmp_path / "x.parquet")
    assert again.digest == trace.digest
    assert [ids(again, request) for request in again.requests] == [ids(trace, one) for one in trace.requests]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": None}, "neither `context` (with `question`, `answer`) nor `input` (with `qa_pairs`)"),
        ({"question": 7}, "question: input should be a valid string (got '7')"),
        ({"context": None, "input": "x", "qa_pairs": "[{'Q': 1"}, "qa_pairs: it spells no list of {Q, A}"),
        ({"context": None, "input": "x", "qa_pairs": "exit()"}, "qa_pairs: it spells no list of {Q, A}"),
        ({"context": None, "input": "x", "qa_pairs": "[{'Q': 'y'}]"}, "qa_pairs.0.A: missing"),
    ],
    ids=str,
)
def test_wrong_rows_of_loogle_are_named(
    tmp_path: Path, model: Path, row: dict[str, Any], message: str
) -> None:
    file = saved(tmp_path / "x.jsonl", [loogle_rows()[0] | row])
    with pytest.raises(BadInput, match=re.escape(f"{file}, row 1: ") + ".*" + re.escape(message)) as caught:
        made("loogle", file, model)
    assert "\n" not in str(caught.value)


# -- LongBench ---------------------------------------------------------------------------------------------


def longbench_rows() -> list[dict[str, Any]]:
    """The columns of THUDM/LongBench."""
    return [
        {
            "input": one["question"],
            "context": one["document"],
            "answers": [one["answer"], "another true answer that is longer by far"],
            "length": len(one["document"].split()),
            "dataset": "qasper",
            "language": "en",
            "all_classes": None,
            "_id": f"{i:048x}",
        }
        for i, one in enumerate(QUESTIONS)
    ]


def test_longbench_asks_as_loogle_does(tmp_path: Path, loogle: Path, model: Path) -> None:
    trace = made("longbench", saved(tmp_path / "qasper.jsonl", longbench_rows()), model)
    assert trace.requests == made("loogle", loogle, model).requests
    provenance = trace.header.choices["provenance"]
    assert provenance.startswith("Xnhyacinth/LongBench, qasper; local copy; licence MIT")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": ""}, "context: string should have at least 1 character"),
        ({"answers": []}, "answers: list should have at least 1 item"),
        ({"answers": "yes"}, "answers: input should be a valid list"),
        ({"input": None}, "input: input should be a valid string"),
    ],
    ids=str,
)
def test_wrong_rows_of_longbench_are_named(
    tmp_path: Path, model: Path, row: dict[str, Any], message: str
) -> None:
    file = saved(tmp_path / "x.jsonl", [*longbench_rows()[:2], longbench_rows()[2] | row])
    with pytest.raises(BadInput, match=re.escape(f"{file}, row 3: {message}")):
        made("longbench", file, model)


# -- GSM8K -------------------------------------------------------------------------------------------------

PROBLEMS = [
    {"question": f"the fox has {n} dogs; how many?", "answer": f"it has {n}, not {n + 1}\n#### {n}"}
    for n in range(60)
]
TREES = {"branches": 2, "height": 2, "instruction_tokens": 5, "output_tokens": 7}


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """The columns of openai/gsm8k."""
    return saved(tmp_path / "train.jsonl", PROBLEMS)


def written(trace: Trace, request: Request, tokenizer: Tokenizer) -> str:
    """The text of the user's message."""
    text: str = tokenizer.inner.decode(ids(trace, request), skip_special_tokens=False)
    return text.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]


def test_examples_stand_before_questions_and_are_not_asked(
    gsm8k: Path, model: Path, tokenizer: Tokenizer
) -> None:
    trace = made("gsm8k", gsm8k, model, shots=3)
    answers = {f"Question: {one['question']}\nAnswer:": one["answer"] for one in PROBLEMS}
    examples, questions = defaultdict(set), []
    for request in trace.requests:
        *worked, question = written(trace, request, tokenizer).split("\n\n")
        examples[request.client].add(tuple(worked))
        questions.append(question)
        assert request.output_tokens == len(tokenizer.ids(answers[question]))
    assert len(questions) == len(set(questions)) >= 8
    assert {client: len(heads) for client, heads in examples.items()} == {"a": 1, "b": 1}
    shown = [one for heads in examples.values() for head in heads for one in head]
    assert len(shown) == len(set(shown)) == 6, "each client has examples of its own"
    for one in shown:
        question, _, answer = one.partition("Answer: ")
        assert answers[f"{question}Answer:"] == answer
        assert f"{question}Answer:" not in questions


def test_a_shared_head_is_shared_by_all(gsm8k: Path, model: Path) -> None:
    for head, between in (("client", False), ("shared", True)):
        trace = made("gsm8k", gsm8k, model, shots=3, head=head)
        a, b = of(trace, "a"), of(trace, "b")
        length = shared_tokens(a[0], a[1])
        assert length > 0.5 * a[0].prompt_tokens
        assert (shared_tokens(a[0], b[0]) >= length - 5) is between


def test_too_few_rows_for_the_examples_are_told_of(tmp_path: Path, model: Path) -> None:
    file = saved(tmp_path / "x.jsonl", PROBLEMS[:16])
    with pytest.raises(BadInput, match="16 rows, all of them examples; lower `shots`"):
        made("gsm8k", file, model)
    with pytest.raises(BadInput, match="asks more than the 7 questions dealt to it"):
        made("gsm8k", file, model, shots=1, duration=50)


def test_trees_grow_from_real_questions(gsm8k: Path, model: Path, tokenizer: Tokenizer) -> None:
    trace = made("gsm8k_tree", gsm8k, model, shots=0, clients=[{"name": "a", "rate": 3}], **TREES)
    sessions = defaultdict(list)
    for request in trace.requests:
        sessions[request.session].append(request)
    assert len(sessions) >= 4
    roots = set()
    for tree in sessions.values():
        first, leaf = tree[0], tree[-1]
        assert len(tree) == 6
        roots.add(_root(trace, first, tokenizer))
        assert len(leaf.after) == 1
        assert leaf.prompt[-2].id == f"{REPLY}{leaf.after[0]}"
    known = {tuple(user(tokenizer, f"Question: {one['question']}\nAnswer:")) for one in PROBLEMS}
    assert roots <= known
    assert len(roots) == len(sessions)


def _root(trace: Trace, request: Request, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The real ids that a step of the first level begins with."""
    return tuple(ids(trace, request)[: -TREES["instruction_tokens"]])


def test_a_client_may_grow_bigger_trees(gsm8k: Path, model: Path) -> None:
    how = {"client": "a", "kind": "bigger_program", "factor": 2}
    trace = made("gsm8k_tree", gsm8k, model, misbehaviour=how, shots=0, **TREES)
    sizes = {name: Counter(one.session for one in of(trace, name)) for name in "ab"}
    assert {*sizes["a"].values()} == {20}
    assert {*sizes["b"].values()} == {6}


# -- ToolBench ---------------------------------------------------------------------------------------------

SYSTEM = "You are AutoGPT, you can use many tools. Specifically, you have access to the following APIs: {}"


def toolbench_rows(paths: int = 60, calls: int = 3) -> list[dict[str, Any]]:
    """As in toolllama_G123_dfs_eval.json: for each path a row for each of its steps, in any order."""
    rows = []
    for path in range(paths):
        said = [
            {"from": "system", "value": SYSTEM.format(f"[{{'name': 'time_{path % 2}'}}]")},
            {"from": "user", "value": f"\nwhat time is it, fox {path}?\nBegin!\n"},
        ]
        for call in range(1, calls + 1):
            action = "Finish" if call == calls else f"time_{path % 2}"
            thought = f"\nThought: the dog {path}\nAction: {action}\nAction Input: {{}}"
            said = [*said, {"from": "assistant", "value": thought}]
            rows.append({"id": f"Step {call}: what time is it, fox {path}?", "conversations": said})
            said = [*said, {"from": "function", "value": f'{{"error": "", "response": "late {call}"}}'}]
    return rows[::-1]


def test_a_path_of_calls_is_one_session(tmp_path: Path, model: Path, tokenizer: Tokenizer) -> None:
    file = saved(tmp_path / "toolllama_G123_dfs_eval.json", toolbench_rows())
    trace = made("toolbench", file, model, think=2, rate=6, clients=2, duration=3)
    assert {"rows": 180, "paths": 60, "chats_dropped": 0}.items() <= trace.header.choices["counts"].items()
    assert trace.header.choices["provenance"].startswith("Yhyu13/ToolBench_toolllama_G123_dfs; local copy")
    assert "licence CC BY-NC 4.0" in trace.header.choices["provenance"]
    sessions = defaultdict(list)
    for request in trace.requests:
        sessions[request.session].append(request)
    assert len(sessions) >= 3
    for first, second, third in sessions.values():
        assert (first.after, second.after, third.after) == ((), (first.id,), (second.id,))
        assert (second.think, third.think) == (2, 2)
        assert second.prompt[: len(first.prompt)] == first.prompt
        assert second.prompt[len(first.prompt)] == (f"{REPLY}{first.id}", first.output_tokens)
        seen = tokenizer.inner.decode(trace.tokens[second.prompt[-1].id].tolist())
        assert '{"error": "", "response": "late 1"}' in seen


def test_agents_with_the_same_tools_share_their_system_prompt(
    tmp_path: Path, model: Path, tokenizer: Tokenizer
) -> None:
    file = saved(tmp_path / "x.json", toolbench_rows())
    trace = made("toolbench", file, model, think=2, rate=6, clients=2, duration=3)
    firsts = [request for request in trace.requests if not request.after]
    known = [ids(trace, request) for request in firsts]
    for (a, one), (b, other) in combinations(enumerate(firsts), 2):
        assert shared_tokens(one, other) == common(known[a], known[b])
    lengths = {shared_tokens(one, other) for one, other in combinations(firsts, 2)}
    assert len(lengths) >= 2


def test_wrong_rows_of_toolbench_are_named(tmp_path: Path, model: Path) -> None:
    wrong = {"id": "x", "conversations": [{"from": "user"}]}
    file = saved(tmp_path / "x.json", [toolbench_rows()[0], wrong])
    with pytest.raises(BadInput, match=r"row 2: conversations\.0\.value: "):
        made("toolbench", file, model, think=2, rate=1, clients=2)


# -- the ready specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "rate"),
    [
        ("loogle", loogle_rows(), 1),
        ("longbench", longbench_rows(), 1),
        ("gsm8k", PROBLEMS, 1),
        ("gsm8k_tree", PROBLEMS, 45),
        ("toolbench", toolbench_rows(), 4),
    ],
)
def test_the_ready_specs_read_local_copies(
    tmp_path: Path, model: Path, name: str, rows: list[dict[str, Any]], rate: float
) -> None:
    file = saved(tmp_path / "rows.json", rows)
    changes = {"file": str(file), "tokenizer": str(model), "rate": rate, "duration": 4}
    trace = load(name, changes).generate(0)
    assert trace.header.choices["provenance"].count("; local copy; licence ") == 1
    assert all(request.prompt[0].id in trace.tokens for request in trace.requests)

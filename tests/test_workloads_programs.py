"""Programs: which requests they are made of, what each waits for, and how one client's grow."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suite.errors import BadInput
from suite.trace import REPLY, Request, Segment, Trace
from workloads.llmservingsim import Turn, conversations
from workloads.spec import load

TWO: dict[str, Any] = {
    "duration": 100,
    "clients": [{"name": "a", "rate": 3}, {"name": "b", "rate": 3}],
    "instruction_tokens": 7,
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
}
TREE: dict[str, Any] = TWO | {"family": "tree_of_thoughts", "question_tokens": 546}
JUDGE: dict[str, Any] = TWO | {"family": "llm_judge", "article_tokens": 2701}
CHAT: dict[str, Any] = TWO | {
    "family": "multi_turn_chat", "system_tokens": 9, "turns": 3, "user_tokens": 5, "think": 1,
}  # fmt: skip
del CHAT["instruction_tokens"]


AGENT: dict[str, Any] = TWO | {
    "family": "agent", "system_tokens": 900, "task_tokens": 60, "steps": 4, "call_tokens": 40, "delay": 2,
    "observation_tokens": 150, "answer_tokens": 200,
}  # fmt: skip
del AGENT["instruction_tokens"], AGENT["output_tokens"]


def bigger(factor: float) -> dict[str, Any]:
    return {"misbehaviour": {"client": "a", "kind": "bigger_program", "factor": factor}}


def made(spec: dict[str, Any], **overrides: Any) -> Trace:
    return load(spec, overrides).generate(0)


def programs(trace: Trace, client: str) -> list[list[Request]]:
    """The client's sessions, their requests in file order."""
    found = defaultdict(list)
    for request in trace.requests:
        if request.client == client:
            found[request.session].append(request)
    return list(found.values())


def reply(request: Request) -> Segment:
    return Segment(REPLY + request.id, request.output_tokens)


# -- tree of thoughts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("branches", "requests"), [(2, 30), (4, 340)])
def test_a_tree_of_height_four_has_the_papers_number_of_requests(branches: int, requests: int) -> None:
    trees = programs(made(TREE, branches=branches, duration=300), "b")
    assert {len(tree) for tree in trees} == {requests}


def test_a_step_goes_on_from_the_step_above_it() -> None:
    for tree in programs(made(TREE, branches=3), "a"):
        by_id = {step.id: step for step in tree}
        children = Counter(step.after for step in tree)
        assert set(children.values()) == {3}
        assert len(children) == 1 + 3 + 9 + 27
        for step in tree:
            *history, instruction = step.prompt
            assert instruction.tokens == 7
            if step.after:
                (above,) = (by_id[id] for id in step.after)
                assert history == [*above.prompt, reply(above)]
            else:
                assert history == [Segment(f"tree:{step.session}", 546)]
        assert max(len(step.prompt) for step in tree) == 2 * 4


def test_siblings_ask_the_same_and_trees_ask_differently() -> None:
    trees = programs(made(TREE), "a")
    prompts = Counter(step.prompt for tree in trees for step in tree)
    assert set(prompts.values()) == {2}
    assert len({tree[0].prompt[0].id for tree in trees}) == len(trees)


# -- judge -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 16])
def test_dimensions_are_judged_at_once_and_the_verdict_waits_for_all(dimensions: int) -> None:
    judged = programs(made(JUDGE, dimensions=dimensions), "a")
    assert len(judged) == pytest.approx(300 / (dimensions + 1), rel=0.4)
    for *solved, verdict in judged:
        assert len(solved) == dimensions
        assert {(one.arrival, one.after) for one in solved} == {(verdict.arrival, ())}
        article = Segment(f"article:{verdict.session}", 2701)
        assert {one.prompt[:-1] for one in solved} == {(article,)}
        assert len({one.prompt for one in solved}) == dimensions
        assert set(verdict.after) == {one.id for one in solved}
        assert verdict.prompt[0] == article
        assert set(verdict.prompt[1:-1]) == {reply(one) for one in solved}


# -- bigger programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "factor", "usual", "large"),
    [(TREE, 2, 30, 340), (JUDGE, 8, 3, 17), (CHAT, 4, 3, 12), (AGENT, 3, 5, 13)],
    ids=["tree", "judge", "chat", "agent"],
)
def test_a_bigger_program_begins_as_often(
    spec: dict[str, Any], factor: float, usual: int, large: int
) -> None:
    plain, bad = made(spec, duration=300), made(spec, duration=300, **bigger(factor))
    assert bad.header.misbehaving == ("a",)
    assert programs(bad, "b") == programs(plain, "b")
    before, after = programs(plain, "a"), programs(bad, "a")
    assert ({len(one) for one in before}, {len(one) for one in after}) == ({usual}, {large})
    assert [one[0].arrival for one in before] == [one[0].arrival for one in after]
    assert [one[0].prompt[0] for one in before] == [one[0].prompt[0] for one in after]
    assert bad.header.choices["client_rates"] == {"a": pytest.approx(3 * large / usual), "b": 3.0}


@pytest.mark.parametrize(
    ("spec", "how"),
    [
        ("tree_of_thoughts", {"client": 0, "kind": "longer_prefix", "factor": 10}),
        ("llm_judge", {"client": 0, "kind": "added_prefix", "tokens": 600}),
        ("long_document_qa", {"client": 0, "kind": "longer_prefix", "factor": 2}),
    ],
)
def test_the_papers_second_misbehaviour_is_a_spec_of_its_own(spec: str, how: dict[str, Any]) -> None:
    assert load(f"{spec}_long").generate(0).requests == load(spec, {"misbehaviour": how}).generate(0).requests


@pytest.mark.parametrize(
    ("spec", "factor"), [("document", 3.0), ("few_shot", 3.0), ("tree_of_thoughts", 1.1)]
)
def test_a_program_that_cannot_grow_is_refused(spec: str, factor: float) -> None:
    message = f"misbehaviour: bigger_program by {factor:g} makes no session of this workload bigger"
    with pytest.raises(BadInput, match=message):
        load(spec, {"misbehaviour": {"client": 0, "kind": "bigger_program", "factor": factor}})


def test_a_tree_that_could_not_be_held_is_refused_before_it_is_made() -> None:
    with pytest.raises(BadInput, match=r"would make about 2e\+40 requests, .* or programs smaller"):
        load(TREE, {"branches": 100, "height": 20})


def test_gaps_are_between_beginnings_of_programs() -> None:
    trace = made(JUDGE, dimensions=1, duration=800, arrivals={"kind": "gamma", "cv": 0.5})
    for client in trace.clients:
        gaps = np.diff([judgement[0].arrival for judgement in programs(trace, client)])
        assert gaps.std() / gaps.mean() == pytest.approx(0.5, rel=0.1)


# -- recorded conversations --------------------------------------------------------------------------------


ROWS = [([1, 2, 3, 9, 4, 5], 20), ([7, 7], 30), ([1, 2, 3], 10), ([1, 2, 3, 9, 4, 5, 6], 40), ([7, 7], 50)]


def saved(folder: Path, rows: list[tuple[list[int], int]] = ROWS) -> Path:
    path = folder / "talks.jsonl"
    lines = [{"input_toks": len(ids), "output_toks": n, "input_tok_ids": ids} for ids, n in rows]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def talks(path: Path | str, **overrides: Any) -> Trace:
    spec = {"family": "llmservingsim", "file": str(path), "duration": 60, "think": 2, "rate": 4, "clients": 2}
    return load(spec, overrides).generate(0)


def test_prompts_that_begin_with_another_are_later_turns_of_it(tmp_path: Path) -> None:
    found = conversations(saved(tmp_path))
    assert found == [
        [Turn(3, 10, None), Turn(3, 20, 0), Turn(1, 40, 1)], [Turn(2, 30, None)], [Turn(2, 50, None)],
    ]  # fmt: skip


def test_a_conversation_may_go_on_in_two_ways(tmp_path: Path) -> None:
    rows = [([1], 1), ([1, 2], 2), ([1, 3], 3), ([1, 3, 4], 4), ([2], 5)]
    assert conversations(saved(tmp_path, rows)) == [
        [Turn(1, 1, None), Turn(1, 2, 0), Turn(1, 3, 0), Turn(1, 4, 2)], [Turn(1, 5, None)]
    ]  # fmt: skip


def test_sessions_replay_conversations_and_share_nothing_with_each_other(tmp_path: Path) -> None:
    trace = talks(saved(tmp_path))
    sessions = [session for client in trace.clients for session in programs(trace, client)]
    assert {len(session) for session in sessions} == {1, 3}
    owners = defaultdict(set)
    for session in sessions:
        if len(session) == 3:
            assert [turn.prompt_tokens for turn in session] == [3, 6, 7]
            assert [turn.output_tokens for turn in session] == [10, 20, 40]
            assert [turn.think for turn in session] == [0, 2, 2]
            for before, after in pairwise(session):
                assert after.after == (before.id,)
                assert after.prompt[:-1] == before.prompt
        for turn in session:
            for id, _ in turn.prompt:
                owners[id].add(turn.session)
    assert all(len(found) == 1 for found in owners.values())


def test_what_was_made_up_about_the_recording_is_in_the_header(tmp_path: Path) -> None:
    choices = talks(saved(tmp_path)).header.choices
    assert {"client_rule", "arrival_rule", "prefix_rule", "client_rates", "file_sha256"} < set(choices)


def test_a_longer_prefix_is_a_longer_first_prompt(tmp_path: Path) -> None:
    how = {"client": 0, "kind": "longer_prefix", "factor": 10}
    plain, bad = talks(saved(tmp_path)), talks(saved(tmp_path), misbehaviour=how)
    for before, after in zip(plain.requests, bad.requests, strict=True):
        first = before.prompt[0].tokens
        added = 9 * first if before.client == "client-0" else 0
        assert after.prompt_tokens == before.prompt_tokens + added


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "talks.jsonl: holds no rows"),
        ("{}\n", "talks.jsonl:1: input_tok_ids: missing"),
        ('{"input_tok_ids": [], "output_toks": 1}\n', "talks.jsonl:1: input_tok_ids: list should have at"),
        ('{"input_tok_ids": [1], "output_toks": 0}\n', "talks.jsonl:1: output_toks: input should be greater"),
        ('{"input_tok_ids": [1], "output_toks": 1}\nno\n', "talks.jsonl:2: row: invalid JSON"),
    ],
)
def test_what_is_wrong_in_a_recording_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        talks(path)
    assert message in str(caught.value)


def test_the_published_conversations(traces: Path) -> None:
    path = traces / "sharegpt/sharegpt-llama-3.1-8b-300-sps10.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = conversations(path)
    assert (len(found), sum(map(len, found))) == (272, 300)

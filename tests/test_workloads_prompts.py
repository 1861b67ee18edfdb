"""The synthetic families one by one: what their requests share, and what they do not."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from families import AGENT, CHAT, DOCUMENT, FEW_SHOT, MIXED, PLAIN, RETRIEVAL, made, of, sessions

from suite.errors import BadInput
from suite.trace import REPLY, Segment

# -- multi-turn chat ---------------------------------------------------------------------------------------


def test_a_turn_carries_the_whole_conversation_and_waits_for_the_reply() -> None:
    conversations = sessions(made(CHAT))
    assert {len(turns) for turns in conversations} == {1, 2, 3, 4, 5}
    for turns in conversations:
        assert [segment.id.split(":")[0] for segment in turns[0].prompt] == ["system", "user"]
        assert turns[0].after == ()
        for before, after in pairwise(turns):
            reply = Segment(REPLY + before.id, before.output_tokens)
            assert after.prompt[:-1] == (*before.prompt, reply)
            assert after.prompt[-1].id == f"user:{after.id}"
            assert after.after == (before.id,)
            assert after.arrival == pytest.approx(before.arrival + after.think)


def test_turns_without_a_pause_stay_in_order() -> None:
    """All turns of a session arrive at once, and by id turn 10 would stand before turn 2."""
    for turns in sessions(made(CHAT, turns=12, think=0)):
        assert [int(request.id.split("/")[-1]) for request in turns] == list(range(12))


def test_chat_keeps_its_request_rate_whatever_the_turns() -> None:
    for turns in (1, 8):
        assert len(made(CHAT, turns=turns, duration=400).requests) == pytest.approx(1600, rel=0.15)


@pytest.mark.parametrize(("system", "distinct"), [("client", 2), ("shared", 1)])
def test_the_system_prompt_is_shared_as_declared(system: str, distinct: int) -> None:
    assert len({request.prompt[0] for request in made(CHAT, system=system).requests}) == distinct


def test_think_times_have_the_declared_mean() -> None:
    thinks = [request.think for request in made(CHAT, duration=1000).requests if request.after]
    assert sum(thinks) / len(thinks) == pytest.approx(4, rel=0.1)


# -- shared document ---------------------------------------------------------------------------------------


def test_questions_are_unique_and_documents_are_few_and_of_one_length() -> None:
    requests = made(DOCUMENT).requests
    assert len({request.prompt[1].id for request in requests}) == len(requests)
    documents = {request.prompt[0] for request in requests}
    assert len({id for id, _ in documents}) == len(documents) == 10


def test_common_documents_are_common() -> None:
    trace = made(DOCUMENT, common_documents=2)
    asked = [{request.prompt[0] for request in of(trace, client)} for client in "ab"]
    assert [len(documents) for documents in asked] == [5, 5]
    assert len(asked[0] & asked[1]) == 2


def test_popularity_is_zipf() -> None:
    trace = made(DOCUMENT, popularity=1, duration=1000)
    counts = Counter(request.prompt[0].id for request in of(trace, "a"))
    shares = [counts[f"document:{rank}:a"] / counts.total() for rank in range(5)]
    whole = sum(1 / rank for rank in range(1, 6))
    assert shares == pytest.approx([1 / rank / whole for rank in range(1, 6)], abs=0.03)


# -- mixed prefix ------------------------------------------------------------------------------------------


def test_prefixes_are_mixed_in_the_declared_fractions() -> None:
    requests = made(MIXED, duration=1000).requests
    shapes = Counter(tuple(id.split(":")[0] for id, _ in request.prompt) for request in requests)
    expected = {("unique",): 0.2, ("system", "head", "tail"): 0.48, ("head", "tail"): 0.32}
    assert {shape: count / len(requests) for shape, count in shapes.items()} == pytest.approx(
        expected, abs=0.03
    )


def test_heads_are_used_equally_within_a_client_and_never_across() -> None:
    requests = made(MIXED, duration=1000, unique_fraction=0.0).requests
    for client in "ab":
        heads = Counter(request.prompt[-2].id for request in requests if request.client == client)
        assert set(heads) == {f"head:{number}:{client}" for number in range(3)}
        assert min(heads.values()) / heads.total() == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (1.0, None)])
def test_fractions_of_none_and_all_are_exact(fraction: float, count: int | None) -> None:
    requests = made(MIXED, unique_fraction=fraction).requests
    unique = sum(len(request.prompt) == 1 for request in requests)
    assert unique == (len(requests) if count is None else count)


# -- agents ------------------------------------------------------------------------------------------------


def test_an_agent_goes_on_from_its_call_and_what_the_tool_gave_back() -> None:
    tasks = sessions(made(AGENT))
    assert {len(calls) for calls in tasks} == {2, 3, 4, 5, 6}
    for calls in tasks:
        assert [segment.id.split(":")[0] for segment in calls[0].prompt] == ["system", "task"]
        assert (calls[0].after, calls[0].think) == ((), 0.0)
        for before, after in pairwise(calls):
            *history, observation = after.prompt
            assert history == [*before.prompt, Segment(REPLY + before.id, before.output_tokens)]
            assert observation.id == f"observation:{before.id}"
            assert 100 <= observation.tokens <= 200
            assert after.after == (before.id,)
            assert after.arrival == pytest.approx(before.arrival + after.think)
        assert [call.output_tokens for call in calls].index(300) == len(calls) - 1


@pytest.mark.parametrize(("system", "distinct"), [("client", 2), ("shared", 1)])
def test_the_tools_of_an_agent_are_shared_as_declared(system: str, distinct: int) -> None:
    assert len({request.prompt[0] for request in made(AGENT, system=system).requests}) == distinct


# -- retrieval ---------------------------------------------------------------------------------------------


def test_a_prompt_holds_different_documents_between_system_prompt_and_question() -> None:
    requests = made(RETRIEVAL).requests
    assert len({request.prompt[-1].id for request in requests}) == len(requests)
    assert len({request.prompt[0] for request in requests}) == 1
    for request in requests:
        _, *documents, question = request.prompt
        assert len(set(documents)) == 3
        assert {id.split(":")[0] for id, _ in documents} == {"document"}
        assert question == Segment(f"question:{request.id}", 20)


def test_ranking_orders_the_same_documents_by_popularity() -> None:
    shuffled, ranked = made(RETRIEVAL, popularity=1), made(RETRIEVAL, popularity=1, order="ranked")
    orders = set()
    for one, other in zip(shuffled.requests, ranked.requests, strict=True):
        assert other.prompt == (one.prompt[0], *sorted(one.prompt[1:-1]), one.prompt[-1])
        orders.add(tuple(sorted(one.prompt[1:-1]).index(document) for document in one.prompt[1:-1]))
    assert len(orders) == 6


def test_a_common_corpus_is_common_and_an_own_one_is_not() -> None:
    for common in (0, 2, 5):
        trace = made(RETRIEVAL, common_documents=common)
        asked = [{segment for one in of(trace, client) for segment in one.prompt[1:-1]} for client in "ab"]
        assert [len(documents) for documents in asked] == [5, 5]
        assert len(asked[0] & asked[1]) == common


def test_more_cannot_be_retrieved_than_there_is() -> None:
    with pytest.raises(BadInput, match="retrieved: 6 of 5 documents"):
        made(RETRIEVAL, retrieved=6)
    with pytest.raises(BadInput, match=r"popularity: at 1e\+12 .*, fewer than 2; take a smaller one"):
        made(RETRIEVAL, retrieved=2, popularity=1e12)


# -- few-shot ----------------------------------------------------------------------------------------------


def test_questions_stand_behind_the_examples_of_their_task() -> None:
    trace = made(FEW_SHOT, common_tasks=1)
    heads = [{request.prompt[:-1] for request in of(trace, client)} for client in "ab"]
    assert [len(found) for found in heads] == [4, 4]
    assert len(heads[0] & heads[1]) == 1
    assert {len(head) for found in heads for head in found} == {3}
    examples = [example for head in heads[0] | heads[1] for example in head]
    assert len(set(examples)) == len(examples) == 7 * 3
    assert len({request.prompt[-1].id for request in trace.requests}) == len(trace.requests)


def test_there_are_no_more_common_tasks_than_tasks() -> None:
    with pytest.raises(BadInput, match="common_tasks: 5 of 4 tasks"):
        made(FEW_SHOT, common_tasks=5)


# -- plain -------------------------------------------------------------------------------------------------


def test_plain_prompts_share_nothing() -> None:
    requests = made(PLAIN).requests
    assert {len(request.prompt) for request in requests} == {1}
    assert len({request.prompt[0].id for request in requests}) == len(requests)

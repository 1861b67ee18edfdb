"""The workload families: what their requests share, what they do not, and that nothing else moves them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from suite.trace import REPLY, Request, Segment, Trace, checked
from workloads.spec import load

BASE: dict[str, Any] = {"duration": 100, "clients": [{"name": "a", "rate": 3}, {"name": "b", "rate": 1}]}

CHAT: dict[str, Any] = BASE | {
    "family": "multi_turn_chat",
    "system_tokens": {"kind": "uniform", "low": 50, "high": 500},
    "turns": {"kind": "uniform", "low": 1, "high": 5},
    "user_tokens": {"kind": "lognormal", "mean": 40, "cv": 1},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
    "think": {"mean": 4, "cv": 1},
}
DOCUMENT: dict[str, Any] = BASE | {
    "family": "shared_document",
    "documents": 5,
    "document_tokens": {"kind": "uniform", "low": 1000, "high": 3000},
    "question_tokens": 20,
    "output_tokens": 10,
}
MIXED: dict[str, Any] = BASE | {
    "family": "mixed_prefix",
    "system_fraction": 0.6,
    "unique_fraction": 0.2,
    "heads": 3,
    "system_tokens": 200,
    "head_tokens": {"kind": "uniform", "low": 300, "high": 400},
    "tail_tokens": 30,
    "unique_tokens": 500,
    "output_tokens": 10,
}
TREE: dict[str, Any] = BASE | {
    "family": "tree_of_thoughts",
    "branches": 1,
    "height": 3,
    "question_tokens": {"kind": "uniform", "low": 50, "high": 500},
    "instruction_tokens": {"kind": "uniform", "low": 5, "high": 9},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
}
JUDGE: dict[str, Any] = BASE | {
    "family": "llm_judge",
    "dimensions": 1,
    "article_tokens": {"kind": "uniform", "low": 500, "high": 900},
    "instruction_tokens": {"kind": "uniform", "low": 5, "high": 9},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
}
FAMILIES = [pytest.param(spec, id=spec["family"]) for spec in (CHAT, DOCUMENT, MIXED, TREE, JUDGE)]


def made(spec: Mapping[str, Any], seed: int = 0, **overrides: Any) -> Trace:
    return load(spec, overrides).generate(seed)


def of(trace: Trace, client: str) -> list[Request]:
    return [request for request in trace.requests if request.client == client]


def sessions(trace: Trace) -> list[list[Request]]:
    found = defaultdict(list)
    for request in trace.requests:
        found[request.session].append(request)
    return list(found.values())


# -- what holds for every family ---------------------------------------------------------------------------


@pytest.mark.parametrize("spec", FAMILIES)
def test_traces_are_valid_in_order_and_the_same_for_a_seed(spec: dict[str, Any]) -> None:
    trace = made(spec)
    assert checked(trace) is trace
    arrivals = [request.arrival for request in trace.requests]
    assert arrivals == sorted(arrivals)
    assert trace.digest == made(spec).digest
    assert trace.requests != made(spec, seed=1).requests


@pytest.mark.parametrize("spec", FAMILIES)
def test_a_client_sends_the_same_whoever_else_is_there(spec: dict[str, Any]) -> None:
    alone = made(spec, clients=[{"name": "b", "rate": 1}])
    crowd = made(spec, clients=[{"name": name, "rate": 1} for name in "cbda"])
    assert of(made(spec), "b") == of(alone, "b") == of(crowd, "b")


@pytest.mark.parametrize("spec", FAMILIES)
def test_more_load_is_more_of_the_same_at_a_higher_rate(spec: dict[str, Any]) -> None:
    once, thrice = made(spec), made(spec, load=3)
    assert len(thrice.requests) == pytest.approx(3 * len(once.requests), rel=0.15)
    bodies = {request.id: (request.prompt, request.output_tokens) for request in thrice.requests}
    assert all(bodies[request.id] == (request.prompt, request.output_tokens) for request in once.requests)


@pytest.mark.parametrize("spec", FAMILIES)
def test_more_requests_changes_one_client_only(spec: dict[str, Any]) -> None:
    bad = made(spec, misbehaviour={"client": 1, "kind": "more_requests", "factor": 4})
    assert bad.header.misbehaving == ("b",)
    assert of(bad, "a") == of(made(spec), "a")
    assert len(of(bad, "b")) == pytest.approx(400, abs=80)


@pytest.mark.parametrize("spec", FAMILIES)
def test_longer_prefix_stretches_one_clients_prefixes_only(spec: dict[str, Any]) -> None:
    plain = made(spec)
    bad = made(spec, misbehaviour={"client": "b", "kind": "longer_prefix", "factor": 3})
    assert bad.header.misbehaving == ("b",)
    assert of(bad, "a") == of(plain, "a")
    prefixes = ("system", "document", "head", "tree", "article")
    for before, after in zip(of(plain, "b"), of(bad, "b"), strict=True):
        assert after.prompt == tuple(
            Segment(id, tokens * (3 if id.startswith(prefixes) else 1)) for id, tokens in before.prompt
        )


@pytest.mark.parametrize("spec", FAMILIES)
def test_an_added_prefix_stands_before_every_prompt_of_one_client(spec: dict[str, Any]) -> None:
    plain = made(spec)
    bad = made(spec, misbehaviour={"client": "b", "kind": "added_prefix", "tokens": 600})
    assert bad.header.misbehaving == ("b",)
    assert of(bad, "a") == of(plain, "a")
    added = Segment("added:b", 600)
    assert [one.prompt for one in of(bad, "b")] == [(added, *one.prompt) for one in of(plain, "b")]


@pytest.mark.parametrize("spec", FAMILIES)
def test_the_header_tells_every_parameter_and_what_came_of_it(spec: dict[str, Any]) -> None:
    header = made(spec, load=2).header
    assert (header.name, header.generator) == (spec["family"], spec["family"])
    assert set(spec) - {"family"} < set(header.choices)
    assert header.choices["load"] == 2
    assert header.choices["arrivals"] == {"kind": "poisson"}
    assert header.choices["client_rates"] == {"a": 6.0, "b": 2.0}
    assert header.misbehaving == ()


@pytest.mark.parametrize("spec", FAMILIES)
def test_weights_reach_the_requests(spec: dict[str, Any]) -> None:
    trace = made(spec, clients=[{"name": "x", "rate": 1, "weight": 2.5}, {"name": "y", "rate": 1}])
    assert {(request.client, request.weight) for request in trace.requests} == {("x", 2.5), ("y", 1.0)}


@pytest.mark.parametrize("spec", FAMILIES)
def test_hostile_client_names_stay_apart(spec: dict[str, Any]) -> None:
    names = ["reply:a/0", "a", "a/0", "a/0/1", "0:a", "system", "/", "\N{PILE OF POO}\n"]
    trace = made(spec, clients=[{"name": name, "rate": 1} for name in names])
    owners = defaultdict(set)
    for request in trace.requests:
        for id, _ in request.prompt:
            owners[id].add(request.client)
    assert {id for id, clients in owners.items() if len(clients) > 1} <= {"system"}


@pytest.mark.parametrize("spec", FAMILIES)
def test_a_closed_loop_keeps_its_users_in_single_file(spec: dict[str, Any]) -> None:
    trace = made(spec, arrivals={"kind": "closed_loop", "concurrency": 8, "think": 1.5})
    assert len(trace.requests) == pytest.approx(400, rel=0.25)
    for client, users in (("a", 6), ("b", 2)):
        requests = of(trace, client)
        first = [request for request in requests if not request.after]
        assert len(first) == users
        assert {request.arrival for request in first} == {0.0}
        waited_for = Counter(parent for request in requests for parent in request.after)
        assert set(waited_for.values()) == {1}
        assert len(requests) - len(waited_for) == users


def users(spec: Mapping[str, Any], **overrides: Any) -> dict[str, int]:
    loop = {"kind": "closed_loop", "concurrency": 8, "think": 1.5}
    trace = made(spec, arrivals=loop, **overrides)
    return dict(Counter(request.client for request in trace.requests if not request.after))


@pytest.mark.parametrize("spec", FAMILIES)
def test_misbehaviour_and_load_bring_users_to_a_closed_loop(spec: dict[str, Any]) -> None:
    more = {"client": "b", "kind": "more_requests", "factor": 3}
    assert users(spec) == {"a": 6, "b": 2}
    assert users(spec, misbehaviour=more) == {"a": 6, "b": 6}
    assert users(spec, load=2) == {"a": 12, "b": 4}
    assert users(spec, load=2, misbehaviour=more) == {"a": 12, "b": 12}


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

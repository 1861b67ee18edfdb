"""What holds for every synthetic family: the same bytes for a seed, and that nothing else moves a client."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
from families import DOCUMENT, FAMILIES, FEW_SHOT, PLAIN, RETRIEVAL, WITH_PREFIXES, made, of

from suite.errors import BadInput
from suite.trace import Segment, checked
from workloads.parts.clients import Client
from workloads.spec import load


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


@pytest.mark.parametrize("spec", WITH_PREFIXES)
def test_longer_prefix_stretches_one_clients_prefixes_only(spec: dict[str, Any]) -> None:
    plain = made(spec)
    bad = made(spec, misbehaviour={"client": "b", "kind": "longer_prefix", "factor": 3})
    assert bad.header.misbehaving == ("b",)
    assert of(bad, "a") == of(plain, "a")
    prefixes = ("system", "document", "head", "tree", "article", "example")
    for before, after in zip(of(plain, "b"), of(bad, "b"), strict=True):
        assert after.prompt == tuple(
            Segment(id, tokens * (3 if id.startswith(prefixes) else 1)) for id, tokens in before.prompt
        )


def test_what_has_no_prefix_cannot_have_a_longer_one() -> None:
    with pytest.raises(BadInput, match="plain prompts have no prefix to make longer; take added_prefix"):
        made(PLAIN, misbehaviour={"client": "b", "kind": "longer_prefix", "factor": 3})


@pytest.mark.parametrize("spec", FAMILIES)
def test_a_flood_that_recovers_changes_one_clients_arrivals_only(spec: dict[str, Any]) -> None:
    flood = {"client": "b", "kind": "recovering_flood", "factor": 5, "until": 100}
    plain, bad = made(spec, duration=400), made(spec, duration=400, misbehaviour=flood)
    assert bad.header.misbehaving == ("b",)
    assert bad.header.choices["client_rates"] == {"a": 3.0, "b": 2.0}
    assert of(bad, "a") == of(plain, "a")
    starts = [request.arrival for request in of(bad, "b") if not request.after]
    calm = [request.arrival for request in of(plain, "b") if not request.after]
    before, after = (len([time for time in starts if (time < 100) is early]) for early in (True, False))
    expected = len(calm) / 4
    assert before == pytest.approx(5 * expected, abs=4 * math.sqrt(5 * expected + 25 * expected / 4))
    assert after == pytest.approx(3 * expected, abs=4 * math.sqrt(3 * expected + 9 * expected / 4))


@pytest.mark.parametrize("spec", FAMILIES)
def test_several_clients_misbehave_each_in_its_way(spec: dict[str, Any]) -> None:
    one = {"client": "a", "kind": "added_prefix", "tokens": 600}
    other = {"client": 1, "kind": "more_requests", "factor": 4}
    both = made(spec, misbehaviour=[one, other])
    assert both.header.misbehaving == ("a", "b")
    assert of(both, "a") == of(made(spec, misbehaviour=one), "a")
    assert of(both, "b") == of(made(spec, misbehaviour=other), "b")
    with pytest.raises(BadInput, match="'b' stands twice; a client does one thing wrong"):
        made(spec, misbehaviour=[other, other | {"client": "b"}])


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


@pytest.mark.parametrize("name", ["agent", "retrieval", "few_shot", "recovering_flood"])
def test_ready_specs_misbehave_as_they_say(name: str) -> None:
    trace = load(name).generate(0)
    assert 600 <= len(trace.requests) <= 4000
    bad = {"client-2", "client-3"} if name == "recovering_flood" else {"client-0"}
    assert set(trace.header.misbehaving) == bad
    sent = Counter(request.client for request in trace.requests)
    assert min(sent[client] for client in bad) > 2 * max(sent[client] for client in set(sent) - bad)


def test_of_two_floods_one_recovers_midway() -> None:
    trace = load("recovering_flood").generate(0)
    halves = [
        Counter(one.client for one in trace.requests if (one.arrival < 90) is early)
        for early in (True, False)
    ]
    assert halves[0]["client-2"] > 3 * halves[1]["client-2"]
    assert halves[1]["client-3"] > 3 * halves[1]["client-2"]


# -- at the limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"misbehaviour": {"client": "b", "kind": "recovering_flood", "factor": 2, "until": 1e-6}},
            "misbehaviour.until: input should be greater than or equal to 0.001 (got '1e-06')",
        ),
        (
            {"misbehaviour": {"client": "b", "kind": "recovering_flood", "factor": 2, "until": 99.9999}},
            "misbehaviour.until: 99.9999 s is not before the end at 100 s",
        ),
        (
            {"clients": {"count": 3, "skew": 1e12}},
            "clients: skew 1e+12 leaves the last of 3 clients no share of the rate; take a smaller one",
        ),
        (
            {
                "clients": 1,
                "duration": 1e6,
                "rate": 1e-3,
                "arrivals": {"kind": "phases", "phases": [{"seconds": 1e-3}]},
            },
            "arrivals: 1e+06 s make about 1e+09 phases, more than 10,000,000; make the phases longer",
        ),
        (
            {"arrivals": {"kind": "on_off", "busy": 5e-324, "silent": 1}},
            "arrivals.busy: 4.94066e-324 is as good as",
        ),
        ({"load": 5e-324}, "load: 4.94066e-324 is as good as nothing"),
    ],
)
def test_what_cannot_be_made_is_refused_by_its_field(more: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        made(PLAIN, **more)
    assert str(caught.value).startswith(f"workload: {message}")


def test_rates_that_are_almost_none_make_no_requests() -> None:
    crumbs = {"phases": [{"seconds": 1, "rate": 5e-324}, {"seconds": 1, "rate": 1e12}], "kind": "phases"}
    arrivals = [request.arrival for request in made(PLAIN, arrivals=crumbs).requests]
    assert len(arrivals) > 300
    assert {int(arrival) % 2 for arrival in arrivals} == {1}


@pytest.mark.parametrize("spec", [DOCUMENT, RETRIEVAL, FEW_SHOT], ids=lambda spec: spec["family"])
def test_of_a_large_corpus_only_what_is_asked_for_is_made(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    prefix_segment = Client.prefix_segment

    def noted(client: Client, name: str, *rest: Any) -> Segment:
        drawn.append(name)
        return prefix_segment(client, name, *rest)

    monkeypatch.setattr(Client, "prefix_segment", noted)
    field = "tasks" if spec is FEW_SHOT else "documents"
    trace = made(spec, duration=2, **{field: 5000})
    assert len(drawn) <= sum(len(request.prompt) for request in trace.requests) < 1000

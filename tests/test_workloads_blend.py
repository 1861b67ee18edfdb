"""Blends: that each part is what it is alone, that nothing of two parts is confused, and what errors say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from suite import experiment, trace
from suite.errors import BadInput
from suite.trace import REPLY, Header, Request, Segment, Trace
from workloads.spec import load

PLAIN: dict[str, Any] = {
    "family": "plain", "duration": 60, "rate": 2, "prompt_tokens": 100, "output_tokens": 10,
}  # fmt: skip
BLEND: dict[str, Any] = {
    "family": "blend",
    "parts": [
        {"name": "support", "spec": "chat", "clients": 1, "misbehaviour": None, "duration": 30},
        {"name": "judge", "spec": "llm_judge", "duration": 20},
        {"name": "rest", **PLAIN, "clients": [{"name": "x", "rate": 1.0, "weight": 2.5}], "rate": None},
    ],
}


def made(overrides: dict[str, Any] | None = None, seed: int = 0) -> Trace:
    return load(BLEND, overrides or {}).generate(seed)


def of(trace: Trace, part: str) -> list[Request]:
    return [request for request in trace.requests if request.id.startswith(f"{part}/")]


def saved(folder: Path, *requests: Request, **more: Any) -> str:
    path = folder / "done.jsonl"
    trace.write(Trace(Header("done", 7, "hand"), requests, **more), path)
    return str(path)


def test_the_ready_blend_is_four_kinds_of_work_for_about_as_much() -> None:
    trace = load("blend").generate(0)
    assert trace.clients == ("agent", "chat", "document", "judge")
    asked = Counter[str]()
    for request in trace.requests:
        asked[request.client] += request.prompt_tokens + 2 * request.output_tokens
    assert max(asked.values()) < 1.5 * min(asked.values())


def test_clients_bear_the_names_of_their_parts() -> None:
    assert made().clients == ("judge/client-0", "judge/client-1", "judge/client-2", "rest", "support")
    assert made().header.misbehaving == ("judge/client-0",)
    assert {request.weight for request in of(made(), "rest")} == {2.5}


def test_requests_are_in_order_of_arrival() -> None:
    arrivals = [request.arrival for request in made().requests]
    assert arrivals == sorted(arrivals)
    assert {request.id.split("/")[0] for request in made().requests[:100]} == {"support", "judge", "rest"}


def test_a_part_is_what_it_is_alone_under_the_seed_in_the_header() -> None:
    blended = made()
    said = blended.header.choices["parts"]["judge"]
    alone = load("llm_judge", {"duration": 20}).generate(said["seed"])
    assert said["choices"] == alone.header.choices
    assert (said["name"], said["generator"]) == ("llm_judge", "llm_judge")
    for ours, its in zip(of(blended, "judge"), alone.requests, strict=True):
        assert ours.id == f"judge/{its.id}"
        assert ours.client == f"judge/{its.client}"
        assert ours.session == f"judge/{its.session}"
        assert ours.after == tuple(f"judge/{id}" for id in its.after)
        assert [tokens for _, tokens in ours.prompt] == [tokens for _, tokens in its.prompt]
        for (our_id, _), (its_id, _) in zip(ours.prompt, its.prompt, strict=True):
            reply = its_id.startswith(REPLY)
            assert our_id == (f"{REPLY}judge/{its_id.removeprefix(REPLY)}" if reply else f"judge/{its_id}")
        rest = (ours.arrival, ours.output_tokens, ours.think, ours.weight)
        assert rest == (its.arrival, its.output_tokens, its.think, its.weight)


def test_a_part_does_not_hang_on_the_others() -> None:
    alone = load(BLEND | {"parts": BLEND["parts"][1:2]}).generate(0)
    assert list(alone.requests) == of(made(), "judge")
    assert of(made({"parts.0.load": 3}), "judge") == of(made(), "judge")
    assert of(made({}, 1), "judge") != of(made(), "judge")


def test_two_parts_of_one_workload_are_not_in_step_and_share_nothing() -> None:
    parts = [{"name": name, "spec": "document", "duration": 20} for name in ("one", "two")]
    trace = load({"family": "blend", "parts": parts}).generate(0)
    one, two = of(trace, "one"), of(trace, "two")
    assert [request.arrival for request in one] != [request.arrival for request in two]
    segments = [{segment.id for request in part for segment in request.prompt} for part in (one, two)]
    assert not segments[0] & segments[1]


def test_overrides_reach_into_parts() -> None:
    more = made({"parts.2.clients.0.rate": 4.0, "parts.1.article_tokens": 77})
    assert len(of(more, "rest")) > 2.5 * len(of(made(), "rest"))
    assert {request.prompt[0].tokens for request in of(more, "judge")} == {77}
    dotted = [BLEND["parts"][0] | {"think.mean": 0.5, "think.cv": 0}]
    thinks = {request.think for request in load(BLEND | {"parts": dotted}).generate(0).requests}
    assert thinks == {0.0, 0.5}


def test_a_sweep_reaches_into_a_part(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    swept = {
        "name": "e",
        "workloads": [BLEND],
        "schedulers": ["fcfs"],
        "sweep": {"workload.parts.1.load": [1, 4]},
    }
    path.write_text(yaml.safe_dump(swept))
    once, four = (experiment.generate(cell.trace_key) for cell in experiment.load(str(path)).cells)
    assert of(four, "support") == of(once, "support")
    assert len(of(four, "judge")) == pytest.approx(4 * len(of(once, "judge")), rel=0.1)


def test_a_part_may_be_a_blend() -> None:
    inner = {"name": "inner", "family": "blend", "parts": BLEND["parts"][1:]}
    nested = load({"family": "blend", "parts": [inner, {"name": "judge", **PLAIN, "clients": 1}]}).generate(0)
    assert nested.clients == (
        "inner/judge/client-0", "inner/judge/client-1", "inner/judge/client-2", "inner/rest", "judge",
    )  # fmt: skip
    assert nested.header.misbehaving == ("inner/judge/client-0",)


def test_a_part_may_be_a_finished_trace_in_whatever_order(tmp_path: Path) -> None:
    """A child may stand in a file with an arrival before its parent's: it waits all the same."""
    first = Request("p", "c", 9.0, (Segment("x", 5),), 3)
    child = Request("q", "c", 0.0, (Segment("x", 5), Segment(f"{REPLY}p", 3)), 1, after=("p",))
    log = {"name": "log", "spec": saved(tmp_path, first, child)}
    blended = load({"family": "blend", "parts": [log, {"name": "rest", **PLAIN}]}).generate(0)
    assert [request.id for request in of(blended, "log")] == ["log/p", "log/q"]
    assert of(blended, "log")[1].prompt == (Segment("log/x", 5), Segment(f"{REPLY}log/p", 3))
    assert blended.header.choices["parts"]["log"]["seed"] == 7


def test_real_tokens_go_along(tmp_path: Path) -> None:
    ids = np.arange(5, dtype=np.int32)
    spec = saved(tmp_path, Request("p", "c", 0.0, (Segment("x", 5),), 3), tokens={"x": ids})
    blended = load({"family": "blend", "parts": [{"name": "log", "spec": spec}, {"name": "rest", **PLAIN}]})
    tokens = blended.generate(0).tokens
    assert list(tokens) == ["log/x"]
    assert tokens["log/x"].tolist() == ids.tolist()


def test_a_blend_can_be_shaped() -> None:
    slow = made({"shape.stretch": 4})
    assert len(slow.requests) == len(made().requests)
    assert of(slow, "rest")[-1].arrival == pytest.approx(4 * of(made(), "rest")[-1].arrival)


def test_a_client_that_is_alone_in_its_part_is_the_part_whatever_its_name() -> None:
    parts = [{"name": name, **PLAIN, "clients": 1} for name in ("a", "b", "reply", "0")]
    trace = load({"family": "blend", "parts": parts}).generate(0)
    assert sorted(trace.clients) == ["0", "a", "b", "reply"]
    assert set(Counter(segment.id for one in trace.requests for segment in one.prompt).values()) == {1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"parts.0.lod": 2}, "workload: parts.0: 'support': chat: unknown key 'lod'; did you mean 'load'?"),
        ({"parts.1.dimensions": 0}, "workload: parts.1: 'judge': llm_judge: dimensions: input should be"),
        ({"parts.0.spec": "chatt"}, "workload: parts.0: 'support': chatt: no such workload; did you mean"),
        ({"parts.0.family": "plain"}, "workload: parts.0: 'support': give a `spec` or a `family`, one of"),
        ({"parts.0": {"name": "x"}}, "workload: parts.0: 'x': give a `spec` or a `family`, one of the two"),
        ({"parts.0": {"spec": "chat"}}, "workload: parts.0.name: missing"),
        ({"parts.0.name": "a/b"}, "workload: parts.0: 'a/b': the name of a part holds no '/' and"),
        ({"parts.0.name": "reply:a"}, "workload: parts.0: 'reply:a': the name of a part holds no"),
        ({"parts.0.name": "rest"}, "workload: parts: the name 'rest' stands twice; names must be unique"),
        ({"parts": []}, "workload: parts: tuple should have at least 1 item"),
        (
            {"parts.0.duration": 1e-6},
            "workload 'blend', part 'support': workload 'chat': it came out without",
        ),
        ({"part": []}, "workload: unknown key 'part'; did you mean 'parts'?"),
    ],
)
def test_errors_name_the_part(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        made(overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_blend_does_not_hold_itself(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    parts = [{"name": "rest", **PLAIN}, *({"name": name, "spec": str(path)} for name in ("own", "again"))]
    path.write_text(yaml.safe_dump({"family": "blend", "parts": parts}))
    with pytest.raises(BadInput) as caught:
        load(path)
    inner = f"{path}: parts.1: 'own'"
    assert str(caught.value) == f"{inner}: {inner}: {path} is a part of itself; take it out"


@pytest.mark.parametrize("what", ["id", "client", "session", "segment", "reply"])
def test_names_that_come_out_too_long_to_be_read_again_are_refused(what: str, tmp_path: Path) -> None:
    long = "x" * 512
    parent = Request("x" * 506 if what == "reply" else "p", "c", 0.0, (Segment("s", 5),), 3)
    named = {name: long if what == name else name for name in ("id", "client", "session")}
    prompt = parent.prompt
    if what in ("segment", "reply"):
        prompt = (Segment(long, 5),) if what == "segment" else (Segment(REPLY + parent.id, 3),)
    child = Request(
        named["id"], named["client"], 1.0, prompt, 1, session=named["session"], after=(parent.id,)
    )
    blend = {"family": "blend", "parts": [{"name": "log", "spec": saved(tmp_path, parent, child)}]}
    with pytest.raises(BadInput, match=r"^workload 'blend': request [12]: .* at most 512 .*log/xxx"):
        load(blend).generate(0)

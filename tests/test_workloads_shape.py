"""Shaping: what each step keeps, what it records, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import trace
from suite.capacity import capacity, offered
from suite.errors import BadInput
from suite.trace import Header, Request, Segment, Trace, checked
from tests.tiny import TINY
from workloads import shape
from workloads.parts.clients import zipf
from workloads.programs import earliest, programs
from workloads.shape import Shape
from workloads.spec import load

CHATS: dict[str, Any] = {
    "family": "multi_turn_chat",
    "name": "chats",
    "duration": 60,
    "rate": 2,
    "clients": {"count": 4, "skew": 1},
    "system_tokens": 50,
    "turns": {"kind": "uniform", "low": 1, "high": 4},
    "user_tokens": {"kind": "uniform", "low": 5, "high": 30},
    "output_tokens": {"kind": "uniform", "low": 2, "high": 9},
    "think": {"mean": 3, "cv": 1},
    "misbehaviour": {"client": 1, "kind": "more_requests", "factor": 2},
}


def shaped(source: dict[str, Any] | str | Path = CHATS, seed: int = 0, **steps: Any) -> Trace:
    return load(source, {f"shape.{name}": value for name, value in steps.items()}).generate(seed)


def records(made: Trace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.header.choices["shape"]
    return found


@pytest.fixture(scope="module")
def chats() -> Trace:
    return load(CHATS).generate(0)


def hand_made() -> Trace:
    """Two turns of ann's, with which a request of bob's goes on, and two of bob's that stand alone."""
    told = Segment("reply:a0", 4)
    return checked(
        Trace(
            Header("hand", 7, "hand", misbehaving=("bob",)),
            (
                Request("a0", "ann", 1.0, (Segment("ask", 10),), 4, "a"),
                Request("b0", "bob", 2.0, (Segment("doc", 30), Segment("q", 5)), 3, weight=2.0),
                Request("a1", "ann", 3.0, (Segment("ask", 10), told), 5, "a", ("a0",), 2.0),
                Request("c0", "bob", 4.0, (Segment("ask", 10), told), 6, "c", ("a1",), 0.5, weight=2.0),
                Request("d0", "bob", 9.0, (Segment("doc", 30),), 2, weight=2.0),
            ),
            {"doc": np.arange(30, dtype=np.int32), "ask": np.arange(10, dtype=np.int32)},
        )
    )


def step(made: Trace, seed: int = 0, **steps: Any) -> Trace:
    return checked(Shape.model_validate(steps).applied(made, seed))


def ids(made: Trace) -> list[str]:
    return [request.id for request in made.requests]


# -- all steps ---------------------------------------------------------------------------------------------


def test_without_a_step_not_a_byte_changes(chats: Trace) -> None:
    assert load(CHATS, {"shape": {}}).generate(0).digest == chats.digest
    assert load(CHATS, {"shape": None}).generate(0).digest == chats.digest
    assert "shape" not in chats.header.choices


def test_steps_are_taken_in_one_order_and_each_says_what_it_did(chats: Trace) -> None:
    made = shaped(
        seed=3,
        stretch=2,
        replicate={"copies": 2, "offset": 10},
        assign={"clients": 3, "skew": [2, 1, 1]},
        thin={"clients": 0.75, "sessions": 0.5},
        window={"start": 10, "end": 40},
    )
    assert [one["step"] for one in records(made)] == ["window", "thin", "assign", "replicate", "stretch"]
    assert [one.get("seed") for one in records(made)] == [None, 3, 3, 3, None]
    assert records(made)[0]["parameters"] == {"start": 10.0, "end": 40.0}
    assert records(made)[2]["parameters"] == {"clients": 3, "skew": [2.0, 1.0, 1.0], "by": "session"}
    whole = load(CHATS).generate(3)
    span = max(request.arrival for request in whole.requests)
    assert records(made)[0]["before"] == {"requests": len(whole.requests), "clients": 4, "span": span}
    for one, following in pairwise(records(made)):
        assert one["after"] == following["before"]
    last = max(request.arrival for request in made.requests)
    assert records(made)[-1]["after"] == {"requests": len(made.requests), "clients": 6, "span": last}


def test_the_bytes_are_fixed_for_ever() -> None:
    made = step(
        replace(hand_made(), tokens={}),
        seed=5,
        window={"start": 1},
        thin={"sessions": 0.7},
        assign={"clients": 3, "skew": 1},
        replicate={"copies": 3, "offset": 10},
        stretch=1.5,
    )
    assert made.digest == "f7fb709b8af9ee83c833d3ee62b3a5c390c5083348575c6b7136c7f309a33240"


any_steps = st.fixed_dictionaries(
    {},
    optional={
        "window": st.sampled_from([{"end": 45}, {"start": 5}, {"start": 10, "end": 50}]),
        "thin": st.sampled_from([{"clients": 0.5}, {"sessions": 0.6}, {"clients": 0.75, "sessions": 0.9}]),
        "assign": st.sampled_from([{"clients": 3}, {"clients": 2, "skew": 1.5, "by": "request"}]),
        "replicate": st.sampled_from([{"copies": 2}, {"copies": 3, "prefixes": "shared", "offset": 20}]),
        "stretch": st.sampled_from([0.25, 3]),
    },
)


@given(any_steps, st.integers(0, 50))
@settings(max_examples=40)
def test_any_steps_make_a_sound_trace_and_the_same_one_again(steps: dict[str, Any], seed: int) -> None:
    made = shaped(seed=seed, **steps)
    checked(made)
    assert made.digest == shaped(seed=seed, **steps).digest
    assert earliest(made.requests) == pytest.approx([one.arrival for one in made.requests], abs=1e-5)
    assert {one.client for one in made.requests} >= set(made.header.misbehaving)


@given(any_steps, st.integers(0, 50))
@settings(max_examples=20)
def test_a_finished_trace_is_shaped_as_the_workload_is(
    tmp_path_factory: pytest.TempPathFactory, steps: dict[str, Any], seed: int
) -> None:
    path = tmp_path_factory.mktemp("finished") / "done.parquet"
    trace.write(load(CHATS).generate(seed), path)
    assert shaped(path, seed=seed, **steps).digest == shaped(seed=seed, **steps).digest
    path.unlink()


def test_what_was_shaped_can_be_shaped_again(tmp_path: Path) -> None:
    trace.write(shaped(stretch=2), tmp_path / "slow.jsonl")
    again = shaped(tmp_path / "slow.jsonl", stretch=3)
    assert [one["parameters"]["factor"] for one in records(again)] == [2.0, 3.0]
    assert [one.arrival for one in again.requests] == pytest.approx(
        [6 * one.arrival for one in load(CHATS).generate(0).requests], abs=1e-4
    )


def test_real_tokens_stay_with_the_segments_that_keep_their_names() -> None:
    tokens = {"doc": range(30), "ask": range(10)}
    assert {id: [*ids] for id, ids in step(hand_made(), stretch=2).tokens.items()} == {
        id: [*ids] for id, ids in tokens.items()
    }
    assert set(step(hand_made(), window={"start": 5}).tokens) == {"doc"}
    assert set(step(hand_made(), replicate={"copies": 2}).tokens) == {"doc", "ask"}


# -- window ------------------------------------------------------------------------------------------------


def test_a_window_keeps_what_arrives_in_it(chats: Trace) -> None:
    made = shaped(window={"start": 20, "end": 35})
    kept = [one for one in chats.requests if 20 <= one.arrival < 35]
    assert ids(made) == [one.id for one in kept]
    assert [one.arrival for one in made.requests] == pytest.approx([one.arrival - 20 for one in kept])
    assert [one.prompt_tokens for one in made.requests] == [one.prompt_tokens for one in kept]


def test_windows_side_by_side_hold_every_request_once(chats: Trace) -> None:
    edges = [0, 7.5, 30, 31, 500]
    parts = [shaped(window={"start": a, "end": b}) for a, b in pairwise(edges)]
    assert [id for part in parts for id in ids(part)] == ids(chats)


def test_the_reply_to_what_was_cut_is_a_segment_of_its_own() -> None:
    made = step(hand_made(), window={"start": 2.5, "end": 8})
    assert made.requests == (
        Request("a1", "ann", 0.5, (Segment("ask", 10), Segment("cut:a0", 4)), 5, "a"),
        Request("c0", "bob", 1.5, (Segment("ask", 10), Segment("cut:a0", 4)), 6, "c", ("a1",), 0.5, 2.0),
    )
    assert made.header.misbehaving == ("bob",)
    assert step(hand_made(), window={"end": 2}).header.misbehaving == ()


def test_a_window_counts_the_earliest_time_of_what_waits_for_others() -> None:
    """a1 may be sent 2 s after a0 came, whatever its arrival says."""
    early = hand_made()
    requests = tuple(replace(one, arrival=0.0) if one.after else one for one in early.requests)
    made = step(replace(early, requests=requests), window={"start": 2, "end": 3.5})
    assert [(one.id, one.arrival) for one in made.requests] == [("b0", 0.0), ("a1", 1.0)]


# -- thin --------------------------------------------------------------------------------------------------


def test_thinning_keeps_its_share_and_tears_no_program(chats: Trace) -> None:
    made = shaped(thin={"sessions": 0.4})
    by_session = {one.session: 0 for one in chats.requests}
    assert len({one.session for one in made.requests}) == round(0.4 * len(by_session))
    kept = {one.session for one in made.requests}
    assert made.requests == tuple(one for one in chats.requests if one.session in kept)


def test_a_larger_share_keeps_what_a_smaller_one_keeps() -> None:
    few, more = (shaped(thin={"clients": share, "sessions": 1.0}) for share in (0.5, 0.75))
    assert (len(few.clients), len(more.clients)) == (2, 3)
    assert set(few.requests) < set(more.requests)
    few, more = (shaped(thin={"sessions": share}) for share in (0.1, 0.3))
    assert set(few.requests) < set(more.requests)


def test_seeds_thin_differently(chats: Trace) -> None:
    assert ids(step(chats, 1, thin={"sessions": 0.5})) != ids(step(chats, 2, thin={"sessions": 0.5}))


def test_a_users_chain_of_sessions_is_one_program() -> None:
    """In a closed loop a session begins when the one before it has ended, so a user stays or goes."""
    closed = {
        **CHATS,
        "arrivals": {"kind": "closed_loop", "concurrency": 6, "think": 1},
        "misbehaviour": None,
    }
    made = shaped(closed, thin={"sessions": 0.5})
    users = [one for one in load(closed).generate(0).requests if not one.after]
    assert sum(not one.after for one in made.requests) == round(len(users) / 2)


def test_what_a_dropped_client_was_part_of_is_mended() -> None:
    """c0 comes after a1 of the client that goes, and so after nothing; d0 and b0 are as they were."""
    for seed in range(20):
        made = step(hand_made(), seed, thin={"clients": 0.5})
        if made.clients == ("bob",):
            assert ids(made) == ["b0", "c0", "d0"]
            assert made.requests[1].prompt == (Segment("ask", 10), Segment("cut:a0", 4))
            assert (made.requests[1].after, made.requests[1].think) == ((), 0.0)
            return
    pytest.fail("no seed kept bob")


def test_a_request_comes_after_what_its_dropped_parent_came_after() -> None:
    between = Request("m", "eve", 3.5, (Segment("x", 1),), 1, after=("a1",))
    *early, last = hand_made().requests[:4]
    mixed = replace(hand_made(), requests=(*early, between, replace(last, after=("m",))), tokens={})
    for seed in range(20):
        made = step(mixed, seed, thin={"clients": 0.67})
        if made.clients == ("ann", "bob"):
            assert made.requests[-1].after == ("a1",)
            assert made.requests[-1].prompt[1].id == "reply:a0"
            return
    pytest.fail("no seed dropped eve")


# -- assign ------------------------------------------------------------------------------------------------


def test_sessions_are_dealt_whole_by_skew() -> None:
    anonymous = {**TINY, "clients": 1, "duration": 4000, "rate": 2}
    made = shaped(anonymous, assign={"clients": 4, "skew": 1.0})
    counts = [sum(one.client == f"client-{rank}" for one in made.requests) for rank in range(4)]
    assert np.array(counts) / sum(counts) == pytest.approx(zipf(4, 1.0), abs=0.02)
    by_session = shaped(assign={"clients": 4})
    owners = {(one.session, one.client) for one in by_session.requests}
    assert len(owners) == len({session for session, _ in owners})
    by_request = shaped(assign={"clients": 4, "by": "request"})
    assert len({(one.session, one.client) for one in by_request.requests}) > len(owners)


def test_assigning_changes_nothing_but_clients(chats: Trace) -> None:
    made = shaped(assign={"clients": 3, "skew": [1, 2, 3]})
    assert chats.header.misbehaving
    assert made.header.misbehaving == ()
    assert [replace(one, client="") for one in made.requests] == [
        replace(one, client="") for one in chats.requests
    ]
    assert {one.weight for one in step(hand_made(), assign={"clients": 2}).requests} == {1.0}


# -- replicate ---------------------------------------------------------------------------------------------


def test_copies_are_clients_of_the_same_kind(chats: Trace) -> None:
    made = shaped(replicate={"copies": 3, "offset": 15})
    assert len(made.requests) == 3 * len(chats.requests)
    assert set(made.clients) == {name + mark for name in chats.clients for mark in ("", "~1", "~2")}
    (bad,) = chats.header.misbehaving
    assert made.header.misbehaving == (bad, f"{bad}~1", f"{bad}~2")
    assert tuple(one for one in made.requests if "~" not in one.id) == chats.requests
    late = {one.id: one.arrival for one in chats.requests}
    copies = [one for one in made.requests if one.id.endswith("~2")]
    offsets = {one.session: one.arrival - late[one.id[:-2]] for one in copies}
    for one in copies:
        assert one.arrival - late[one.id[:-2]] == pytest.approx(offsets[one.session], abs=1e-5)
    assert all(0 <= offset < 15 for offset in offsets.values())
    assert np.mean(list(offsets.values())) == pytest.approx(7.5, abs=1.5)


def test_copies_whose_names_could_not_be_read_again_are_refused(tmp_path: Path) -> None:
    longest = Request("x" * 512, "c", 0.0, (Segment("s", 5),), 3)
    trace.write(Trace(Header("t", 0, "hand"), (longest,)), tmp_path / "t.jsonl")
    with pytest.raises(BadInput, match=r"^workload 't': request 2: id: .* at most 512 characters"):
        shaped(tmp_path / "t.jsonl", replicate={"copies": 2})


def test_prefixes_of_copies_are_their_own_or_shared() -> None:
    own = {one.id: one for one in step(hand_made(), replicate={"copies": 2}).requests}
    assert own["a1~1"].prompt == (Segment("ask~1", 10), Segment("reply:a0~1", 4))
    assert (own["a1~1"].after, own["a1~1"].session, own["b0~1"].session) == (("a0~1",), "a~1", None)
    shared = step(hand_made(), replicate={"copies": 2, "prefixes": "shared"})
    assert next(one for one in shared.requests if one.id == "a1~1").prompt == (
        Segment("ask", 10),
        Segment("reply:a0~1", 4),
    )


# -- speed -------------------------------------------------------------------------------------------------


def test_stretching_multiplies_every_time(chats: Trace) -> None:
    made = shaped(stretch=2.5)
    for slow, fast in zip(made.requests, chats.requests, strict=True):
        assert slow.arrival == pytest.approx(2.5 * fast.arrival, abs=1e-6)
        assert slow.think == pytest.approx(2.5 * fast.think, abs=1e-6)
        assert replace(slow, arrival=0, think=0) == replace(fast, arrival=0, think=0)


@pytest.mark.parametrize("load", [0.3, 2.0])
def test_a_rescaled_trace_asks_for_the_load_it_should(load: float) -> None:
    backend = {"gpu": "a100-80gb", "engine": "sglang"}
    made = shaped(rescale={"load": load, "backend": backend})
    most = capacity(made, backend)
    assert offered(made) / most.rate == pytest.approx(load, rel=0.01)
    found = records(made)[0]["found"]
    assert found["capacity"]["rate"] == pytest.approx(most.rate, rel=0.01)
    assert found["factor"] == pytest.approx(found["offered"] / found["capacity"]["rate"] / load)


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"stretch": 0}, "workload: shape.stretch: input should be greater than 0 (got '0')"),
        ({"strech": 2}, "workload: shape: unknown key 'strech'; did you mean 'stretch'?"),
        ({"stretch": 2, "rescale": {"load": 1}}, "workload: shape: stretch and rescale both say how fast"),
        ({"stretch": 1e9}, "workload 'chats': shape.stretch: it came out "),
        ({"window": {"start": 5, "end": 5}}, "workload: shape.window: end (5 s) must be after start (5 s)"),
        ({"window": {"start": 900}}, "workload 'chats': shape.window: no request arrives in it; they come"),
        ({"thin": {}}, "workload: shape.thin: give `clients` or `sessions`"),
        ({"thin": {"clients": 0.01}}, "workload 'chats': shape.thin: clients: 0.01 of 4 keeps none"),
        ({"thin": {"sessions": 1.5}}, "workload: shape.thin.sessions: input should be less than or equal"),
        ({"assign": {}}, "workload: shape.assign.clients: missing"),
        ({"assign": {"clients": 2, "skew": [1]}}, "workload: shape.assign: skew has 1 shares for 2 clients"),
        ({"assign": {"clients": 2, "by": "row"}}, "workload: shape.assign.by: input should be 'session' or"),
        ({"replicate": {"copies": 1}}, "workload: shape.replicate.copies: input should be greater than or"),
        (
            {"rescale": {"load": 1, "backend": {"gpu": "a10"}}},
            "workload 'chats': shape.rescale: backend: gpu",
        ),
        ({"rescale": {"load": 1, "backend": {"kind": "vllm"}}}, "workload 'chats': shape.rescale: backend: "),
        (
            {"rescale": {"load": 1, "backend": {"kv_tokens": 16}}},
            "workload 'chats': shape.rescale: backend: ",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(steps: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        shaped(**steps)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_trace_is_replicated_once(tmp_path: Path) -> None:
    trace.write(shaped(replicate={"copies": 2}), tmp_path / "two.jsonl")
    with pytest.raises(BadInput, match=r"there is a client 'client-0~1' already"):
        shaped(tmp_path / "two.jsonl", replicate={"copies": 2})


def test_copies_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "MOST_REQUESTS", 14)
    assert len(step(hand_made(), replicate={"copies": 2}).requests) == 10
    with pytest.raises(BadInput, match=r"shape\.replicate: 3 copies of 5 requests are more than 14"):
        step(hand_made(), replicate={"copies": 3})


def test_nothing_makes_a_trace_slower_in_which_all_arrive_at_once() -> None:
    at_once = Trace(Header("t", 0, "t"), (Request("a", "x", 0.0, (Segment("s", 5),), 2),))
    with pytest.raises(BadInput, match=r"shape\.rescale: all requests arrive at time 0"):
        step(at_once, rescale={"load": 1})


def test_programs_are_sessions_and_what_hangs_together() -> None:
    assert programs(hand_made().requests).tolist() == [0, 1, 0, 0, 2]

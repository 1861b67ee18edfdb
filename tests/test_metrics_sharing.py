"""Who paid for shared prefixes, against cases counted by hand and a walk token by token."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import NAN

from suite.experiment import generate, load
from suite.metrics.sharing import shared
from suite.trace import REPLY, Header, Request, Segment, Trace

HEADER = Header("hand-made", 0, "test")


def trace(*rows):
    """A trace of (client, prompt, output tokens)."""
    requests = (
        Request(f"r{i}", client, 0.0, tuple(Segment(*segment) for segment in prompt), output)
        for i, (client, prompt, output) in enumerate(rows)
    )
    return Trace(HEADER, tuple(requests))


def frame(trace, admitted, cached, status="finished", worker="replica-0"):
    return pd.DataFrame(
        {
            "id": [request.id for request in trace.requests],
            "client": [request.client for request in trace.requests],
            "admitted": admitted,
            "cached_tokens": cached,
            "status": status,
            "worker": worker,
        }
    )


def ledger(trace, admitted, cached, status="finished", worker="replica-0"):
    found = shared(trace, frame(trace, admitted, cached, status, worker))
    return {(payer, client): tokens for payer, client, tokens in found.itertuples(index=False)}


def test_a_prefix_is_paid_for_by_who_computed_it():
    made = trace(("a", [("doc", 10)], 1), ("b", [("doc", 8), ("q", 4)], 1), ("a", [("doc", 10)], 1))
    assert ledger(made, [0, 1, 2], [0, 8, 10]) == {("a", "b"): 8, ("a", "a"): 10}


def test_the_last_to_compute_a_part_is_its_payer():
    made = trace(("a", [("doc", 10)], 1), ("b", [("doc", 10)], 1), ("c", [("doc", 10)], 1))
    assert ledger(made, [0, 1, 2], [0, 4, 10]) == {("a", "b"): 4, ("a", "c"): 4, ("b", "c"): 6}


def test_the_order_is_that_of_admission_and_who_was_never_admitted_paid_for_nothing():
    made = trace(("a", [("doc", 10)], 1), ("b", [("doc", 10)], 1), ("c", [("doc", 10)], 1))
    assert ledger(made, [2, 1, NAN], [10, 0, 0]) == {("b", "a"): 10}


def test_what_was_computed_at_the_same_instant_can_be_found():
    made = trace(("a", [("doc", 10)], 1), ("b", [("doc", 10)], 1))
    assert ledger(made, [1, 1], [8, 0]) == {("b", "a"): 8}


def test_a_reply_was_computed_by_the_client_of_its_request():
    chat = [("system", 6), ("hello", 2)]
    made = trace(("a", chat, 5), ("b", [*chat, (f"{REPLY}r0", 5), ("more", 3)], 1))
    assert ledger(made, [0, 9], [0, 12]) == {("a", "b"): 12}


def test_a_segment_after_another_course_is_another_prefix():
    made = trace(("a", [("x", 4), ("doc", 6)], 1), ("b", [("x", 3), ("doc", 6)], 1))
    assert ledger(made, [0, 1], [0, 9]) == {("a", "b"): 3, ("b", "b"): 6}


def test_what_a_failed_request_found_is_nobodys_but_what_it_computed_is_its_own():
    made = trace(("a", [("doc", 9)], 1), ("b", [("doc", 9), ("q", 9)], 1), ("c", [("doc", 9), ("q", 9)], 1))
    found = ledger(made, [0, 1, 2], [0, 9, 18], ["finished", "failed", "finished"])
    assert found == {("a", "c"): 9, ("b", "c"): 9}


def test_what_nobody_is_known_to_have_computed_is_ones_own():
    made = trace(("a", [("doc", 9)], 1))
    assert ledger(made, [0], [12]) == {("a", "a"): 12}


def test_each_replica_has_a_cache_of_its_own():
    made = trace(("a", [("doc", 10)], 1), ("b", [("doc", 10)], 1), ("c", [("doc", 10)], 1))
    apart = ["replica-0", "replica-1", "replica-0"]
    assert ledger(made, [0, 1, 2], [0, 0, 10], worker=apart) == {("a", "c"): 10}
    assert ledger(made, [0, 1, 2], [0, 0, 10], worker=None) == {("b", "c"): 10}, "nobody knows which"


# -- against a walk token by token -----------------------------------------------------------------------


def token_by_token(trace, admitted, cached):
    """Every prefix of every prompt by itself, with the client that computed its last token."""
    payer: dict[tuple[tuple[str, int], ...], str] = {}
    found: Counter[tuple[str, str]] = Counter()
    for i in sorted(range(len(cached)), key=lambda i: (admitted[i], cached[i])):
        request = trace.requests[i]
        prompt = [(id, k) for id, tokens in request.prompt for k in range(tokens)]
        reply = [(REPLY + request.id, k) for k in range(request.output_tokens)]
        for end in range(1, len(prompt) + len(reply) + 1):
            prefix = tuple([*prompt, *reply][:end])
            if end <= cached[i]:
                found[payer.get(prefix, request.client), request.client] += 1
            else:
                payer[prefix] = request.client
    return dict(found)


segments = st.tuples(st.sampled_from(["s", "t", "reply:r0", "reply:r1"]), st.integers(1, 4))
prompts = st.lists(segments, min_size=1, max_size=4)
rows = st.lists(st.tuples(st.sampled_from("abc"), prompts, st.integers(1, 3)), min_size=1, max_size=8)


@given(rows, st.data())
def test_the_walk_by_segments_is_the_walk_token_by_token(rows, data):
    made = trace(*rows)
    admitted = data.draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows)))
    cached = [data.draw(st.integers(0, request.prompt_tokens)) for request in made.requests]
    assert ledger(made, admitted, cached) == token_by_token(made, admitted, cached)


def test_a_simulated_run_pays_for_every_token_that_was_found(tmp_path):
    (cell,) = load(workloads=["mixed"], schedulers=["dlpm"], seeds=[0]).cells
    whole = generate(cell.trace_key)
    made = replace(whole, requests=whole.requests[:300])
    served = cell.backend().run(made, cell.scheduler, tmp_path, lambda share, note="": None).requests
    found = shared(made, served)
    assert found.groupby("client")["tokens"].sum().to_dict() == (
        served.groupby("client")["cached_tokens"].sum().loc[lambda tokens: tokens > 0].to_dict()
    )
    between = found["payer"] != found["client"]
    assert 0 < found.loc[between, "tokens"].sum() < found["tokens"].sum()
